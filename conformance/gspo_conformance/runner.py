"""The runner: puts every vector to a target and keeps every outcome, whatever the target does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .applicability import Unsupported, case_of
from .connection import Broken, Connection, Hello, Outputs, Reply, Skipped
from .formats import Vector
from .judge import judge
from .known import KnownFailures
from .run import ERROR, FAIL, PASS, SKIPPED, UNSUPPORTED, Result, Run
from .target import Capabilities, Case
from .words import HarnessError

Progress = Callable[[int, int, Result], None]
HOPELESS, GIVE_UP = 3, 10


@dataclass(frozen=True)
class Options:
    """How a run is made. `dtypes` None: every dtype of each vector. `limit`: seconds for one answer."""

    dtypes: tuple[str, ...] | None = None
    level: str = "MUST"
    limit: float = 20.0
    known: KnownFailures = KnownFailures()


def select(vectors: Iterable[Vector], patterns: Sequence[str] = (), *, flags: Sequence[str] = ()) -> list[Vector]:
    """The vectors whose id, area or a clause matches one of the globs (all without globs), and that carry one of `flags`."""
    return [
        vector
        for vector in vectors
        if (not patterns or any(_matches(vector, pattern) for pattern in patterns))
        and (not flags or set(flags) & set(vector.flags))
    ]


def _matches(vector: Vector, pattern: str) -> bool:
    names = (vector.id, vector.area, *vector.clauses)
    return any(fnmatchcase(name, pattern) for name in names) or fnmatchcase(vector.id, f"*{pattern}*")


def run_vectors(
    connection: Connection, vectors: Sequence[Vector], options: Options = Options(), progress: Progress | None = None
) -> Run:
    """Every vector in every dtype asked for. Interrupted, it returns what it has, marked incomplete."""
    run = Run(connection.name, suite=_suite(vectors), started=_now(), level=options.level)
    begin = time.perf_counter()
    try:
        _fill(run, connection, vectors, options, progress)
        run.complete = True
    except HarnessError as error:
        run.failure, run.detail = str(error), str(error.__cause__ or "")
    except KeyboardInterrupt:
        run.failure = "interrupted"
    finally:
        connection.stop()
    run.stale = options.known.stale(run.results) if run.complete else ()
    run.seconds = time.perf_counter() - begin
    return run


def _fill(
    run: Run, connection: Connection, vectors: Sequence[Vector], options: Options, progress: Progress | None
) -> None:
    hello = connection.start()
    run.implementation, run.capabilities = hello.implementation, hello.capabilities.to_dict()
    pairs = [
        (vector, dtype) for vector in vectors for dtype in vector.dtype if not options.dtypes or dtype in options.dtypes
    ]
    asker = _Asker(connection, hello, options.limit)
    for done, (vector, dtype) in enumerate(pairs, 1):
        result = options.known.revise(asker.result(vector, dtype))
        run.results.append(result)
        if progress is not None:
            progress(done, len(pairs), result)


class _Asker:
    """Asks, and starts the target again after a breakdown.

    It gives up after `GIVE_UP` breakdowns in a row, or after `HOPELESS` of a target that has never answered.
    """

    def __init__(self, connection: Connection, hello: Hello, limit: float) -> None:
        self.connection = connection
        self.capabilities: Capabilities = hello.capabilities
        self.limit = limit
        self.breakdowns, self.patience = 0, HOPELESS
        self.lost = ""

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

    def _recover(self, reply: Reply) -> None:
        if not (isinstance(reply, Broken) and reply.fatal):
            self.breakdowns, self.patience = 0, GIVE_UP
            return
        self.breakdowns += 1
        if self.breakdowns >= self.patience:
            self.lost = f"the target broke down {self.breakdowns} times in a row"
            return
        try:
            self.connection.stop()
            self.connection.start()
        except HarnessError as error:
            self.lost = f"the target broke down and does not start again: {error}"


def verdict_of(vector: Vector, case: Case, reply: Reply) -> Result:
    """The result that a reply earns."""
    if isinstance(reply, Skipped):
        return _result(vector, case.dtype, SKIPPED, reason=reply.reason, url=reply.url)
    if isinstance(reply, Broken):
        return _result(vector, case.dtype, ERROR, reason=reply.reason, detail=reply.detail)
    assert isinstance(reply, Outputs)
    judged = judge(vector, case, reply.values)
    wrong = [item for item in judged if not item.ok]
    reason = "; ".join(f"{item.output}: {item.reason}" for item in wrong)
    answer = {item.output: item.got for item in judged if item.got is not None}
    return _result(vector, case.dtype, FAIL if wrong else PASS, judged=judged, reason=reason, answer=answer)


def _result(vector: Vector, dtype: str, verdict: str, **fields: Any) -> Result:
    return Result(
        id=vector.id,
        dtype=dtype,
        level=vector.level,
        clauses=vector.clauses,
        flags=vector.flags,
        operation=vector.operation,
        verdict=verdict,
        **fields,
    )


def _suite(vectors: Sequence[Vector]) -> dict[str, Any]:
    try:
        number = version("gspo")
    except PackageNotFoundError:
        number = "0"
    return {"version": number, "vectors": len(vectors)}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
