"""`gspo_jax.linear_policy_loss`, fed log-probabilities through a head of two tokens: weights [[1, 0], [0, 1]], so that hidden states are logits.

Of logits near the solution of log softmax(h)_0 = logp, those are taken for which the function under test
gives the number nearest to `logp`. The gradient at h_0 is g (1 - p); divided by 1 - p it is g = d loss / d logp.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gspo_jax

from ..target import Case, Skip
from ..tensors import NumPyArray
from .core import LOSSES, Arrays, CoreTarget
from .jax import Jax, JaxTarget

_NEIGHBOURS = 8
# e^-40: nearer to probability one no gradient is left to divide by.
_NEAREST_TO_ONE = -4e-18


class FusedJax(Jax):
    """Hidden states in, a few chunks of tokens at a time."""

    def loss_and_gradient(self, objective: Any, arguments: Arrays) -> tuple[Any, jax.Array]:
        """`linear_policy_loss`, differentiated by the hidden states."""
        rest = dict(arguments)
        given = rest.pop("logp")
        counted = np.asarray(rest["sequences"].bind(tuple(given.shape)).counted)
        hidden, logp = hidden_states(given, counted)
        rest = {name: _of_the_same_policy(name, value, given, logp) for name, value in rest.items()}

        def loss(hidden: jax.Array) -> tuple[jax.Array, Any]:
            found = gspo_jax.linear_policy_loss(
                objective,
                hidden=hidden,
                weight=jnp.eye(2, dtype=hidden.dtype),
                tokens=jnp.zeros(given.shape, jnp.int32),
                chunk_size=max(3, counted.size // 4),
                **rest,
            )
            return found.loss, found

        slopes, found = jax.grad(loss, has_aux=True)(hidden)
        return found, jnp.where(counted, slopes[..., 0] / -jnp.expm1(logp), slopes[..., 0])


class EagerTarget(JaxTarget):
    """Arrays that can be read while a case is answered: nothing around the loss is compiled."""

    def answer(self, case: Case, given: Any) -> dict[str, Any]:
        """What the case asks for, in JAX arrays."""
        return CoreTarget.answer(self, case, given)


def hidden_states(logp: jax.Array, counted: NumPyArray) -> tuple[jax.Array, jax.Array]:
    """Logits `[.., 2]` with these log-probabilities of the first token, NaN where nothing counts; and what they give."""
    dtype = np.float64 if logp.dtype == jnp.float64 else np.float32
    wanted = np.where(counted, np.asarray(logp, np.float64), -1.0).reshape(-1)
    if (wanted > 0).any():
        raise Skip("a log-probability above 0 has no hidden state")
    wanted = np.minimum(wanted, _NEAREST_TO_ONE)
    # One logit is 0, and the other carries the digits: the second token's where the first is likely.
    likely = wanted > -0.5
    solution = np.where(likely, np.log(np.expm1(-wanted)), wanted - np.log(-np.expm1(wanted))).astype(dtype)
    tried = _around(solution)
    zero = np.zeros_like(tried)
    states = np.where(likely[:, None, None], np.stack([zero, tried], -1), np.stack([tried, zero], -1))
    found = np.asarray(
        gspo_jax.linear_token_logps(jnp.asarray(states), jnp.eye(2, dtype=dtype), jnp.zeros(tried.shape, jnp.int32))
    )
    best = np.abs(found.astype(np.float64) - wanted[:, None]).argmin(-1)
    row, shape = np.arange(best.size), logp.shape
    chosen = np.where(counted.reshape(-1, 1), states[row, best], np.nan).astype(dtype)
    return jnp.asarray(chosen.reshape(*shape, 2)), jnp.asarray(found[row, best].reshape(shape))


def _around(values: NumPyArray) -> NumPyArray:
    """The values and their neighbours in the dtype, `[.., 2 · 8 + 1]`."""
    columns = [values]
    for end in (np.inf, -np.inf):
        for step in range(_NEIGHBOURS):
            columns.append(np.nextafter(columns[-1] if step else values, values.dtype.type(end)))
    return np.stack(columns, -1)


def _of_the_same_policy(name: str, value: Any, given: jax.Array, logp: jax.Array) -> Any:
    """Log-probabilities that equal the current ones stay equal to what the head gives for those."""
    if not name.endswith("logp") or value.shape != given.shape:
        return value
    return jnp.where(value == given, logp, value.astype(jnp.promote_types(value.dtype, logp.dtype)))


def target() -> CoreTarget:
    """The built-in target `jax:fused`: the operations that have a loss."""
    return EagerTarget("jax:fused", FusedJax(), gspo_jax, LOSSES)
