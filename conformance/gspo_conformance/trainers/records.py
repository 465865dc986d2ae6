"""What stays of a trainer's run: the record that the pages about trainers are made of.

`gspo trainers record NAME` runs both variants and writes `records/NAME-VERSION.json`. A record says what was run and
when, how many vectors passed, and, for each cause that the room knows, how far its worst vector is off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_whole
from ..formats import Vector, load_vectors
from ..judge import Judged, as_numpy
from ..known import KnownFailure, KnownFailures
from ..run import EXPECTED_FAILURE, PASS, SKIPPED, UNSUPPORTED, Result, Run
from ..tensors import NumPyArray
from .dialect import PAPER, Inexpressible, is_gspo
from .room import Choice, Room, Version

SCHEMA = 1
RECORDS = Path(__file__).resolve().parent / "records"
REFERENCE = "aggregation/many-responses"
"""Eight responses of 1 to 9 tokens: what a response weighs."""


def path_of(room: Room, version: Version) -> Path:
    """The file of one version."""
    return RECORDS / f"{room.name}-{version.name}.json"


def load(room: Room, version: Version) -> dict[str, Any] | None:
    """The record of one version, where it was run."""
    path = path_of(room, version)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write(choice: Choice, claims: Run, default: Run, known: Mapping[str, KnownFailures]) -> Path:
    """One file with both variants."""
    path = path_of(choice.room, choice.version)
    path.parent.mkdir(exist_ok=True)
    record = summary(choice, claims, default, known)
    write_whole(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def summary(choice: Choice, claims: Run, default: Run, known: Mapping[str, KnownFailures]) -> dict[str, Any]:
    """The record of one version: what ran, the two variants, and the settings that they used."""
    dialect, version = choice.room.dialect, choice.version
    return {
        "schema": SCHEMA,
        "trainer": choice.room.name,
        "version": version.name,
        "commit": version.commit,
        "date": claims.started[:10],
        "suite": dict(claims.suite),
        "implementation": dict(claims.implementation),
        "settings": {
            "faithful": _written(lambda: dialect.write(PAPER, version.name)),
            "default": _written(lambda: dialect.gspo(PAPER["surrogate"], version.name)),
        },
        "claims": variant(claims, known["claims"]),
        "default": variant(default, known["default"]),
    }


def variant(run: Run, known: KnownFailures) -> dict[str, Any]:
    """One run: counts over all and over the paper's own objective, areas, causes, the factors of the reference vector."""
    vectors = {vector.id: vector for vector in load_vectors()}
    gspo = [result for result in run.results if is_gspo(vectors[result.id].parameters.get("objective"))]
    return {
        "as_expected": run.conforming,
        "unexpected": sorted({result.key for result in run.offences}),
        "all": _counts(run.results),
        "must": _counts([result for result in run.results if result.level == "MUST"]),
        "gspo_must": _counts([result for result in gspo if result.level == "MUST"]),
        "areas": {area: _counts(results) for area, results in run.by_area().items()},
        "causes": _causes(run.results, known, vectors),
        "factors": factors(run.results, vectors[REFERENCE]),
        "diagnosis": run.diagnosis["sentence"] if run.diagnosis else "",
        "seconds": round(run.seconds, 1),
    }


def factors(results: Sequence[Result], vector: Vector) -> dict[str, Any] | None:
    """Gradient over truth per response of the reference vector, shortest first, the loss over truth, and clipped responses with a gradient."""
    answer = next((r.answer for r in results if r.id == vector.id and r.dtype == "float64" and r.answer), None)
    answer = answer or next((r.answer for r in results if r.id == vector.id and r.answer), None)
    if answer is None or "gradient" not in answer:
        return None
    mask = vector.inputs["mask"] != 0
    order = np.argsort(mask.sum(1), kind="stable")
    got, truth = as_numpy(answer["gradient"])[0], vector.expected["gradient"].value
    sums = [(float(got[i][mask[i]].sum()), float(truth[i][mask[i]].sum())) for i in order]
    kept = [(int(mask[i].sum()), _short(mine / true)) for i, (mine, true) in zip(order, sums, strict=True) if true]
    loss = float(as_numpy(answer["loss"])[0] / vector.expected["loss"].value)
    leaks = [int(mask[i].sum()) for i, (mine, true) in zip(order, sums, strict=True) if mine and not true]
    return {"lengths": [n for n, _ in kept], "gradient": [x for _, x in kept], "loss": _short(loss), "leaks": leaks}


def _written(settings: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    try:
        return settings()
    except Inexpressible:
        return None


def _counts(results: Sequence[Result]) -> dict[str, int]:
    """Vectors in a dtype: passed, deviating, not expressible in the trainer's settings, not offered by it."""
    verdicts = [result.verdict for result in results]
    passed, skipped, unsupported = (verdicts.count(name) for name in (PASS, SKIPPED, UNSUPPORTED))
    deviating = len(verdicts) - passed - skipped - unsupported
    return {"passed": passed, "deviating": deviating, "inexpressible": skipped, "not_offered": unsupported}


def _causes(results: Sequence[Result], known: KnownFailures, vectors: Mapping[str, Vector]) -> list[dict[str, Any]]:
    """Expected failures by the reason that the room gives, the commonest first."""
    found: dict[str, list[Result]] = {}
    for result in results:
        if result.verdict == EXPECTED_FAILURE:
            found.setdefault(_entry(known, result).reason, []).append(result)
    causes = [_cause(reason, group, vectors) for reason, group in found.items()]
    return sorted(causes, key=lambda cause: (-cause["must"], -cause["vectors"], cause["reason"]))


def _entry(known: KnownFailures, result: Result) -> KnownFailure:
    return next(entry for entry in known.entries if entry.hits(result))


def _cause(reason: str, group: Sequence[Result], vectors: Mapping[str, Vector]) -> dict[str, Any]:
    worst = max(group, key=lambda result: (result.level == "MUST", _distance(result, vectors)[0]))
    distance, shown = _distance(worst, vectors)
    return {
        "reason": reason,
        "vectors": len({result.id for result in group}),
        "must": len({result.id for result in group if result.level == "MUST"}),
        "areas": sorted({result.area for result in group}),
        "clauses": sorted({clause for result in group for clause in result.clauses[:1]}),
        "worst": {"id": worst.id, "dtype": worst.dtype, "relative": _short(distance), **shown},
    }


def _distance(result: Result, vectors: Mapping[str, Vector]) -> tuple[float, dict[str, Any]]:
    """How far the worst output is off, relative to the largest true value of that output."""
    expected = vectors[result.id].expected
    found = [
        _element(item, expected[item.output].value) for item in result.judged if not item.ok and item.output in expected
    ]
    if not found:
        return inf, {"output": "", "expected": "", "got": result.reason.split(" [known")[0]}
    return max(found, key=lambda one: one[0])


def _element(item: Judged, truth: NumPyArray) -> tuple[float, dict[str, Any]]:
    if item.got is None or item.got.shape != truth.shape:
        return inf, {"output": item.output, "expected": "", "got": item.reason}
    size = float(np.max(np.abs(truth[np.isfinite(truth)]), initial=0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.where(item.got == truth, 0.0, np.nan_to_num(np.abs(item.got - truth) / size, nan=inf, posinf=inf))
    index = np.unravel_index(np.argmax(off), off.shape)
    due, got = _apart(float(truth[index]), float(item.got[index]))
    return float(off[index]), {"output": item.output, "expected": due, "got": got}


def _apart(*values: float) -> list[float | str]:
    """Three digits, or as many as tell the numbers apart."""
    digits = next((n for n in range(3, 17) if len({f"{value:.{n}g}" for value in values}) == len(values)), 17)
    return [_rounded(value, digits) for value in values]


def _short(value: float) -> float | str:
    """Four digits; a word where JSON has no number."""
    return _rounded(value, 4)


def _rounded(value: float, digits: int) -> float | str:
    return float(f"{value:.{digits}g}") if isfinite(value) else str(value)
