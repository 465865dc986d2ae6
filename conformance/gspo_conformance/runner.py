"""The runner: puts every vector to a target and keeps every outcome, whatever the target does."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from math import prod
from typing import Any

from .asking import AGAIN, Asker
from .connection import Connection, Hello
from .formats import VECTORS, Vector
from .known import KnownFailures
from .manifest import MANIFEST
from .run import INTERRUPTED, Result, Run
from .target import Capabilities
from .words import HarnessError

Progress = Callable[[int, int, Result], None]
Choice = Callable[[Sequence[Vector], Capabilities], Sequence[Vector]]


@dataclass(frozen=True)
class Options:
    """How a run is made. `dtypes` None: every dtype of each vector. `limit`: seconds for one answer.

    `choose`: of the vectors those that a target of given capabilities is to be asked.
    """

    dtypes: tuple[str, ...] | None = None
    level: str = "MUST"
    limit: float = 20.0
    known: KnownFailures = KnownFailures()
    choose: Choice | None = None


def select(vectors: Iterable[Vector], patterns: Sequence[str] = (), *, flags: Sequence[str] = ()) -> list[Vector]:
    """The vectors of which the id, the area or a clause matches one of the globs, and that carry one of `flags`.

    A word without wildcards that is no such name matches every id it is part of. No globs: all vectors.
    """
    known = list(vectors)
    names = {name for vector in known for name in _names(vector)}
    globs = [word if word in names or set(word) & set("*?[") else f"*{word}*" for word in patterns]
    return [
        vector
        for vector in known
        if (not globs or any(fnmatchcase(name, glob) for name in _names(vector) for glob in globs))
        and (not flags or set(flags) & set(vector.flags))
    ]


def _names(vector: Vector) -> tuple[str, ...]:
    return vector.id, vector.area, *vector.clauses


def run_vectors(
    connection: Connection | Sequence[Connection],
    vectors: Sequence[Vector],
    options: Options = Options(),
    progress: Progress | None = None,
) -> Run:
    """Every vector in every dtype asked for. Several connections to one target share the work, a dtype and shape each if they can.

    Interrupted, it returns what it has, marked incomplete.
    """
    connections = list(connection) if isinstance(connection, Sequence) else [connection]
    run = Run(connections[0].name, suite=_suite(vectors), started=_now(), level=options.level)
    begin = time.perf_counter()
    try:
        _fill(run, connections, vectors, options, progress)
        run.complete = not run.failure
    except HarnessError as error:
        run.failure, run.detail = str(error), str(error.__cause__ or "")
    except KeyboardInterrupt:
        run.failure = INTERRUPTED
    finally:
        for one in connections:
            try:
                one.stop()
            except KeyboardInterrupt:
                run.complete, run.failure = False, INTERRUPTED
    run.results.sort(key=lambda result: (result.id, result.dtype))
    run.stale = options.known.stale(run.results) if run.complete else ()
    run.seconds = time.perf_counter() - begin
    return _timeless(run) if epoch() is not None else run


Question = tuple[Vector, str]


def _questions(vectors: Sequence[Vector], options: Options) -> list[Question]:
    return [
        (vector, dtype) for vector in vectors for dtype in vector.dtype if not options.dtypes or dtype in options.dtypes
    ]


def _fill(
    run: Run,
    connections: Sequence[Connection],
    vectors: Sequence[Vector],
    options: Options,
    progress: Progress | None,
) -> None:
    hello = connections[0].start()
    questions = _questions(options.choose(vectors, hello.capabilities) if options.choose else vectors, options)
    run.implementation, run.capabilities = hello.implementation, hello.capabilities.to_dict()
    keep = _keeper(run, len(questions), options, progress)
    if len(connections) == 1:
        run.again = _ask(Asker(connections[0], hello, options.limit), questions, keep)
    else:
        run.again = _share(connections, hello, questions, options, keep)


def _ask(
    asker: Asker,
    questions: Sequence[Question],
    keep: Callable[[Result], None],
    most: int = AGAIN,
    halt: threading.Event | None = None,
) -> dict[str, bool]:
    """Every question, and a few of them once more."""
    heard: list[tuple[Vector, Result]] = []
    for vector, dtype in questions:
        if halt is not None and halt.is_set():
            return {}
        heard.append((vector, asker.result(vector, dtype)))
        keep(heard[-1][1])
    return asker.again(heard, most)


def _share(
    connections: Sequence[Connection],
    hello: Hello,
    questions: Sequence[Question],
    options: Options,
    keep: Callable[[Result], None],
) -> dict[str, bool]:
    """Equal shares, a thread each; an interrupt stops the connections, which ends the threads."""
    halt = threading.Event()

    def work(connection: Connection, share: Sequence[Question]) -> dict[str, bool]:
        said = hello if connection is connections[0] else connection.start()
        return _ask(Asker(connection, said, options.limit), share, keep, AGAIN // len(connections), halt)

    ordered = sorted(questions, key=_kinship)
    size = -(-len(ordered) // len(connections))
    with ThreadPoolExecutor(len(connections)) as pool:
        shares = [ordered[i * size : (i + 1) * size] for i in range(len(connections))]
        futures = [pool.submit(work, *pair) for pair in zip(connections, shares, strict=True)]
        try:
            return {key: alike for future in futures for key, alike in future.result().items()}
        except BaseException:
            halt.set()
            for connection in connections:
                connection.stop()
            raise


def _kinship(question: Question) -> tuple[Any, ...]:
    """Sorts by dtype and shape: what a target compiles for one question serves the next."""
    vector, dtype = question
    return dtype, prod(vector.largest), vector.largest, vector.id


def _keeper(run: Run, total: int, options: Options, progress: Progress | None) -> Callable[[Result], None]:
    lock = threading.Lock()

    def keep(result: Result) -> None:
        with lock:
            run.results.append(options.known.revise(result))
            if progress is not None:
                progress(len(run.results), total, run.results[-1])

    return keep


def _suite(vectors: Sequence[Vector]) -> dict[str, Any]:
    """Which suite this is: records of different ones are not merged."""
    try:
        number = version("gspo")
    except PackageNotFoundError:
        number = "0"
    manifest = VECTORS / MANIFEST
    digest = sha256(manifest.read_bytes()).hexdigest()[:16] if manifest.exists() else ""
    return {"version": number, "digest": digest, "vectors": len(vectors)}


def epoch() -> int | None:
    """SOURCE_DATE_EPOCH, by which reproducible builds ask for the same bytes every time."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(text) if text.isdecimal() and len(text) < 12 else None


def _timeless(run: Run) -> Run:
    """The run as if every answer took no time."""
    run.seconds, run.results = 0.0, [replace(result, seconds=0.0) for result in run.results]
    return run


def _now() -> str:
    given = epoch()
    moment = datetime.now(UTC) if given is None else datetime.fromtimestamp(given, UTC)
    return moment.isoformat(timespec="seconds")
