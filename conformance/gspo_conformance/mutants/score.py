"""The suite's own score: which vector kills which mutant, by how much.

A vector kills a mutant where the judge refuses its answer. The margin is the error in units of what is
allowed; it is infinite where exactness is owed, where the answer has no finite error, and where an
error is owed instead of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from math import inf
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

from ..formats import Vector, vector_from_json
from ..judge import error_units
from .bench import Answer, Bench, Question, Refused, bench, same
from .registry import Mutant, find

Progress: TypeAlias = Callable[[int, int, str], None] | None

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
    def best(self) -> tuple[str, float]:
        """The vector that kills it by the widest margin, a finite one where there is one that is wide enough."""
        kills = sorted(self.owed.items(), key=lambda kill: (kill[1] == inf, -kill[1]))
        return kills[0] if kills else ("", 0.0)

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
        return f"a vector of clause {self.mutant.clause} on which {self.mutant.title.lower()} gives another number"


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

    @property
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


def score_mutant(asked: Bench, mutant: Mutant) -> dict[str, float]:
    """The margin of every vector that kills it, in the narrowest dtype in which it does."""
    margins: dict[str, float] = {}
    for index, question in enumerate(asked.questions):
        if not asked.reaches(mutant, index):
            continue
        answer, right = asked.ask(mutant, index), asked.right[index]
        if same(answer, right):
            continue
        found = margin(question, answer, right)
        if found > 1:
            margins.setdefault(question.vector.id, found)
    return margins


def score(
    vectors: Iterable[Vector], mutants: Sequence[Mutant], *, workers: int = 1, progress: Progress = None
) -> Score:
    """Every mutant over every vector, on several processes where asked."""
    vectors, found = list(vectors), dict[str, dict[str, float]]()
    by_id = {vector.id: vector for vector in vectors}
    for name, margins in _margins(vectors, mutants, workers):
        found[name] = margins
        if progress is not None:
            progress(len(found), len(mutants), name)
    return Score([Scored(mutant, found[mutant.name], by_id) for mutant in mutants], vectors)


def _margins(vectors: list[Vector], mutants: Sequence[Mutant], workers: int) -> Iterator[tuple[str, dict[str, float]]]:
    if workers < 2:
        asked = bench(vectors)
        for mutant in mutants:
            yield mutant.name, score_mutant(asked, mutant)
        return
    raws = [(vector.raw, vector.folder) for vector in vectors]
    with ProcessPoolExecutor(workers, get_context("spawn"), _prepare, (raws,)) as pool:
        waiting = [pool.submit(_by_name, mutant.name) for mutant in mutants]
        for future in as_completed(waiting):
            yield future.result()


_HERE: list[Bench] = []


def _prepare(raws: list[tuple[dict[str, Any], Path]]) -> None:
    _HERE[:] = [bench(vector_from_json(raw, folder) for raw, folder in raws)]


def _by_name(name: str) -> tuple[str, dict[str, float]]:
    return name, score_mutant(_HERE[0], find(name))
