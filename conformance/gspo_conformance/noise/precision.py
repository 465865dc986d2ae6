"""Log-probabilities stored in few bits: the noise that rounding adds to d, and which dtype the bits betray."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..spec_numbers import PRECISIONS, round_to
from ..tensors import NumPyArray

DTYPES = {name: name for name in PRECISIONS} | {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_LEAST_EXPONENT = {"float32": -126, "bfloat16": -126, "float16": -14}
# Fewer values than this may look rounded by chance: a float32 has 16 more bits than a bfloat16.
_ENOUGH = 8
# A float32 log-softmax has the spacing of its logits: near 0, where a policy is sure, a few bits are all that it has.
TELLING = 2.0**-8


def spacing(logp: Any, dtype: str) -> NumPyArray:
    """The distance between neighbouring values of `dtype` at `logp`; subnormals included."""
    _, exponent = np.frexp(np.abs(np.asarray(logp, dtype=np.float64)))
    return np.ldexp(1.0, np.maximum(exponent - 1, _LEAST_EXPONENT[dtype]) - PRECISIONS[dtype] + 1)


def quantisation_std(dtype: str, logp: Any = None, sides: int = 2) -> float:
    """σ_q = √(sides · E[ulp²]/12): what storing log-probabilities in `dtype` adds to the spread of d.

    `sides` is 2 where `logp` and `old_logp` are both stored so. Without log-probabilities, those of the
    numerics page are meant: Gamma(1/4), mean -0.25, most near 0 and a long tail. They are a value to plan by:
    σ_q is proportional to their size.

    >>> f"{quantisation_std('bfloat16'):.2g}"
    '0.0013'
    """
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype: expected one of {', '.join(PRECISIONS)}, got {dtype!r}")
    values = _typical() if logp is None else np.asarray(logp, dtype=np.float64)
    if values.size == 0:
        return 0.0
    return math.sqrt(sides * float(np.mean(spacing(values, dtype) ** 2)) / 12)


def _typical(points: int = 4096) -> NumPyArray:
    """Quantiles of Gamma(1/4, 1) at the middles of equal shares, from a fine table of its distribution."""
    root = np.linspace(0, 40 ** (1 / 4), 1 << 16)
    # with x = u⁴ the density x^{-3/4} e^{-x} dx becomes e^{-u⁴} du
    density = np.exp(-(root**4))
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return np.interp((np.arange(points) + 0.5) / points, mass / mass[-1], root) ** 4


def stored_dtype(logp: Any) -> str | None:
    """ "bfloat16" or "float16" where every value is exactly one of that dtype's, whatever dtype holds them now; else None.

    Values nearer to 0 than `TELLING` say nothing of it.

    >>> stored_dtype(round_to(-np.linspace(0.1, 2, 50), "bfloat16")), stored_dtype(-np.linspace(0.1, 2, 50))
    ('bfloat16', None)
    """
    values = np.asarray(logp)
    values = values[np.isfinite(values) & (np.abs(values) >= TELLING)].astype(np.float64)
    if np.unique(values[:4096]).size < _ENOUGH:
        return None
    for name in ("bfloat16", "float16"):
        if _unchanged(values[:4096], name) and _unchanged(values, name):
            return name
    return None


def _unchanged(values: NumPyArray, dtype: str) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(round_to(values, dtype), values))
