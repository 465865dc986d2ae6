"""What a traced array says about the mesh it lives on, inside `jax.shard_map` and outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType


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


def run_automatically(function: Callable[[Any], Any], arguments: Any, like: jax.Array, spec: Any = None) -> Any:
    """`function(arguments)`; where `like` lives on a mesh with explicit axes, XLA chooses the shardings inside.

    What comes out is then sharded by `spec`, or like `like`. Only the arrays of the pytree `arguments` are traced.
    """
    sharding = jax.typeof(like).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return function(arguments)
    leaves, tree = jax.tree.flatten(arguments)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

    def inside(*arrays: jax.Array) -> Any:
        given = dict(zip(places, arrays, strict=True))
        return function(tree.unflatten([given.get(place, leaf) for place, leaf in enumerate(leaves)]))

    with jax.sharding.use_abstract_mesh(sharding.mesh):
        run = jax.sharding.auto_axes(inside, out_sharding=sharding.spec if spec is None else spec)
        return run(*(leaves[place] for place in places))


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
