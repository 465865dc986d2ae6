"""Losses that no known deviation gives, and that lie near those of one: of two faults the larger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..noise.words import percent, plain
from ..tensors import NumPyArray
from .exact import NotComputable
from .recomputed import Recomputed
from .suspects import FAMILIES, LIKELY, NARROW, answer_of, known_mutants

# So many losses are near those of another by chance in none of a thousand runs.
FEWEST, MOST, MOST_TOKENS = 6, 12, 40_000
LEFT, APART, SAME = 0.05, 4.0, 1e-6
# One factor is near many faults, and tells little of them.
LEFT_BY_FACTOR = 0.01
_FAILURES = (ValueError, IndexError, KeyError, NotImplementedError, ZeroDivisionError, NotComputable, AttributeError)


def resembling(parts: Sequence[Recomputed]) -> str:
    """`they resemble mask.shifted, ...` where one known deviation makes up for nearly all of the squared difference, and no other does; else nothing."""
    few = _sample(parts)
    if len(few) < FEWEST:
        return ""
    got, due = np.array([one.part.loss for one in few], np.float64), np.array([one.expected for one in few])
    whole = float((got - due) @ (got - due))
    found = sorted(
        ((float((got - losses) @ (got - losses)) / whole, name) for name, losses in _candidates(few, got, due)),
        key=_order,
    )
    left, name = found[0]
    if left > (LEFT_BY_FACTOR if "times" in name else LEFT):
        return ""
    others = [share for share, _ in found if abs(share - left) > SAME]
    if others and others[0] < APART * left:
        return ""
    return f"they resemble {name}, which makes up for {plain(percent(1 - left))} of the squared difference: a second fault may be beside it"


def _order(item: tuple[float, str]) -> tuple[float, bool, bool]:
    return round(item[0], 6), item[1] in NARROW, item[1] not in LIKELY


def _sample(parts: Sequence[Recomputed]) -> list[Recomputed]:
    """The smallest of those with a loss that is a number."""
    usable = [one for one in parts if one.part.loss is not None and np.isfinite(one.part.loss)]
    ones = sorted(usable, key=lambda one: one.part.tokens.count)[:MOST]
    return ones[: int((np.cumsum([one.part.tokens.count for one in ones]) <= MOST_TOKENS).sum())]


def _candidates(few: Sequence[Recomputed], got: NumPyArray, due: NumPyArray) -> Iterator[tuple[str, NumPyArray]]:
    """The losses of known deviations, and those of the claim times one factor."""
    factor = float(got @ due / (due @ due or 1.0))
    yield f"{factor:.3g} times what is claimed", factor * due
    for mutant in known_mutants(FAMILIES, None):
        try:
            losses = np.array([float(answer_of(one, mutant, ("loss",), True)["loss"]) for one in few])
        except _FAILURES:
            continue
        if np.isfinite(losses).all():
            yield mutant.name, losses
