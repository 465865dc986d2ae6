"""From a recipe to the JSON of its vector: inputs written exactly, truth and scale from the oracle, capabilities derived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import mpmath
import numpy as np

from ..oracle import Truth, truth
from ..tensors import LARGE, NumPyArray, encode_array
from .levels import SILENT, level_of
from .recipe import Case, Recipe

VALUE_DIGITS = 30
SCALE_DIGITS = 5
UNDERFLOW = mpmath.mpf(2) ** -1100
LONG = 4096
LONG_K = 64


@dataclass(frozen=True)
class Assembled:
    """A vector as JSON, and the large arrays that go into safetensors files beside it: file -> key -> array."""

    raw: dict[str, Any]
    tensors: dict[str, dict[str, NumPyArray]] = field(default_factory=dict)


def assemble(recipe: Recipe) -> Assembled:
    """Everything that a vector holds."""
    case = recipe.case()
    area, slug = recipe.id.split("/")
    level = level_of(recipe, case)
    tensors: dict[str, dict[str, NumPyArray]] = {}
    store = f"{case.store or slug}.safetensors"
    raw: dict[str, Any] = {
        "id": recipe.id,
        "title": recipe.title,
        "clauses": list(dict.fromkeys(recipe.clauses)),
        "level": level,
        "requires": requirements(case),
        "flags": list(dict.fromkeys(recipe.flags)),
        "source": {"name": "gspo", "recipe": f"{area}.{slug}", "version": recipe.version},
        "operation": case.operation,
        "dtype": list(case.dtype),
        "input_dtype": case.input_dtype,
        "parameters": case.parameters,
        "inputs": _inputs(case.inputs, case, store, tensors),
        "expected": {} if case.refuses else _expected(case, truth(case.operation, case.parameters, case.inputs)),
    }
    if case.refuses:
        raw["refuses"] = {"argument": case.refuses, "outputs": list(case.outputs)}
    note = recipe.note or ("" if level == recipe.level else SILENT)
    if note:
        raw["note"] = note
    return Assembled(raw, {store: tensors[store]} if tensors else {})


def requirements(case: Case) -> list[str]:
    """What a target must be able to do, read off the case: layouts, dtypes, per-token advantages, kinds of output and input."""
    parts = case.inputs.get("parts", [case.inputs])
    names = {name for part in parts for name in part}
    objective = case.parameters.get("objective") or {}
    needs = {
        "packed": "offsets" in names,
        "gradient": bool(case.outputs) and all(name.startswith("gradient") for name in case.outputs),
        "metrics": bool(case.outputs) and all(name.startswith("metrics.") for name in case.outputs),
        "token_advantages": any(_per_token(part) for part in parts),
        "float64": case.dtype == ("float64",),
        case.input_dtype or "": case.input_dtype is not None,
        "penalty": bool(objective.get("penalty")),
        "correction": bool(objective.get("correction")),
        "cap": objective.get("log_ratio_cap") is not None,
        "normalizer": "normalizer" in case.parameters,
    }
    return [name for name, needed in needs.items() if needed]


def _per_token(part: Mapping[str, Any]) -> bool:
    if "advantages" not in part or "logp" not in part:
        return False
    return bool(part["advantages"].shape == part["logp"].shape and ("mask" in part or len(part["offsets"]) != len(part["advantages"]) + 1))  # fmt: skip


def _inputs(inputs: Mapping[str, Any], case: Case, store: str, tensors: dict[str, dict[str, NumPyArray]]) -> Any:
    return {name: _input(name, value, case, store, tensors) for name, value in inputs.items()}


def _input(name: str, value: Any, case: Case, store: str, tensors: dict[str, dict[str, NumPyArray]]) -> Any:
    if isinstance(value, list):
        return [_inputs(part, case, store, tensors) for part in value]
    dtype = storage_dtype(name, value, case)
    check_exact(name, value, dtype)
    entry = encode_array(value, dtype)
    if np.size(value) <= LARGE or "runs" in entry:
        return entry
    tensors.setdefault(store, {})[name] = np.asarray(value, dtype=np.float64 if dtype == "float64" else np.float32)
    return {"dtype": dtype, "shape": list(np.shape(value)), "file": store, "key": name}


def storage_dtype(name: str, value: NumPyArray, case: Case) -> str:
    """The narrowest dtype that an array is used in; log-probabilities have one of their own where the case says so."""
    kind = np.asarray(value).dtype.kind
    if kind == "b":
        return "bool"
    if kind in "iu":
        return "int64"
    if case.input_dtype is not None and name.endswith("logp"):
        return case.input_dtype
    return "float32" if "float32" in case.dtype else "float64"


def check_exact(name: str, value: NumPyArray, dtype: str) -> None:
    """Every finite entry is a number of `dtype`: what a file says is what every target gets."""
    if dtype in ("bool", "int64", "float64"):
        return
    flat = np.asarray(value, dtype=np.float64).ravel()
    with np.errstate(over="ignore"):
        wrong = np.flatnonzero(np.isfinite(flat) & ~_fits(flat, dtype))
    if wrong.size:
        raise ValueError(f"{name}: expected numbers exact in {dtype}, got {float(flat[wrong[0]])!r} at {int(wrong[0])}")


def _fits(flat: NumPyArray, dtype: str) -> NumPyArray:
    """Where a number is exact; bfloat16 is the upper half of float32."""
    if dtype == "float16":
        return flat == flat.astype(np.float16)
    single = flat.astype(np.float32)
    exact: NumPyArray = single == flat
    return exact & ((single.view(np.uint32) & 0xFFFF) == 0) if dtype == "bfloat16" else exact


def _expected(case: Case, found: Truth) -> dict[str, Any]:
    k = case.k or (LONG_K if _longest(case) > LONG else None)
    return {name: _entry(name, case, found, k) for name in case.outputs}


def _entry(name: str, case: Case, found: Truth, k: float | None) -> dict[str, Any]:
    output = found.outputs[name]
    entry: dict[str, Any] = {"value": compact(output.value, decimal_text)}
    if name in case.exact:
        return entry | {"compare": {"rule": "exact", "k": 0}}
    entry["scale"] = compact(output.scale, lambda number: decimal_text(number, SCALE_DIGITS), fold=True)
    if mpmath.isfinite(found.kink_margin) and not name.startswith("metrics."):
        entry["kink_margin"] = decimal_text(found.kink_margin, SCALE_DIGITS)
    return entry if k is None else entry | {"compare": {"rule": "scale", "k": k}}


def _longest(case: Case) -> int:
    parts = case.inputs.get("parts", [case.inputs])
    return max(_longest_sequence(part) for part in parts)


def _longest_sequence(part: Mapping[str, Any]) -> int:
    if "offsets" in part:
        return int(np.diff(part["offsets"]).max(initial=0))
    return int(part["mask"].sum(axis=1).max(initial=0)) if "mask" in part else 0


def decimal_text(number: Any, digits: int = VALUE_DIGITS) -> Any:
    """A decimal string of so many significant digits, 0 for what underflows in every dtype; decisions are 0 and 1."""
    if isinstance(number, bool):
        return int(number)
    if abs(number) < UNDERFLOW:
        return "0"
    # mpf(x) of an mpf would round it to the working precision, which here is that of float64
    exact = number if isinstance(number, mpmath.mpf) else mpmath.mpf(number)
    text = str(mpmath.nstr(exact, digits, strip_zeros=True)).removeprefix("+")
    return {"0.0": "0", "-0.0": "0"}.get(text, text.removesuffix(".0"))


def compact(tree: Any, write: Any, *, fold: bool = False) -> Any:
    """Nested lists of text; `{shape, runs}` where long runs repeat; with `fold` one text where all are equal."""
    array = np.array(tree, dtype=object)
    texts = [write(number) for number in array.ravel()]
    if fold and texts and len(set(texts)) == 1:
        return texts[0]
    runs = [[text, sum(1 for _ in same)] for text, same in groupby(texts)]
    if len(texts) >= 256 and len(runs) * 8 < len(texts):
        return {"shape": list(array.shape), "runs": runs}
    return _nest(texts, array.shape)


def _nest(flat: list[Any], shape: tuple[int, ...]) -> Any:
    for size in reversed(shape[1:]):
        flat = [flat[i : i + size] for i in range(0, len(flat), size)] if size else [[] for _ in range(shape[0])]
    return flat if shape else flat[0]
