"""Arrays of any framework: their namespace, and the dtype that the mathematics runs in.

The rules of this package: array functions come from the namespace of the caller's arrays, in-place
operations and data-dependent shapes are not used, and no framework is imported that the caller did
not import first.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from array_api_compat import array_namespace

Array: TypeAlias = Any
Namespace: TypeAlias = Any

_NAMESPACES: dict[type[Any], Namespace] = {}


def namespace_of(array: Array) -> Namespace:
    """The Array API namespace of `array`, looked up once per array type."""
    kind: type[Any] = array.__class__
    if kind not in _NAMESPACES:
        _NAMESPACES[kind] = array_namespace(array)
    return _NAMESPACES[kind]


def compute_dtype(*arrays: Array) -> Any:
    """float64 if any array is float64, else float32: the ratio never runs in less (GSPO-NUM-1, GSPO-NUM-2)."""
    xp = namespace_of(arrays[0])
    wide = any(array is not None and (array.dtype == xp.float64 or _is_swapped(array.dtype)) for array in arrays)
    return xp.float64 if wide else xp.float32


def _is_swapped(dtype: Any) -> bool:
    """Whether this is NumPy's float64 with its bytes in the other order, which does not equal float64."""
    return getattr(dtype, "str", "")[1:] == "f8"


def clamp(values: Array, low: float | None, high: float | None) -> Array:
    """Values held to [low, high]; None is no bound. By selection: `clip` of some namespaces looks at its bounds.

    The derivative at a bound is that inside it.
    """
    xp = namespace_of(values)
    held = values if low is None else xp.where(values < low, low, values)
    return held if high is None else xp.where(held > high, high, held)


def times(values: Array, weights: Array) -> Array:
    """v w, and 0 where either is 0, even beside a weight that overflowed (GSPO-SURR-12)."""
    xp, kept = namespace_of(values), (values != 0) & (weights != 0)
    return xp.where(kept, values, 0.0) * xp.where(kept, weights, 0.0)


def gather(values: Array, places: Array) -> Array:
    """v_{p_1}, v_{p_2}, ... for `values` and `places` of one dimension."""
    return namespace_of(values).take(values, places, axis=0)
