"""What is wrong, response by response: which ones the gradient misses, and by what factor where the ratio is near 1.

Near ratio 1 a wrong ratio, clip or exponential hardly shows, so a factor there is one of lengths, counts and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from ..formats import Vector
from ..judge import error_units
from ..mutants.atlas import Atlas
from ..target import Case
from ..tensors import NumPyArray
from .evidence import Evidence

NEAR, CLOSE, ENOUGH, MOST = 4e-4, 1e-2, 6, 0.9


class Response(NamedTuple):
    """One response of an answer. `factor` is got / expected, NaN where that is no one number.

    `silent`: "first" or "last" where that counted token alone has no gradient.
    """

    question: int
    right: bool
    factor: float
    uneven: bool
    silent: str
    advantage: float
    log_ratio: float
    clipped: bool
    gaps: bool
    length: int
    responses: int
    width: int
    tokens: int


Law: TypeAlias = Callable[[Response], float]

FACTORS: dict[str, Law] = {
    "divided by the number of responses": lambda one: 1 / one.responses,
    "multiplied by the number of responses": lambda one: one.responses,
    "multiplied by the length of the response": lambda one: one.length,
    "divided by the length of the response": lambda one: 1 / one.length,
    "multiplied by the root of the length": lambda one: one.length**0.5,
    "divided by the root of the length": lambda one: one.length**-0.5,
    "that of a length that is one too large": lambda one: one.length / (one.length + 1),
    "that of the padded width in place of the length": lambda one: one.length / one.width,
    "that of a mean over all tokens": lambda one: one.length * one.responses / one.tokens,
    "divided by the number of tokens": lambda one: 1 / one.tokens,
}
SIDES: dict[str, Callable[[Response], bool]] = {
    "where A < 0": lambda one: one.advantage < 0,
    "where A > 0": lambda one: one.advantage > 0,
    "in clipped responses": lambda one: one.clipped,
    "in responses with gaps or left padding in the mask": lambda one: one.gaps,
    "in batches of more than one response": lambda one: one.responses > 1,
    "in responses shorter than the batch is wide": lambda one: one.length < one.width,
}


def of_responses(evidence: Sequence[Evidence], atlas: Atlas) -> list[str]:
    """Where the gradient of the paper's objective is wrong, and by which factor, in words."""
    found = [one for item in evidence for one in responses(item, atlas)]
    wrong = [one for one in found if not one.right]
    if not wrong:
        return []
    return [text for text in (_uneven(wrong), _factor(found), _side(found, wrong)) if text]


def responses(item: Evidence, atlas: Atlas) -> Iterator[Response]:
    """The responses of an answer that has a gradient over padded rows, one advantage each."""
    vector, case = atlas.bench.questions[item.question]
    expected = vector.expected.get("gradient")
    if item.result is None or expected is None or not {"mask", "advantages"} <= set(case.inputs):
        return
    if case.inputs["mask"].ndim != 2 or case.inputs["advantages"].ndim != 1:
        return
    got = np.asarray(item.result.answer.get("gradient", np.zeros(0)), dtype=float)
    if item.right and got.shape != expected.shape:
        got = expected.value
    if got.shape == expected.shape:
        with np.errstate(invalid="ignore", over="ignore"):
            yield from _rows(item.question, vector, case, got)


def _rows(question: int, vector: Vector, case: Case, got: NumPyArray) -> Iterator[Response]:
    expected = vector.expected["gradient"]
    mask = case.inputs["mask"].astype(bool)
    units = error_units(case, "gradient", expected, got)
    for i, row in enumerate(mask):
        if not row.any() or case.inputs["advantages"][i] == 0:
            continue
        moved = case.inputs["logp"][i][row].astype(float) - case.inputs["old_logp"][i][row]
        truth, mine = expected.value[i][row], got[i][row]
        yield Response(
            question=question,
            right=bool((units[i] <= expected.compare.k).all()),
            factor=_quotient(mine, truth),
            uneven=_constant(truth) and np.isfinite(mine).all() and not _constant(mine),
            silent=_silent(mine),
            advantage=float(case.inputs["advantages"][i]),
            log_ratio=float(moved.mean()),
            clipped=not truth.any(),
            gaps=bool(np.abs(np.diff(row.astype(int))).sum() + (not row[0]) > 1 or not row[0]),
            length=int(row.sum()),
            responses=len(mask),
            width=len(row),
            tokens=int(mask.sum()),
        )


def _quotient(got: NumPyArray, truth: NumPyArray) -> float:
    if not (truth != 0).all() or not np.isfinite(got).all():
        return float("nan")
    found = got / truth
    return float(found.mean()) if _constant(found) else float("nan")


def _constant(values: NumPyArray) -> bool:
    return bool(np.ptp(values) <= 1e-3 * np.abs(values).max())


def _uneven(wrong: Sequence[Response]) -> str:
    many = [one for one in wrong if one.uneven]
    if 4 * len(many) <= len(wrong):
        return ""
    for place in ("first", "last"):
        if sum(one.silent == place for one in many) >= MOST * len(many):
            return f"the {place} counted token of a response has no gradient"
    return "the gradient differs between tokens of one response"


def _silent(got: NumPyArray) -> str:
    zeros = np.flatnonzero(got == 0)
    if len(got) < 2 or len(zeros) != 1:
        return ""
    return {0: "first", len(got) - 1: "last"}.get(int(zeros[0]), "")


def _factor(found: Sequence[Response]) -> str:
    """The law that fits most of the factors near ratio 1."""
    whole = [one for one in found if np.isfinite(one.factor) and one.factor != 0]
    near = [one for one in whole if abs(one.log_ratio) < NEAR]
    if len(near) < ENOUGH or _fit(near, lambda one: 1.0) >= MOST:
        return ""
    middle = float(np.median([one.factor for one in near]))
    laws: dict[str, Law] = {f"{middle:.3g}x": lambda one: middle, **FACTORS}
    words = max(laws, key=lambda words: _fit(near, laws[words]))
    if _fit(near, laws[words]) < MOST:
        return _advantages(near)
    far = [one for one in whole if abs(one.log_ratio) >= NEAR]
    if words in FACTORS or not far or _fit(far, laws[words]) >= MOST:
        return f"near ratio 1 the gradient is {words}" if words in FACTORS else ""
    return f"near ratio 1 the gradient is {words}, farther away another multiple: the log-ratio is scaled"


def _fit(near: Sequence[Response], law: Law) -> float:
    return sum(abs(one.factor / law(one) - 1) < CLOSE for one in near) / len(near)


def _advantages(near: Sequence[Response]) -> str:
    """Whether the factors are those of advantages that were changed on the way: held to a bound, or centred."""
    bound = float(np.quantile([abs(one.advantage * one.factor) for one in near], MOST))
    if _fit(near, lambda one: min(1.0, bound / abs(one.advantage))) >= MOST:
        return f"near ratio 1 the advantages are held to ±{bound:.3g}"
    batches: dict[int, list[Response]] = {}
    for one in near:
        batches.setdefault(one.question, []).append(one)
    whole = [batch for batch in batches.values() if len(batch) == batch[0].responses > 1]
    moved = [batch for batch in whole if not _balanced([one.advantage for one in batch])]
    centred = [_balanced([one.advantage * one.factor for one in batch]) for batch in moved]
    return "the advantages are centred over the batch" if len(moved) > 2 and all(centred) else ""


def _balanced(values: Sequence[float]) -> bool:
    return abs(sum(values)) <= CLOSE * sum(map(abs, values))


def _side(found: Sequence[Response], wrong: Sequence[Response]) -> str:
    """What every response with a wrong gradient has and a number of right ones have not."""
    for words, side in SIDES.items():
        if all(map(side, wrong)) and sum(not side(one) for one in found) >= ENOUGH:
            return f"the gradient is wrong only {words}"
    return ""
