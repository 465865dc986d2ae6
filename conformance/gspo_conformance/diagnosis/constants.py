"""Another constant of a surrogate than the one that was asked for, where the answers tell which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import inf, prod
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np

from ..formats import Vector
from ..mutants.atlas import Atlas, sampled
from ..mutants.registry import Mutant, compose, find
from ..mutants.whole import Reference
from ..tensors import NumPyArray
from .evidence import Evidence, spread

FIELDS = {
    "clip": {"low": "GSPO-SURR-3", "high": "GSPO-SURR-3", "dual": "GSPO-SURR-5"},
    "cispo": {"low": "GSPO-SURR-8", "high": "GSPO-SURR-8"},
    "gmpo": {"low": "GSPO-SURR-9", "high": "GSPO-SURR-9"},
    "sapo": {"tau_pos": "GSPO-SURR-10", "tau_neg": "GSPO-SURR-10"},
}
SOME, DIGITS, ROUNDS, APART, LESS = 12, 3, 6, 1.5, 0.9
LEAST, MOST, FINE = -5, 1, 1e-5
# A wrong constant shows in short responses too, and is tried on them some thousand times.
LONG = 4096
# Both ends of a range move the loss at once: one alone may look best where neither is right.
USUAL = (0.05, 0.1, 0.15, 0.2, 0.25, 0.27, 0.28, 0.3, 0.35, 0.4, 0.5)
# No ratio is outside of the one, every ratio is outside of the other.
OPEN, SHUT = {"low": 1e30, "high": 1e30, "dual": 1e30}, {"low": -1e30, "high": -1e30}

Values: TypeAlias = Mapping[str, float]


@dataclass(frozen=True)
class Unlisted(Mutant):
    """A reference changed to fit this run: no mistake that `gspo explain` knows by its name.

    `loose`: the scale on which it may round otherwise than the target does.
    """

    loose: float = 0.0


class Constants(Unlisted):
    """The reference with numbers of its own in place of those that a surrogate is given."""


def constants(kind: str, values: Values, asked: Mapping[str, Any]) -> Constants:
    """`cispo(high=9)`. `asked`: the surrogate that was, where it was one."""

    def choose(self: Reference, objective: dict[str, Any]) -> dict[str, Any]:
        surrogate = objective.get("surrogate", {})
        return objective | {"surrogate": surrogate | values} if surrogate.get("kind") == kind else objective

    names = [name for name in FIELDS[kind] if name in values]
    told = ", ".join(f"{name}={values[name]:g}" for name in names)
    due = " and ".join(f"no {name}" if asked[name] is None else f"{name}={asked[name]:g}" for name in names if asked)
    changed = type("Changed", (Reference,), {"choose": choose, "__doc__": f"In place of {due or 'what is asked for'}"})
    return Constants(f"{kind}({told})", next((FIELDS[kind][name] for name in names), ""), changed)


@dataclass(frozen=True)
class Fit:
    """A few wrong answers, and a surrogate whose numbers are tried on them, `beside` a mistake that was made too."""

    kind: str
    asked: Mapping[str, Any]
    few: Sequence[Evidence]
    atlas: Atlas
    beside: tuple[Mutant, ...] = ()

    def distance(self, values: Values, most: float = inf) -> float:
        """How unlike the answers are with these numbers; beyond `most`, that it is more."""
        mutant, total = self._with(values), 0.0
        for item in self.few:
            total += float(self._off(item, mutant).sum()) if total < most else 0.0
        return total

    def attainable(self) -> float:
        """How unlike the answers are with the best of ranges: one only chooses which tokens have a gradient."""
        if self.kind != "clip":
            return 0.0
        return sum(self._attainable(item, self._with({}), self._with(OPEN), self._with(SHUT)) for item in self.few)

    def _attainable(self, item: Evidence, asked: Mutant, *ends: Mutant) -> float:
        """A loss whose gradient no range has is not mended by one either."""
        gradient = self._is_gradient(item)
        reached = np.minimum(*(self._off(item, end) for end in ends))[gradient]
        rest = self._off(item, asked)[~gradient] if (reached >= 1).any() else np.zeros(0)
        return float(reached.sum() + rest.sum())

    def _with(self, values: Values) -> Mutant:
        found: Mutant = constants(self.kind, values, self.asked)
        for mutant in self.beside:
            found = compose(mutant, found)
        return found

    def _off(self, item: Evidence, mutant: Mutant) -> NumPyArray:
        return _off(item, self.atlas.made(mutant, item.question).numbers)

    def _is_gradient(self, item: Evidence) -> NumPyArray:
        vector = self.atlas.bench.questions[item.question].vector
        sizes = [sampled(np.empty(vector.expected[name].shape)).size for name in vector.outputs]
        return np.repeat([name.startswith("gradient") for name in vector.outputs], sizes)

    def nearest(self, least: float) -> tuple[dict[str, float], float]:
        """The numbers nearest to the answers, from those asked for and from a usual range."""
        ranges = ({"low": low, "high": high} for low, high in product(USUAL, USUAL))
        usual = self._best(ranges, {}, least) if self.kind == "clip" else ({}, least)
        found = [self._descended({}, least), *([self._descended(*usual)] if usual[1] < LESS * least else [])]
        values, far = min(found, key=itemgetter(1))
        return {name: value for name, value in values.items() if value != self.asked.get(name)}, far

    def _descended(self, values: dict[str, float], least: float) -> tuple[dict[str, float], float]:
        """The number that mends most first, then each in the light of the others."""
        for _ in range(ROUNDS):
            tried = [self._mended(name, values, least) for name in FIELDS[self.kind]]
            best, far = min(tried, key=itemgetter(1))
            if far >= LESS * least:  # numbers of the right surrogate mend whole answers
                break
            values, least = best, far
        return values, least

    def _mended(self, name: str, values: dict[str, float], least: float) -> tuple[dict[str, float], float]:
        """`values` with the number that answers most like the target, of as few digits as do."""
        best = values
        for digits in range(1, DIGITS + 1):
            numbers = _numbers(digits, best.get(name, self.asked.get(name)))
            best, least = self._best(({**values, name: number} for number in numbers), best, least)
        return best, least

    def _best(
        self, tried: Iterable[dict[str, float]], best: dict[str, float], least: float
    ) -> tuple[dict[str, float], float]:
        for values in tried:
            far = self.distance(values, least)
            if far < least * (1 - 1e-9):
                best, least = values, far
        return best, least


def fitted(evidence: list[Evidence], atlas: Atlas) -> tuple[tuple[Mutant, ...], bool] | None:
    """The constants nearest to the wrong answers, under token ratios where these are nearer; and whether it is one of two digits alone."""
    if (fit := _fit(evidence, atlas)) is None:
        return None
    least = fit.distance({})
    level = replace(fit, beside=(find("ratio.token-level"),))
    if (far := level.distance({}, least)) < LESS * least:
        fit, least = level, far
    if fit.attainable() >= LESS * least:
        return None
    values, least = fit.nearest(least)
    # A number in whose place another is as good is not told by the answers.
    near = [{**values, name: value * times} for name, value in values.items() for times in (APART, 1 / APART)]
    if not values or any(fit.distance(other) <= least for other in near):
        return None
    short = not fit.beside and len(values) == 1 and all(float(f"{v:.2g}") == v for v in values.values())
    return (*fit.beside, constants(fit.kind, values, fit.asked)), short


def _fit(evidence: list[Evidence], atlas: Atlas) -> Fit | None:
    questions = {item.question: atlas.bench.questions[item.question] for item in evidence if not item.right}
    told = {at: question.case.objective["surrogate"] for at, question in questions.items() if question.case.objective}
    kinds = Counter(surrogate["kind"] for surrogate in told.values() if surrogate["kind"] in FIELDS)
    if not kinds:
        return None
    ((kind, _),) = kinds.most_common(1)
    surrogates = [surrogate for surrogate in told.values() if surrogate["kind"] == kind]
    asked = surrogates[0] if all(surrogate == surrogates[0] for surrogate in surrogates) else {}
    wrong = [item for item in evidence if told.get(item.question, {}).get("kind") == kind and not item.row.odd]
    each = {vector.id: item for item in wrong if _size(vector := questions[item.question].vector) <= LONG}
    few = spread([*each.values()], atlas, SOME)
    return Fit(kind, asked, few, atlas)


def _size(vector: Vector) -> int:
    return max(prod(vector.expected[name].shape) for name in vector.outputs)


def _numbers(digits: int, near: float | None) -> Iterator[float]:
    """All numbers of one digit; then those of one digit more around the nearest."""
    if digits == 1 or not near:
        yield from (float(f"{n}e{power}") for power in range(LEAST, MOST + 1) for n in range(1, 10))
        return
    step = 10.0 ** (np.floor(np.log10(near)) - digits + 1)
    yield from (float(f"{near + n * step:.{digits}g}") for n in range(-10, 11) if near + n * step > 0)


def _off(item: Evidence, numbers: NumPyArray) -> NumPyArray:
    """How many digits of each number differ: a few numbers that agree tell more than many that nearly do."""
    got = item.row.numbers
    if numbers.shape != got.shape:
        return np.ones(got.shape)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        off = np.abs(got - numbers) / np.maximum(np.abs(got), np.abs(numbers))
    same = (got == numbers) | (~np.isfinite(got) & ~np.isfinite(numbers)) | ~item.row.present
    return np.where(same, 0.0, np.log1p(np.fmin(off, 1.0) / FINE))
