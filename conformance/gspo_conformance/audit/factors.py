"""Losses that are a multiple of what is due: all of them, those of some micro-batches, or one alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from .recomputed import Recomputed
from .trace import Trace
from .variants import Explanation, Right

# A factor this close to 1 is none: a small term is added.
NO_FACTOR = 1e-3
ROUGH = 1e-2
EVEN, LARGEST = 1e-4, 64


def by_factor(parts: Sequence[Recomputed], precision: float, trace: Trace) -> Iterator[Explanation]:
    """One factor on every loss, or one that follows the number of micro-batches: a missing division, or one too many."""
    usable = [one for one in parts if abs(one.expected) > 1e3 * one.truth.tolerance(precision, one.normalizer)]
    factors = [one.part.loss / one.expected for one in usable if one.part.loss is not None]
    if len(factors) < 2:
        return
    slack = [EVEN + 2 * one.truth.tolerance(precision, one.normalizer) / abs(one.expected) for one in usable]
    words, (low, high) = _factor_words(factors, slack, usable, trace), (min(factors), max(factors))
    if high - low <= 1e-4 * abs(factors[0]):
        if abs(factors[0] - 1) < NO_FACTOR:
            return
        told = f"every loss is {factors[0]:.6g} times what is claimed{words}"
    elif words:
        told = f"losses are {low:.6g} to {high:.6g} times what is claimed{words} of their step"
    else:
        return
    yield Explanation("factor", "GSPO-AGG-8", told, "the learning rate is another than the one that is set")


def _factor_words(factors: Sequence[float], slack: Sequence[float], parts: Sequence[Recomputed], trace: Trace) -> str:
    """Which number of the run the factors are, at every one of these micro-batches, up to their rounding."""
    ranks = trace.run.get("ranks") or 1
    steps = {
        index: Counter(part.rank for part in trace.step(index).parts) for index in {one.part.step for one in parts}
    }
    numbers = {"ranks": [ranks] * len(parts), "micro-batches": [steps[one.part.step][one.part.rank] for one in parts]}
    for name, counts in numbers.items():
        if max(counts) > 1 and all(abs(f / n - 1) < off for f, n, off in zip(factors, counts, slack, strict=True)):
            return f": the number of {name}"
        if max(counts) > 1 and all(abs(f * n - 1) < off for f, n, off in zip(factors, counts, slack, strict=True)):
            return f": divided by the number of {name}"
    return ""


def by_one_factor(parts: Sequence[Recomputed], right: Right) -> Iterator[Explanation]:
    """One factor on the losses of some micro-batches of a run in which others are right; of one loss alone a whole number or its inverse."""
    sizes = np.array([abs(one.expected) for one in parts])
    factor = (parts[int(sizes.argmax())].part.loss or 0.0) / sizes.max() * np.sign(parts[int(sizes.argmax())].expected)
    if factor <= 0 or abs(factor - 1) < ROUGH or (len(parts) == 1 and not _is_whole(factor)):
        return
    if all(right(one, factor * one.expected) for one in parts):
        which = "every loss that differs" if len(parts) > 1 else "this one loss"
        told = f"{which} is {factor:.6g} times what is claimed, where others are right"
        yield Explanation("factor", "GSPO-AGG-8", told, "these responses weigh otherwise than the others")


def _is_whole(factor: float) -> bool:
    """Whether it is 2, 3, ..., or one over such a number."""
    large = max(factor, 1 / factor)
    return large < LARGEST and abs(large - round(large)) < EVEN


def by_rough_factor(few: Sequence[Recomputed], right: Right) -> Iterator[Explanation]:
    """One factor on losses that are too small for many digits of it."""
    due, got = np.array([one.expected for one in few]), np.array([one.part.loss or 0.0 for one in few])
    factor = float(due @ got / max(due @ due, 1e-300))
    if len(few) > 2 and abs(factor - 1) > ROUGH and all(right(one, factor * one.expected) for one in few):
        told = f"every loss is {factor:.3g} times what is claimed, as far as rounding lets losses this small tell"
        yield Explanation(
            "factor", "GSPO-AGG-8", told, "the advantages, or the learning rate, are others than those recorded"
        )
