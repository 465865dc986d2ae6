"""The output head with its log softmax, a chunk of tokens at a time, forward and backward.

The backward pass computes the logits of each chunk again, and only for tokens whose gradient is not 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from .chunks import Cut, Picked, Strided
from .mesh import vary_like
from .selection import Normalised, RowSums, logit_gradient, normalise, row_sums

Saved: TypeAlias = tuple[jax.Array, jax.Array, jax.Array | None, jax.Array, Normalised]


@dataclass(frozen=True)
class Head:
    """What is fixed when a program is traced. `steps` None gathers the wanted tokens; else `Strided` makes that many chunks."""

    temperature: float
    chunk_size: int
    vocab_axis: str | None
    steps: int | None

    def cut(self, wanted: jax.Array) -> Cut:
        """The chunks of a batch."""
        return Picked(wanted, self.chunk_size) if self.steps is None else Strided(wanted, self.steps)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def head_logps(
    head: Head, hidden: jax.Array, weight: jax.Array, bias: jax.Array | None, tokens: jax.Array, wanted: jax.Array
) -> jax.Array:
    """log softmax((h W^T + b) / temperature) at the wanted tokens, 0 elsewhere, NaN outside the vocabulary.

    `hidden` `[..., D]`, `weight` `[V, D]`, `bias` `[V]`, `tokens` and `wanted` `[...]`.
    """
    return _forward_and_save(head, hidden, weight, bias, tokens, wanted)[0]


def accumulator(*arrays: jax.Array) -> Any:
    """float64 if any array is float64, else float32."""
    return jnp.float64 if any(array.dtype == jnp.float64 for array in arrays) else jnp.float32


def common_dtype(a: jax.Array, b: jax.Array) -> Any:
    """The dtype that a product of the two runs in: theirs, or the accumulator's where they differ."""
    return a.dtype if a.dtype == b.dtype else accumulator(a, b)


@partial(jax.jit, static_argnums=0)
def _forward(
    head: Head, hidden: jax.Array, weight: jax.Array, bias: jax.Array | None, tokens: jax.Array, wanted: jax.Array
) -> Normalised:
    cut = head.cut(wanted)
    zeros = vary_like(jnp.zeros(tokens.shape, accumulator(hidden, weight)), hidden, weight, bias, tokens, wanted)

    def step(index: jax.Array, kept: RowSums) -> RowSums:
        chunk = cut.chunk(index)
        sums = row_sums(_logits(head, chunk.take(hidden), weight, bias), chunk.take(tokens), head.vocab_axis)
        return RowSums(*(chunk.put(into, new) for into, new in zip(kept, sums, strict=True)))

    sums = jax.lax.fori_loop(0, cut.steps, step, RowSums(zeros, zeros, zeros))
    return normalise(sums, tokens, weight.shape[0], head.vocab_axis)


def _forward_and_save(
    head: Head, hidden: jax.Array, weight: jax.Array, bias: jax.Array | None, tokens: jax.Array, wanted: jax.Array
) -> tuple[jax.Array, Saved]:
    found = _forward(head, hidden, weight, bias, tokens, wanted)
    return jnp.where(wanted, found.logp, 0.0), (hidden, weight, bias, tokens, found)


def _backward(head: Head, saved: Saved, gradient: jax.Array) -> tuple[Any, ...]:
    return *_gradients(head, saved, gradient), None, None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0)
def _gradients(head: Head, saved: Saved, gradient: jax.Array) -> tuple[jax.Array | None, ...]:
    """To hidden, weight and bias. A derivative of this would miss the tokens that are left out: there is none."""
    hidden, weight, bias, tokens, normalised = saved
    dtype, narrow = accumulator(hidden, weight), common_dtype(hidden, weight)
    cut = head.cut(gradient != 0)

    def step(index: jax.Array, sums: tuple[Any, ...]) -> tuple[Any, ...]:
        to_hidden, to_weight, to_bias = sums
        chunk = cut.chunk(index)
        rows = chunk.take(hidden)
        slope = logit_gradient(
            _logits(head, rows, weight, bias),
            chunk.take(tokens),
            Normalised(*(chunk.take(part) for part in normalised)),
            chunk.take(gradient) / head.temperature,
            head.vocab_axis,
        )
        every = tuple(range(slope.ndim - 1))
        to_bias = None if bias is None else to_bias + jnp.sum(slope, axis=every)
        slope = slope.astype(narrow)
        rise = _product(slope, weight, slope.ndim - 1, 0, dtype)
        to_hidden = chunk.put(to_hidden, rise.astype(hidden.dtype))
        return to_hidden, to_weight + _product(slope, rows, every, every, dtype), to_bias

    start = [
        None if like is None else vary_like(jnp.zeros(like.shape, kind), hidden, weight, bias, tokens, gradient)
        for like, kind in ((hidden, hidden.dtype), (weight, dtype), (bias, dtype))
    ]
    found = jax.lax.fori_loop(0, cut.steps, step, tuple(start))
    like = (hidden, weight, bias)
    return tuple(None if b is None else a.astype(b.dtype) for a, b in zip(found, like, strict=True))


def _no_second(_head: Head, _saved: None, _gradient: Any) -> Any:
    raise TypeError(
        "linear_token_logps, linear_policy_loss: expected to be differentiated once, got a derivative of their gradient; "
        "token_logps(hidden @ weight.T, tokens) has one"
    )


_gradients.defvjp(lambda head, saved, gradient: (_gradients(head, saved, gradient), None), _no_second)


def _logits(head: Head, hidden: jax.Array, weight: jax.Array, bias: jax.Array | None) -> jax.Array:
    """(h W^T + b) / temperature, accumulated in float32 or wider."""
    dtype = accumulator(hidden, weight)
    logits = _product(hidden, weight, hidden.ndim - 1, 1, dtype)
    if bias is not None:
        logits = logits + jax.lax.broadcast_to_rank(bias.astype(dtype), logits.ndim)
    return logits / head.temperature


def _product(
    a: jax.Array, b: jax.Array, over_a: int | tuple[int, ...], over_b: int | tuple[int, ...], dtype: Any
) -> Any:
    """Σ a b over the named axes, accumulated in `dtype`; float32 operands are not narrowed, unless JAX is configured so."""
    common = common_dtype(a, b)
    contracted = tuple((axes,) if isinstance(axes, int) else axes for axes in (over_a, over_b))
    # By itself JAX rounds them to 10 bits on a GPU and 7 on a TPU: an error of log π far above the clip range.
    unconfigured = common == jnp.float32 and jax.config.jax_default_matmul_precision is None
    return jax.lax.dot_general(
        a.astype(common),
        b.astype(common),
        (contracted, ((), ())),
        precision=jax.lax.Precision.HIGHEST if unconfigured else None,
        preferred_element_type=dtype,
    )


head_logps.defvjp(_forward_and_save, _backward)
