"""The answers to the paper's objective, response by response: which one, how long, how far from ratio 1, and what its gradient became."""

from __future__ import annotations

from collections.abc import Iterator
from math import exp, inf
from typing import NamedTuple, TypeAlias

import numpy as np

from ..formats import Vector
from ..judge import error_units
from ..mutants.atlas import Atlas
from ..target import Case
from ..tensors import NumPyArray
from .evidence import Evidence

SOME = 16
# The tokens beside an odd one.
REST = {"": slice(None), "first": slice(1, None), "last": slice(-1)}


class Response(NamedTuple):
    """One response of an answer. `factor` is got / expected, NaN where that is no one number; `slope` is what its tokens got, NaN likewise.

    `odd`: "first" or "last" where that counted token alone differs from the rest, whose gradient it has `oddity` times.
    `holes`: tokens between its first and its last that do not count; `gaps`: these, or some before the first.
    `at`: which counted token of its response it is, from 1; 0 where it is the whole response.
    `learning`: how many responses of the batch have A other than 0. `farthest`: the largest |log-ratio| of a token.
    `level`: the mean log-probability of its tokens.
    """

    question: int
    place: int
    right: bool
    factor: float
    uneven: bool
    odd: str
    oddity: float
    advantage: float
    log_ratio: float
    farthest: float
    level: float
    clip: tuple[float, float]
    clipped: bool
    live: bool
    gaps: bool
    holes: bool
    length: int
    responses: int
    learning: int
    width: int
    tokens: int
    at: int = 0
    slope: float = float("nan")


def responses(item: Evidence, atlas: Atlas) -> Iterator[Response]:
    """The responses of an answer that has a gradient over padded rows, one advantage each."""
    for one, truth, mine, _, right in _counted(item, atlas):
        odd, oddity = _odd(mine)
        yield one._replace(
            right=bool(right.all()),
            factor=_quotient(mine[REST[odd]], truth[REST[odd]]),
            uneven=constant(truth) and bool(np.isfinite(mine).all()) and not constant(mine),
            odd=odd,
            oddity=oddity,
            clipped=not truth.any(),
            live=bool(mine[np.isfinite(mine)].any()),
            slope=float(mine.mean()) if np.isfinite(mine).all() and constant(mine) else float("nan"),
        )


Counted: TypeAlias = tuple[Response, NumPyArray, NumPyArray, NumPyArray, NumPyArray]


def _counted(item: Evidence, atlas: Atlas) -> Iterator[Counted]:
    """Every response of an answer; at its counted tokens the gradient that is due, the one that came, the log-ratio, what is right."""
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


def _rows(question: int, vector: Vector, case: Case, got: NumPyArray) -> Iterator[Counted]:
    expected = vector.expected["gradient"]
    mask, advantages = case.inputs["mask"].astype(bool), case.inputs["advantages"]
    right = error_units(case, "gradient", expected, got) <= expected.compare.k
    surrogate = (case.objective or {})["surrogate"]
    for i, row in enumerate(mask):
        if not row.any():
            continue
        moved = case.inputs["logp"][i][row].astype(float) - case.inputs["old_logp"][i][row]
        one = Response(
            question=question,
            place=i,
            right=False,
            factor=float("nan"),
            uneven=False,
            odd="",
            oddity=1.0,
            advantage=float(advantages[i]),
            log_ratio=float(moved.mean()),
            farthest=float(np.abs(moved).max()),
            level=float(case.inputs["logp"][i][row].astype(float).mean()),
            clip=(_bound(surrogate["low"]), _bound(surrogate["high"])),
            clipped=False,
            live=False,
            gaps=_runs(row) > 1 or not row[0],
            holes=_runs(row) > 1,
            length=int(row.sum()),
            responses=len(mask),
            learning=int((advantages != 0).sum()),
            width=len(row),
            tokens=int(mask.sum()),
        )
        yield one, expected.value[i][row], got[i][row], moved, right[i][row]


def losses(item: Evidence, atlas: Atlas) -> tuple[float, list[float]] | None:
    """A wrong loss of the paper's objective over padded rows, none of them empty, and the losses of its responses that are due."""
    vector, case = atlas.bench.questions[item.question]
    got = np.asarray(item.result.answer.get("loss", np.nan) if item.result else np.nan, dtype=float)
    padded = {"mask", "advantages"} <= set(case.inputs) and case.inputs["advantages"].ndim == 1
    if item.right or "loss" not in vector.expected or not padded or got.shape != () or not np.isfinite(got):
        return None
    each, clip = [], (case.objective or {})["surrogate"]
    for row, new, old, a in zip(
        *(case.inputs[name] for name in ("mask", "logp", "old_logp", "advantages")), strict=True
    ):
        if not row.any():
            return None
        s = exp(min(float((new[row].astype(float) - old[row]).mean()), 80.0))
        each.append(-float(min(s * a, min(max(s, 1 - clip["low"]), 1 + clip["high"]) * a)))
    return float(got), each


def _bound(width: float | None) -> float:
    return inf if width is None else float(width)


def _runs(row: NumPyArray) -> int:
    """How many unbroken runs of counted tokens a response has."""
    return int(row[0]) + int((np.diff(row.astype(int)) > 0).sum())


def tokens(item: Evidence, atlas: Atlas) -> Iterator[Response]:
    """The same of an objective with a ratio per token: counted tokens, of a long response some, each with a ratio of its own."""
    for one, *columns in _counted(item, atlas):
        times = columns[1][columns[0] != 0] / columns[0][columns[0] != 0]
        odd, oddity = _odd(times) if columns[0][[0, -1]].all() else ("", 1.0)
        one = one._replace(uneven=len(times) > 2 and not constant(times), odd=odd, oddity=oddity)
        some = np.unique(np.linspace(0, one.length - 1, SOME).astype(int))
        for at, due, mine, ratio, ok in zip(some + 1, *(column[some] for column in columns), strict=True):
            yield one._replace(
                at=int(at),
                right=bool(ok),
                factor=float(mine / due) if due != 0 and np.isfinite(mine) else float("nan"),
                log_ratio=float(ratio),
                farthest=abs(float(ratio)),
                clipped=bool(due == 0),
                live=bool(np.isfinite(mine) and mine != 0),
            )


def _quotient(got: NumPyArray, truth: NumPyArray) -> float:
    if not (truth != 0).all() or not np.isfinite(got).all():
        return float("nan")
    found = got / truth
    return float(found.mean()) if constant(found) else float("nan")


def constant(values: NumPyArray) -> bool:
    """Whether all are the same number up to a thousandth."""
    return bool(np.ptp(values) <= 1e-3 * np.abs(values).max())


def _odd(got: NumPyArray) -> tuple[str, float]:
    """The end whose gradient alone differs from that of all other tokens, and how many times that of the others it is."""
    if len(got) < 3 or not np.isfinite(got).all():
        return "", 1.0
    for place, one, rest in (("first", got[0], got[1:]), ("last", got[-1], got[:-1])):
        if rest.all() and constant(rest) and not constant(got):
            return place, float(one / rest.mean())
    return "", 1.0
