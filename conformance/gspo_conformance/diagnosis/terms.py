"""A term beside the surrogate that nobody asked for: a KL estimate to the old policy, or log π, with what coefficient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import inf, isfinite
from typing import Any

import numpy as np

from ..mutants.atlas import Atlas
from ..mutants.registry import Mutant, compose, find
from ..mutants.whole import Reference
from ..tensors import NumPyArray
from .constants import Unlisted
from .evidence import Evidence, spread

TERMS = {
    "k1": "k1 towards the old policy",
    "k2": "k2 towards the old policy",
    "k3": "k3 towards the old policy",
    "log π": "log π, the entropy of the sampled tokens,",
}
MODES = ("", "token_mean")
BESIDE = ((), ("aggregation.token-mean",), ("aggregation.token-sum",))
SOME, AGREE, DIGITS = 12, 1e-2, (1, 2, 3)


def added(evidence: Sequence[Evidence], atlas: Atlas) -> Iterator[tuple[Mutant, ...]]:
    """Each of the terms, alone or beside another mean, where one coefficient accounts for most of a few wrong answers."""
    few = spread([item for item in evidence if not item.right and not item.row.odd], atlas, SOME)
    for beside, term, mode in product(BESIDE, TERMS, MODES):
        parts = tuple(map(find, beside))
        shares = [share for item in few if (share := _share(item, parts, _with(term, mode, 1.0), atlas)) is not None]
        middle = float(np.median(shares)) if shares else 0.0
        agreeing = [share for share in shares if abs(share - middle) <= AGREE * abs(middle)]
        if middle and 2 * len(agreeing) > len(few):
            yield (*parts, _with(term, mode, _short(float(np.median(agreeing)))))


def _share(item: Evidence, beside: tuple[Mutant, ...], mutant: Mutant, atlas: Atlas) -> float | None:
    """How much of the term makes up for what is off, by least squares; None where it has no part in the answer."""
    without = atlas.fresh(beside[0], item.question) if beside else atlas.right(item.question)
    moved = atlas.fresh(compose(beside[0], mutant) if beside else mutant, item.question)
    if moved.numbers.shape != without.numbers.shape:
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        basis, off = moved.numbers - without.numbers, item.row.numbers - without.numbers
        known = np.isfinite(basis) & np.isfinite(off)
        size, part = float(basis[known] @ basis[known]), float(off[known] @ basis[known])
    return part / size if 0 < size < inf and isfinite(part) else None


def _short(value: float) -> float:
    """Of as few digits as are within the scatter of the answers."""
    rounded = (float(f"{value:.{digits}g}") for digits in DIGITS)
    return next((one for one in rounded if abs(one - value) <= AGREE / 10 * abs(value)), value)


def _with(term: str, mode: str, coefficient: float) -> Mutant:
    class Added(Reference):
        def penalty_term(self) -> Any:
            aggregation = self.objective["aggregation"] | ({"mode": mode} if mode else {})
            return super().penalty_term() + self.aggregate(self._term(), aggregation) * coefficient

        def _term(self) -> NumPyArray:
            z = self.clean(self.new if term == "log π" else self.new - self.old_logp)
            return self.clean(z if term == "log π" else self.estimate(term, z))

    Added.__doc__ = f"{coefficient:g} times {TERMS[term]} in the loss, which nobody asked for"
    # e^z - z - 1 near 0 is what is left of numbers near 1.
    name = f"{coefficient:g} {term}" + (f" by {mode}" if mode else "")
    return Unlisted(name, "GSPO-KL-6", Added, loose=abs(coefficient) if term == "k3" else 0.0)
