"""The suite's own score: which vector kills which mutant, by how much.

A vector kills a mutant where the judge refuses its answer. The margin is the error in units of what is
allowed; it is infinite where exactness is owed, where the answer has no finite error, and where an
error is owed instead of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf

from ..formats import Vector
from ..judge import error_units
from ..words import uncapitalised
from .bench import Answer, Question, Refused, same
from .registry import Mutant

ENOUGH = 10.0
OWED = ("MUST", "SHOULD")


@dataclass(frozen=True)
class Scored:
    """One mutant: the margin of every vector that kills it, and the vectors by id."""

    mutant: Mutant
    margins: Mapping[str, float]
    vectors: Mapping[str, Vector] = field(repr=False)

    @property
    def owed(self) -> dict[str, float]:
        """The margins of MUST and SHOULD vectors."""
        return {id_: margin for id_, margin in self.margins.items() if self.vectors[id_].level in OWED}

    @property
    def margin(self) -> float:
        """The widest margin."""
        return max(self.owed.values(), default=0.0)

    @property
    def killed(self) -> bool:
        """Whether a MUST or SHOULD vector kills it with room to spare."""
        return self.margin >= ENOUGH

    @property
    def missing(self) -> str:
        """What vector would kill it, in words."""
        return (
            f"a vector of clause {self.mutant.clause} on which {uncapitalised(self.mutant.title)} gives another number"
        )


@dataclass(frozen=True)
class Score:
    """All mutants over some vectors."""

    scored: Sequence[Scored]
    vectors: Sequence[Vector]

    @property
    def survivors(self) -> list[Scored]:
        """Mutants that are not killed."""
        return [item for item in self.scored if not item.killed]

    @property
    def idle(self) -> list[Vector]:
        """Vectors that kill nothing."""
        busy = {id_ for item in self.scored for id_ in item.margins}
        return [vector for vector in self.vectors if vector.id not in busy]

    @cached_property
    def kills(self) -> dict[str, list[str]]:
        """The mutants that each vector kills."""
        found: dict[str, list[str]] = {vector.id: [] for vector in self.vectors}
        for item in self.scored:
            for id_ in item.margins:
                found[id_].append(item.mutant.name)
        return found


def margin(question: Question, answer: Answer, right: Answer) -> float:
    """How far the answer is beyond what is allowed, in units of it; at most 1 passes."""
    if isinstance(answer, Refused) or isinstance(right, Refused):
        return 0.0 if isinstance(answer, Refused) and isinstance(right, Refused) else inf
    if same(answer, right):
        return 0.0
    worst = 0.0
    for name in question.case.outputs:
        expected = question.vector.expected[name]
        if answer[name].shape != expected.shape:
            return inf
        units, limit = error_units(question.case, name, expected, answer[name]), expected.compare.k
        worst = max(worst, _over(float(units.max(initial=0.0)), limit))
    return worst


def _over(k: float, limit: float) -> float:
    return k / limit if limit else (inf if k else 0.0)
