"""Everything that must hold of the committed vectors besides their numbers, which `regenerate` recomputes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..clauses import clauses
from ..flags import read_flags
from ..formats import AREAS, VECTORS, Vector, vector_from_json
from ..manifest import verify_manifest
from ..tensors import canonical
from .assemble import check_exact
from .schemas import strict_json, violations

SMALLEST_MARGIN = 1e-5
BUDGET = 10_000_000


def lint(root: Path = VECTORS, flags: dict[str, Any] | None = None) -> list[str]:
    """What is wrong, one sentence each; empty where all is well."""
    registry = read_flags() if flags is None else flags
    found: list[Vector] = []
    problems = list(verify_manifest(root))
    for path in sorted(root.glob("*/*.json")):
        where = path.relative_to(root).as_posix()
        vector, wrong = _read(path)
        problems += [f"{where}: {sentence}" for sentence in wrong]
        if vector is not None:
            found.append(vector)
            problems += [f"{where}: {sentence}" for sentence in _problems(vector, where, registry)]
    return problems + list(_across(found, registry)) + list(_sizes(root))


def _read(path: Path) -> tuple[Vector | None, list[str]]:
    text = path.read_text(encoding="utf-8")
    try:
        raw = strict_json(text)
    except ValueError as error:
        return None, [str(error)]
    wrong = list(violations("vector", raw))
    if wrong:
        return None, wrong
    if canonical(raw) + "\n" != text:
        wrong.append("not in the one way this suite writes JSON; run `gspo vectors regen`")
    return vector_from_json(raw, path.parent), wrong


def _problems(vector: Vector, where: str, registry: dict[str, Any]) -> Iterator[str]:
    if f"{vector.id}.json" != where:
        yield f"its id is {vector.id!r}: an id is the path of its file and never moves"
    if vector.area not in AREAS:
        yield f"unknown area {vector.area!r}"
    yield from (f"unknown flag {flag!r}" for flag in vector.flags if flag not in registry)
    yield from (f"unknown clause {clause!r}" for clause in vector.clauses if clause not in clauses())
    yield from _inexact(vector)
    yield from _kinks(vector)
    for name, expected in vector.expected.items():
        try:
            _ = expected.scale
        except ValueError as error:
            yield f"expected.{name}: {error}"


def _inexact(vector: Vector) -> Iterator[str]:
    """Inputs that do not fit the dtype they are written in, or do not decode at all."""
    raw = vector.raw["inputs"]
    for part in raw.get("parts", [raw]):
        for name, entry in part.items():
            try:
                wide = "float64" if "float" in entry["dtype"] else entry["dtype"]
                check_exact(name, vector.decode(entry | {"dtype": wide}), entry["dtype"])
            except (ValueError, KeyError, OSError) as error:
                yield f"inputs.{name}: {error}"


def _kinks(vector: Vector) -> Iterator[str]:
    """A vector stays clear of every decision, unless it is about one."""
    margins = [expected.kink_margin for expected in vector.expected.values() if expected.kink_margin is not None]
    if "boundary" in vector.flags:
        if vector.level == "MUST":
            yield "a vector on a boundary is SHOULD or MAY: the paper does not decide it"
    elif margins and min(margins) < SMALLEST_MARGIN:
        yield f"kink margin {min(margins):.3g} below {SMALLEST_MARGIN:g}: move the inputs, or flag it `boundary`"


def _across(vectors: list[Vector], registry: dict[str, Any]) -> Iterator[str]:
    """What no file can break alone."""
    yield from (f"{id_}: {count} vectors have this id" for id_, count in Counter(v.id for v in vectors).items() if count > 1)  # fmt: skip
    used = {flag for vector in vectors for flag in vector.flags}
    yield from (f"flags.json: {flag!r} is used by no vector" for flag in registry if flag not in used)
    covered = {clause for vector in vectors for clause in vector.clauses}
    for clause in clauses().values():
        if clause.testable and clause.id not in covered:
            yield f"{clause.id}: testable, but no vector tests it"
    yield from (f"flags.json: {sentence}" for sentence in violations("flags", registry))
    for flag, entry in registry.items():
        yield from (f"flags.json: {flag}: unknown clause {clause!r}" for clause in entry["clauses"] if clause not in clauses())  # fmt: skip


def _sizes(root: Path) -> Iterator[str]:
    total = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    if total > BUDGET:
        yield f"vectors: {total} bytes, {BUDGET} allowed"
