"""`gspo check --smoke`: is the adapter itself right? Do answers come, with the names, shapes and dtypes that are due?

Whether the numbers are right is the business of the whole suite.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from .applicability import Unsupported, case_of
from .formats import Vector
from .reports.untested import why
from .run import ERROR, LEVELS, PASS, SKIPPED, UNSUPPORTED, Result, Run
from .target import Capabilities


def easiest(vectors: Sequence[Vector], capabilities: Capabilities) -> list[Vector]:
    """For every operation and layout of a target the vector with the fewest numbers, MUST before SHOULD before MAY."""
    found: dict[tuple[str, bool], Vector] = {}
    for vector in sorted(vectors, key=lambda vector: (LEVELS.index(vector.level), _size(vector.raw["inputs"]))):
        place = (vector.operation, "offsets" in vector.raw["inputs"])
        if place not in found and vector.refuses is None and _applies(vector, capabilities):
            found[place] = vector
    return list(found.values())


def form(run: Run) -> list[str]:
    """What is wrong with the form of the answers; empty where nothing is."""
    if run.failure:
        return [run.failure]
    asked = [result for result in run.results if result.verdict not in (UNSUPPORTED, SKIPPED)]
    if not asked:
        return [why(run.capabilities)]
    return [f"{result.key}: {fault}" for result in asked for fault in _faults(result)]


def report(run: Run) -> str:
    """A few lines for the terminal."""
    faults = form(run)
    wrong = [result for result in run.results if result.verdict not in (PASS, UNSUPPORTED, SKIPPED, ERROR)]
    lines = [f"  {fault}" for fault in faults]
    if not faults:
        operations = sorted({r.operation for r in run.results if r.verdict not in (UNSUPPORTED, SKIPPED)})
        lines = [f"  answers come in the right form: {', '.join(operations)}"]
        lines += [f"  but {result.key} is wrong: {result.reason}" for result in wrong]
        lines.append(f"  next: gspo check {shlex.quote(run.target)}")
    return "\n".join([f"{run.target}: {'the adapter is NOT right' if faults else 'the adapter is right'}", *lines, ""])


def _applies(vector: Vector, capabilities: Capabilities) -> bool:
    for dtype in vector.dtype:
        with suppress(Unsupported):
            return bool(case_of(vector, dtype, capabilities))
    return False


def _faults(result: Result) -> list[str]:
    if result.verdict == ERROR:
        return [result.reason]
    return [f"{item.output}: {item.reason}" for item in result.judged if item.units is None or not _finite(item.got)]


def _finite(got: Any) -> bool:
    return got is not None and bool(np.isfinite(got).all())


def _size(inputs: Any) -> int:
    if isinstance(inputs, list):
        return sum(map(_size, inputs))
    if isinstance(inputs, dict) and "shape" in inputs:
        return int(np.prod(inputs["shape"]))
    return sum(map(_size, inputs.values())) if isinstance(inputs, dict) else 0
