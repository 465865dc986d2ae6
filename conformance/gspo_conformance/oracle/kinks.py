"""Kinks: how near a batch comes to a point where a decision flips, so that rounding could flip it.

A distance is |x - bound| over the scale of x, that is over what one unit of roundoff can do to it: a batch whose
margin is far above K u is decided alike by every correct implementation. At a bound itself the margin is 0.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from mpmath import inf, mpf

from .correction import binds, raw_weights
from .exact import each
from .loss import Response
from .penalty import ESTIMATORS, clamped
from .problem import Problem
from .ratio import Ratio
from .scales import estimator_scales, ratio_scale
from .surrogate import cispo_bounds


def kink_margin(problem: Problem, found: list[Response]) -> mpf:
    """The smallest distance of any unit from any decision; infinity where nothing is decided."""
    distances = [*_surrogate_kinks(problem, found), *_correction_kinks(problem), *_penalty_kinks(problem)]
    return min(distances, default=inf)


def distance(value: mpf, bound: mpf, scale: mpf) -> mpf:
    """|x - b| / scale, 0 where they are equal."""
    return mpf(0) if value == bound else abs(value - bound) / scale if scale else inf


def _surrogate_kinks(problem: Problem, found: list[Response]) -> Iterator[mpf]:
    """Clip, dual and weight bounds, log-space bounds of GMPO, the cap; units with A = 0 decide nothing."""
    surrogate, cap = problem.objective["surrogate"], problem.objective["log_ratio_cap"]
    nearest = partial(_nearest, surrogate, cap)
    for response in found:
        yield from each(nearest, response.ratios, response.advantages)
        yield from _sign_kinks(response)


def _nearest(surrogate: dict[str, Any], cap: mpf | None, ratio: Ratio, advantage: mpf) -> mpf:
    """The smallest distance of one unit."""
    if advantage == 0:
        return inf
    capped = [] if cap is None else [distance(ratio.uncapped, cap, ratio.reach + abs(cap))]
    return min([*_unit_kinks(surrogate, ratio, advantage), *capped], default=inf)


def _sign_kinks(response: Response) -> Iterator[mpf]:
    """The sign of an advantage that was itself computed."""
    for advantage, error in zip(response.advantages, response.advantage_scales, strict=True):
        if error:
            yield distance(advantage, mpf(0), error)


def _unit_kinks(surrogate: dict[str, Any], ratio: Ratio, advantage: mpf) -> Iterator[mpf]:
    kind = surrogate["kind"]
    clip = surrogate if kind == "clip" else surrogate.get("gate")
    if clip is not None:
        bounds = [1 + clip["high"]] if advantage > 0 else [1 - clip["low"], clip["dual"]]
        yield from (distance(ratio.value, bound, ratio_scale(ratio)) for bound in bounds if bound is not None)
    if kind == "cispo":
        yield from (distance(ratio.value, b, ratio_scale(ratio)) for b in cispo_bounds(surrogate) if b is not None)
    if kind == "gmpo":
        bound = surrogate["high"] if advantage > 0 else -surrogate["low"]
        yield distance(ratio.log, bound, ratio.spread + abs(bound))


def _correction_kinks(problem: Problem) -> Iterator[mpf]:
    """Bounds of correction weights, where a token has an advantage to weigh."""
    for correction in problem.objective["correction"]:
        bounds = [correction[side] for side in ("low", "high") if correction[side] is not None]
        numerators = problem.old_logp if correction["numerator"] == "old" else problem.logp
        rows = zip(numerators, problem.behavior_logp or [], problem.advantages, strict=True)
        for numerator, behavior, advantages in rows:
            for (weight, spread), advantage in zip(
                raw_weights(correction, numerator, behavior), advantages, strict=True
            ):
                if advantage != 0 and binds(correction, advantage):
                    yield from (distance(weight, bound, weight * (1 + spread)) for bound in bounds)


def _penalty_kinks(problem: Problem) -> Iterator[mpf]:
    """Both clamps of the penalty, and z = 0 of |z|, where the sign of an exact difference is never in doubt."""
    penalty = problem.objective["penalty"]
    if penalty is None:
        return
    for logp, ref_logp in zip(problem.logp, problem.ref_logp or [], strict=True):
        for new, ref in zip(logp, ref_logp, strict=True):
            yield from _token_penalty_kinks(penalty, new - ref)


def _token_penalty_kinks(penalty: dict[str, Any], z: mpf) -> Iterator[mpf]:
    bound, cut = penalty["log_ratio_clamp"], penalty["value_clamp"]
    if bound is not None:
        yield distance(abs(z), bound, abs(z) + bound)
    if cut is not None:
        inner = clamped(z, bound)[0]
        value = ESTIMATORS[penalty["estimator"]](inner)[0]
        yield distance(abs(value), cut, estimator_scales(penalty["estimator"], inner)[0] + cut)
    if penalty["estimator"] == "abs" and z == 0:
        yield mpf(0)
