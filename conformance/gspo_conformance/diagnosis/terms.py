"""A term beside the surrogate that nobody asked for: a KL estimate to the old policy, or log π, with what coefficient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import product
from math import inf, isfinite
from typing import Any

import numpy as np

from ..mutants.atlas import Atlas, Row
from ..mutants.registry import Mutant, compose, find
from ..mutants.whole import Reference
from ..tensors import NumPyArray
from .constants import Unlisted
from .evidence import Evidence, spread
from .objectives import MODES as REDUCED
from .objectives import WIDTH, objectives

TERMS = {
    "k1": "k1 towards the old policy",
    "k2": "k2 towards the old policy",
    "k3": "k3 towards the old policy",
    "log π": "log π, the entropy of the sampled tokens,",
}
MODES = ("", "token_mean")
SOME, FIRST, AGREE, DIGITS = 12, 5, 1e-2, (1, 2, 3)


def added(evidence: Sequence[Evidence], atlas: Atlas) -> Iterator[tuple[Mutant, ...]]:
    """Each of the terms, alone or beside a mistake, where one coefficient accounts for most of a few wrong answers."""
    few = spread([item for item in evidence if not item.right and not item.row.odd], atlas, SOME)
    for beside in _beside():
        without = [atlas.made(beside[0], item.question) if beside else atlas.right(item.question) for item in few]
        for term, mode in product(TERMS, MODES):
            mutant = _with(term, mode, 1.0)
            whole = compose(beside[0], mutant) if beside else mutant
            shares = (
                _share(item.row, row, atlas.made(whole, item.question)) for item, row in zip(few, without, strict=True)
            )
            if coefficient := _common(shares, len(few)):
                yield (*beside, _with(term, mode, _short(coefficient)))


@cache
def _beside() -> tuple[tuple[Mutant, ...], ...]:
    """Nothing; another mean; GRPO, which most losses with a KL term are."""
    means = (find("aggregation.token-mean"), find("aggregation.token-sum"))
    grpo = (one for one in objectives() if one.name.startswith("grpo") and not one.name.endswith((REDUCED[-1], WIDTH)))
    return ((), *((one,) for one in (*means, *grpo)))


def _common(shares: Iterable[float | None], number: int) -> float:
    """The coefficient that more than half of them agree on; 0 where there is none, or where the first few are all apart."""
    found: list[float] = []
    for share in shares:
        found += [] if share is None else [share]
        if len(found) == FIRST and not _agreeing(found):
            return 0.0
    agreed = _agreeing(found)
    return float(np.median(agreed)) if 2 * len(agreed) > number else 0.0


def _agreeing(shares: Sequence[float]) -> list[float]:
    """Those near one of them, the one that has most near it; one alone agrees with nobody."""
    near = [[other for other in shares if abs(other - one) <= AGREE * abs(one)] for one in shares if one]
    most = max(near, key=len, default=[])
    return most if len(most) > 1 else []


def _share(got: Row, without: Row, moved: Row) -> float | None:
    """How much of the term makes up for what is off, by least squares; None where it has no part in the answer."""
    if not got.numbers.shape == moved.numbers.shape == without.numbers.shape:
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        basis, off = moved.numbers - without.numbers, got.numbers - without.numbers
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
