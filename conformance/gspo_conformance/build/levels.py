"""The level of a vector: what its author says, but not MUST where the paper is silent about numbers like those in it.

The paper has no padding, no caps and no finite range of floats. A NaN in the padding, an exponential
that overflows and a ratio beyond every cap are worth a vector; an implementation of the paper's
equations as they stand does not break the paper by failing it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..tensors import NumPyArray
from .recipe import Case, Recipe

# The tightest caps that trainers put on the log-ratio of a sequence and of a token, and on a KL estimate.
SEQUENCE_CAP, TOKEN_CAP, KL_CAP = 10.0, 20.0, 10.0
OVERFLOW = 88.0
SILENT = (
    "The paper does not speak of numbers like these: padding that is not finite, exponentials that overflow, "
    "ratios beyond every cap that trainers use."
)


def level_of(recipe: Recipe, case: Case) -> str:
    """MUST, SHOULD or MAY."""
    return "SHOULD" if recipe.level == "MUST" and _silent(case) else recipe.level


def _silent(case: Case) -> bool:
    objective = case.parameters.get("objective") or {}
    ratio = objective.get("ratio", case.parameters.get("kind", ""))
    estimator = (objective.get("penalty") or case.parameters).get("estimator", "")
    return any(_extreme(part, ratio, estimator) for part in case.inputs.get("parts", [case.inputs]))


def _extreme(arrays: Mapping[str, Any], ratio: str, estimator: str) -> bool:
    read = {name: np.asarray(value, dtype=np.float64) for name, value in arrays.items() if _is_float(name)}
    if any(not np.isfinite(value).all() for value in read.values()):
        return True
    counted = _counted(arrays, read["logp"]) if "logp" in read else None
    if "old_logp" in read and _ratio_beyond(arrays, read["logp"] - read["old_logp"], counted, ratio):
        return True
    if "behavior_logp" in read and (np.abs(read["old_logp"] - read["behavior_logp"]) > OVERFLOW).any():
        return True
    return "ref_logp" in read and _kl_beyond(read["logp"] - read["ref_logp"], counted, estimator)


def _is_float(name: str) -> bool:
    return name.endswith("logp") or name == "advantages"


def _ratio_beyond(arrays: Mapping[str, Any], difference: NumPyArray, counted: Any, ratio: str) -> bool:
    sizes = np.abs(difference)
    if ratio == "token" and ((sizes > OVERFLOW).any() or (sizes[counted] > TOKEN_CAP).any()):
        return True
    return any(abs(mean) > SEQUENCE_CAP for mean in _means(arrays, difference, counted))


def _kl_beyond(difference: NumPyArray, counted: Any, estimator: str) -> bool:
    if not estimator.startswith("k3"):
        return False
    inside = difference[counted]
    return bool((np.abs(difference) > OVERFLOW).any() or (np.expm1(-inside) + inside > KL_CAP).any())


def _counted(arrays: Mapping[str, Any], logp: NumPyArray) -> NumPyArray:
    mask = arrays.get("mask")
    counted = np.ones(logp.shape, dtype=bool) if mask is None else np.asarray(mask) != 0
    if "offsets" in arrays:
        counted = counted & (np.arange(logp.shape[0]) < np.asarray(arrays["offsets"])[-1])
    return counted


def _means(arrays: Mapping[str, Any], values: NumPyArray, counted: NumPyArray) -> Iterator[float]:
    if "offsets" in arrays:
        offsets = np.asarray(arrays["offsets"])
        rows = [slice(start, stop) for start, stop in itertools.pairwise(offsets)]
    else:
        rows = list(range(values.shape[0])) if values.ndim > 1 else []
    for row in rows:
        if counted[row].any():
            yield float(values[row][counted[row]].mean())
