"""For a mutant, the vector that shows best what it does: killed by a wide margin, small, and different to the eye."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np

from gspo_conformance.formats import Vector
from gspo_conformance.judge import error_units
from gspo_conformance.mutants import Mutant
from gspo_conformance.mutants.bench import Bench, Question, Refused
from gspo_conformance.mutants.score import ENOUGH, OWED, margin

MOST = 40
VISIBLE = 0.05


@dataclass(frozen=True)
class Sight:
    """One output of a vector: the right numbers and the mutant's, row by row; `margin` in units of the tolerance."""

    vector: Vector
    output: str
    right: np.ndarray
    wrong: np.ndarray
    margin: float
    refused: str = ""

    @property
    def change(self) -> float:
        """The largest difference beside the largest right number; infinite where a number is none."""
        if not self.right.size or not np.isfinite(self.wrong).all():
            return np.inf if self.right.size else 0.0
        return float(np.max(np.abs(self.wrong - self.right)) / max(float(np.max(np.abs(self.right))), 1e-30))


def indices(asked: Bench) -> dict[str, list[int]]:
    """The questions of each vector, one per dtype, by the vector's id."""
    found: dict[str, list[int]] = {}
    for index, question in enumerate(asked.questions):
        found.setdefault(question.vector.id, []).append(index)
    return found


def look(asked: Bench, mutant: Mutant, index: int) -> Sight | None:
    """What the mutant does on a question; None where it is not killed there with room to spare."""
    question = asked.questions[index]
    if question.vector.level not in OWED or not asked.reaches(mutant, index):
        return None
    answer, right = asked.ask(mutant, index), asked.right(index)
    room = margin(question, answer, right)
    if room < ENOUGH:
        return None
    if isinstance(answer, Refused) or isinstance(right, Refused):
        told = "raises where an answer is due" if isinstance(answer, Refused) else "answers where an error is owed"
        return Sight(question.vector, "", np.zeros(0), np.zeros(0), room, told)
    return max(_sights(question, answer), key=_clarity)


def _sights(question: Question, answer: dict[str, np.ndarray]) -> Iterator[Sight]:
    """The outputs that are wrong with room to spare."""
    for name in question.case.outputs:
        expected = question.vector.expected[name]
        truth, got = np.asarray(expected.value, float), np.asarray(answer[name], float)
        if truth.shape != got.shape:
            told = f"{name} has the shape {got.shape} where {truth.shape} is due"
            yield Sight(question.vector, name, np.zeros(0), np.zeros(0), inf, told)
        elif (room := _room(question, name, answer[name])) >= ENOUGH:
            yield Sight(question.vector, name, truth, got, room)


def _room(question: Question, name: str, got: np.ndarray) -> float:
    expected = question.vector.expected[name]
    worst = float(error_units(question.case, name, expected, got).max(initial=0.0))
    return worst / expected.compare.k if expected.compare.k else (inf if worst else 0.0)


def best(asked: Bench, mutant: Mutant, places: Iterable[int]) -> Sight | None:
    """The clearest sight among these questions; None where none kills the mutant."""
    return max((sight for index in places if (sight := look(asked, mutant, index))), key=_clarity, default=None)


def choose(asked: Bench, mutant: Mutant) -> Sight:
    """The clearest sight among the vectors of the mutant's clause, or among all."""
    own = [i for i, one in enumerate(asked.questions) if mutant.clause in one.vector.clauses]
    rest = [i for i, one in enumerate(asked.questions) if mutant.clause not in one.vector.clauses]
    for group in (own, rest):
        if sight := best(asked, mutant, group):
            return sight
    raise ValueError(f"{mutant.name}: no vector kills it")


def _clarity(sight: Sight) -> tuple[bool, bool, bool, bool, float]:
    finite = bool(sight.right.size) and isfinite(sight.change)
    visible = sight.change >= VISIBLE
    several = 2 <= sight.right.size <= MOST
    return visible and several, finite, several, sight.output.startswith("gradient"), -float(sight.right.size)
