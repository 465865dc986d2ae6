"""A loss function on MLX arrays; the gradient by `mlx.core.value_and_grad`. float64 runs on the CPU, as no other device has it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from math import exp
from typing import Any

import mlx.core as mx
import numpy as np

from ..target import Skip
from ..tensors import NumPyArray

VERSION = mx.__version__


def run(fn: Any, gradient: Any, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The loss, and d loss / d logp by `mlx.core.value_and_grad` or by `gradient`; on the default device in float32."""
    double = arrays["logp"].dtype == "float64"
    if double and not exact_float64():
        raise Skip("this MLX computes exp of float64 in float32", "https://github.com/ml-explore/mlx/issues/3047")
    with mx.stream(mx.cpu) if double else nullcontext():
        logp, *rest = map(array, arrays.values())
        if gradient == "autodiff":
            loss, slope = mx.value_and_grad(fn)(logp, *rest)
            return {"loss": numpy(loss), "gradient": numpy(slope)}
        found = {"loss": numpy(fn(logp, *rest))}
        return found if gradient is None else found | {"gradient": numpy(gradient(logp, *rest))}


def array(values: NumPyArray, dtype: str | None = None) -> mx.array:
    """An MLX array of that dtype, or of the same, which MLX would narrow if it were float64."""
    name = dtype or values.dtype.name
    return mx.array(np.ascontiguousarray(values), dtype=getattr(mx, "bool_" if name == "bool" else name))


def numpy(values: Any) -> NumPyArray:
    """Back again, bfloat16 as float32, which every NumPy can hold."""
    narrow = isinstance(values, mx.array) and values.dtype == mx.bfloat16
    return np.array(values.astype(mx.float32) if narrow else values)


@cache
def exact_float64() -> bool:
    """Whether exp of float64 has the accuracy of float64 here."""
    with mx.stream(mx.cpu):
        return abs(mx.exp(array(np.array([0.7])))[0].item() / exp(0.7) - 1) < 1e-15
