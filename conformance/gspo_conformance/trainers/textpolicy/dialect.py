"""TextPolicy's `Trainer` takes functions: `loss_fn` names the one of the loss, the other keys are that function's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Inexpressible, Reading, completed
from .findings import findings

DEFAULTS: dict[str, Any] = {
    "loss_fn": "create_gspo_policy_loss",
    "variant": "sequence",
    "clip_ratio": None,
    "clip_ratio_low": 0.2,
    "clip_ratio_high": 0.28,
    "normalize_constant": None,
    "advantage_fn": "compute_advantages",
    "on_policy": True,
}
# The trainer tells a loss over responses by the "gspo" in its name; it makes tokens of the advantages of every other.
GSPO = ("create_gspo_policy_loss", "gspo_policy_loss")
VARIANTS = {"policy_loss_sequence": "sequence", "policy_loss_token": "token", "policy_loss_hybrid": "hybrid"}
MEAN_ONLY = ("compute_advantages", "compute_advantages_dr_grpo", "compute_advantages_compiled")


class TextPolicy(Dialect):
    """`gspo_policy_loss` has the lengths of the responses and the paper's mean over them; the trainer hands it none."""

    name = "textpolicy"
    versions = ("0.1.11",)
    clip_keys = ("clip_ratio",)
    in_programs_alone = True
    fixes: ClassVar[dict[str, str]] = {
        "ratio": "loss_fn=gspo.create_gspo_policy_loss(variant='sequence')",
        "aggregation": "loss_fn=gspo.create_gspo_policy_loss(variant='sequence')",
        "clip": "clip_ratio=3e-4, on both sides",
        "updates": "on_policy=False, so that the buffer is kept for more than one update",
        "scale": "an advantage_fn of your own",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What a trainer with these functions optimises."""
        given, every = completed(settings, DEFAULTS)
        every["loss_fn"] = str(every["loss_fn"]).rpartition(".")[2]
        objective = {**PAPER, **_loss(every)}
        known = str(every["advantage_fn"]).rpartition(".")[2] in MEAN_ONLY
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages={"center": "mean", "scale": "none"} if known else None,
            estimator="group" if known else "unknown",
            updates_per_rollout=1 if every["on_policy"] else None,
            settings=every,
            given=frozenset(given),
            findings=tuple(findings(every, known)),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The function and its arguments for an objective."""
        surrogate, aggregation = objective["surrogate"], objective["aggregation"]
        if objective["correction"] or objective["penalty"] or objective["log_ratio_cap"] is not None:
            raise Inexpressible(
                "TextPolicy's losses have no correction weights, no KL term and no cap of the log-ratio"
            )
        if surrogate["kind"] != "clip" or surrogate["dual"] is not None or aggregation["count"] != "all":
            raise Inexpressible(f"TextPolicy has no surrogate {surrogate['kind']}, no dual clip, and counts everything")
        form = (objective["ratio"], aggregation["mode"])
        if form == ("sequence", "sequence_mean_token_mean"):
            return {"loss_fn": "gspo_policy_loss", "variant": "sequence", "clip_ratio": _one_range(surrogate)}
        if form not in (("token", "token_mean"), ("token", "token_sum")):
            raise Inexpressible(f"TextPolicy has no {form[0]} ratio aggregated by {form[1]}")
        constant = aggregation["constant"] if form[1] == "token_sum" else None
        sides = {"clip_ratio_low": surrogate["low"], "clip_ratio_high": surrogate["high"]}
        return {"loss_fn": "policy_loss", **sides, "normalize_constant": constant}

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """`create_gspo_policy_loss(variant="sequence")` with a clip range."""
        return {"loss_fn": "create_gspo_policy_loss", "variant": "sequence", "clip_ratio": _one_range(clip)}


def _one_range(clip: Mapping[str, Any]) -> float:
    if clip["low"] != clip["high"]:
        raise Inexpressible("TextPolicy's GSPO has one clip range for both sides")
    return clip["low"]


def _loss(every: Mapping[str, Any]) -> dict[str, Any]:
    """Ratio, surrogate and aggregation, as the trainer runs the function."""
    name = every["loss_fn"]
    variant = every["variant"] if name in GSPO else VARIANTS.get(name, "token")
    if variant == "hybrid" or (variant not in ("sequence", "token")):
        raise Inexpressible(f"the weights of TextPolicy's variant {variant!r}, s^alpha w^beta, are not of this family")
    if name not in (*GSPO, *VARIANTS, "policy_loss"):
        raise Inexpressible(f"loss_fn {name!r} is none of TextPolicy's own losses of this family")
    sequence = variant == "sequence" and name in GSPO
    return {
        "ratio": "sequence" if sequence else "token",
        "surrogate": _surrogate(every),
        "aggregation": PAPER["aggregation"] if sequence else _over_tokens(every),
    }


def _surrogate(every: Mapping[str, Any]) -> dict[str, Any]:
    both = every["clip_ratio"]
    if every["loss_fn"] in VARIANTS or (every["loss_fn"] in GSPO and both is None):
        both = 0.2
    low, high = (every["clip_ratio_low"], every["clip_ratio_high"]) if both is None else (both, both)
    return parts.clip(low, high)


def _over_tokens(every: Mapping[str, Any]) -> dict[str, Any]:
    constant = every["normalize_constant"] if every["loss_fn"] == "policy_loss" else None
    return parts.aggregation("token_mean") if constant is None else parts.aggregation("token_sum", float(constant))


DIALECT = TextPolicy()
