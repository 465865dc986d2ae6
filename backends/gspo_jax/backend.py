"""The primitives of `gspo_core` in JAX: sg[·], segment sums, sums over a mesh axis.

Loading this module registers the backend, and `Padded` and `Packed` as pytrees.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gspo_core
from gspo_core.backend import register_backend

from . import pytrees as pytrees

# Partial sums of this many tokens are added first, then the partial sums: the rounding error of a
# long response grows with 256 + T/256 additions in a row instead of T.
_BLOCK = 256


class JaxBackend(gspo_core.Backend):
    """`gspo_core` on JAX arrays, traced or not. Entry point `jax` of `gspo_core.backends`."""

    name = "jax"

    def stop_gradient(self, values: jax.Array) -> jax.Array:
        """sg[x]."""
        return jax.lax.stop_gradient(values)

    def check_dtype(self, name: str, dtype: Any) -> None:
        """float64 needs x64: without it, JAX narrows every operation on a float64 array to float32."""
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise TypeError(
                f"{name}: expected {jax.dtypes.canonicalize_dtype(dtype)} or narrower, since jax_enable_x64 is off "
                f"and JAX would narrow the values silently, got {dtype}"
            )

    def segment_sum(self, values: jax.Array, offsets: jax.Array, max_length: int) -> jax.Array:
        """Σ_{t in segment i} v_t in memory O(N); `max_length` is not needed and not read.

        Two scatters, into blocks within segments and then into segments (one, where no segment has more than one
        block): every addition stays within one segment, so a NaN or an infinity never reaches another (GSPO-NUM-3).
        """
        num_segments, size = offsets.shape[0] - 1, values.shape[0]
        position = jnp.arange(size, dtype=offsets.dtype)
        # Tokens past the last offset own no segment; an index past the end is dropped.
        owner = jnp.searchsorted(offsets[1:], position, side="right", method="scan_unrolled").astype(offsets.dtype)
        if size <= _BLOCK:
            return _add_at(values, owner, num_segments)
        first = _first_block(offsets)
        block = first[owner] + (position - offsets[owner]) // _BLOCK
        num_blocks = size // _BLOCK + num_segments + 1
        block = jnp.where(position < offsets[-1], block, num_blocks)
        partial = _add_at(values, block, num_blocks)
        index = jnp.arange(num_blocks, dtype=first.dtype)
        segment = jnp.searchsorted(first[1:], index, side="right", method="scan_unrolled")
        return _add_at(partial, segment, num_segments)

    def exp_remainder(self, values: jax.Array) -> jax.Array:
        """e^v - 1 - v, as one operation with its derivative."""
        return _exp_remainder_at_once(values)

    def readable(self, values: jax.Array) -> Any:
        """A NumPy array, which has nothing to compile for a shape."""
        return np.asarray(_primal(values))

    def all_finite(self, values: jax.Array, condition: jax.Array | None = None) -> bool:
        """Whether v is finite wherever the condition holds."""
        finite = np.isfinite(self.readable(values))
        return bool((finite if condition is None else finite | ~self.readable(condition)).all())

    def all_reduce_sum(self, values: jax.Array, group: Any) -> jax.Array:
        """Σ over the mesh axis (or axes) named `group`, inside `jax.shard_map` or `jax.pmap`."""
        return values if group is None else jax.lax.psum(values, _axis(group))

    def all_reduce_max(self, values: jax.Array, group: Any) -> jax.Array:
        """The greatest over the mesh axis (or axes) named `group`."""
        return values if group is None else jax.lax.pmax(values, _axis(group))

    def device(self, values: jax.Array) -> None:
        """None: JAX moves what it makes here to where it is used; a device by name would tie results to it."""

    def apart(self, *arrays: Any) -> AbstractContextManager[None]:
        """Outside the trace of `jax.grad` where every array is concrete: operation by operation it follows all that is done."""
        if any(isinstance(array, jax.core.Tracer) for array in arrays) or _staging():
            return nullcontext()
        # A JAX without it follows every operation, which is slower and no more.
        return getattr(jax.core, "eval_context", nullcontext)()

    def can_inspect(self, values: jax.Array) -> bool:
        """True for a concrete array on one CPU device, outside `jit`, under `grad` too; a GPU would have to synchronise."""
        values = _primal(values)
        if isinstance(values, jax.core.Tracer) or not isinstance(values, jax.Array) or _staging():
            return False
        return values.is_fully_addressable and {device.platform for device in values.devices()} == {"cpu"}


@jax.custom_jvp
def _exp_remainder(values: jax.Array) -> jax.Array:
    return gspo_core.Backend.exp_remainder(backend, values)


_exp_remainder.defjvps(lambda tangent, _, values: jnp.expm1(values) * tangent)
_exp_remainder_at_once = jax.jit(_exp_remainder)


def _axis(group: Any) -> Any:
    if not isinstance(group, (str, tuple)):
        raise TypeError(f"context: expected the name of a mesh axis, or a tuple of names, got {type(group).__name__}")
    return group


def _first_block(offsets: jax.Array) -> jax.Array:
    """The number of blocks before each segment, and in total: an exclusive cumulative sum of integers."""
    blocks = (offsets[1:] - offsets[:-1] + (_BLOCK - 1)) // _BLOCK
    return jnp.concatenate([jnp.zeros_like(blocks[:1]), jnp.cumsum(blocks, dtype=blocks.dtype)])


def _add_at(values: jax.Array, index: jax.Array, size: int) -> jax.Array:
    return jax.ops.segment_sum(values, index, size, indices_are_sorted=True)


def _primal(values: Any) -> Any:
    """What `jax.grad` and `jax.jvp` differentiate at: their tracers carry it, and it is concrete outside `jit`."""
    while isinstance(values, jax.core.Tracer) and hasattr(values, "primal"):
        values = values.primal
    return values


def _staging() -> bool:
    """Whether an operation on a concrete array would be staged here, as everything is under `jax.jit`."""
    return isinstance(jnp.zeros((), bool), jax.core.Tracer)


backend = JaxBackend()
register_backend("jax", backend)
