"""The record of a run: JSON lines, a header, one line per result, a footer without which the record is cut short.

The schema is `schemas/report.schema.json`, `reading.py` reads it. Only the header holds the time of day.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from ..judge import Judged
from ..protocol import encode_array
from ..run import Result, Run
from ..words import UsageError

SCHEMA = 1
_LARGE = 512
COPIED = ("id", "dtype", "level", "operation", "verdict", "reason", "url", "detail")


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
    entry = {"type": "result"} | {name: getattr(result, name) for name in COPIED}
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
        "again": dict(run.again),
    }


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
    one.diagnosis = max(one.diagnosis, other.diagnosis, key=_explained)
    one.again = {**one.again, **other.again}


def _explained(diagnosis: Mapping[str, Any] | None) -> tuple[bool, int]:
    """How much a diagnosis says: of two parts, that which explains more answers."""
    return diagnosis is not None, (diagnosis or {}).get("explained", 0)


def _line(entry: Mapping[str, Any]) -> str:
    """In ASCII: a target's words hold no half of a character and nothing that a terminal obeys."""
    return json.dumps(entry, allow_nan=False, separators=(",", ":")) + "\n"


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
