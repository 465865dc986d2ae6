"""log π_θ of the sampled tokens from logits or from hidden states, and the loss from hidden states."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import gspo_core
from gspo_core.sequences import bind_sequences
from gspo_core.validation import check_floating, check_integer, check_number, check_shape, reads_values, seen

from .chunks import strides
from .distributed import policy_loss
from .head import Head, accumulator, head_logps
from .mesh import check_vocab_axis, is_one_piece, run_automatically, vary_like
from .results import PolicyLoss
from .selection import Normalised, logit_gradient, normalise, row_sums

# Float32 logits that one chunk may hold by default, in bytes: what a CPU's caches and a device's matrix units like.
_CHUNK_BYTES = {"cpu": 2**26}
_DEVICE_CHUNK_BYTES = 2**30


def token_logps(
    logits: jax.Array, tokens: jax.Array, *, temperature: float = 1.0, vocab_axis: str | None = None
) -> jax.Array:
    """log softmax(l / temperature) at the sampled tokens; float32, or float64 for float64 logits.

    Nothing of the size of the logits is kept for the backward pass but the logits themselves.

    Args:
        logits: `[..., V]`, of any floating dtype.
        tokens: `[...]` integers, the token that each position predicts; one outside the vocabulary gets NaN.
        temperature: of the sampler.
        vocab_axis: inside `jax.shard_map`, the mesh axis over which V is spread.

    >>> import jax.numpy as jnp
    >>> token_logps(jnp.zeros((2, 4), dtype=jnp.float32), jnp.asarray([0, 3]))
    Array([-1.3862944, -1.3862944], dtype=float32)
    """
    _check_jax(logits=logits, tokens=tokens)
    check_floating("logits", logits)
    check_integer("tokens", tokens)
    check_shape("tokens", tokens, tuple(logits.shape[:-1]), "logits without their last dimension")
    check_number("temperature", temperature, low=0.0, strict=True)
    check_vocab_axis("logits", vocab_axis, logits)
    return _selected((float(temperature), vocab_axis), vary_like(logits, tokens), tokens.astype(jnp.int32))


def linear_token_logps(
    hidden: jax.Array,
    weight: jax.Array,
    tokens: jax.Array,
    *,
    bias: jax.Array | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    vocab_axis: str | None = None,
) -> jax.Array:
    """log softmax((h W^T + b) / temperature) at the sampled tokens, in memory O(chunk · V).

    Differentiable in `hidden`, `weight` and `bias`. The backward pass computes the logits of each
    chunk again, for the tokens whose gradient is not 0.

    Args:
        hidden: `[..., D]`, the last hidden states.
        weight: `[V, D]`; a Flax kernel `[D, V]` is `kernel.T` here, which copies nothing under `jax.jit`.
        tokens: `[...]` integers, the token that each position predicts; one outside the vocabulary gets NaN.
        bias: `[V]`.
        temperature: of the sampler.
        chunk_size: tokens whose logits are held at once. None: as many as 64 MiB of float32 logits hold on a CPU,
            1 GiB elsewhere, and between 128 and 4096.
        vocab_axis: inside `jax.shard_map`, the mesh axis over which V (the rows of `weight` and `bias`) is spread.

    Returns: the shape of `tokens`; float32, or float64 where `hidden` or `weight` is.

    >>> import jax.numpy as jnp
    >>> linear_token_logps(jnp.ones((2, 2), dtype=jnp.float32), jnp.zeros((4, 2), dtype=jnp.float32), jnp.asarray([0, 3]))
    Array([-1.3862944, -1.3862944], dtype=float32)
    """
    _check_jax(hidden=hidden, weight=weight, tokens=tokens, bias=bias)
    wanted = jnp.ones(tokens.shape, bool)
    return _logps(hidden, weight, tokens, wanted, bias, temperature, chunk_size, vocab_axis)


def linear_policy_loss(
    objective: gspo_core.Objective,
    *,
    hidden: jax.Array,
    weight: jax.Array,
    tokens: jax.Array,
    old_logp: jax.Array,
    advantages: jax.Array,
    sequences: Any,
    bias: jax.Array | None = None,
    temperature: float = 1.0,
    ref_logp: jax.Array | None = None,
    behavior_logp: jax.Array | None = None,
    groups: jax.Array | None = None,
    normalizer: Any = None,
    chunk_size: int | None = None,
    vocab_axis: str | None = None,
    axis_name: Any = None,
) -> PolicyLoss:
    """`policy_loss` from hidden states: log π_θ by `linear_token_logps`, at the counted tokens only.

    Work is proportional to the number of counted tokens forward, and to the number of tokens whose
    gradient is not 0 backward: padding, clipped responses and those of advantage 0 are left out. (Not
    under a plain `jax.jit` over several devices, where a row may be spread over them.)

    `hidden`, `weight`, `tokens`, `bias`, `temperature`, `chunk_size` and `vocab_axis` are those of
    `linear_token_logps`; everything else is as in `policy_loss`.
    """
    _check_jax(hidden=hidden, weight=weight, tokens=tokens, bias=bias)
    counted = bind_sequences(sequences, tuple(tokens.shape), "tokens").counted
    if vocab_axis is None:
        _check_known(tokens, counted, weight)
    return policy_loss(
        objective,
        logp=_logps(hidden, weight, tokens, counted, bias, temperature, chunk_size, vocab_axis),
        old_logp=old_logp,
        advantages=advantages,
        sequences=sequences,
        ref_logp=ref_logp,
        behavior_logp=behavior_logp,
        groups=groups,
        normalizer=normalizer,
        axis_name=axis_name,
    )


def _logps(
    hidden: jax.Array,
    weight: jax.Array,
    tokens: jax.Array,
    wanted: jax.Array,
    bias: jax.Array | None,
    temperature: float,
    chunk_size: int | None,
    vocab_axis: str | None,
) -> jax.Array:
    _check_head(hidden, weight, tokens, bias)
    check_number("temperature", temperature, low=0.0, strict=True)
    _check_chunk_size(chunk_size)
    check_vocab_axis("weight", vocab_axis, weight)
    if tokens.size == 0:
        return jnp.zeros(tokens.shape, accumulator(hidden, weight))
    size = _default_chunk(weight.shape[0]) if chunk_size is None else chunk_size
    arrays = (hidden, weight, bias, tokens)
    hidden, weight = vary_like(hidden, *arrays), vary_like(weight, *arrays)
    bias = None if bias is None else vary_like(bias, *arrays)
    tokens = tokens.astype(jnp.int32)
    if is_one_piece(hidden):
        return head_logps(Head(float(temperature), size, vocab_axis, None), hidden, weight, bias, tokens, wanted)
    steps, length = strides(tokens.shape, size)
    head = Head(float(temperature), size, vocab_axis, steps)

    def strided(arrays: tuple[Any, ...]) -> jax.Array:
        hidden, weight, bias, tokens, wanted = arrays
        hidden, filled, wanted = (_fill(values, tokens.ndim - 1, length) for values in (hidden, tokens, wanted))
        return head_logps(head, hidden, weight, bias, filled, wanted)[..., : tokens.shape[-1]]

    return run_automatically(strided, (hidden, weight, bias, tokens, wanted), tokens)


def _fill(values: jax.Array, axis: int, length: int) -> jax.Array:
    """Zeros up to `length` along an axis."""
    missing = length - values.shape[axis]
    return jnp.pad(values, [(0, missing if at == axis else 0) for at in range(values.ndim)]) if missing else values


def _check_head(hidden: jax.Array, weight: jax.Array, tokens: jax.Array, bias: jax.Array | None) -> None:
    check_floating("hidden", hidden)
    check_floating("weight", weight)
    check_integer("tokens", tokens)
    if hidden.ndim != tokens.ndim + 1 or hidden.shape[:-1] != tokens.shape or tokens.ndim == 0:
        raise ValueError(f"hidden: expected shape {(*tokens.shape, 'D')}, tokens and a width, got {hidden.shape}")
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(f"weight: expected shape ('V', {hidden.shape[-1]}) for this hidden, got {weight.shape}")
    if bias is not None:
        check_floating("bias", bias)
        check_shape("bias", bias, (weight.shape[0],), "one per row of weight")


def _check_known(tokens: jax.Array, counted: jax.Array, weight: jax.Array) -> None:
    """Counted tokens are rows of W; their NaN would be said of log-probabilities that the caller never saw."""
    check_integer("tokens", tokens)
    if weight.ndim != 2 or not (reads_values(tokens) and reads_values(counted)):
        return
    ids, size = seen(tokens), weight.shape[0]
    wrong = ids[seen(counted) & ((ids < 0) | (ids >= size))]
    if wrong.size:
        raise ValueError(
            f"tokens: expected ids in [0, {size}) at counted positions, got {wrong.size} others, such as {wrong[0]}"
        )


def _default_chunk(vocabulary: int) -> int:
    room = _CHUNK_BYTES.get(jax.default_backend(), _DEVICE_CHUNK_BYTES)
    return min(max(room // (4 * max(vocabulary, 1)), 128), 4096)


def _check_chunk_size(chunk_size: int | None) -> None:
    if chunk_size is None:
        return
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int):
        raise TypeError(f"chunk_size: expected an integer or None, got {type(chunk_size).__name__}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1, got {chunk_size}")


def _check_jax(**arrays: Any) -> None:
    for name, array in arrays.items():
        if array is not None and not isinstance(array, jax.Array):
            raise TypeError(f"{name}: expected a JAX array, got {type(array).__module__}.{type(array).__name__}")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _selected(settings: tuple[float, str | None], logits: jax.Array, tokens: jax.Array) -> jax.Array:
    return _select(settings, logits, tokens)[0]


@partial(jax.jit, static_argnums=0)
def _select(
    settings: tuple[float, str | None], logits: jax.Array, tokens: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Normalised]]:
    temperature, vocab_axis = settings
    scaled = logits.astype(accumulator(logits)) / temperature
    found = normalise(row_sums(scaled, tokens, vocab_axis), tokens, logits.shape[-1], vocab_axis)
    return found.logp, (logits, tokens, found)


@partial(jax.jit, static_argnums=0)
def _select_backward(
    settings: tuple[float, str | None], saved: tuple[jax.Array, jax.Array, Normalised], gradient: jax.Array
) -> tuple[jax.Array, None]:
    temperature, vocab_axis = settings
    logits, tokens, found = saved
    scaled = logits.astype(accumulator(logits)) / temperature
    slope = logit_gradient(scaled, tokens, found, gradient / temperature, vocab_axis)
    return slope.astype(logits.dtype), None


_selected.defvjp(_select, _select_backward)
