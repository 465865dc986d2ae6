"""From which ratio on a gradient is missing: the bounds in force, where they are not those that were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

from .responses import Response

NEAR, FAR, MOST, CLOSE, SEVERAL = 4e-4, 0.1, 0.9, 1e-3, 3
CLIPPED_FROM = "is clipped from a ratio between"
DUAL = "a dual bound that nobody asked for"


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
    """The ratio from which on bad responses that are due a gradient have none."""
    due = [one for one in found if one.advantage < 0 < one.log_ratio and one.farthest < 1 / FAR and not one.clipped]
    bracket = _bound([(exp(one.log_ratio), one.live) for one in due])
    live = [one.right for one in due if one.live]
    if bracket is None or sum(live) < MOST * len(live):
        return ""
    low, high = bracket
    return f"A < 0 has no gradient from a ratio between {low:.6g} and {high:.6g} on: {DUAL}"


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
