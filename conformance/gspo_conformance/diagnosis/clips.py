"""Where a gradient is missing: in one place, of one sign, from a ratio on that is not the bound that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log

from .responses import Response

NEAR, FAR, MOST, CLOSE, SEVERAL, ENOUGH = 4e-4, 0.1, 0.9, 1e-3, 3, 6
CLIPPED_FROM = "is clipped from a ratio between"
UNASKED = "that nobody asked for"


def of_one_place(found: Sequence[Response], wrong: Sequence[Response]) -> str:
    """Whether it is the first or the last response of every batch that has no gradient."""
    for words, place in (("first", 0), ("last", -1)):
        there = [one for one in found if one.responses > 1 and one.place == place % one.responses]
        if not any(one.live for one in there) and len([one for one in there if not one.right]) == len(wrong):
            return f"the {words} response of a batch has no gradient"
    return ""


def of_one_sign(found: Sequence[Response]) -> str:
    """Whether it is the responses of one sign that have no gradient, while others have."""
    due = [one for one in found if not one.clipped]
    for sign, side in (("<", -1), (">", 1)):
        there = [one for one in due if one.advantage * side > 0]
        if len(there) >= ENOUGH and not any(one.live for one in there) and any(one.live for one in due):
            return f"responses with A {sign} 0 have no gradient"
    return ""


def clip_range(found: Sequence[Response]) -> str:
    """From which ratio on a gradient is missing, where that is not the bound that was asked for and the rest is right."""
    clips, near = {one.clip for one in found}, [one.right for one in found if one.live and abs(one.log_ratio) < NEAR]
    if len(clips) != 1 or sum(near) < MOST * len(near):
        return ""
    ((low, high),) = clips
    upper = _bound([(exp(one.log_ratio), one.live) for one in found if one.advantage > 0 and one.log_ratio < 80])
    lower = _bound([(-exp(one.log_ratio), one.live) for one in found if one.advantage < 0 and one.log_ratio < 80])
    told = [_moved(f"A > 0 {CLIPPED_FROM}", upper, 1 + high)]
    told += [_moved(f"A < 0 {CLIPPED_FROM}", lower, low - 1), _dual(found)]
    return "; ".join(text for text in told if text)


def held_weights(found: Sequence[Response]) -> str:
    """Whether tokens whose weight is held at a bound have no gradient, where they are due that of the bound; others have theirs."""
    due = [one for one in found if not one.clipped]
    inside = [-one.clip[0] <= exp(min(one.log_ratio, 80.0)) - 1 <= one.clip[1] for one in due]
    held = [one for one, within in zip(due, inside, strict=True) if not within]
    free = [one.right for one, within in zip(due, inside, strict=True) if within]
    fits = len(held) >= SEVERAL and not any(one.live for one in held) and sum(free) >= MOST * len(free)
    return "tokens whose weight is held at its bound have no gradient: the weight is differentiated" if fits else ""


def held_loss(losses: Sequence[tuple[float, Sequence[float]]]) -> str:
    """The bound that explains every mean that is too small, of the losses of its responses, where it is one and the same."""
    bounds = [_level(got * len(each), sorted(each)) for got, each in losses]
    told = [bound for bound in bounds if bound is not None]
    if len(told) < SEVERAL or len(told) < MOST * len(bounds):
        return ""
    middle = sorted(told)[len(told) // 2]
    same = sum(abs(bound - middle) <= CLOSE * abs(middle) for bound in told) >= MOST * len(bounds)
    return f"the loss of a response is held at {middle:.3g}" if same else ""


def _level(total: float, each: Sequence[float]) -> float | None:
    """b, where the sum of min(loss, b) over the sorted losses is the total; None where no b below the largest is."""
    below = 0.0
    for place, loss in enumerate(each):
        bound = (total - below) / (len(each) - place)
        if bound < loss:
            return bound if place == 0 or bound >= each[place - 1] else None
        below += loss
    return None


def _dual(found: Sequence[Response]) -> str:
    """The ratio from which on bad responses that are due a gradient have none; where good ones lose theirs as far below 1, the cap of |log s|."""
    due = [one for one in found if one.advantage < 0 < one.log_ratio and one.farthest < 1 / FAR and not one.clipped]
    bracket = _bound([(exp(one.log_ratio), one.live) for one in due])
    live = [one.right for one in due if one.live]
    if bracket is None or sum(live) < MOST * len(live):
        return ""
    low, high = bracket
    small = [one for one in found if one.log_ratio < 0 < one.advantage and one.farthest < 1 / FAR and not one.clipped]
    below = _bound([(exp(-one.log_ratio), one.live) for one in small])
    if below and max(low, below[0]) < min(high, below[1]):
        low, high = log(max(low, below[0])), log(min(high, below[1]))
        return f"no gradient where |log s| is above a bound between {low:.3g} and {high:.3g}: a cap {UNASKED}"
    return f"A < 0 has no gradient from a ratio between {low:.6g} and {high:.6g} on: a dual bound {UNASKED}"


def _bound(seen: Sequence[tuple[float, bool]]) -> tuple[float, float] | None:
    """The largest ratio with a gradient and the smallest without; None where they are not apart."""
    live, dead = [size for size, alive in seen if alive], [size for size, alive in seen if not alive]
    if not live or not dead or max(live) >= min(dead):
        return None
    return max(live), min(dead)


def _moved(words: str, bracket: tuple[float, float] | None, due: float) -> str:
    if bracket is None or bracket[0] <= due * (1 + 1e-6) <= bracket[1] or bracket[0] <= due * (1 - 1e-6) <= bracket[1]:
        return ""
    return f"{words} {abs(bracket[0]):.6g} and {abs(bracket[1]):.6g} on, not from {abs(due):.6g}"
