"""Rounding to bfloat16 and float16, which NumPy computes in only partly: by bit arithmetic, to nearest, ties to even."""

from __future__ import annotations

import numpy as np

from ..tensors import NumPyArray


def to_bfloat16(values: NumPyArray) -> NumPyArray:
    """The nearest bfloat16 of each number, as float32."""
    single = np.asarray(values, dtype=np.float32)
    bits = single.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(single), rounded.view(np.float32), single)


def to_float16(values: NumPyArray) -> NumPyArray:
    """The nearest float16 of each number, as float32; beyond 65504 it is infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=np.float32).astype(np.float16).astype(np.float32)


ROUND = {"bfloat16": to_bfloat16, "float16": to_float16}
SIGNIFICAND = {"bfloat16": 8, "float16": 11}
LARGEST = {"bfloat16": 3.3895e38, "float16": 65504.0}
