"""What a traced array says about the mesh it lives on, inside `jax.shard_map` and outside."""

from __future__ import annotations

import jax


def varying_axes(*arrays: jax.Array | None) -> frozenset[str]:
    """The mesh axes over which any of `arrays` may differ; none outside `jax.shard_map`."""
    return frozenset().union(*(jax.typeof(array).manual_axis_type.varying for array in arrays if array is not None))


def vary_like(array: jax.Array, *others: jax.Array | None) -> jax.Array:
    """`array`, said to vary over the axes of `others` too; the derivative of that is the sum over those axes."""
    missing = varying_axes(*others) - varying_axes(array)
    return jax.lax.pcast(array, tuple(sorted(missing)), to="varying") if missing else array


def is_one_piece(array: jax.Array) -> bool:
    """Whether `array` is surely whole on one device here, so that picking single tokens from it moves nothing.

    True for a concrete array on one device, inside `jax.shard_map`, and where there is one device. A
    traced array under a plain `jax.jit` on several devices may be sharded.
    """
    if not isinstance(array, jax.core.Tracer):
        return len(array.sharding.device_set) == 1
    return jax.device_count() == 1 or jax.sharding.get_abstract_mesh().are_all_axes_manual


def check_vocab_axis(name: str, axis: str | None, array: jax.Array) -> None:
    """`array` holds another part of the vocabulary on each device along `axis`."""
    if axis is None:
        return
    if not isinstance(axis, str):
        raise TypeError(f"vocab_axis: expected the name of a mesh axis, got {type(axis).__name__}")
    if axis not in varying_axes(array):
        raise ValueError(
            f"vocab_axis: expected {name} to vary over the mesh axis {axis!r}, inside jax.shard_map with "
            f"check_vma=True; it varies over {sorted(varying_axes(array))}"
        )
