"""Advantages per token: return-to-go, generalised advantage estimation, whitening, REINFORCE++."""

from collections.abc import Sequence
from typing import Any

from mpmath import mpf, sqrt

from .exact import as_dtype, exact
from .layout import Layout, layout_of
from .moments import members, moments
from .ratio import mean
from .terms import NOTHING, Outputs, Term, laid, one_each, total

Numbers = Sequence[Any]
Terms = list[Term]


def reinforce_returns(rewards: Any, *, gamma: Any = 1.0, mask: Any = None, offsets: Any = None) -> Outputs:
    """R_t = sum_l gamma^l r_{t+l} over counted tokens (GSPO-ADV-8)."""
    layout = layout_of(rewards, mask=mask, offsets=offsets)
    rows = [_exact_terms(row) for row in layout.gather(rewards)]
    found = [discounted([_added(term) for term in row], _fraction("gamma", gamma)) for row in rows]
    return {"returns": laid(layout.scatter(found, NOTHING))}


def gae_advantages(
    rewards: Any,
    values: Any,
    *,
    gamma: Any = 1.0,
    lam: Any = 1.0,
    bootstrap: Numbers | None = None,
    mask: Any = None,
    offsets: Any = None,
) -> Outputs:
    """A_t = sum_l (gamma lam)^l (r + gamma V' - V)_{t+l} over counted tokens, and A + V (GSPO-ADV-9)."""
    layout = layout_of(rewards, mask=mask, offsets=offsets)
    ends = [0] * len(layout.counted) if bootstrap is None else bootstrap
    one_each("bootstrap", ends, layout.counted)
    discount, decay = _fraction("gamma", gamma), _fraction("lam", lam)
    advantages, returns = [], []
    for row, estimates, end in zip(layout.gather(rewards), layout.gather(values), ends, strict=True):
        found = discounted(_temporal_differences(row, estimates, exact(end), discount), discount * decay)
        advantages.append(found)
        returns.append([(a + v, scale + abs(v)) for (a, scale), v in zip(found, estimates, strict=True)])
    return {
        name: laid(layout.scatter(rows, NOTHING)) for name, rows in (("advantages", advantages), ("returns", returns))
    }


def _temporal_differences(rewards: list[mpf], values: list[mpf], end: mpf, gamma: mpf) -> Terms:
    """delta_t = r_t + gamma V_{t+1} - V_t, and the size of its terms."""
    following = [*values, end][1:]
    parts = list(zip(rewards, following, values, strict=True))
    return [(r + gamma * later - v, abs(r) + gamma * abs(later) + abs(v)) for r, later, v in parts]


def discounted(terms: Terms, factor: mpf) -> Terms:
    """y_t = sum_l f^l x_{t+l}; the scale is the sum of |terms|, each as often again as a rounded factor enters it."""
    rounded = mpf(0) if as_dtype(factor, "float32") == factor else mpf(1)
    value = scale = drift = mpf(0)
    found = []
    for term, size in reversed(terms):
        drift = factor * (drift + rounded * scale)
        value, scale = term + factor * value, size + factor * scale
        found.append((value, scale + drift))
    return found[::-1]


def _exact_terms(row: list[mpf]) -> Terms:
    return [(value, mpf(0)) for value in row]


def _added(term: Term) -> Term:
    """A term of a sum: its error, and |v| for the additions that it takes part in."""
    return term[0], term[1] + abs(term[0])


def _fraction(name: str, value: Any) -> mpf:
    number = exact(value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
    return number


def whiten(
    values: Any, *, center: bool = True, ddof: Any = 1, eps: Any = 1e-8, mask: Any = None, offsets: Any = None
) -> Outputs:
    """(v - mean) / sqrt(var + eps) over all counted entries; the mean added back without centring (GSPO-ADV-10)."""
    layout = _whole(values) if mask is None and offsets is None else layout_of(values, mask=mask, offsets=offsets)
    rows = [_exact_terms(row) for row in layout.gather(values)]
    found = whitened(rows, exact(ddof), exact(eps), center=center)
    return {"values": laid(layout.scatter(found, NOTHING))}


def _whole(values: Any) -> Layout:
    """Every entry counts: of rows, or of one flat row."""
    flat = not values or not isinstance(values[0], list)
    return layout_of(values, offsets=[0, len(values)] if flat else None)


def whitened(rows: list[Terms], ddof: mpf, eps: mpf, *, center: bool) -> list[Terms]:
    """`whiten` of terms with errors e, one list per response.

    Scale: (|v - mean| + e + mean|v| + mean e) / D for the numerator, |w| mean(|v - mean| e) / D^2 for D = sqrt(var + eps),
    and the mean where it is added back. Equal entries that no rounding can tell apart are owed exactly.
    """
    entries = [term for row in rows for term in row]
    stats = moments([value for value, _ in entries])
    if len(entries) < 2 or (stats.equal and not any(error for _, error in entries)):
        return [[NOTHING if center else term for term in row] for row in rows]
    deviation = stats.spread(ddof).deviation
    divisor = mpf(1) if deviation is None else sqrt(deviation**2 + eps) or mpf(1)
    error = mean([error for _, error in entries])
    lever = mean([abs(value - stats.mean) * own for value, own in entries]) / divisor**2
    shift = NOTHING if center else (stats.mean, abs(stats.mean) + stats.size + error)

    def white(value: mpf, own: mpf) -> Term:
        normal = (value - stats.mean) / divisor
        return total([(normal, abs(normal) * (1 + lever) + (own + stats.size + error) / divisor), shift])

    return [[white(*term) for term in row] for row in rows]


def reinforce_pp_advantages(
    token_rewards: Any,
    *,
    gamma: Any = 1.0,
    groups: Numbers | None = None,
    ddof: Any = 1,
    eps: Any = 1e-8,
    mask: Any = None,
    offsets: Any = None,
) -> Outputs:
    """Returns-to-go, whitened over the batch; with groups their mean total reward is taken off first (GSPO-ADV-11)."""
    layout = layout_of(token_rewards, mask=mask, offsets=offsets)
    rows = [_exact_terms(row) for row in layout.gather(token_rewards)]
    if groups is not None:
        one_each("groups", groups, rows)
        rows = _less_baseline(rows, list(groups))
    returns = [_returns(row, _fraction("gamma", gamma)) for row in rows]
    found = whitened(returns, exact(ddof), exact(eps), center=True)
    return {"advantages": laid(layout.scatter(found, NOTHING))}


def _less_baseline(rows: list[Terms], groups: list[Any]) -> list[Terms]:
    """The mean over the group of total rewards, taken off the last counted token; an empty response is a member."""
    totals = [total([_added(term) for term in row]) for row in rows]
    found = [list(row) for row in rows]
    for indices in members(groups):
        baseline = mean([totals[i][0] for i in indices])
        size = mean([totals[i][1] for i in indices])
        for row in (found[i] for i in indices if found[i]):
            last = row[-1][0] - baseline
            row[-1] = (last, size + abs(last)) if size else row[-1]
    return found


def _returns(row: Terms, gamma: mpf) -> Terms:
    """Return-to-go of terms; one that is a single reward keeps that reward's error, since nothing is rounded."""
    summed = discounted([_added(term) for term in row], gamma)
    return [_single(row[place:], gamma) or term for place, term in enumerate(summed)]


def _single(rest: Terms, gamma: mpf) -> Term | None:
    """The one reward that a return consists of, 0 without any; None where a sum or a discount is rounded."""
    places = [place for place, term in enumerate(rest) if term != NOTHING]
    if not places:
        return NOTHING
    return rest[places[0]] if len(places) == 1 and (places[0] == 0 or gamma == 1) else None
