"""Arguments, mostly right and now and then strange: arrays of every rank, dtype and layout, and what is no array at all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

REAL = ("float16", "float32", "float64", ">f4", "<f8")
WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
ODD = ("longdouble", "complex64", "complex128", "object", "U3", "S2", "M8[s]", "m8[s]", "V4")
LAYOUTS = ("C", "F", "strided", "reversed", "broadcast", "read-only", "subclass")
SPECIAL = (0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e-45, 1e30, -1e30, 0.5)
NOT_ARRAYS: tuple[Any, ...] = (
    None,
    0,
    1.0,
    True,
    "gspo",
    b"gspo",
    [],
    [[0.0, 1.0]],
    (1,),
    {},
    {"shape": (2, 3), "dtype": "float32"},
    object(),
    int,
    1j,
    range(3),
    memoryview(b"abcd"),
    np.float32(1.0),
    np.ma.masked_array([1.0, 2.0], [True, False]),
    lambda: 0,
)
NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 0.0, -0.0, 0.2, 1.0, 2, 10, math.nan, math.inf, -math.inf, 1e300, 10**400, -5, True, None, "1", [1], 1j,
    np.float64(0.3), np.asarray(0.5), np.asarray([1.0]), object(),
)  # fmt: skip


class Subclass(np.ndarray):
    """An array class of somebody's own."""


@st.composite
def arrays(draw: st.DrawFn, dtypes: tuple[str, ...] = REAL + WHOLE + ("bool",) + ODD) -> np.ndarray[Any, Any]:
    """Any array."""
    shape = tuple(draw(st.lists(st.sampled_from((0, 1, 2, 3, 4)), max_size=4)))
    return laid_out(
        filled(shape, draw(st.sampled_from(dtypes)), draw(st.integers(0, 2**16))), draw(st.sampled_from(LAYOUTS))
    )


def filled(shape: tuple[int, ...], dtype: str, seed: int, special: bool = True) -> np.ndarray[Any, Any]:
    """An array of a dtype; a seed divisible by three brings NaN, infinities, zeros and extremes."""
    random = np.random.default_rng(seed)
    values = random.normal(size=shape)
    if special and seed % 3 == 0:
        values = np.where(random.random(shape) < 0.3, random.choice(SPECIAL, size=shape), values)
    with np.errstate(all="ignore"):
        if dtype == "bool":
            return np.asarray(values > 0)
        if np.dtype(dtype).kind in "iuMm":
            return np.asarray(random.integers(0, 4, size=shape)).astype(dtype)
        return np.asarray(values).astype("S4").astype(dtype) if dtype == "V4" else np.asarray(values).astype(dtype)


def laid_out(array: np.ndarray[Any, Any], layout: str) -> np.ndarray[Any, Any]:
    """The same values, elsewhere in memory."""
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "strided" and array.ndim:
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if layout == "reversed" and array.ndim:
        return array[..., ::-1].copy()[..., ::-1]
    if layout == "broadcast" and array.ndim and array.shape[0]:
        return np.broadcast_to(array[:1], array.shape)
    if layout == "subclass":
        return array.view(Subclass)
    if layout == "read-only":
        array = array.copy()
        array.flags.writeable = False
    return array
