"""Scales: how far a correct computation may stray, in units of roundoff u, to first order.

A scale is |value| plus, for each thing the value is computed from, |d value / d thing| times what u does to that thing.
log-probabilities are exact inputs, so d = logp - old_logp errs by u |d|, a mean of d by u mean|d|, exp adds its own u.
An output with scale 0 is owed exactly. A target conforms when |got - truth| <= K u scale with a small K.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from mpmath import exp, mpf

from . import surrogate as _surrogate
from .exact import each
from .penalty import ESTIMATORS, Penalty, clamped, estimate, importance
from .ratio import Ratio, mean, token_log_ratios

Surrogate = dict[str, Any]
Rule = Callable[[Surrogate, Ratio, mpf], mpf]


@dataclass(frozen=True)
class Output:
    """A truth and its scale: numbers, or lists of one shape."""

    value: Any
    scale: Any


def relative(ratio: Ratio) -> mpf:
    """1 + spread: the relative error of x = exp(l) in units of roundoff."""
    return 1 + ratio.spread


def ratio_scale(ratio: Ratio) -> mpf:
    """x (1 + mean|d|)."""
    return ratio.value * relative(ratio)


def unit_value_scale(surrogate: Surrogate, ratio: Ratio, logp: mpf, advantage: mpf) -> mpf:
    """|J| + |dJ/dl| times the spread of l: a value at a bound does not feel the ratio."""
    if advantage == 0:
        return mpf(0)
    kind = surrogate["kind"]
    if kind in ("cispo", "vespo", "reinforce"):
        return unit_slope_scale(surrogate, ratio, advantage) * abs(logp)
    value = abs(_surrogate.unit_value(surrogate, ratio, ratio, advantage, logp))
    if kind == "sapo":
        return value + abs(_surrogate.unit_slope(surrogate, ratio, advantage)) * _sapo_argument(ratio) / ratio.value
    return value + abs(_surrogate.unit_slope(surrogate, ratio, advantage)) * ratio.spread


def _sapo_argument(ratio: Ratio) -> mpf:
    """The error of x - 1: x (1 + spread) + |x - 1|."""
    return ratio_scale(ratio) + abs(ratio.value - 1)


def _sapo_slope_scale(surrogate: Surrogate, ratio: Ratio, advantage: mpf) -> mpf:
    """|g| (1 + spread) + 4 x |A| (p (1-p) |1-2p| tau err(x-1) + p^2): the last because 1 - p cancels as p -> 1."""
    tau = _surrogate.sapo_temperature(surrogate, advantage)
    p = _surrogate.sigmoid(tau * (ratio.value - 1))
    slope = abs(_surrogate.unit_slope(surrogate, ratio, advantage))
    bend = p * (1 - p) * abs(1 - 2 * p) * tau * _sapo_argument(ratio)
    return slope * relative(ratio) + 4 * ratio.value * abs(advantage) * (bend + p**2)


def _cispo_slope_scale(surrogate: Surrogate, ratio: Ratio, advantage: mpf) -> mpf:
    """|w A|, times 1 + spread where the weight is the ratio itself."""
    weight = _surrogate.cispo_weight(surrogate, ratio.value)
    return weight * abs(advantage) * (relative(ratio) if weight == ratio.value else 1)


def _vespo_slope_scale(surrogate: Surrogate, ratio: Ratio, advantage: mpf) -> mpf:
    """|w A| (1 + k (1 + spread) + lambda err(x - 1)), w = x^k e^{lambda (1 - x)}."""
    k, lam = _surrogate.vespo_shape(surrogate, advantage)
    weight = _surrogate.vespo_weight(surrogate, ratio.value, advantage)
    return weight * abs(advantage) * (1 + k * relative(ratio) + lam * _sapo_argument(ratio))


_SLOPE_SCALES: dict[str, Rule] = {
    "reinforce": lambda s, ratio, a: abs(_surrogate.unit_slope(s, ratio, a)),
    "cispo": _cispo_slope_scale,
    "sapo": _sapo_slope_scale,
    "vespo": _vespo_slope_scale,
}


def unit_slope_scale(surrogate: Surrogate, ratio: Ratio, advantage: mpf) -> mpf:
    """|dJ/dl| (1 + spread) unless the surrogate bends; 0, so exactly zero is owed, where A = 0 or the gate is closed."""
    if advantage == 0:
        return mpf(0)
    rule = _SLOPE_SCALES.get(surrogate["kind"])
    if rule is not None:
        return rule(surrogate, ratio, advantage)
    return abs(_surrogate.unit_slope(surrogate, ratio, advantage)) * relative(ratio)


def gmpo_scale(surrogate: Surrogate, ratios: list[Ratio], advantage: mpf) -> mpf:
    """|J| (1 + mean|n|)."""
    bounded = [_surrogate.gmpo_log_ratio(surrogate, ratio.log, advantage) for ratio in ratios]
    spread = mean(
        [max(abs(n), ratio.spread if n == ratio.log else mpf(0)) for n, ratio in zip(bounded, ratios, strict=True)]
    )
    return abs(_surrogate.gmpo_value(surrogate, ratios, advantage)) * (1 + spread)


def from_advantage(scale: mpf, advantage: mpf, error: mpf, at_one: Callable[[mpf], mpf]) -> mpf:
    """Scale + |J / A| err(A): everything is linear in A; at A = 0 take its size at A = 1 and A = -1."""
    if not error:
        return scale
    return scale * (1 + error / abs(advantage)) if advantage else max(at_one(mpf(1)), at_one(mpf(-1))) * error


def response_value_scales(
    surrogate: Surrogate, ratios: list[Ratio], advantages: list[mpf], errors: list[mpf], logp: list[mpf]
) -> list[mpf]:
    """The scale of J at every counted token of one response; `errors` are the scales of the advantages."""
    if surrogate["kind"] == "gmpo":
        return [_gmpo_value_scale(surrogate, ratios, advantages[0], errors[0])] * len(ratios) if ratios else []

    def scale(ratio: Ratio, advantage: mpf, error: mpf, log: mpf) -> mpf:
        of = partial(unit_value_scale, surrogate, ratio, log)
        return from_advantage(of(advantage), advantage, error, of)

    moving = logp if surrogate["kind"] in _surrogate.PER_TOKEN_SURROGATES else [mpf(0)] * len(logp)
    return each(scale, ratios, advantages, errors, moving)


def response_slope_scales(
    surrogate: Surrogate, ratios: list[Ratio], advantages: list[mpf], errors: list[mpf]
) -> list[mpf]:
    """The scale of dJ/dl at every counted token of one response."""

    def scale(ratio: Ratio, advantage: mpf, error: mpf) -> mpf:
        of = partial(unit_slope_scale, surrogate, ratio)
        return from_advantage(of(advantage), advantage, error, of)

    return each(scale, ratios, advantages, errors)


def _gmpo_value_scale(surrogate: Surrogate, ratios: list[Ratio], advantage: mpf, error: mpf) -> mpf:
    scale = gmpo_scale(surrogate, ratios, advantage) if advantage else mpf(0)
    return from_advantage(scale, advantage, error, lambda one: gmpo_scale(surrogate, ratios, one))


def estimator_scales(estimator: str, z: mpf) -> tuple[mpf, mpf]:
    """Scales of (kl, kl'): k3 is e^{-z} + z - 1, three terms that cancel near z = 0, so its scale is their size."""
    size, decay = abs(z), exp(-z)
    cancelling = decay * (1 + size) + size + 1
    return {
        "k1": (size, mpf(1)),
        "k2": (z**2, size),
        "k3": (cancelling, 1 + decay * (1 + size)),
        "k3_plus": (cancelling + z**2, size),
        "abs": (size, mpf(1 if size else 0)),
    }[estimator]


def _estimate_scales(penalty: Penalty, z: mpf) -> tuple[mpf, mpf]:
    """Scales of (kl, kl') behind both clamps: a value at its bound errs by the bound's rounding, a cut slope is exactly 0."""
    inner, moves = clamped(z, penalty["log_ratio_clamp"])
    value, slope = estimator_scales(penalty["estimator"], inner)
    cut = penalty["value_clamp"]
    if cut is not None and abs(ESTIMATORS[penalty["estimator"]](inner)[0]) > cut:
        return abs(cut), mpf(0)
    return value, slope if moves else mpf(0)


def _importance_spread(penalty: Penalty, logp: list[mpf], old_logp: list[mpf]) -> list[mpf]:
    """The relative error of the importance weight: 0, 1 + |d_t|, or 1 + mean|d|."""
    sizes = [abs(log) for log in token_log_ratios(logp, old_logp)]
    per_token = {None: lambda: [mpf(0)] * len(sizes), "token": lambda: [1 + size for size in sizes]}
    return per_token.get(penalty["importance"], lambda: [1 + mean(sizes)] * len(sizes))()


def response_penalty_scales(
    penalty: Penalty, logp: list[mpf], ref_logp: list[mpf], old_logp: list[mpf]
) -> tuple[list[mpf], list[mpf]]:
    """Scales of the weighted kl_t and of its slope at every counted token of one response."""
    pairs = [estimate(penalty, new - ref) for new, ref in zip(logp, ref_logp, strict=True)]
    scales = [_estimate_scales(penalty, new - ref) for new, ref in zip(logp, ref_logp, strict=True)]
    spreads = _importance_spread(penalty, logp, old_logp)
    weights = importance(penalty, logp, old_logp)
    values = [
        w * (scale + abs(kl) * e) for w, (scale, _), (kl, _), e in zip(weights, scales, pairs, spreads, strict=True)
    ]
    slopes = [
        w * (scale + abs(kl) * e) for w, (_, scale), (_, kl), e in zip(weights, scales, pairs, spreads, strict=True)
    ]
    through = {None: lambda t: mpf(0), "token": lambda t: values[t], "sequence": lambda t: mean(values)}
    extra = through[penalty["importance"]]
    return values, [slope + extra(t) for t, slope in enumerate(slopes)]


def product_scale(value: mpf, value_scale: mpf, factor: mpf, factor_scale: mpf) -> mpf:
    """|v| err(w) + |w| err(v)."""
    return abs(value) * factor_scale + abs(factor) * value_scale
