"""The tokens of a batch, a chunk at a time: which a chunk holds, reading them, writing results back.

Two ways to cut. `Picked` gathers the wanted tokens of the whole batch into full chunks, so that the
work is proportional to how many are wanted, wherever they lie. `Strided` takes every k-th token of
each row, wanted or not, so that a row or batch that is sharded over devices stays where it is and
every device works on every chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp


class Chunk(NamedTuple):
    """`take(values)` reads an array at the tokens of the chunk, 0 where a place is empty; `put(into, values)` writes."""

    take: Callable[[jax.Array], jax.Array]
    put: Callable[[jax.Array, jax.Array], jax.Array]


class Cut(Protocol):
    """The chunks of one batch: how many, and the i-th."""

    steps: Any

    def chunk(self, index: jax.Array) -> Chunk:
        """The i-th chunk."""
        ...


class Picked:
    """Chunks of `size` tokens, all of them wanted, the last one filled up with empty places."""

    def __init__(self, wanted: jax.Array, size: int) -> None:
        flat = wanted.reshape(-1)
        self.size = min(size, flat.size)
        self.ndim = wanted.ndim
        # Past the end is an empty place: reads give 0 there, writes are dropped.
        (self.order,) = jnp.nonzero(flat, size=-(-flat.size // self.size) * self.size, fill_value=flat.size)
        self.steps = -(-jnp.sum(flat, dtype=jnp.int32) // self.size)

    def chunk(self, index: jax.Array) -> Chunk:
        """The wanted tokens number `index * size` and following."""
        places = jax.lax.dynamic_slice(self.order, (index * self.size,), (self.size,))
        return Chunk(
            lambda values: self._flat(values).at[places].get(mode="fill", fill_value=0, indices_are_sorted=True),
            lambda into, values: self._put(into, values, places),
        )

    def _flat(self, values: jax.Array) -> jax.Array:
        return values.reshape(-1, *values.shape[self.ndim :])

    def _put(self, into: jax.Array, values: jax.Array, places: jax.Array) -> jax.Array:
        return self._flat(into).at[places].set(values, mode="drop", indices_are_sorted=True).reshape(into.shape)


class Strided:
    """k chunks, k a divisor of the row length T; chunk i holds the tokens i, i + k, i + 2k, ... of every row."""

    def __init__(self, wanted: jax.Array, steps: int) -> None:
        self.axis = wanted.ndim - 1
        self.steps = steps
        self.wanted = wanted

    def chunk(self, index: jax.Array) -> Chunk:
        """Every k-th token from number `index` on."""
        wanted = self._take(self.wanted, index)
        return Chunk(
            lambda values: _select(wanted, self._take(values, index)),
            lambda into, values: self._put(into, _select(wanted, values), index),
        )

    def _split(self, values: jax.Array) -> jax.Array:
        shape, axis = values.shape, self.axis
        return values.reshape(*shape[:axis], shape[axis] // self.steps, self.steps, *shape[axis + 1 :])

    def _take(self, values: jax.Array, index: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(self._split(values), index, self.axis + 1, keepdims=False)

    def _put(self, into: jax.Array, values: jax.Array, index: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(self._split(into), values, index, self.axis + 1).reshape(into.shape)


def strides(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """(k, T'): into how many chunks of about `size` tokens rows of T are cut, and T or, where no k divides it, what to fill it up to."""
    rows, length = math.prod(shape[:-1]), shape[-1]
    fewest = min(-(-rows * length // size), length)
    for steps in range(fewest, min(2 * fewest, length) + 1):
        if length % steps == 0:
            return steps, length
    return fewest, -(-length // fewest) * fewest


def _select(wanted: jax.Array, values: jax.Array) -> jax.Array:
    wanted = wanted.reshape(wanted.shape + (1,) * (values.ndim - wanted.ndim))
    return jnp.where(wanted, values, 0)
