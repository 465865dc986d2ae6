"""log softmax at one token per row of logits, and its derivative, with the vocabulary whole or spread over a mesh axis.

With m the largest logit and R = Σ_{v ≠ token} e^{l_v - m}: log p = l_token - m - log(R + e^{l_token - m}), which is
-log1p(R) where the token is the most likely one. Leaving the token out of the sum keeps the digits of log p
and of 1 - p where p is nearly 1.

The token is found by comparing column numbers, which XLA fuses into the reductions and partitions
along the vocabulary; a gather would do neither.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class RowSums(NamedTuple):
    """Of each row of logits: l_token, m and R, over the part of the vocabulary that is here."""

    at_token: jax.Array
    peak: jax.Array
    rest: jax.Array


class Normalised(NamedTuple):
    """Of each row: log p of its token, m, and log Σ e^{l - m}, over the whole vocabulary."""

    logp: jax.Array
    peak: jax.Array
    log_total: jax.Array


def row_sums(logits: jax.Array, tokens: jax.Array, vocab_axis: str | None) -> RowSums:
    """What each row contributes; `logits` `[..., V]`, `tokens` `[...]`."""
    hit, zeros = _hit(logits, tokens, vocab_axis), jnp.zeros_like(logits)
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    peak = jnp.where(peak == -jnp.inf, jnp.zeros_like(peak), peak)
    rest = jnp.where(hit, zeros, jnp.exp(logits - peak[..., None]))
    return RowSums(jnp.sum(jnp.where(hit, logits, zeros), axis=-1), peak, jnp.sum(rest, axis=-1))


def normalise(sums: RowSums, tokens: jax.Array, size: int, vocab_axis: str | None) -> Normalised:
    """log p; NaN for a token outside the vocabulary. Over a mesh axis: one maximum and one sum of two numbers a token."""
    at_token, peak, rest = sums
    if vocab_axis is not None:
        size = size * jax.lax.axis_size(vocab_axis)
        peak = jax.lax.pmax(peak, vocab_axis)
        rest = rest * jnp.exp(sums.peak - peak)
        at_token, rest = jax.lax.psum(jnp.stack([at_token, rest]), vocab_axis)
    above = at_token - peak
    log_total = jnp.log(rest + jnp.exp(above))
    # e^0 - 1 is 0, and has the token's part of the derivative.
    logp = above - jnp.where(above == 0, jnp.log1p(rest + jnp.expm1(above)), log_total)
    return Normalised(jnp.where((tokens >= 0) & (tokens < size), logp, jnp.nan), peak, log_total)


def logit_gradient(
    logits: jax.Array, tokens: jax.Array, found: Normalised, gradient: jax.Array, vocab_axis: str | None
) -> jax.Array:
    """g (1[v = token] - p_v): the gradient of each logit, exactly 0 in rows where g is 0, NaN or not, with a derivative by g there."""
    share = jnp.exp((logits - found.peak[..., None]) - found.log_total[..., None])
    slope = jnp.where(_hit(logits, tokens, vocab_axis), -jnp.expm1(found.logp)[..., None], -share)
    return jnp.where((gradient[..., None] != 0) | jnp.isfinite(slope), slope, 0.0) * gradient[..., None]


def _hit(logits: jax.Array, tokens: jax.Array, vocab_axis: str | None) -> jax.Array:
    columns = jax.lax.broadcasted_iota(tokens.dtype, (1,) * tokens.ndim + logits.shape[-1:], tokens.ndim)
    first = 0 if vocab_axis is None else jax.lax.axis_index(vocab_axis).astype(tokens.dtype) * logits.shape[-1]
    return columns + first == tokens[..., None]
