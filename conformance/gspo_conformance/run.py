"""The record of a run: one result per vector and dtype, and what they add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from .judge import Judged
from .words import plural

PASS, FAIL, ERROR = "pass", "fail", "error"
UNSUPPORTED, SKIPPED = "unsupported", "skipped"
EXPECTED_FAILURE, UNEXPECTED_PASS = "expected-failure", "unexpected-pass"
VERDICTS = (PASS, FAIL, ERROR, UNEXPECTED_PASS, EXPECTED_FAILURE, SKIPPED, UNSUPPORTED)
BAD = (FAIL, ERROR, UNEXPECTED_PASS)
LEVELS = ("MUST", "SHOULD", "MAY")
INTERRUPTED = "interrupted"
NO_ERROR = "expected an error"
NO_NAME = f"{NO_ERROR} that names"
AS_EXPECTED, NON_CONFORMING, USAGE, HARNESS = 0, 1, 2, 3
# No tolerance for rounding is wider.
_STRICT = 64.0


@dataclass(frozen=True)
class Result:
    """The verdict on one vector in one dtype. `answer` is what came back, kept for the diagnosis."""

    id: str
    dtype: str
    level: str
    clauses: tuple[str, ...]
    flags: tuple[str, ...]
    operation: str
    verdict: str
    judged: tuple[Judged, ...] = ()
    reason: str = ""
    url: str | None = None
    detail: str = ""
    seconds: float = 0.0
    answer: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def key(self) -> str:
        """`aggregation/lengths-1-3-gspo[float32]`."""
        return f"{self.id}[{self.dtype}]"

    @property
    def area(self) -> str:
        """The first part of the id."""
        return self.id.partition("/")[0]

    @property
    def accepted(self) -> bool:
        """Whether all that is wrong is that an input was accepted, or refused in other words, that is to be refused."""
        return self.verdict in BAD and self.reason.startswith(NO_ERROR)

    @property
    def nameless(self) -> bool:
        """Whether an input that is to be refused was, by an error that does not name it."""
        return self.reason.startswith(NO_NAME)

    @property
    def worst(self) -> Judged | None:
        """The output with the largest error relative to what it is allowed."""
        return max(
            self.judged, key=lambda item: (item.k / item.limit if item.limit else item.k, not item.ok), default=None
        )

    @property
    def k(self) -> float | None:
        """The largest error in units of u(dtype) scale; where many conventions are right, in sixteenths of what is allowed."""
        return max(
            (item.k if item.limit <= _STRICT else 16 * item.k / item.limit for item in self.judged), default=None
        )


@dataclass
class Run:
    """One target over the vectors. `complete` is False where the run was cut short; `failure` says that the harness broke.

    `again`: questions that were asked once more, and whether the answer was the same.
    """

    target: str
    implementation: Mapping[str, Any] = field(default_factory=dict)
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    suite: Mapping[str, Any] = field(default_factory=dict)
    started: str = ""
    seconds: float = 0.0
    level: str = "MUST"
    complete: bool = False
    failure: str = ""
    detail: str = ""
    diagnosis: Mapping[str, Any] | None = None
    stale: tuple[str, ...] = ()
    again: Mapping[str, bool] = field(default_factory=dict)

    @property
    def versions(self) -> str:
        """What the implementation says of itself: `numpy 2.4.6`."""
        said = ((" ".join(name.split()), " ".join(str(value).split())) for name, value in self.implementation.items())
        words = (value if name == "name" else f"{name} {value}" for name, value in said)
        return ", ".join(word for word in words if word != self.target)

    @property
    def counts(self) -> Counter[str]:
        """How many results have each verdict."""
        return Counter(result.verdict for result in self.results)

    @property
    def answered(self) -> int:
        """How many vectors were put to the target: neither unsupported nor skipped."""
        return sum(result.verdict not in (UNSUPPORTED, SKIPPED) for result in self.results)

    def counts_for_exit(self, result: Result) -> bool:
        """Whether this result can fail the run: its level is asked for, or it is a stale known failure."""
        return result.verdict == UNEXPECTED_PASS or LEVELS.index(result.level) <= LEVELS.index(self.level)

    @property
    def offences(self) -> list[Result]:
        """What makes the run non-conforming."""
        return [result for result in self.results if result.verdict in BAD and self.counts_for_exit(result)]

    @property
    def remarks(self) -> list[Result]:
        """Failures below the level that counts: reported, not failing."""
        return [result for result in self.results if result.verdict in BAD and not self.counts_for_exit(result)]

    @property
    def conforming(self) -> bool:
        """Whether every vector that counts ended as expected."""
        return self.exit_code == AS_EXPECTED

    @property
    def mute(self) -> bool:
        """Whether there are errors and not one number came back: then the adapter is at fault, not the implementation."""
        return any(result.verdict == ERROR for result in self.results) and not any(r.judged for r in self.results)

    @property
    def idle(self) -> bool:
        """Whether failures below the level are all there is: nothing was asked that could fail the run."""
        asked = [result for result in self.results if result.verdict not in (UNSUPPORTED, SKIPPED)]
        return bool(self.remarks) and not any(map(self.counts_for_exit, asked))

    @property
    def exit_code(self) -> int:
        """0 as expected, 1 non-conforming, 3 the harness failed or answered nothing."""
        if self.failure or not self.complete or not self.answered or self.mute or self.idle:
            return HARNESS
        return NON_CONFORMING if self.offences or self.stale else AS_EXPECTED

    @property
    def verdict(self) -> str:
        """In a few words."""
        if self.failure:
            return "harness failed"
        if not self.complete:
            return "incomplete"
        if not self.answered:
            return "nothing tested"
        if self.mute:
            return "not one answer"
        if self.idle:
            return f"nothing of level {self.level} tested"
        if not self.conforming:
            return "NOT conforming"
        return "deviates as known" if self.known else "conforming"

    @property
    def known(self) -> list[Result]:
        """Expected failures of a level that counts."""
        every = (result for result in self.results if result.verdict == EXPECTED_FAILURE)
        return [result for result in every if self.counts_for_exit(result)]

    @property
    def k(self) -> float | None:
        """The worst K among results that passed: how much of the tolerance was used."""
        return max((r.k for r in self.results if r.verdict == PASS and r.k is not None), default=None)

    @property
    def unsteady(self) -> str:
        """That one question has two answers, where it has: no part of the verdict."""
        other, of = sum(not alike for alike in self.again.values()), plural(len(self.again), "question")
        told = (
            f"{other} of {of} got another answer when asked again: something is kept between calls, or left to chance"
        )
        return told if other else ""

    @property
    def suspected(self) -> tuple[str, ...]:
        """The clauses that the diagnosis names."""
        return tuple(self.diagnosis["clauses"]) if self.diagnosis else ()

    @property
    def answer_seconds(self) -> float:
        """How much of the time was spent waiting for answers."""
        return sum(result.seconds for result in self.results)

    def slowest(self, count: int = 5) -> list[Result]:
        """The answers that took longest."""
        return sorted(self.results, key=lambda result: -result.seconds)[:count]

    def by_area(self) -> dict[str, list[Result]]:
        """Results by area, in the order of the ids."""
        areas: dict[str, list[Result]] = {}
        for result in self.results:
            areas.setdefault(result.area, []).append(result)
        return areas

    def by_clause(self) -> dict[str, list[Result]]:
        """Results by the clause that their vector tests."""
        clauses: dict[str, list[Result]] = {}
        for result in self.results:
            for clause in result.clauses:
                clauses.setdefault(clause, []).append(result)
        return clauses


def by_vector(results: Iterable[Result], clauses: Collection[str] = ()) -> list[list[Result]]:
    """Results of one vector together, the most telling first: on one of `clauses`, wrong numbers before inputs that
    are accepted, on few clauses, then by id."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.id, []).append(result)

    def order(group: list[Result]) -> tuple[int, bool, bool, int, str]:
        first, told = group[0], set(group[0].clauses) & set(clauses)
        return LEVELS.index(first.level), not told, first.accepted, len(first.clauses), first.id

    return sorted(found.values(), key=order)


def clauses_of(groups: Iterable[list[Result]]) -> list[tuple[str, int]]:
    """Few clauses that every group is of, each with how many no clause before it in the list has; the widest first."""
    left = [group[0].clauses for group in groups]
    found: list[tuple[str, int]] = []
    while any(left):
        clause, count = max(
            Counter(clause for each in left for clause in each).items(), key=lambda one: (one[1], one[0])
        )
        found.append((clause, count))
        left = [each for each in left if clause not in each]
    return found


def show_k(k: float | None) -> str:
    """K for reading: three digits, `-` where there is none, `exact` for 0."""
    if k is None:
        return "-"
    if k == inf:
        return "inf"
    return f"{k:.0f}" if k >= 100 else f"{k:.2f}"
