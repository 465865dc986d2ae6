"""Advantages as a trainer's settings make them, where `group_advantages` is not all that they say: normalised once more, held inside bounds."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..tensors import NumPyArray
from ..trainers.dialect import Reading

LINE, BOUNDS, OTHERWISE = "line", "bounds", "otherwise"
NO_LINE = (1.0, 0.0)
# Findings of dialects on what is done to rewards or advantages besides.
_RULES = {
    "advantage-clip": BOUNDS,
    "reward-clip": BOUNDS,
    "reward-scale": LINE,
    **dict.fromkeys(("kl-in-reward", "kl-in-advantage", "log-ratio-in-advantage", "reward-whitening"), OTHERWISE),
    **dict.fromkeys(("advantage-weights", "advantage-rescaling", "baseline-shift", "rank-penalty"), OTHERWISE),
    **dict.fromkeys(("truncated-reward", "running-norm", "norm-shape"), OTHERWISE),
}


def shapes_of(reading: Reading) -> frozenset[str]:
    """What settings do to advantages besides."""
    found = {_RULES[one.rule] for one in reading.findings if one.rule in _RULES}
    return frozenset(found | {LINE} if reading.whiten else found)


def shaped(got: NumPyArray, want: NumPyArray, shapes: Iterable[str]) -> tuple[NumPyArray, float]:
    """The right advantages made into the recorded ones as far as the shapes allow, and by what factor rounding grows with that.

    A normalisation over a batch is a line of positive slope; bounds are where the recorded ones end.
    """
    low, high = (got.min(), got.max()) if BOUNDS in shapes and len(got) else (-np.inf, np.inf)
    slope, offset = line(got, want, (got > low) & (got < high)) if LINE in shapes else NO_LINE
    return np.clip(slope * want + offset, low, high), max(slope, 1.0)


def line(got: NumPyArray, want: NumPyArray, inside: NumPyArray) -> tuple[float, float]:
    """Slope and offset of the recorded advantages over the right ones; of no change where they are on no rising line."""
    if len(np.unique(want[inside])) < 3:
        return NO_LINE
    slope, offset = np.polyfit(want[inside], got[inside], 1)
    return (float(slope), float(offset)) if slope > 0 else NO_LINE
