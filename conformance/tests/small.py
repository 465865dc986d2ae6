"""Small vectors for the tests of runner, judge, protocol and reports: the paper's objective in float64 by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gspo_conformance.build.recipe import gspo
from gspo_conformance.formats import Vector, vector_from_json
from gspo_conformance.tensors import encode_array

GSPO = gspo()
LENGTHS = (3, 1, 4)
DRIFTS = (2.0**-13, 2.0**-9, -(2.0**-9))
ADVANTAGES = (1.0, 0.5, -2.0)


def vector(id: str, operation: str, inputs: dict[str, Any], expected: dict[str, Any], **fields: Any) -> Vector:
    """A vector from plain arrays; `expected` maps an output to `(value, scale)`, or to a value that is owed exactly."""
    raw = {
        "id": id,
        "title": f"The vector {id}",
        "clauses": ["GSPO-RATIO-2"],
        "level": "MUST",
        "requires": [],
        "flags": ["padded-length"],
        "source": {"name": "tests", "recipe": id, "version": 1},
        "operation": operation,
        "dtype": ["float32", "float64"],
        "input_dtype": None,
        "parameters": {},
        "inputs": {name: _array(value) for name, value in inputs.items()},
        "expected": {name: _expected(entry) for name, entry in expected.items()},
        "note": "",
    }
    return vector_from_json(raw | fields)


def _expected(entry: Any) -> dict[str, Any]:
    if isinstance(entry, tuple):
        return {"value": _text(entry[0]), "scale": entry[1]}
    return {"value": _text(entry), "compare": {"rule": "exact", "k": 0}}


def _array(value: Any) -> dict[str, Any]:
    array = np.asarray(value)
    kind = {"b": "bool", "i": "int64", "f": "float32"}[array.dtype.kind]
    return encode_array(array, kind)


def _text(value: Any) -> Any:
    return [_text(item) for item in value] if isinstance(value, (list, tuple)) else repr(value)


def loss_vector(id: str, advantages: Sequence[float] = ADVANTAGES, **fields: Any) -> Vector:
    """GSPO's loss and gradient over responses of 3, 1 and 4 tokens in a batch 5 wide: inside, above and below the band."""
    width = 5
    mask = [[t < n for t in range(width)] for n in LENGTHS]
    old = [[-1.0 - (t + i) / 4 for t in range(width)] for i in range(len(LENGTHS))]
    logp = [[o + d for o in row] for row, d in zip(old, DRIFTS, strict=True)]
    inputs = {"logp": logp, "old_logp": old, "advantages": np.array(advantages), "mask": mask}
    expected = _truth(advantages, width)
    return vector(id, "policy_loss", inputs, expected, **{"parameters": {"objective": GSPO}} | fields)


def _truth(advantages: Sequence[float], width: int) -> dict[str, Any]:
    count, values, gradient = len(LENGTHS), [], []
    for n, drift, a in zip(LENGTHS, DRIFTS, advantages, strict=True):
        ratio = math.exp(drift)
        values.append(min(ratio * a, min(max(ratio, 1 - 3e-4), 1 + 4e-4) * a))
        closed = (a > 0 and ratio > 1 + 4e-4) or (a < 0 and ratio < 1 - 3e-4)
        slope = 0.0 if closed else -ratio * a / (n * count)
        gradient.append([slope if t < n and slope else 0.0 for t in range(width)])
    scale = str(sum(abs(value) for value in values) / count)
    scales = [[str(abs(g)) for g in row] for row in gradient]
    return {"loss": (-sum(values) / count, scale), "gradient": (gradient, scales)}


def ratio_vector(id: str, **fields: Any) -> Vector:
    """The sequence ratio of two responses."""
    inputs = {
        "logp": [[-1.0, -2.0], [-0.5, -9.0]],
        "old_logp": [[-1.5, -1.75], [-0.75, -3.0]],
        "mask": [[1, 1], [1, 0]],
    }
    inputs["mask"] = np.array(inputs["mask"], dtype=bool)
    ratio = [math.exp((0.5 - 0.25) / 2), math.exp(0.25)]
    expected = {"ratio": (ratio, [str(value) for value in ratio])}
    return vector(id, "ratio", inputs, expected, **{"parameters": {"kind": "sequence"}} | fields)


def keep_vector(id: str, **fields: Any) -> Vector:
    """Which responses dynamic sampling keeps: an exact, boolean answer."""
    inputs = {"rewards": [1.0, 0.0, 1.0, 1.0], "groups": np.array([0, 0, 1, 1])}
    return vector(id, "informative_groups", inputs, {"keep": [1, 1, 0, 0]}, **{"clauses": ["GSPO-REWARD-6"]} | fields)


def small_suite() -> list[Vector]:
    """Six vectors over four areas and all three levels."""
    return [
        loss_vector("aggregation/unequal", clauses=["GSPO-AGG-1", "GSPO-GRAD-1"]),
        loss_vector("gradient/clipped", advantages=(1.0, 2.0, -1.0), clauses=["GSPO-GRAD-2"], requires=["gradient"]),
        loss_vector("gradient/convention", advantages=(0.0, 1.0, 1.0), level="SHOULD", clauses=["GSPO-SURR-12"]),
        ratio_vector("ratio/sequence"),
        ratio_vector("ratio/optional", level="MAY", clauses=["GSPO-RATIO-6"]),
        keep_vector("sampling/keep"),
    ]
