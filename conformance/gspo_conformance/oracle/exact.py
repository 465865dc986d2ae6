"""Numbers: read exactly, computed at a stated precision, rounded to a format at the end."""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from math import inf, ldexp
from typing import Any

import mpmath
from mpmath import mp, mpf

FORMATS = {
    "bfloat16": (8, -126, 127),
    "float16": (11, -14, 15),
    "float32": (24, -126, 127),
    "float64": (53, -1022, 1023),
}
_GUARD_DIGITS = 10


def exact(number: Any) -> mpf:
    """x -> x, without rounding: a Python number, an mpf, or a (hexadecimal) float as a string (GSPO-NUM-6)."""
    if isinstance(number, str):
        number = float.fromhex(number) if "0x" in number.lower() else float(number)
    result = mpf(number)
    if not mpmath.isfinite(result):
        raise ValueError(f"a counted input is not finite: {number!r}")
    return result


def exact_parameters(tree: Any) -> Any:
    """Every number in a tree of dicts and lists -> the same number as an mpf; everything else unchanged."""
    if isinstance(tree, Mapping):
        return {key: exact_parameters(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [exact_parameters(value) for value in tree]
    return tree if tree is None or isinstance(tree, bool | str) else exact(tree)


def at_digits(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function the keyword `digits`: the decimal digits it computes with, 50 unless told."""

    @wraps(function)
    def precise(*args: Any, digits: int = 50, **keywords: Any) -> Any:
        with mp.workdps(digits + _GUARD_DIGITS):
            return function(*args, **keywords)

    return precise


def each(function: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
    """f of every row of some columns; a row that repeats the one before, as under one ratio per response, costs nothing."""
    found: list[Any] = []
    before: tuple[Any, ...] = ()
    for row in zip(*columns, strict=True):
        fresh = not found or any(one is not other for one, other in zip(row, before, strict=True))
        found.append(function(*row) if fresh else found[-1])
        before = row
    return found


def as_dtype(value: Any, dtype: str) -> Any:
    """x -> the nearest number of a binary format, ties to even; overflow gives inf, trees map (GSPO-NUM-3)."""
    if isinstance(value, Mapping):
        return {key: as_dtype(item, dtype) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_dtype(item, dtype) for item in value]
    if value is None or isinstance(value, bool | str):
        return value
    return _nearest(mpf(value), *FORMATS[dtype])


def _nearest(value: mpf, precision: int, lowest: int, highest: int) -> float:
    """x -> n 2^q with q the exponent of the last place of the format near x, n rounded half to even."""
    if value == 0 or not mpmath.isfinite(value):
        return float(value)
    mantissa, exponent = (int(part) for part in value.man_exp)
    mantissa = abs(mantissa)
    leading = exponent + mantissa.bit_length() - 1
    place = max(leading, lowest) - (precision - 1)
    count = _half_even(mantissa, place - exponent)
    overflows = count.bit_length() + place - 1 > highest
    magnitude = inf if overflows else ldexp(count, place)
    return -magnitude if value < 0 else magnitude


def _half_even(mantissa: int, shift: int) -> int:
    """n 2^-k -> the nearest integer, ties to even."""
    if shift <= 0:
        return mantissa << -shift
    quotient, remainder = divmod(mantissa, 1 << shift)
    half = 1 << (shift - 1)
    return quotient + (remainder > half or (remainder == half and quotient % 2 == 1))
