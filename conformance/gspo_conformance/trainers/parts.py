"""The parts of an objective as every dialect builds and asks for them: surrogate, aggregation, KL term, correction weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .dialect import Inexpressible

CLAMPS: dict[str, Any] = {"log_ratio_clamp": 20.0, "value_clamp": 10.0}


def clip(low: float, high: float, dual: float | None = None) -> dict[str, Any]:
    """The clipped surrogate with the range 1 - low to 1 + high."""
    return {"kind": "clip", "low": low, "high": high, "dual": dual}


def upper(every: Mapping[str, Any], low: str = "epsilon", high: str = "epsilon_high") -> float:
    """The upper width of a clip range, which is the lower one where it is not given."""
    return every[low] if every[high] is None else every[high]


def held(loss: str, low: float, high: float, bound: float | None) -> dict[str, Any]:
    """CISPO whose weight `high` bounds, or a clip whose ratio `bound` holds as well."""
    return cispo_below(high) if loss == "cispo" else held_clip(low, high, bound)


def held_clip(low: float, high: float, bound: float | None) -> dict[str, Any]:
    """A clip whose ratio is held at `bound` whatever the sign of the advantage: a dual clip above the range, else its upper end."""
    if bound is None or bound >= 1 + high:
        return clip(low, high, bound)
    if bound < 1:
        raise Inexpressible(f"a bound of {bound:g} on every ratio, which ends it below 1, is not of this family")
    return clip(low, round(bound - 1, 12), 1 + high)


def check_dual(surrogate: Mapping[str, Any], told: str) -> None:
    """Refuses a dual clip inside the range where one bound holds the ratios of both signs."""
    if surrogate["dual"] is not None and surrogate["dual"] < 1 + surrogate["high"]:
        raise Inexpressible(f"{told} bounds positive advantages too: it has to be above the clip range")


def cispo(low: float | None, high: float) -> dict[str, Any]:
    """CISPO with its weight between 1 - low, which from 1 on is no bound, and 1 + high."""
    return {"kind": "cispo", "low": low if low is not None and low < 1 else None, "high": high}


def cispo_low(surrogate: Mapping[str, Any]) -> float:
    """The lower width that a trainer is given for this weight; 1 where it has no bound."""
    return 1.0 if surrogate["low"] is None else surrogate["low"]


def cispo_below(cap: float) -> dict[str, Any]:
    """CISPO with its weight held at `cap`; one below 1 is told by `bound_inside`."""
    return cispo(None, max(cap - 1, 0.0))


def aggregation(mode: str, constant: float = 1.0, count: str = "all") -> dict[str, Any]:
    """How token losses become the loss."""
    return {"mode": mode, "count": count, "constant": constant}


def kl_term(
    estimator: str,
    coefficient: float,
    *,
    importance: str | None = None,
    aggregation: Mapping[str, Any] | None = None,
    log_ratio_clamp: float | None = None,
    value_clamp: float | None = None,
) -> dict[str, Any]:
    """A KL term; as it comes it has no weight and no clamps, and is aggregated as the loss is."""
    return {
        "estimator": estimator,
        "coefficient": coefficient,
        "importance": importance,
        "aggregation": aggregation,
        "log_ratio_clamp": log_ratio_clamp,
        "value_clamp": value_clamp,
    }


def clamps(estimator: str) -> dict[str, Any]:
    """The clamps of an estimator in verl, and in many after it."""
    return CLAMPS if estimator == "k3" else {}


def check_kl(penalty: Mapping[str, Any], trainer: str) -> None:
    """Refuses a weight of the KL term, an aggregation of its own, and clamps other than those of verl."""
    own, none = {name: penalty[name] for name in CLAMPS}, dict.fromkeys(CLAMPS)
    if penalty["importance"] or penalty["aggregation"] or own not in (none, clamps(penalty["estimator"])):
        raise Inexpressible(
            f"{trainer}'s KL term has no importance weight, no aggregation and no clamps of its own choice"
        )


def plain_k3(penalty: Mapping[str, Any], *but: str) -> bool:
    """Whether a KL term is k3 as it comes, whatever it has under the names `but`."""
    asked = {"importance", "aggregation", "log_ratio_clamp", "value_clamp"} - set(but)
    return penalty["estimator"] == "k3" and all(penalty[name] is None for name in asked)


def weight(
    level: str,
    action: str,
    low: float | None = None,
    high: float | None = None,
    *,
    numerator: str = "old",
    negative_only: bool = False,
) -> dict[str, Any]:
    """A correction weight; as it comes that of the old policy over the sampler, for every response."""
    bounds = {"low": low, "high": high}
    return {"level": level, "action": action, **bounds, "numerator": numerator, "negative_only": negative_only}
