"""What only the dialect of StateSet Agents can know: fields that a named objective or the trainer never reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..dialect import Finding, entropy_bonus

IGNORED = ("mini_batch_size",)


def findings(every: Mapping[str, Any], fields: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[Finding]:
    """Each point, worst first."""
    ranges = [key for key in ("clip_range_left", "clip_range_right") if key in given]
    if ranges and every["objective"] is not None:
        told = f"a named objective keeps its own clip range, -{fields['clip_low']:g} / +{fields['clip_high']:g}: {ranges[0]} never reaches the loss"
        fix = "no objective, or objective_overrides of clip_low and clip_high"
        yield Finding("clip-range-ignored", "error", ranges[0], told, "GSPO-SURR-3", fix=fix)
    if fields["ratio"] == "token":
        told = "GSPOTrainer refuses a token ratio: its rollouts have log-probabilities of whole responses"
        yield Finding("refused", "error", "objective", told, "GSPO-RATIO-2", fix="no objective")
    for key in IGNORED:
        if key in given:
            yield Finding(
                "key-ignored", "warning", key, "GSPOTrainer never reads it: every update is of the whole batch"
            )
    if fields["kl"] == "k3_sequence" and fields["kl_coef"]:
        told = "the KL term is k3 of the mean log-ratio of a response, not the mean of k3 over its tokens"
        yield Finding(
            "kl-of-mean", "warning", "beta", told, "GSPO-KL-3", "it is smaller: deviations of tokens cancel", "beta=0.0"
        )
    if fields["entropy_coef"]:
        key = "objective_overrides.entropy_coef"
        yield entropy_bonus(key, fields["entropy_coef"], f"{key}=0")
    if not every["rescore_old_log_probs"]:
        told = "the ratio is taken to the generator's log-probabilities, its mismatch included"
        yield Finding("sampler-as-old", "note", "rescore_old_log_probs", told, "GSPO-DATA-5")
