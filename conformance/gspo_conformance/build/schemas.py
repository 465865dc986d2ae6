"""The JSON Schemas of vectors and flags, and strict JSON: what no parser in any language stumbles over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from ..formats import ROOT

SCHEMAS = ROOT / "schemas"


@cache
def validator(name: str) -> Draft202012Validator:
    """The validator of `schemas/<name>.schema.json`."""
    return Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8")))


def violations(name: str, value: Any) -> Iterator[str]:
    """Where a value departs from a schema, and how."""
    for error in sorted(validator(name).iter_errors(value), key=lambda error: error.json_path):
        message = error.message if len(error.message) < 200 else error.message[:200] + "..."
        yield f"{error.json_path}: {message}"


def strict_json(text: str) -> Any:
    """JSON without NaN, infinities or repeated keys; a ValueError names what was found."""
    return json.loads(text, parse_constant=_refuse, object_pairs_hook=_once)


def _refuse(literal: str) -> Any:
    raise ValueError(f"expected strict JSON, got the literal {literal}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    repeated = sorted({key for key in keys if keys.count(key) > 1})
    if repeated:
        raise ValueError(f"expected every key once, got {', '.join(repeated)} more than once")
    return dict(pairs)
