"""Puts one vector after the other to a target, starts it again after a breakdown, and turns every reply into a result."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from .applicability import Unsupported, case_of
from .connection import Broken, Connection, Hello, Outputs, Reply, Skipped
from .formats import Vector
from .judge import UNIT_ROUNDOFF, judge
from .run import ERROR, FAIL, LEVELS, NO_ERROR, NO_NAME, PASS, SKIPPED, UNSUPPORTED, Result
from .target import Capabilities, Case
from .words import HarnessError, cut

MAX_REASON, MAX_DETAIL = 4000, 20_000
HOPELESS, GIVE_UP = 3, 10
AGAIN, SHARE = 8, 10


class Asker:
    """Asks, and starts the target again after a breakdown.

    It gives up after `GIVE_UP` breakdowns in a row, or after `HOPELESS` of a target that has never answered.
    """

    def __init__(self, connection: Connection, hello: Hello, limit: float) -> None:
        self.connection = connection
        self.capabilities: Capabilities = hello.capabilities
        self.limit = limit
        self.breakdowns, self.patience = 0, HOPELESS
        self.fragile, self.lost = False, ""

    def result(self, vector: Vector, dtype: str) -> Result:
        try:
            case = case_of(vector, dtype, self.capabilities)
        except Unsupported as missing:
            return _result(vector, dtype, UNSUPPORTED, reason=str(missing))
        if self.lost:
            return _result(vector, dtype, ERROR, reason=f"not asked: {self.lost}")
        begin = time.perf_counter()
        reply = self.connection.ask(case, self.limit)
        seconds = time.perf_counter() - begin
        self._recover(reply)
        return replace(verdict_of(vector, case, reply), seconds=seconds)

    def again(self, heard: Sequence[tuple[Vector, Result]], most: int = AGAIN) -> dict[str, bool]:
        """Whether a few vectors, wrong answers and small ones first, are answered alike when asked once more, the last first.

        One question of `SHARE` at most; a target that breaks down over one is asked no further, and where it did so before
        that is no other answer.
        """
        fragile = self.fragile
        judged = sorted((one for one in heard if one[1].judged), key=_worth, reverse=True)
        ranked = {vector.id: (vector, first) for vector, first in judged}
        chosen = sorted(ranked.values(), key=_worth)[: min(most, len(judged) // SHARE)]
        found: dict[str, bool] = {}
        for vector, first in reversed(chosen if not self.lost else []):
            second = self.result(vector, first.dtype)
            if not (fragile and self.breakdowns):
                found[first.key] = _alike(vector, first, second)
            if self.breakdowns:
                break
        return found

    def _recover(self, reply: Reply) -> None:
        if not (isinstance(reply, Broken) and reply.fatal):
            self.breakdowns, self.patience = 0, GIVE_UP
            return
        self.breakdowns, self.fragile = self.breakdowns + 1, True
        if self.breakdowns >= self.patience:
            self.lost = f"the target broke down {self.breakdowns} times in a row, at last: {cut(reply.reason, 200)}"
            return
        try:
            self.connection.stop()
            self.connection.start()
        except HarnessError as error:
            self.lost = f"the target broke down and does not start again: {error}"


def _worth(one: tuple[Vector, Result]) -> tuple[bool, int, int, str]:
    vector, result = one
    return result.verdict == PASS, LEVELS.index(vector.level), prod(vector.largest), result.key


def _alike(vector: Vector, first: Result, second: Result) -> bool:
    """Whether two answers to a question differ by no more than those of two compiled forms of one program."""
    if first.answer.keys() != second.answer.keys():
        return False
    unit = UNIT_ROUNDOFF[first.dtype] + (UNIT_ROUNDOFF[vector.input_dtype] if vector.input_dtype else 0.0)
    for name, got in first.answer.items():
        expected = vector.expected[name]
        one, other = np.asarray(got, float), np.asarray(second.answer[name], float)
        if one.shape != other.shape:
            return False
        scale = expected.scale if one.shape == expected.shape else 0.0
        with np.errstate(invalid="ignore", over="ignore"):
            near = np.abs(one - other) <= unit * (2 * expected.compare.k * scale + 64 * np.abs(one))
        if not (near | (one == other) | (np.isnan(one) & np.isnan(other))).all():
            return False
    return True


def verdict_of(vector: Vector, case: Case, reply: Reply) -> Result:
    """The result that a reply earns."""
    if isinstance(reply, Skipped):
        return _result(vector, case.dtype, SKIPPED, reason=reply.reason, url=reply.url)
    if vector.refuses is not None and not (isinstance(reply, Broken) and reply.fatal):
        return _result(vector, case.dtype, **_refusal(vector.refuses, reply))
    if isinstance(reply, Broken):
        return _result(vector, case.dtype, ERROR, reason=reply.reason, detail=reply.detail)
    judged = judge(vector, case, reply.values)
    wrong = [item for item in judged if not item.ok]
    reason = "; ".join(f"{item.output}: {item.reason}" for item in wrong)
    answer = {item.output: item.got for item in judged if item.got is not None}
    return _result(vector, case.dtype, FAIL if wrong else PASS, judged=judged, reason=reason, answer=answer)


def _refusal(argument: str, reply: Outputs | Broken) -> dict[str, Any]:
    """The verdict where the right answer is an error that names `argument`."""
    if isinstance(reply, Outputs):
        return {"verdict": FAIL, "reason": f"{NO_ERROR} about `{argument}`, got an answer"}
    if re.search(rf"\b{re.escape(argument)}\b", reply.reason):
        return {"verdict": PASS}
    reason = f"{NO_NAME} `{argument}`, got {reply.reason}"
    return {"verdict": FAIL, "reason": reason, "detail": reply.detail}


def _result(
    vector: Vector, dtype: str, verdict: str, reason: str = "", detail: str = "", url: str | None = None, **fields: Any
) -> Result:
    """A target has a line to say why, and the end of a traceback to show; a report holds thousands of them."""
    return Result(
        reason=cut(" ".join(reason.split()), MAX_REASON),
        detail=detail[-MAX_DETAIL:],
        url=None if url is None else cut(url, 500),
        id=vector.id,
        dtype=dtype,
        level=vector.level,
        clauses=vector.clauses,
        flags=vector.flags,
        operation=vector.operation,
        verdict=verdict,
        **fields,
    )
