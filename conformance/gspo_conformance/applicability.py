"""Which vectors a target is asked, and for which outputs: its capabilities held against the vector."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from .formats import Vector
from .target import Capabilities, Case

OBJECTIVE = "this objective"


class Unsupported(Exception):
    """The target does not claim what this vector needs; the message names it."""


def case_of(vector: Vector, dtype: str, capabilities: Capabilities) -> Case:
    """The question that `vector` puts in `dtype`, without its answers; raises `Unsupported`."""
    _require(vector.operation, capabilities.operations, "operation")
    _require(dtype, capabilities.dtypes, "dtype")
    case = Case(
        operation=vector.operation,
        parameters=vector.parameters,
        inputs=cast_inputs(vector.inputs, dtype),
        dtype=dtype,
        outputs=_wanted(vector, capabilities),
        input_dtype=vector.input_dtype,
        id=vector.id,
    )
    _check_data(case, capabilities)
    _check_objective(case, capabilities)
    return case


def cast_inputs(inputs: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Floating arrays as `dtype`, copied, so that no target can write into the suite's own."""
    return {name: _cast(value, dtype) for name, value in inputs.items()}


def _cast(value: Any, dtype: str) -> Any:
    if isinstance(value, list):
        return [cast_inputs(part, dtype) for part in value]
    return value.astype(dtype) if value.dtype.kind == "f" else value.copy()


def _require(word: str, words: Set[str], noun: str) -> None:
    if word not in words:
        raise Unsupported(f"{noun} {word}")


def _wanted(vector: Vector, capabilities: Capabilities) -> tuple[str, ...]:
    wanted = tuple(name for name in vector.outputs if _has(name, capabilities))
    missing = [name for name in vector.outputs if name not in wanted]
    if not wanted or ("gradient" in vector.requires and not capabilities.gradient):
        raise Unsupported(f"output {', '.join(missing)}")
    return wanted


def _has(output: str, capabilities: Capabilities) -> bool:
    name = output.partition(".")[0]
    if name == "metrics":
        return output.partition(".")[2] in capabilities.metrics
    return capabilities.gradient if name == "gradient" else True


def _check_data(case: Case, capabilities: Capabilities) -> None:
    if case.layout is not None:
        _require(case.layout, capabilities.layouts, "layout")
    if case.input_dtype is not None:
        _require(case.input_dtype, capabilities.input_dtypes, "input dtype")
    for part in case.inputs.get("parts", [case.inputs]):
        if _per_token(part) and not capabilities.token_advantages:
            raise Unsupported("advantages per token")
        if capabilities.inputs is not None:
            for name in part:
                _require(name, capabilities.inputs, "input")
    if capabilities.parameters is not None:
        for name in case.parameters:
            _require(name, capabilities.parameters, "parameter")


def _per_token(arrays: Mapping[str, Any]) -> bool:
    if "advantages" not in arrays or "logp" not in arrays:
        return False
    shape = arrays["advantages"].shape
    sequences = arrays["offsets"].shape[0] - 1 if "offsets" in arrays else shape[0]
    return shape == arrays["logp"].shape and shape != (sequences,)


def _check_objective(case: Case, capabilities: Capabilities) -> None:
    patterns = capabilities.objectives
    if case.objective is None or patterns is None:
        return
    if not any(matches(pattern, case.objective) for pattern in patterns):
        raise Unsupported(OBJECTIVE)


def matches(pattern: Any, value: Any) -> bool:
    """Whether `value` has every field of `pattern`, to any depth."""
    if isinstance(pattern, Mapping):
        return isinstance(value, Mapping) and all(
            name in value and matches(item, value[name]) for name, item in pattern.items()
        )
    if isinstance(pattern, (list, tuple)):
        return isinstance(value, (list, tuple)) and len(value) == len(pattern) and all(map(matches, pattern, value))
    return bool(pattern == value)
