"""The judge: an answer is right iff |got - truth| <= K u(dtype) scale, element by element, and K is always reported.

`scale` comes from the first-order error analysis of the output, `u` is the unit roundoff of the dtype
the case ran in. Where the scale is 0 exactness is owed: gradients of clipped and uncounted tokens,
counts, decisions. Elsewhere a result below the normal range may be flushed to zero. Shape and dtype are
part of the answer; nothing is broadcast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isinf
from typing import Any

import numpy as np

from .formats import Expected, Vector
from .target import Case
from .tensors import LARGE, NumPyArray
from .words import cut

UNIT_ROUNDOFF = {"float32": 2.0**-24, "float64": 2.0**-53, "bfloat16": 2.0**-8, "float16": 2.0**-11}
_SMALLEST = {"bfloat16": 2.0**-133, "float16": 2.0**-24}
_NORMAL = {"float32": 2.0**-126, "float64": 2.0**-1022}
WHOLE_NUMBERS = ("keep", "metrics.num_sequences", "metrics.num_tokens", "metrics.ratio_is_one")


@dataclass(frozen=True)
class Judged:
    """The verdict on one output. `k` is the worst error in units of u(dtype) scale; it passes up to `limit`.

    `index` is where the worst element lies, `reason` says what is wrong, empty where nothing is.
    """

    output: str
    k: float
    limit: float
    reason: str = ""
    index: tuple[int, ...] = ()
    expected: str = ""
    got: NumPyArray | None = field(default=None, repr=False, compare=False)
    units: NumPyArray | None = field(default=None, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether the output passes."""
        return not self.reason


@dataclass(frozen=True)
class Stored:
    """An answer that came over a wire, and the dtype it had before."""

    array: NumPyArray
    dtype: str


def judge(vector: Vector, case: Case, answer: Any) -> tuple[Judged, ...]:
    """One verdict for every output that was asked for."""
    if not isinstance(answer, Mapping):
        found = "nothing (None)" if answer is None else f"a {type(answer).__name__}"
        answer, told = {}, f"expected a mapping of outputs, got {found}"
    else:
        told = ""
    return tuple(_judge(vector, case, name, answer, told) for name in case.outputs)


def _judge(vector: Vector, case: Case, name: str, answer: Mapping[str, Any], told: str) -> Judged:
    expected = vector.expected[name]
    if name not in answer or answer[name] is None:
        extra = cut(", ".join(sorted(map(str, answer))), 400) or "nothing"
        return _refused(name, expected, told or f"missing from the answer, which has {extra}")
    try:
        got, dtype = as_numpy(answer[name])
    except Exception as error:
        return _refused(name, expected, f"not an array of numbers: {error}")
    refusal = _form(got, dtype, expected, case, name)
    if refusal:
        return _refused(name, expected, refusal, got if got.size <= max(LARGE, expected.value.size) else None)
    return _measure(case, name, expected, got)


def as_numpy(value: Any) -> tuple[NumPyArray, str]:
    """A NumPy array of numbers from an array of any framework, a number or nested lists; and the dtype it came in.

    bfloat16 and float16 are widened to float32. A plain number has the dtype `number`: it is of any.
    """
    if isinstance(value, Stored):
        return value.array, value.dtype
    if hasattr(value, "detach"):
        dtype = str(value.dtype).removeprefix("torch.")
        value = value.detach().cpu()
        value = value.float() if dtype in _SMALLEST else value
    else:
        dtype = "number" if type(value) in (int, float) else str(np.asarray(value).dtype)
    array = np.asarray(value)
    if dtype in _SMALLEST:
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"dtype {array.dtype}")
    return array, dtype


def _form(got: NumPyArray, dtype: str, expected: Expected, case: Case, name: str) -> str:
    if got.shape != expected.shape:
        return f"expected shape {expected.shape}, got {got.shape}"
    if dtype == "number" or name in WHOLE_NUMBERS or (name.startswith("gradient") and dtype == case.input_dtype):
        return ""
    wide = ("float32", "float64") if case.dtype == "float32" else ("float64",)
    return "" if dtype in wide else f"expected {case.dtype}, got {cut(dtype)}"


def _refused(name: str, expected: Expected, reason: str, got: NumPyArray | None = None) -> Judged:
    return Judged(name, inf, expected.compare.k, reason, got=got)


def _measure(case: Case, name: str, expected: Expected, got: NumPyArray) -> Judged:
    units = error_units(case, name, expected, got)
    limit = expected.compare.k
    if units.size == 0:
        return Judged(name, 0.0, limit, got=got, units=units)
    index = tuple(int(i) for i in np.unravel_index(np.argmax(units), units.shape))
    k = float(units[index])
    if k <= limit:
        return Judged(name, k, limit, "", index, got=got, units=units)
    truth = truth_text(expected, index)
    reason = _reason(case, name, got, units, limit, index, truth)
    return Judged(name, k, limit, reason, index, truth, got, units)


def error_units(case: Case, name: str, expected: Expected, got: NumPyArray) -> NumPyArray:
    """|got - truth| / (u(dtype) scale) per element; infinite where exactness is owed and missed, and for a stray NaN."""
    truth, scale, unit = expected.value, expected.scale, UNIT_ROUNDOFF[case.dtype]
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        error = expected.error(got)
        if name.startswith("gradient") and case.input_dtype is not None:
            error = np.maximum(error - _storage(case.input_dtype, truth), 0.0)
        error = np.where(scale > 0, np.maximum(error - _NORMAL[case.dtype], 0.0), error)
        units = np.where(error == 0, 0.0, error / (unit * scale))
        same = (np.isnan(got) & np.isnan(truth)) | (got == truth)
    units = np.where(np.isfinite(truth), units, np.where(same, 0.0, inf))
    return np.where(np.isnan(units), inf, units)


def _storage(dtype: str, truth: NumPyArray) -> NumPyArray:
    """A gradient with respect to bfloat16 log-probabilities is itself stored in bfloat16: one rounding is granted."""
    return UNIT_ROUNDOFF[dtype] * np.abs(truth) * (1 + UNIT_ROUNDOFF[dtype]) + _SMALLEST[dtype]


def truth_text(expected: Expected, index: tuple[int, ...]) -> str:
    """The truth of one element, all its digits where they are at hand."""
    entry = expected.text
    if entry is None:
        return repr(float(expected.value[index]))
    for i in index:
        entry = entry[i]
    return str(entry)


def _reason(
    case: Case, name: str, got: NumPyArray, units: NumPyArray, limit: float, index: tuple[int, ...], truth: str
) -> str:
    where = f" at {list(index)}" if index else ""
    wrong = int(np.count_nonzero(units > limit))
    many = f" ({wrong} of {units.size} elements)" if units.size > 1 else ""
    stale = _unchanged(case, got)
    if stale:
        return f"the input `{stale}` came back unchanged"
    value = float(got[index])
    if not np.isfinite(value):
        return f"got {value}{where}, expected {shorten(truth)}{many}"
    off = "exactness is owed" if isinf(units[index]) else f"off by {units[index]:.3g} units, {limit:g} allowed"
    # As many digits as tell numbers of the dtype apart: nine of a float64 look like the cause.
    digits, due = (17, 17) if case.dtype == "float64" else (9, 12)
    return f"got {value:.{digits}g}{where}, expected {shorten(truth, due)}: {off}{many}"


def _unchanged(case: Case, got: NumPyArray) -> str:
    if got.ndim == 0:
        return ""
    for name, value in case.inputs.items():
        if (
            not isinstance(value, list)
            and value.shape == got.shape
            and np.array_equal(value, got, equal_nan=got.dtype.kind == "f")
        ):
            return name
    return ""


def shorten(text: str, digits: int = 12) -> str:
    """A decimal string cut to some digits, for reading."""
    try:
        return f"{float(text):.{digits}g}"
    except ValueError:
        return text
