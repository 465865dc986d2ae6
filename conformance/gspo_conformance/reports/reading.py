"""A record read back. It may come from a stranger's artifact: nothing in it is believed before it is checked.

The header and the footer are held against `schemas/report.schema.json`; the results, of which there are thousands, by the
table below, which says the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator

from ..files import read_text
from ..formats import ROOT
from ..judge import Judged, Stored
from ..protocol import decode_output
from ..run import LEVELS, VERDICTS, Result, Run
from ..tensors import NumPyArray
from ..words import UsageError, cut, read_json
from .record import COPIED, SCHEMA

MAX_BYTES, MAX_BRACKETS = 2**27, 2**22


def read(path: Path) -> Run:
    """The run of a record. One that was cut short is incomplete, and says so."""
    entries = _entries(path)
    first = entries[0] if entries else None
    if not first or first.get("type") != "header":
        raise UsageError(f"{path}: expected the record of a run, whose first line is its header")
    if first.get("schema") != SCHEMA:
        raise UsageError(f"{path}: expected schema {SCHEMA}, got {cut(repr(first.get('schema')))}")
    _obeys(path, 1, "header", first)
    run = Run(
        first["target"],
        first["implementation"],
        first["capabilities"],
        [_result(path, i, entry) for i, entry in enumerate(entries, 1) if entry and entry.get("type") == "result"],
        first["suite"],
        first["started"],
        level=first["level"],
    )
    _end(path, run, entries[-1] or {}, len(entries))
    return run


def _entries(path: Path) -> list[dict[str, Any] | None]:
    """The objects of the lines; None for the last one where a record was cut in its middle."""
    text = read_text(path, "the record of a run", MAX_BYTES)
    if text.count("[") + text.count("{") > MAX_BRACKETS:
        raise UsageError(f"{path}: expected the record of a run, of at most {MAX_BRACKETS} lists and objects")
    lines = [line for line in text.splitlines() if line]
    found: list[dict[str, Any] | None] = []
    for number, line in enumerate(lines, 1):
        try:
            entry = read_json(line)
        except (ValueError, RecursionError) as error:
            if 1 < number < len(lines):
                raise UsageError(f"{path}: line {number}: not JSON: {cut(str(error), 160)}") from None
            entry = None
        found.append(entry if isinstance(entry, dict) else None)
    return found


def _obeys(path: Path, line: int, kind: str, entry: Mapping[str, Any]) -> None:
    error = next(_validator(kind).iter_errors(entry), None)
    if error is not None:
        raise UsageError(f"{path}: line {line}: {error.json_path.removeprefix('$.')}: {cut(error.message, 160)}")


@cache
def _validator(kind: str) -> Draft202012Validator:
    schema = json.loads((ROOT / "schemas" / "report.schema.json").read_text(encoding="utf-8"))
    return Draft202012Validator({"$defs": schema["$defs"], "$ref": f"#/$defs/{kind}"})


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1e300


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _text_or_null(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "type": _is_text,
    "id": _is_text,
    "dtype": ("float32", "float64").__contains__,
    "level": LEVELS.__contains__,
    "clauses": _texts,
    "flags": _texts,
    "operation": _is_text,
    "verdict": VERDICTS.__contains__,
    "reason": _is_text,
    "url": _text_or_null,
    "detail": _is_text,
    "seconds": _number,
    "outputs": _is_object,
}
_OUTPUT: dict[str, Callable[[Any], bool]] = {
    "k": lambda value: value == "inf" or _number(value),
    "limit": _number,
    "reason": _is_text,
    "index": _whole_numbers,
    "expected": _is_text,
    "got": lambda value: value is None or isinstance(value, dict),
}
DTYPES = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)))
DTYPES = (*DTYPES, "float16", "float32", "float64", "longdouble", "float96", "float128")


def _fits(fields: Mapping[str, Callable[[Any], bool]], entry: Any) -> str:
    """The first field that is missing, unknown or of another kind; empty where all is well."""
    if not isinstance(entry, dict):
        return "an object"
    wrong = (name for name, good in fields.items() if name not in entry or not good(entry[name]))
    return next(wrong, next((cut(name) for name in entry if name not in fields), ""))


def _result(path: Path, line: int, entry: Mapping[str, Any]) -> Result:
    wrong = _fits(_FIELDS, entry) or next((w for item in entry["outputs"].values() if (w := _fits(_OUTPUT, item))), "")
    if wrong:
        raise UsageError(f"{path}: line {line}: not the result of a vector, see its {wrong}")
    try:
        judged = tuple(_judged(name, item) for name, item in entry["outputs"].items())
    except (ValueError, KeyError) as error:
        raise UsageError(f"{path}: line {line}: outputs: {cut(str(error), 200)}") from None
    return Result(
        **{name: entry[name] for name in COPIED},
        clauses=tuple(entry["clauses"]),
        flags=tuple(entry["flags"]),
        seconds=entry["seconds"],
        judged=judged,
    )


def _judged(name: str, item: Mapping[str, Any]) -> Judged:
    k = math.inf if item["k"] == "inf" else item["k"]
    got = None if item["got"] is None else _array(item["got"], name)
    return Judged(name, k, item["limit"], item["reason"], tuple(item["index"]), item["expected"], got)


def _array(entry: Mapping[str, Any], name: str) -> NumPyArray:
    if entry.get("dtype") not in DTYPES:
        raise ValueError(
            f"{cut(name)}: expected a dtype among {', '.join(DTYPES)}, got {cut(repr(entry.get('dtype')))}"
        )
    found = decode_output(entry, cut(name))
    assert isinstance(found, Stored)
    with np.errstate(all="ignore"):
        return found.array.astype(found.dtype)


def _end(path: Path, run: Run, last: Mapping[str, Any], line: int) -> None:
    if last.get("type") != "footer" or last.get("results") != len(run.results):
        run.failure = "the record is cut short"
        return
    _obeys(path, line, "footer", last)
    run.complete, run.seconds = last["complete"], last["seconds"]
    run.stale, run.failure, run.detail = tuple(last["stale"]), last["failure"], last["detail"]
    run.diagnosis, run.again = last["diagnosis"], last.get("again", {})
