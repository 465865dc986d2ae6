"""What only the dialect of Tunix can know: fields of one config that the other lacks, packing, clamps of tokens, dropped keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..dialect import Finding


def findings(every: Mapping[str, Any], agentic: bool, unknown: list[str]) -> Iterator[Finding]:
    """Each point, worst first."""
    gspo = every["loss_algo"] == "gspo-token"
    if gspo and every["max_seq_token_per_tpu"] is not None:
        yield Finding(
            "packing",
            "error",
            "max_seq_token_per_tpu",
            "packed responses share one ratio: the mean of the log-ratios of a whole packed row",
            "GSPO-PACK-2",
            "six responses in a row: their gradients are 0.35 to 2.2 times the paper's, and clipped ones get one",
            "max_seq_token_per_tpu=None",
        )
    for key in unknown:
        told = "not a field of the agentic GRPOConfig: the command line drops it without a word"
        yield Finding("key-ignored", "error", key, told)
    if every["beta"] and every["kl_loss_mode"] == "kl":
        yield Finding(
            "k1-in-loss",
            "warning",
            "kl_loss_mode",
            "k1 as a loss has the gradient of log π itself: where samples are the policy's own, nothing on average",
            "GSPO-KL-1",
            f"every counted token of response i gets {every['beta']:g}/(G|y_i|), whether or not the policy has moved",
            "kl_loss_mode='low_var_kl', or beta=0.0",
        )
    if every["degenerate_group_masking"]:
        told = "groups of equal rewards are masked out, and the mean is over the responses that are left"
        yield Finding("group-masking", "note", "degenerate_group_masking", told, "GSPO-AGG-7")
    if gspo and agentic and every["use_rollout_logps"] and every["sampler_is"] is None:
        told = "the ratio is taken to the log-probabilities of the sampler, its mismatch included"
        yield Finding("sampler-as-old", "note", "use_rollout_logps", told, "GSPO-DATA-5")
    if gspo:
        told = "the log-ratio of every token is clamped to ±20 before the mean over the response"
        cost = "one token 30 apart in a response of three: its gradient is 0.03 of the paper's"
        yield Finding("token-clamp", "note", "loss_algo", told, "GSPO-RATIO-6", cost)
