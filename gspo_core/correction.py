"""Weights for the mismatch between the policy that sampled (behaviour) and the old (proximal) policy.

The weight multiplies the surrogate, never the ratio, never the penalty, and carries no gradient
(GSPO-CORR-4). Its level is chosen apart from the ratio's (GSPO-CORR-7).
"""

from __future__ import annotations

from dataclasses import dataclass

from .arrays import Array, clamp, times
from .sequences import Layout
from .validation import check_choice, check_field, check_flag

LEVELS = ("token", "sequence", "geometric")
ACTIONS = ("clamp", "mask", "reject")
NUMERATORS = ("old", "current")


@dataclass(frozen=True)
class Correction:
    """w = π_num/μ per token, as a product over the response, or as its geometric mean; then cut.

    `level`: "token", "sequence" (the product) or "geometric". `action`: "clamp" truncates w to [low, high]; "mask" keeps
    w inside and puts 0 outside; "reject" puts 1 inside and 0 outside. `numerator` "old" is the old (proximal) policy, "current" the policy being trained,
    detached. `negative_only` leaves responses with A >= 0 at weight 1 (off-policy sequence masking).
    Clauses GSPO-CORR-1 to GSPO-CORR-7.
    """

    level: str = "token"
    action: str = "clamp"
    low: float | None = None
    high: float | None = None
    numerator: str = "old"
    negative_only: bool = False

    def __post_init__(self) -> None:
        check_choice("level", self.level, LEVELS)
        check_choice("action", self.action, ACTIONS)
        check_choice("numerator", self.numerator, NUMERATORS)
        check_flag("negative_only", self.negative_only)
        for name in ("low", "high"):
            if getattr(self, name) is not None:
                check_field(self, name, low=0.0)
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low: expected at most high = {self.high!r}, got {self.low!r}")


def correction_weights(
    corrections: tuple[Correction, ...],
    layout: Layout,
    logp: Array,
    old_logp: Array,
    behavior_logp: Array,
    advantages: Array,
) -> Array:
    """The product of the weights at every token; `advantages` in the shape of the tokens."""
    xp = layout.xp
    weights = xp.ones_like(old_logp)
    for correction in corrections:
        numerator = old_logp if correction.numerator == "old" else layout.backend.stop_gradient(logp)
        weight = _cut(correction, layout, _raw(correction, layout, numerator - behavior_logp))
        if correction.negative_only:
            weight = xp.where(advantages < 0, weight, 1.0)
        weights = times(weights, weight)
    return layout.clean(weights)


def _raw(correction: Correction, layout: Layout, log_weight: Array) -> Array:
    if correction.level == "token":
        return layout.xp.exp(log_weight)
    reduce = layout.sum_tokens if correction.level == "sequence" else layout.mean_tokens
    return layout.spread(layout.xp.exp(reduce(log_weight)))


def _cut(correction: Correction, layout: Layout, weight: Array) -> Array:
    xp = layout.xp
    if correction.action == "clamp":
        return clamp(weight, correction.low, correction.high)
    # What is outside is looked for, so that a NaN stays (GSPO-NUM-6).
    outside = xp.zeros_like(weight, dtype=xp.bool)
    if correction.low is not None:
        outside = outside | (weight < correction.low)
    if correction.high is not None:
        outside = outside | (weight > correction.high)
    kept = weight if correction.action == "mask" else xp.where(xp.isnan(weight), weight, 1.0)
    return xp.where(outside, 0.0, kept)
