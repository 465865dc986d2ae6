"""ROLL's workers with losses of their own, of which `actor_train.pg_variant` names one; `importance_sampling` is not read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .. import parts
from ..dialect import Finding, Inexpressible

ACTOR = "actor_train."
WORKER, VARIANT = f"{ACTOR}worker_cls", f"{ACTOR}pg_variant"
DEFAULTS: dict[str, Any] = {
    WORKER: "",
    VARIANT: "vanilla",
    f"{ACTOR}tis_lower_bound": 0.0,
    f"{ACTOR}tis_upper_bound": 1.0,
    f"{ACTOR}cispo_epsilon_low": 0.1,
    f"{ACTOR}cispo_epsilon_high": 0.1,
    f"{ACTOR}cispo_use_unified_mask": False,
}
OTHER_WORKER = f"{WORKER}: roll.pipeline.rlvr.actor_worker.ActorWorker"


def is_variant(settings: Mapping[str, Any]) -> bool:
    """Whether the worker has losses of its own."""
    return "_pg_worker." in str(settings.get(WORKER, ""))


def surrogate(every: Mapping[str, Any], clip: Mapping[str, Any]) -> Mapping[str, Any]:
    """The surrogate of a variant, `clip` that of `ppo`."""
    variant = every[VARIANT]
    if variant == "ppo":
        return clip
    if variant == "vanilla":
        return {"kind": "reinforce", "gate": None}
    if variant == "tis":
        return _weight(variant, 1 - every[f"{ACTOR}tis_lower_bound"], every[f"{ACTOR}tis_upper_bound"] - 1)
    if variant == "cispo" and not every[f"{ACTOR}cispo_use_unified_mask"]:
        return _weight(variant, every[f"{ACTOR}cispo_epsilon_low"], every[f"{ACTOR}cispo_epsilon_high"])
    mask = " with cispo_use_unified_mask" if variant == "cispo" else ""
    raise Inexpressible(f"the pg_variant {variant}{mask} is not an objective of this family")


def _weight(variant: str, low: float, high: float) -> dict[str, Any]:
    """A weight held between bounds, which have 1 between them."""
    if low < 0 or high < 0:
        raise Inexpressible(f"the bounds of the pg_variant {variant} leave out a weight of 1")
    return parts.cispo(low, high)


def findings(settings: Mapping[str, Any], agents: bool) -> Iterator[Finding]:
    """The key that switches elsewhere, whether it is set or about to be."""
    if not agents:
        severity = "error" if "importance_sampling" in settings else "note"
        told = "importance_sampling is not read by this worker: its ratio is that of a token"
        yield Finding("key-ignored", severity, "importance_sampling", told, "GSPO-RATIO-2", fix=OTHER_WORKER)
