"""The record of a run: JSON lines, a header, one line per result, a footer without which the record is cut short.

The schema is `schemas/report.schema.json`. Only the header holds the time of day.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from ..judge import Judged
from ..protocol import decode_output, encode_array
from ..run import Result, Run
from ..words import UsageError

SCHEMA = 1
_LARGE = 4096
_COPIED = ("id", "dtype", "level", "operation", "verdict", "reason", "url", "detail")


def lines(run: Run) -> Iterable[str]:
    """The record, line by line."""
    yield _line(header(run))
    for result in run.results:
        yield _line(result_entry(result))
    yield _line(footer(run))


def header(run: Run) -> dict[str, Any]:
    """What ran, of what, against what, when."""
    return {
        "type": "header",
        "schema": SCHEMA,
        "target": run.target,
        "started": run.started,
        "level": run.level,
        "suite": dict(run.suite),
        "implementation": dict(run.implementation),
        "capabilities": dict(run.capabilities),
    }


def result_entry(result: Result) -> dict[str, Any]:
    """One verdict with the numbers behind it; what came back is kept where it is wrong."""
    entry = {"type": "result"} | {name: getattr(result, name) for name in _COPIED}
    entry |= {"clauses": list(result.clauses), "flags": list(result.flags), "seconds": round(result.seconds, 6)}
    return entry | {"outputs": {item.output: _output(item) for item in result.judged}}


def footer(run: Run) -> dict[str, Any]:
    """How it ended."""
    return {
        "type": "footer",
        "complete": run.complete,
        "results": len(run.results),
        "counts": dict(sorted(run.counts.items())),
        "verdict": run.verdict,
        "exit_code": run.exit_code,
        "seconds": round(run.seconds, 3),
        "stale": list(run.stale),
        "failure": run.failure,
        "detail": run.detail,
        "diagnosis": dict(run.diagnosis) if run.diagnosis else None,
    }


def read(path: Path) -> Run:
    """The run of a record. One that was cut short is incomplete, and says so."""
    try:
        entries = [_entry(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    if not entries or not entries[0] or entries[0].get("type") != "header":
        raise UsageError(f"{path}: expected the record of a run, whose first line is its header")
    first = entries[0]
    if first.get("schema") != SCHEMA:
        raise UsageError(f"{path}: expected schema {SCHEMA}, got {first.get('schema')!r}")
    run = Run(
        first["target"],
        first["implementation"],
        first["capabilities"],
        [_result(entry) for entry in entries if entry and entry["type"] == "result"],
        first["suite"],
        first["started"],
        level=first["level"],
    )
    _end(run, entries[-1] or {})
    return run


def merge(runs: Sequence[Run]) -> list[Run]:
    """Parts of one run joined: same target and implementation, no result twice. Other runs stay side by side."""
    found: list[Run] = []
    for run in runs:
        if run.suite.get("digest") != runs[0].suite.get("digest"):
            raise UsageError(
                f"the record of {run.target} is of another suite ({run.suite}) than that of {runs[0].target} ({runs[0].suite})"
            )
        partner = next((other for other in found if _fits(other, run)), None)
        if partner is None:
            found.append(run)
        else:
            _join(partner, run)
    return found


def _fits(one: Run, other: Run) -> bool:
    same = (one.target, dict(one.implementation), one.level) == (other.target, dict(other.implementation), other.level)
    return same and not {result.key for result in one.results} & {result.key for result in other.results}


def _join(one: Run, other: Run) -> None:
    one.results = sorted([*one.results, *other.results], key=lambda result: (result.id, result.dtype))
    one.complete = one.complete and other.complete
    one.failure = one.failure or other.failure
    one.seconds += other.seconds
    one.stale = (*one.stale, *other.stale)
    one.diagnosis = one.diagnosis or other.diagnosis


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"


def _entry(line: str) -> dict[str, Any] | None:
    """The object of a line; None for the line in whose middle a record was cut."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _output(item: Judged) -> dict[str, Any]:
    keep = not item.ok and item.got is not None and item.got.size <= _LARGE
    return {
        "k": item.k if isfinite(item.k) else "inf",
        "limit": item.limit,
        "reason": item.reason,
        "index": list(item.index),
        "expected": item.expected,
        "got": encode_array(np.asarray(item.got)) if keep else None,
    }


def _result(entry: Mapping[str, Any]) -> Result:
    return Result(
        **{name: entry[name] for name in _COPIED},
        clauses=tuple(entry["clauses"]),
        flags=tuple(entry["flags"]),
        seconds=entry["seconds"],
        judged=tuple(_judged(name, item) for name, item in entry["outputs"].items()),
    )


def _judged(name: str, item: Mapping[str, Any]) -> Judged:
    got = None if item["got"] is None else decode_output(item["got"], name).array.astype(item["got"]["dtype"])
    k = inf if item["k"] == "inf" else item["k"]
    return Judged(name, k, item["limit"], item["reason"], tuple(item["index"]), item["expected"], got)


def _end(run: Run, last: Mapping[str, Any]) -> None:
    if last.get("type") != "footer" or last["results"] != len(run.results):
        run.failure = "the record is cut short"
        return
    run.complete, run.seconds = last["complete"], last["seconds"]
    run.stale, run.failure, run.detail = tuple(last["stale"]), last["failure"], last["detail"]
    run.diagnosis = last["diagnosis"]
