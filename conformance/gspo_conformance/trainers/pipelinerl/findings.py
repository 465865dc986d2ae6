"""What only PipelineRL's keys can do: keys that `gspo` never reads, keys that nothing reads, sums without a count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..dialect import Finding, lone

TUNE, RL = "finetune.", "finetune.rl."


def findings(every: Mapping[str, Any]) -> Iterator[Finding]:
    """Each point, where it holds."""
    own = {key.removeprefix(RL): value for key, value in every.items()}
    if own["policy_loss"] == "gspo":
        yield from _ignored_by_gspo(own)
    else:
        yield from _beside_the_loss(own)
    yield from _read_by_nothing(own)
    if own["group_normalization"]:
        key = RL + "group_normalization"
        told = "tokens are divided by the mean length of their group, prompts included, and by no number of responses"
        cost = "the loss grows with the responses of a step; a response still weighs by its length"
        yield Finding("loss-scale", "warning", key, told, "GSPO-AGG-1", cost, f"{key}=false")
    if own[TUNE + "attempts"] == 1 and "value-head" not in str(own[TUNE + "model_class"]):
        key = TUNE + "attempts"
        yield lone(key, "nothing is learnt", f"{key}=8", "its own reward is its baseline, and every advantage is 0")


def _ignored_by_gspo(own: Mapping[str, Any]) -> Iterator[Finding]:
    if not own[TUNE + "seq_packing"]:
        key = TUNE + "seq_packing"
        told = "gspo is refused without packed sequences"
        yield Finding("refused", "error", key, told, "GSPO-PACK-1", "the run stops at its first step", f"{key}=true")
    if own["kl_coef"] or own["final_kl_coef"]:
        key = RL + "kl_coef"
        told = f"kl_coef = {own['kl_coef']:g} has no effect: the KL term is added to the other losses alone"
        cost = "log-probabilities of the reference are asked for all the same"
        yield Finding("kl-ignored", "error", key, told, "GSPO-KL-1", cost, f"{key}=0")
    bonus = [key for key in ("entropy_bonus", "final_entropy_bonus") if own[key]]
    changed = [key for key in ("relu_log_p_weights",) if own[key]] + ["use_advantages"] * (not own["use_advantages"])
    for key in (*bonus, *changed):
        told = f"{key} = {own[key]} has no effect on gspo"
        yield Finding("key-ignored", "warning", RL + key, told, "GSPO-AGG-1", fix=f"no {RL}{key}")


def _beside_the_loss(own: Mapping[str, Any]) -> Iterator[Finding]:
    if own["entropy_bonus"] or own["final_entropy_bonus"]:
        key = RL + "entropy_bonus"
        yield Finding("entropy-bonus", "warning", key, "an entropy bonus is added", "GSPO-AGG-1", fix=f"{key}=0")
    if own["relu_log_p_weights"]:
        key = RL + "relu_log_p_weights"
        yield Finding(
            "advantage-clip", "warning", key, "negative advantages are set to 0", "GSPO-ADV-12", fix=f"{key}=false"
        )
    if own["final_kl_coef"] != own["kl_coef"]:
        key = RL + "final_kl_coef"
        told = f"the coefficient of the KL term goes from {own['kl_coef']:g} to {own['final_kl_coef']:g} over the run"
        yield Finding("kl-schedule", "note", key, told, "GSPO-KL-1")


def _read_by_nothing(own: Mapping[str, Any]) -> Iterator[Finding]:
    for key, plain in (("reward_minus_kl_coef", 0.0), ("aggregate_loss", "sum")):
        if own[key] != plain:
            told = f"{key} = {own[key]} is read by nothing"
            yield Finding("key-ignored", "warning", RL + key, told, "GSPO-AGG-1", fix=f"no {RL}{key}")
