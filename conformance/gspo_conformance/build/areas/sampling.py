"""Dynamic sampling: which groups still teach something."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from ..recipe import Case, Shelf, call
from .advantage import filled

RECIPES = Shelf("sampling")
_add = RECIPES.add


def _keep(rewards: Sequence[float], groups: Sequence[int], low: float | None = None, high: float | None = None) -> Case:
    inputs = filled(rewards, groups)
    return call("informative_groups", inputs, "keep", fields={"exact": ("keep",)}, low=low, high=high)


_THREE = ([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.5, 0.5, 0.25], [0, 0, 1, 1, 2, 2, 3, 3, 3])
_MIXED = ([1.0, 0.0, 1.0, 0.0, 0.5, 0.0, 1.0, 0.0, 0.25], [4, 1, 4, 1, 9, 1, 9, 1, 9])
_TENTH = float(np.float32(0.1))
_CASES = {
    "equal-dropped": ("Groups all right or all wrong are dropped, mixed ones kept", _THREE, (None, None), "keeps-uninformative"),
    "interleaved": ("The same by id, interleaved and of unequal size", _MIXED, (None, None), "group-order"),
    "equal-fractional": ("Equal rewards of 0.1 in float32 are equal: max == min, not a standard deviation of 0",
                         ([_TENTH] * 7 + [0.0, 0.1875], [0] * 7 + [1, 1]), (None, None), "phantom-advantage keeps-uninformative"),
    "singleton": ("A group of one has max == min", ([1.0, 0.0, 1.0], [0, 1, 1]), (None, None), "singleton"),
    "bounds": ("With bounds, the group's mean must lie strictly inside", ([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0], [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]), (0.3125, 0.6875), "bounds-ignored"),
    "bounds-strict": ("A mean exactly at a bound is dropped", ([1.0, 0.0, 1.0, 0.0, 0.0, 0.0], [0, 0, 1, 1, 1, 1]), (0.25, 0.75), "bounds-closed"),
    "bounds-strict-above": ("A mean exactly at the upper bound is dropped", ([1.0, 0.0, 1.0, 1.0, 1.0, 0.0], [1, 0, 1, 1, 0, 1]), (0.25, 0.75), "bounds-closed"),
    "low-only": ("A lower bound alone", ([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0], [0, 0, 0, 0, 1, 1, 1, 1]), (0.5, None), "bounds-ignored"),
    "high-only": ("An upper bound alone", ([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0], [0, 0, 0, 0, 1, 1, 1, 1]), (None, 0.5), "bounds-ignored"),
    "near-equal": ("One reward an ulp away from the rest: the group is informative", ([0.5, 0.5, 0.5 + 2.0**-20, 0.25, 0.25], [0, 0, 0, 1, 1]), (None, None), "keeps-uninformative"),
    "nothing-left": ("Every group is all right or all wrong: all are dropped, none is kept so that there is a batch", ([1.0] * 4 + [0.0] * 4, [3, 3, 0, 0, 7, 7, 7, 7]), (None, None), "keeps-uninformative"),
    "one-group": ("A batch of one group, all of it right: nothing is kept", ([1.0] * 8, [5] * 8), (None, None), "keeps-uninformative"),
    "bounds-shaped": ("Rewards other than 0 and 1: equal ones inside the bounds, a mean at the lower bound of 0, a mean inside with the median and the share above 0 outside",
                      ([0.25, -1.0, -1.0, 0.5, 1.0, 0.75, 0.25, 0.75], [-3, 253, -259, -259, 253, -259, -3, -259]), (0.0, 0.5), "keeps-uninformative bounds-ignored group-order"),
    "negative": ("Negative rewards", ([-1.0, -1.0, -2.0, -1.0, -0.5, -0.5], [0, 0, 1, 1, 2, 2]), (None, None), "keeps-uninformative"),
}  # fmt: skip
for _slug, (_title, _case, _bounds, _flags) in _CASES.items():
    _add(
        _slug,
        _title,
        "REWARD-6",
        _flags,
        partial(_keep, *_case, *_bounds),
        level="SHOULD" if _slug == "singleton" else "MUST",
        note="A group of one is as uninformative as one of equals: convention, the paper has none."
        if _slug == "singleton"
        else "",
    )
