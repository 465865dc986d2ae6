"""What a run says about its target: every answer beside its question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..mutants.atlas import Atlas, Row, row_of
from ..run import ERROR, EXPECTED_FAILURE, FAIL, PASS, Result, Run

REFUSED = Row(np.zeros(0), np.zeros(0, bool), "refused")
NAMELESS = Row(np.zeros(0), np.zeros(0, bool), "refused without a name")


@dataclass(frozen=True)
class Evidence:
    """One answer of the target: which question, what came back, whether it was right, whether the target answers alike when asked again."""

    question: int
    row: Row
    right: bool
    result: Result | None = None
    steady: bool = True


def evidence_of(run: Run, atlas: Atlas) -> list[Evidence]:
    """The answers of a run to questions of the atlas; what was not asked is no evidence."""
    found: list[Evidence] = []
    for result in run.results:
        question = atlas.index.get(result.key)
        row = None if question is None else _row(result, question, atlas)
        if question is not None and row is not None:
            found.append(Evidence(question, row, result.verdict == PASS, result, not run.unsteady))
    return found


def _row(result: Result, question: int, atlas: Atlas) -> Row | None:
    asked = atlas.bench.questions[question]
    if result.nameless:
        return NAMELESS
    if result.verdict in (PASS, FAIL, EXPECTED_FAILURE) and (result.answer or asked.vector.refuses):
        return row_of(asked, result.answer)
    return REFUSED if result.verdict in (ERROR, FAIL) else None


def spread(evidence: Sequence[Evidence], atlas: Atlas, limit: int) -> list[Evidence]:
    """At most `limit` of them, taking turns between areas, small questions first."""
    shelves: dict[str, list[Evidence]] = {}
    for item in sorted(evidence, key=lambda item: item.row.numbers.size):
        vector = atlas.bench.questions[item.question].vector
        shelves.setdefault(f"{vector.area} {vector.operation}", []).append(item)
    found: list[Evidence] = []
    while len(found) < limit and any(shelves.values()):
        found += [shelf.pop(0) for shelf in shelves.values() if shelf]
    return found[:limit]
