"""Every vector put to mutants, quickly: a mutant is asked only where the reference passes through a stage that it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..applicability import case_of
from ..formats import Vector
from ..target import Capabilities, Case
from .registry import Mutant
from .whole import Reference

EVERYTHING = Capabilities.everything()


class Question(NamedTuple):
    """A vector in one dtype."""

    vector: Vector
    case: Case

    @property
    def key(self) -> str:
        """As in the results of a run."""
        return f"{self.vector.id}[{self.case.dtype}]"


class Refused(NamedTuple):
    """The answer of a mutant that raised instead of answering."""

    reason: str


Answer = dict[str, Any] | Refused


@dataclass
class Bench:
    """Questions; the reference's answers to them, and the stages it goes through, are worked out when first needed."""

    questions: Sequence[Question]
    _traced: dict[int, tuple[Answer, frozenset[str]]] = field(default_factory=dict)
    _last: dict[str, tuple[str, Answer]] = field(default_factory=dict)

    def right(self, index: int) -> Answer:
        """The reference's answer."""
        return self._trace(index)[0]

    def used(self, index: int) -> frozenset[str]:
        """The stages that the reference goes through."""
        return self._trace(index)[1]

    def _trace(self, index: int) -> tuple[Answer, frozenset[str]]:
        if index not in self._traced:
            self._traced[index] = traced(self.questions[index].case)
        return self._traced[index]

    def reaches(self, mutant: Mutant, index: int) -> bool:
        """Whether the question passes through a stage that the mutant changes; arithmetic that is narrow there is elsewhere wide."""
        return not (mutant.stages - {"wide"} or mutant.stages).isdisjoint(self.used(index))

    def ask(self, mutant: Mutant, index: int) -> Answer:
        """The mutant's answer, the reference's own where it cannot differ.

        Inputs are exact in float32, so one run in float64 answers for both dtypes.
        """
        if not self.reaches(mutant, index):
            return self.right(index)
        vector, case = self.questions[index]
        if not mutant.kind.wide or "float64" not in vector.dtype:
            return attempt(mutant.kind, case)
        name, answer = self._last.get(vector.id, ("", Refused("")))
        if name != mutant.name:
            answer = attempt(mutant.kind, replace(case, dtype="float64"))
            self._last[vector.id] = (mutant.name, answer)
        return cast(answer, case.dtype)


def bench(vectors: Iterable[Vector]) -> Bench:
    """Every vector in every dtype it is run in."""
    return Bench([Question(vector, case_of(vector, dtype, EVERYTHING)) for vector in vectors for dtype in vector.dtype])


def cast(answer: Answer, dtype: str) -> Answer:
    """The answer as it is stored in `dtype`."""
    if isinstance(answer, Refused):
        return answer
    with np.errstate(over="ignore"):
        return {name: value if value.dtype == bool else value.astype(dtype) for name, value in answer.items()}


def same(one: Answer, other: Answer) -> bool:
    """Whether two answers agree to the last bit."""
    if isinstance(one, Refused) or isinstance(other, Refused):
        return isinstance(one, Refused) and isinstance(other, Refused)
    return all(np.array_equal(value, other[name], equal_nan=value.dtype != bool) for name, value in one.items())


def attempt(kind: type[Reference], case: Case) -> Answer:
    """The answer, or that there was none."""
    try:
        return kind(case).answer()
    except Exception as error:
        return Refused(f"{type(error).__name__}: {error}")


def traced(case: Case) -> tuple[Answer, frozenset[str]]:
    """The reference's answer and the stages that it went through."""
    seen = {"wide"}

    def recorded(name: str, member: Callable[..., Any]) -> Callable[..., Any]:
        def stage(*arguments: Any, **named: Any) -> Any:
            seen.add(name)
            return member(*arguments, **named)

        return stage

    members: dict[str, Any] = {name: recorded(name, member) for name, member in _stages().items()}
    members["per_sequence"] = property(recorded("per_sequence", Reference.per_sequence.__get__))
    return attempt(type("Traced", (Reference,), members), case), frozenset(seen)


@cache
def _stages() -> dict[str, Callable[..., Any]]:
    """The methods of the reference by name."""
    members = {name: member for base in reversed(Reference.__mro__[:-1]) for name, member in vars(base).items()}
    return {name: member for name, member in members.items() if not name.startswith("_") and callable(member)}
