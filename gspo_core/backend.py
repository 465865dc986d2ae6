"""The primitives that the Array API standard lacks, one small class per framework.

A backend must obey these rules:

* `stop_gradient` returns the same values and blocks differentiation.
* `segment_sum` adds without differences of cumulative sums and without a matrix product, so that a
  NaN or an overflow in one segment never reaches another (GSPO-NUM-3).
* `all_reduce_sum` adds over the ranks of a group, and is the identity without one. Every rank then holds
  the same value, and what it differentiates is the one loss that the ranks share: the derivative of
  the sum is the identity. Where ranks go on to use a shared value each in its own way, it passes
  through `vary`, whose derivative adds over the ranks.
* `expm1` keeps the digits of a small v, also in what a compiler makes of it.
* `can_inspect` is True only where reading a value costs no synchronisation and breaks no trace.

Backends are found by the root module of the array's namespace, through the entry-point group
`gspo_core.backends`; a framework without an entry uses the standard fallback below.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import array_api_compat

from .arrays import Array, Namespace, gather, namespace_of
from .scan import add, segmented_scan

_ENTRY_POINT_GROUP = "gspo_core.backends"
_NEEDS_AN_ENTRY = ("torch", "jax")
# Within ±1, Σ_{1<k<=n} v^k / k! up to these n leaves less than a rounding in float64, and in float32.
_LAST_TERM, _LAST_TERM_OF_FLOAT32 = 18, 10
_BACKENDS: dict[str, Backend] = {}
# Rows of the longest segment's length may hold this many times the tokens.
_MOST_ROWS = 8


class Backend:
    """The fallback in pure Array API terms: no autodiff, one rank, values always readable."""

    name = "standard"

    def stop_gradient(self, values: Array) -> Array:
        """sg[x]: the values of x with a derivative of zero."""
        return values

    def check_dtype(self, name: str, dtype: Any) -> None:
        """Raises where the framework, as it is configured, lacks arithmetic for `dtype`, or would narrow its values silently."""

    def segment_sum(self, values: Array, offsets: Array, max_length: int) -> Array:
        """Σ_{t in segment i} v_t for `values` `[N]` and `offsets` `[S+1]`, by gathering to `[S, max_length]`.

        Where one long segment among short ones would make that many times `[N]`, by a scan.
        """
        xp = namespace_of(values)
        if max_length == 0 or values.shape[0] == 0:
            return xp.zeros_like(offsets[1:], dtype=values.dtype)
        starts, ends = offsets[:-1, None], offsets[1:, None]
        if starts.shape[0] * max_length > _MOST_ROWS * values.shape[0]:
            return _scanned_sum(values, offsets, max_length)
        columns = xp.arange(max_length, dtype=offsets.dtype, device=device_of(values))[None, :]
        positions = starts + columns
        inside = positions < ends
        flat = xp.reshape(xp.where(inside, positions, 0), (-1,))
        gathered = xp.reshape(gather(values, flat), positions.shape)
        return xp.sum(xp.where(inside, gathered, 0), axis=1)

    def running_sum(self, values: Array) -> Array:
        """0, v_0, v_0 + v_1, ...: `[N + 1]` sums of `values` `[N]`."""
        return namespace_of(values).cumulative_sum(values, include_initial=True)

    def select(self, values: Array, condition: Array) -> Array:
        """v where the condition holds, else 0, also where v is NaN or infinite (GSPO-NUM-5)."""
        xp = namespace_of(values)
        return xp.where(condition, values, 0)

    def held(self, values: Array, low: float, high: float = math.inf) -> Array:
        """v, and the bound where v is past one; without a derivative."""
        xp = namespace_of(values)
        above = xp.maximum(values, low)
        return above if high == math.inf else xp.minimum(above, high)

    def truth(self, numbers: Array) -> Array:
        """Where a number, or a boolean, is not 0; the booleans that every token is looked up in."""
        return numbers if numbers.dtype == namespace_of(numbers).bool else numbers != 0

    def readable(self, values: Array) -> Array:
        """`values` for looking at them, in the framework that does so fastest; asked only where `can_inspect`."""
        return values

    def expm1(self, values: Array) -> Array:
        """e^v - 1, with the digits that a subtraction of 1 cancels where v is small."""
        return namespace_of(values).expm1(values)

    def exp_remainder(self, values: Array) -> Array:
        """e^v - 1 - v >= 0: of a small v the rest of the series, which keeps the digits, and those of the derivative."""
        xp, (near, remainder) = namespace_of(values), exp_series(values)
        return xp.where(near == values, remainder, xp.exp(values) - 1 - values)

    def all_finite(self, values: Array, condition: Array | None = None) -> bool:
        """Whether v is finite wherever the condition holds; asked only where `can_inspect`."""
        xp = namespace_of(values)
        finite = xp.isfinite(values)
        return bool(xp.all(finite if condition is None else finite | ~condition))

    def all_reduce_sum(self, values: Array, group: Any) -> Array:
        """Σ over the ranks of `group`."""
        if group is not None:
            raise ValueError(f"the {self.name} backend has no ranks to sum over, got a group: {group!r}")
        return values

    def all_reduce_max(self, values: Array, group: Any) -> Array:
        """The greatest over the ranks of `group`; not differentiable."""
        return self.all_reduce_sum(values, group)

    def vary(self, values: Array, group: Any) -> Array:  # noqa: ARG002
        """`values`, the same on every rank of `group`, for each rank to use in its own way."""
        return values

    def device(self, values: Array) -> Any:
        """The device of `values`, as the array functions of its namespace take it."""
        return array_api_compat.device(values)  # pyright: ignore[reportUnknownMemberType]

    def dense(self, values: Array) -> Array:
        """`values` in one piece of memory, for searches that complain of strides."""
        return values

    def apart(self, *arrays: Any) -> AbstractContextManager[None]:  # noqa: ARG002
        """For what is made of `arrays` alone, which have no derivative: operations that a framework need not follow."""
        return nullcontext()

    def can_inspect(self, values: Array) -> bool:  # noqa: ARG002
        """Whether `values` may be read here without a device synchronisation or a broken trace."""
        return True


class _NumPy(Backend):
    """NumPy adds pairwise only along memory: rows laid out by columns would gather an error that grows with their length."""

    def select(self, values: Array, condition: Array) -> Array:
        """v or 0, row by row in memory."""
        return namespace_of(values).asarray(super().select(values, condition), order="C")


def _scanned_sum(values: Array, offsets: Array, max_length: int) -> Array:
    xp, last = namespace_of(values), offsets[1:] - 1
    place = xp.arange(values.shape[0], dtype=offsets.dtype, device=device_of(values))
    begins = gather(offsets, xp.searchsorted(offsets[1:], place, side="right"))
    (totals,) = segmented_scan(add, (values,), place - begins, max_length)
    empty = last < offsets[:-1]
    return xp.where(empty, 0, gather(totals, xp.where(empty, 0, last)))


def exp_series(values: Array) -> tuple[Array, Array]:
    """v where it is small, else 0, and Σ_{k>1} v^k / k! of that.

    The coefficients are made here: `torch.compile(dynamic=True)` takes floats of a module for inputs of its graph,
    and confuses those that are first met inside an autograd function.
    """
    xp = namespace_of(values)
    near = xp.where(xp.abs(values) <= 1.0, values, 0.0)
    last = _LAST_TERM if values.dtype == xp.float64 else _LAST_TERM_OF_FLOAT32
    series: Any = 1 / math.factorial(last)
    for k in range(last - 1, 1, -1):
        series = 1 / math.factorial(k) + near * series
    return near, near * near * series


def device_of(values: Array) -> Any:
    """The device of `values`, as the array functions of its namespace take it."""
    return backend_of(values).device(values)


def _root_module(xp: Namespace) -> str:
    return xp.__name__.removeprefix("array_api_compat.").split(".")[0]


def _load(root: str) -> Backend:
    from importlib.metadata import entry_points  # takes longer to import than the whole of this package

    for entry in entry_points(group=_ENTRY_POINT_GROUP):
        if entry.name == root:
            return _checked(root, entry.load())
    if root in _NEEDS_AN_ENTRY:
        raise ImportError(
            f"{root}: expected a backend in the entry-point group {_ENTRY_POINT_GROUP!r}, found none; "
            f"without one, stop-gradients would be ignored. Install it with: pip install 'gspo[{root}]'"
        )
    return Backend()


def register_backend(root: str, backend: Backend) -> None:
    """Makes `backend` the one for arrays of the root module `root`; a package that is imported anyway needs no entry."""
    _BACKENDS[root] = _checked(root, backend)


def _checked(root: str, backend: Any) -> Backend:
    if not isinstance(backend, Backend):
        raise TypeError(f"{root}: expected an instance of gspo_core.Backend, got {backend!r}")
    return backend


def backend_of(array: Array) -> Backend:
    """The backend registered for the framework of `array`, loaded at its first use."""
    root = _root_module(namespace_of(array))
    if root not in _BACKENDS:
        _BACKENDS[root] = _NumPy() if root == "numpy" else _load(root)
    return _BACKENDS[root]
