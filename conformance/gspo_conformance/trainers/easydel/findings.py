"""What only the dialect of EasyDeL can know: the clip of negative advantages, fields that nothing reads, lengths that are not lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..dialect import Finding


def findings(every: Mapping[str, Any]) -> Iterator[Finding]:
    """Each point, worst first."""
    loss, sequence = every["loss_type"], every["importance_sampling_level"] == "sequence"
    if int(every["num_iterations"]) > 1:
        told = f"num_iterations = {every['num_iterations']} is read by nothing: a generated batch gives one update"
        yield Finding("key-ignored", "error", "num_iterations", told, "GSPO-RATIO-8")
    if loss == "cispo":
        told = "the weight of CISPO is not detached, its own gradient enters"
        cost = "inside the clip gradients are 1 + log π times CISPO's: tokens less likely than 0.37 are pushed the wrong way"
        yield Finding("live-weight", "error", "loss_type", told, "GSPO-SURR-8", cost, "loss_type='grpo'")
    else:
        yield Finding(
            "clip-inverted",
            "warning",
            "epsilon",
            "for a negative advantage the larger of the two terms is taken: the optimistic bound, not the paper's",
            "GSPO-SURR-2",
            "below the range a negative response keeps its gradient, above it it loses it; without effect while the ratio is 1",
        )
    if loss == "dr_grpo" and sequence and not every["beta"]:
        told = "dr_grpo divides by the columns of the loss, and a sequence ratio without a KL term has one: by 1, not by the length"
        yield Finding(
            "one-column", "warning", "loss_type", told, "GSPO-AGG-5", "gradients are the length times as large"
        )
    if every["max_loss_completion_tokens"]:
        told = "tokens beyond it leave the loss, the ratio and the length"
        yield Finding("truncated-loss", "warning", "max_loss_completion_tokens", told, "GSPO-DATA-1")
    if every["top_entropy_quantile"] < 1:
        told = "tokens of low entropy leave the loss, while the sequence ratio still sends gradient to them"
        fix = "top_entropy_quantile=1.0"
        yield Finding("entropy-mask", "warning", "top_entropy_quantile", told, "GSPO-DATA-1", fix=fix)
    if (every["num_generations"] or every["num_return_sequences"]) == 1:
        told = "one response a prompt: the mean of the group is the reward itself, every advantage is 0"
        yield Finding("group-size", "error", "num_return_sequences", told, "GSPO-ADV-4", fix="num_return_sequences=8")
