"""What happens to rewards before they become advantages: clip, normalisation, KL per token, length, which groups stay."""

import itertools
from collections.abc import Sequence
from typing import Any

from mpmath import inf, mpf

from .advantages import counted_rewards
from .exact import exact
from .kinks import distance
from .layout import layout_of
from .moments import Moments, divided, members, moments
from .penalty import ESTIMATORS
from .scales import Output, estimator_scales
from .terms import NOTHING, Outputs, Term, held, laid, one_each, one_of, sized

Numbers = Sequence[Any]

METHODS = (None, "batch", "group", "running")


def clip_rewards(rewards: Numbers, low: Any, high: Any) -> Outputs:
    """max(low, min(r, high)); a bound of 0 is a bound (GSPO-REWARD-1)."""
    below, above = exact(low), exact(high)
    if below > above:
        raise ValueError(f"high: expected at least low = {low}, got {high}")
    return {"rewards": laid([held(reward, below, above) for reward in rewards])}


def normalize_rewards(
    rewards: Numbers,
    *,
    method: str | None = "batch",
    groups: Numbers | None = None,
    shift: bool = True,
    scale: bool = True,
    ddof: Any = 1,
    eps: Any = 1e-6,
    history: Numbers | None = None,
    history_sizes: Sequence[int] | None = None,
) -> Outputs:
    """r - mean (shift), r / (std + eps) (scale), or both, over batch, group or all so far (GSPO-REWARD-2, GSPO-REWARD-3).

    With method "running" `history` holds the rewards of all earlier batches, one after another, and `history_sizes`
    how many each of them had; `rewards` is the batch that is merged last and then normalised. How the stream is cut
    does not matter to the truth.
    """
    one_of("method", method, METHODS)
    values = list(counted_rewards(rewards, None).values())
    _check_sources(method, groups, history, history_sizes)
    if method is None or not (shift or scale):
        return {"rewards": laid([(value, mpf(0)) for value in values])}
    terms = [NOTHING] * len(values)
    earlier = [exact(reward) for reward in history or []]
    for indices in _sources(method, values, groups):
        stats = moments([*earlier, *(values[index] for index in indices)])
        for index in indices:
            terms[index] = _normalized(values[index], stats, shift, scale, exact(ddof), exact(eps), method == "running")
    return {"rewards": laid(terms)}


def _check_sources(method: str | None, groups: Any, history: Any, history_sizes: Any) -> None:
    """Groups go with "group"; earlier rewards, and how they were cut, with "running"."""
    if (groups is None) is (method == "group"):
        raise ValueError(f"groups: expected with method 'group' alone, got method {method!r}")
    if (history is not None or history_sizes is not None) and method != "running":
        raise ValueError(f"history: expected with method 'running' alone, got method {method!r}")
    if sum(history_sizes or []) != len(history or []):
        raise ValueError(f"history_sizes: expected a sum of {len(history or [])}, got {history_sizes}")


def _sources(method: str, values: list[mpf], groups: Numbers | None) -> list[list[int]]:
    """Which rewards share their statistics."""
    if groups is None:
        return [list(range(len(values)))]
    one_each("groups", groups, values)
    return members(list(groups))


def _normalized(value: mpf, stats: Moments, shift: bool, scale: bool, ddof: mpf, eps: mpf, merged: bool) -> Term:
    """One reward; running moments know equal rewards to u mean|r| only."""
    term = stats.centred(value) if shift else (value, mpf(0))
    if shift and merged and stats.equal:
        term = mpf(0), stats.size
    return divided(term, stats.spread(ddof, merged=merged), eps) if scale else term


def token_kl_rewards(
    rewards: Numbers,
    logp: Any,
    ref_logp: Any,
    *,
    coefficient: Any,
    estimator: str = "k1",
    mask: Any = None,
    offsets: Any = None,
) -> Outputs:
    """r_i at the last counted token, less beta KL_t at each (GSPO-REWARD-4)."""
    one_of("estimator", estimator, tuple(ESTIMATORS))
    layout = layout_of(logp, mask=mask, offsets=offsets)
    one_each("rewards", rewards, layout.counted)
    rows = []
    for reward, new, ref in zip(rewards, layout.gather(logp), layout.gather(ref_logp), strict=True):
        row = [_kl_term(exact(coefficient), estimator, a - b) for a, b in zip(new, ref, strict=True)]
        if row:
            value, scale = sized(exact(reward))
            row[-1] = row[-1][0] + value, row[-1][1] + scale
        rows.append(row)
    return {"rewards": laid(layout.scatter(rows, NOTHING))}


def _kl_term(coefficient: mpf, estimator: str, z: mpf) -> Term:
    """-beta KL, with the scale of the estimate."""
    return -coefficient * ESTIMATORS[estimator](z)[0], abs(coefficient) * estimator_scales(estimator, z)[0]


def soft_overlong_penalty(lengths: Sequence[Any], max_length: Any, cache: Any) -> Outputs:
    """0 up to L - C, (L - C - n) / C up to L, -1 beyond (GSPO-REWARD-5)."""
    longest, ramp = exact(max_length), exact(cache)
    if not 0 < ramp <= longest:
        raise ValueError(f"cache: expected 0 < cache <= max_length = {max_length}, got {cache}")
    return {"values": laid([_overlong(exact(length), longest, ramp) for length in lengths])}


def _overlong(length: mpf, longest: mpf, ramp: mpf) -> Term:
    if length <= longest - ramp:
        return NOTHING
    return sized((longest - ramp - length) / ramp) if length <= longest else (mpf(-1), mpf(0))


def informative_groups(
    rewards: Numbers, groups: Numbers, *, low: Any = None, high: Any = None, valid: Numbers | None = None
) -> Outputs:
    """False for a group with max == min, and where the mean is not strictly inside the bounds (GSPO-REWARD-6)."""
    one_each("groups", groups, rewards)
    values = counted_rewards(rewards, valid)
    bounds = None if low is None else exact(low), None if high is None else exact(high)
    keep = [False] * len(rewards)
    for stats, inside in _informed(values, groups):
        below, above = bounds
        inform = not stats.equal and (below is None or stats.mean > below) and (above is None or stats.mean < above)
        for index in inside:
            keep[index] = inform
    return {"keep": Output(keep, [mpf(0)] * len(keep))}


def _informed(values: dict[int, mpf], groups: Numbers) -> list[tuple[Moments, list[int]]]:
    """The moments of each group and the members that they are of."""
    found = [[index for index in indices if index in values] for indices in members(list(groups))]
    return [(moments([values[index] for index in inside]), inside) for inside in found]


def informative_margin(
    rewards: Numbers, groups: Numbers, *, low: Any = None, high: Any = None, valid: Numbers | None = None
) -> mpf:
    """How near the mean of a group that varies comes to a bound, over mean|r|."""
    groups_found = [stats for stats, _ in _informed(counted_rewards(rewards, valid), groups) if not stats.equal]
    bounds = [exact(bound) for bound in (low, high) if bound is not None]
    pairs = itertools.product(groups_found, bounds)
    return min((distance(stats.mean, bound, stats.size + abs(bound)) for stats, bound in pairs), default=inf)
