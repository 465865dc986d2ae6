"""What only ART's arguments can do: advantages that the batch rescales, weights of the wrong ratio, a cap that clips both ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..dialect import Finding

CAP = "max_negative_advantage_importance_sampling_weight"


def findings(every: Mapping[str, Any], surrogate: Mapping[str, Any]) -> Iterator[Finding]:
    """Each point, where it holds."""
    yield from _surrogate(every, surrogate)
    yield from _weights(every)
    yield from _advantages(every)


def _surrogate(every: Mapping[str, Any], surrogate: Mapping[str, Any]) -> Iterator[Finding]:
    if every["mask_prob_ratio"]:
        told = "responses outside the range lose their gradient whatever the sign of their advantage"
        cost = "the paper keeps those that move back towards the range: A > 0 below it, A < 0 above it"
        yield Finding(
            "two-sided-mask", "warning", "mask_prob_ratio", told, "GSPO-SURR-2", cost, "mask_prob_ratio=False"
        )
    cap = every[CAP]
    if cap and surrogate["kind"] == "clip" and cap <= 1 + surrogate["high"]:
        told = (
            f"despite its name it bounds the ratio of positive advantages too: these lose their gradient above {cap:g}"
        )
        yield Finding("cap-below-range", "warning", CAP, told, "GSPO-SURR-5", fix=f"no {CAP}")


def _weights(every: Mapping[str, Any]) -> Iterator[Finding]:
    if every["truncated_importance_sampling"] and not every["precalculate_logprobs"]:
        told = "without precalculate_logprobs there is nothing to correct, and the loss is multiplied by the policy's own ratio once more"
        cost = "a response counts s_i times, up to the bound, what it does in the paper; on the Megatron backend with the key too, which it never reads"
        key = "truncated_importance_sampling"
        yield Finding("ratio-twice", "error", key, told, "GSPO-CORR-1", cost, "precalculate_logprobs=True")
    if not every["precalculate_logprobs"]:
        told = "the ratio is to the log-probabilities of the sampler, whose numerics enter s_i"
        key, cost = "precalculate_logprobs", "the Megatron backend never reads the key: there it is always so"
        yield Finding("old-policy", "note", key, told, "GSPO-DATA-5", cost, fix="precalculate_logprobs=True")


def _advantages(every: Mapping[str, Any]) -> Iterator[Finding]:
    told = "packing divides advantages by their mean size over the batch, whatever their size was"
    cost = "a winner among 8, alone in a batch, gets 4.0 where its group gives it 2.65; eight such groups get the same"
    yield Finding("advantage-rescaling", "note", "", told, "GSPO-ADV-10", cost)
    if every["advantage_balance"]:
        side = "negative" if every["advantage_balance"] > 0 else "positive"
        told = f"{side} advantages are multiplied by {1 - abs(every['advantage_balance']):g}"
        yield Finding(
            "advantage-balance", "warning", "advantage_balance", told, "GSPO-ADV-1", fix="advantage_balance=0.0"
        )
    if every["kl_penalty_coef"]:
        told = "the deviation of every token's log-ratio to the reference from the mean of the row is added to its advantage"
        yield Finding("kl-in-advantage", "warning", "kl_penalty_coef", told, "GSPO-KL-7", fix="kl_penalty_coef=0.0")
    if every["kimi_k2_tau"]:
        told = "every token's own log-ratio is taken from its advantage"
        yield Finding("log-ratio-in-advantage", "warning", "kimi_k2_tau", told, "GSPO-ADV-1", fix="kimi_k2_tau=None")
