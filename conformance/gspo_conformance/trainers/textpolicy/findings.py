"""What only the dialect of TextPolicy can know: lengths that its trainer guesses, advantages that it spreads, a clip of both sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..dialect import Finding

OWN_LENGTHS = "a loss_fn of your own, with gspo in its name, that hands the lengths to gspo.gspo_policy_loss"


def findings(every: Mapping[str, Any], mean_only: bool) -> Iterator[Finding]:
    """Each point, worst first."""
    name = every["loss_fn"]
    if name == "policy_loss_sequence":
        told = "its name has no gspo in it: the trainer makes tokens of its advantages, and every token is a response of its own"
        cost = "the ratio is that of the token and the mean that over all tokens: GRPO, not GSPO"
        fix = "gspo.create_gspo_policy_loss(variant='sequence')"
        yield Finding("expanded-advantages", "error", "loss_fn", told, "GSPO-RATIO-2", cost, fix)
    if name == "create_gspo_policy_loss":
        told = "the trainer calls it without lengths: the tokens of the batch are split evenly over its responses"
        cost = "lengths 10 8 7 5 5 3: tokens get -2.3 to 1.5 times the paper's gradient where nothing is clipped; right only where all lengths are equal"
        yield Finding("guessed-lengths", "error", "loss_fn", told, "GSPO-RATIO-2", cost, OWN_LENGTHS)
    if name in ("create_gspo_policy_loss", "gspo_policy_loss", "policy_loss_sequence"):
        told = "the ratio is clipped before the minimum is taken: outside the range no response has a gradient, whatever its sign"
        cost = "good responses below the range and bad ones above it stay as they are, where the paper turns them back"
        yield Finding("clip-both-sides", "warning", "loss_fn", told, "GSPO-SURR-2", cost)
    if mean_only:
        told = "the mean is that of all rewards of the batch, not of the responses to one prompt"
        cost = "with one prompt a batch it is the group's"
        yield Finding("batch-baseline", "warning", "advantage_fn", told, "GSPO-ADV-1", cost)
