"""Checks at the public edge: one clear error that names the argument, what was expected and what came.

Checks of shape and dtype always run. Checks that read values run only where the backend says that
reading is free (`Backend.can_inspect`), and only while `value_checks` is on.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from numbers import Integral, Real
from operator import index
from typing import Any, TypeVar

from .arrays import Array, Namespace, namespace_of
from .backend import backend_of, device_of

T = TypeVar("T")

_switch = {"value_checks": True}
_LARGEST = sys.float_info.max
_OWN_ARITHMETIC = ("MaskedArray", "matrix", "MaskedTensor")


@contextmanager
def value_checks(enabled: bool) -> Generator[None]:
    """Turns checks that read values on or off inside a `with` block; shapes and dtypes are always checked."""
    before = _switch["value_checks"]
    _switch["value_checks"] = enabled
    try:
        yield
    finally:
        _switch["value_checks"] = before


def reads_values(array: Array) -> bool:
    """Whether checks may look at the values of `array` here."""
    return backend_of(array).can_inspect(array) and _switch["value_checks"]


def seen(array: Array) -> Array:
    """The values of `array` to look at, where they may be read."""
    return backend_of(array).readable(array)


def _reads_both(array: Array, counted: Array | None) -> bool:
    """A mask may be mapped over (`jax.vmap`) where the values are not."""
    return reads_values(array) and (counted is None or reads_values(counted))


def check_array(name: str, value: Any) -> Namespace:
    """The namespace of `value`, or a TypeError where it is not an array."""
    if type(value).__name__ in _OWN_ARITHMETIC:
        raise TypeError(f"{name}: expected a plain array, got {type(value).__name__}")
    kind = "nested" if getattr(value, "is_nested", False) else str(getattr(value, "layout", ""))
    if "sparse" in kind or kind in ("nested", "torch._mkldnn"):
        raise TypeError(f"{name}: expected a dense array, got a {kind.rpartition('.')[2]} one")
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        raise TypeError(f"{name}: expected an array, got {type(value).__name__}")
    try:
        return namespace_of(value)
    except TypeError:
        raise TypeError(f"{name}: expected an Array API array, got {type(value).__name__}") from None


def check_same_namespace(xp: Namespace, **arrays: Any) -> None:
    """Every array that is given belongs to the framework `xp`, and lies on the device of the first."""
    first: tuple[str, Any] | None = None
    for name, value in arrays.items():
        if value is None:
            continue
        found = check_array(name, value)
        if found is not xp:
            raise TypeError(f"{name}: expected an array of {_framework(xp)}, got one of {_framework(found)}")
        device = device_of(value)
        first = first or (name, device)
        if device != first[1]:
            raise ValueError(f"{name}: expected an array on {first[1]}, like {first[0]}, got one on {device}")


def check_shape(name: str, array: Array, shape: tuple[int, ...], meaning: str) -> None:
    """`array.shape == shape`; nothing is broadcast."""
    if not hasattr(array, "shape"):
        check_array(name, array)
    if tuple(array.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)} ({meaning}), got {tuple(array.shape)}")


def check_floating(name: str, array: Array) -> None:
    """A real floating-point dtype of 16 to 64 bits; bfloat16 and float16 count, although the standard does not list them."""
    xp = check_array(name, array)
    dtype = array.dtype
    real = xp.isdtype(dtype, "real floating") or str(dtype) == "bfloat16"
    if not real or not 2 <= getattr(dtype, "itemsize", 8) <= 8:
        raise TypeError(f"{name}: expected a real floating-point dtype, got {dtype}")
    backend_of(array).check_dtype(name, dtype)


def check_integer(name: str, array: Array) -> None:
    """An integer dtype."""
    xp = check_array(name, array)
    if not xp.isdtype(array.dtype, "integral"):
        raise TypeError(f"{name}: expected an integer dtype, got {array.dtype}")
    backend_of(array).check_dtype(name, array.dtype)


def check_no_nan(name: str, array: Array, counted: Array | None = None) -> None:
    """No NaN among the (counted) entries; read only where reading is free."""
    if not _reads_both(array, counted):
        return
    array, counted = seen(array), None if counted is None else seen(counted)
    xp = namespace_of(array)
    bad = xp.isnan(array) if counted is None else xp.isnan(array) & counted
    if bool(xp.any(bad)):
        where = "" if counted is None else " at counted positions"
        raise ValueError(f"{name}: expected numbers{where}, got {_count(xp, bad)} NaN, {_first(xp, bad)}")


def check_finite(name: str, array: Array, counted: Array | None = None) -> None:
    """Finite (counted) entries; read only where reading is free."""
    if not _reads_both(array, counted) or backend_of(array).all_finite(array, counted):
        return
    xp = namespace_of(array)
    bad = ~xp.isfinite(array) if counted is None else ~xp.isfinite(array) & counted
    where = "" if counted is None else " at counted positions"
    raise ValueError(f"{name}: expected finite numbers{where}, got {_count(xp, bad)} NaN or inf, {_first(xp, bad)}")


def check_not_negative(name: str, array: Array) -> None:
    """Entries of 0 and more; read only where reading is free."""
    if not reads_values(array):
        return
    array = seen(array)
    xp = namespace_of(array)
    bad = array < 0
    if bool(xp.any(bad)):
        raise ValueError(f"{name}: expected numbers >= 0, got {_count(xp, bad)} below, {_first(xp, bad)}")


def check_binary(name: str, array: Array) -> None:
    """Entries 0 and 1 only; read only where reading is free."""
    if not reads_values(array):
        return
    array = seen(array)
    xp = namespace_of(array)
    bad = (array != 0) & (array != 1)
    if bool(xp.any(bad)):
        raise ValueError(f"{name}: expected only 0 and 1, got {_count(xp, bad)} other values, {_first(xp, bad)}")


def as_boolean(name: str, flags: Array) -> Array:
    """`flags` as booleans: they are, or are numbers 0 and 1."""
    xp = namespace_of(flags)
    if not xp.isdtype(flags.dtype, ("bool", "integral", "real floating")):
        raise TypeError(f"{name}: expected booleans, or 0 and 1, got {flags.dtype}")
    if flags.dtype != xp.bool:
        check_binary(name, flags)
    return backend_of(flags).truth(flags)


def check_number(name: str, value: Any, *, low: float | None = None, strict: bool = False) -> float:
    """`value` as a Python number: finite, at least `low` (above it where `strict`).

    A scalar of NumPy is one, but would widen arrays that a Python number leaves as they are.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        # YAML reads 3e-4 as text, and 3.0e-4 as a number.
        text = f" {value[:60]!r}" if isinstance(value, str) else ""
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}{text}")
    number = int(value) if isinstance(value, Integral) else float(value)
    if not -_LARGEST <= number <= _LARGEST:
        raise ValueError(f"{name}: expected a finite number, got {repr(number)[:60]}")
    if low is not None and (number < low or (strict and number == low)):
        raise ValueError(f"{name}: expected a number {'>' if strict else '>='} {low:g}, got {number!r}")
    return number


def check_field(owner: Any, name: str, *, low: float | None = None, strict: bool = False) -> None:
    """`check_number` of a field of a frozen dataclass, which is then a Python number."""
    object.__setattr__(owner, name, check_number(name, getattr(owner, name), low=low, strict=strict))


def check_size(name: str, value: Any) -> int:
    """`value` as a Python integer, at least 0."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got bool")
    # `isinstance` first: `torch.compile` has symbolic sizes, which are no integers yet.
    if not isinstance(value, Integral):
        try:
            value = index(value)
        except TypeError as error:
            raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from error
    if value < 0:
        raise ValueError(f"{name}: expected an integer >= 0, got {repr(value)[:60]}")
    return int(value)


def check_kind(name: str, value: Any, kind: type[T]) -> T:
    """`value`, which is a `kind`."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise TypeError(f"{name}: expected {article} {kind.__name__}, got {type(value).__name__}")
    return value


def check_flag(name: str, value: Any) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {type(value).__name__}")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """`value` is one of `choices`."""
    if (value is not None and not isinstance(value, str)) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {repr(value)[:200]}")


def _framework(xp: Namespace) -> str:
    return xp.__name__.removeprefix("array_api_compat.")


def _count(xp: Namespace, bad: Array) -> int:
    return int(xp.sum(xp.astype(bad, xp.int32)))


def _first(xp: Namespace, bad: Array) -> str:
    flat = int(xp.argmax(xp.astype(xp.reshape(bad, (-1,)), xp.int32)))
    index: list[int] = []
    for size in reversed(bad.shape):
        flat, at = divmod(flat, size)
        index.insert(0, at)
    return f"the first at index {tuple(index)}"
