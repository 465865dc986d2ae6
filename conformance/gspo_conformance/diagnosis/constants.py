"""Another constant of a surrogate than the one that was asked for, where the answers tell which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from math import inf
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np

from ..mutants.atlas import Atlas
from ..mutants.registry import Mutant
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

Values: TypeAlias = Mapping[str, float]


class Constants(Mutant):
    """The reference with numbers of its own in place of those that a surrogate is given: nobody's known mistake."""


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


def fitted(evidence: list[Evidence], atlas: Atlas) -> tuple[Constants, bool] | None:
    """The constants nearest to the wrong answers: the one that mends most first, then each in the light of the others; and whether it is one of two digits."""
    questions = {item.question: atlas.bench.questions[item.question] for item in evidence if not item.right}
    told = {at: question.case.objective["surrogate"] for at, question in questions.items() if question.case.objective}
    kinds = Counter(surrogate["kind"] for surrogate in told.values() if surrogate["kind"] in FIELDS)
    if not kinds:
        return None
    ((kind, _),) = kinds.most_common(1)
    surrogates = [surrogate for surrogate in told.values() if surrogate["kind"] == kind]
    asked = surrogates[0] if all(surrogate == surrogates[0] for surrogate in surrogates) else {}
    wrong = [item for item in evidence if told.get(item.question, {}).get("kind") == kind and not item.row.odd]
    few = spread([*{questions[item.question].vector.id: item for item in wrong}.values()], atlas, SOME)

    def distance(values: Values, most: float) -> float:
        found, total = constants(kind, values, asked), 0.0
        for item in few:
            total += _apart(item, atlas.fresh(found, item.question).numbers) if total < most else 0.0
        return total

    values, least = dict[str, float](), distance({}, inf)
    for _ in range(ROUNDS):
        tried = [_nearest(name, values, least, asked.get(name), distance) for name in FIELDS[kind]]
        far, best = min(tried, key=itemgetter(0))
        if far >= LESS * least:  # numbers of the right surrogate mend whole answers
            break
        values, least = best, far
    # A number in whose place another is as good is not told by the answers.
    near = [{**values, name: value * times} for name, value in values.items() for times in (APART, 1 / APART)]
    if not values or any(distance(other, inf) <= least for other in near):
        return None
    return constants(kind, values, asked), len(values) == 1 and all(float(f"{v:.2g}") == v for v in values.values())


def _nearest(
    name: str, values: Values, least: float, asked: float | None, distance: Callable[[Values, float], float]
) -> tuple[float, dict[str, float]]:
    """`values` with the number that answers most like the target, of as few digits as do, and how unlike it still is."""
    best = dict(values)
    for digits in range(1, DIGITS + 1):
        for number in _numbers(digits, best.get(name, asked)):
            tried = {**values, name: number}
            far = distance(tried, least)
            if far < least * (1 - 1e-9):
                best, least = tried, far
    return least, best


def _numbers(digits: int, near: float | None) -> Iterator[float]:
    """All numbers of one digit; then those of one digit more around the nearest."""
    if digits == 1 or not near:
        yield from (float(f"{n}e{power}") for power in range(LEAST, MOST + 1) for n in range(1, 10))
        return
    step = 10.0 ** (np.floor(np.log10(near)) - digits + 1)
    yield from (float(f"{near + n * step:.{digits}g}") for n in range(-10, 11) if near + n * step > 0)


def _apart(item: Evidence, numbers: NumPyArray) -> float:
    """How many digits of how many numbers differ: a few numbers that agree tell more than many that nearly do."""
    got = item.row.numbers
    if numbers.shape != got.shape:
        return float(got.size)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        off = np.abs(got - numbers) / np.maximum(np.abs(got), np.abs(numbers))
    same = (got == numbers) | (~np.isfinite(got) & ~np.isfinite(numbers)) | ~item.row.present
    return float(np.where(same, 0.0, np.log1p(np.minimum(off, 1.0) / FINE)).sum())
