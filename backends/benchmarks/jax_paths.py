"""The ways to a GSPO loss in JAX that the benchmarks compare, on seeded batches; each gives (loss, gradients, metrics)."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gspo_jax as gspo

CLIP = gspo.Clip(0.2, 0.2)
GSPO = gspo.Objective.gspo(CLIP)
Program = Callable[..., tuple[Any, Any, Any]]


def head_batch(
    batch: int, length: int, vocabulary: int, width: int, filled: float, clipped: float, dtype: str
) -> tuple[Any, ...]:
    """Hidden states, head, tokens, old log-probabilities, mask, advantages; every response fills `filled` of its row.

    The last `clipped` of the responses have a ratio above the range and a positive advantage.
    """
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((batch, length, width), dtype=np.float32), dtype)
    weight = jnp.asarray(rng.standard_normal((vocabulary, width), dtype=np.float32) / width**0.5, dtype)
    tokens = jnp.asarray(rng.integers(0, vocabulary, (batch, length)), jnp.int32)
    mask = jnp.asarray(np.broadcast_to(np.arange(length) < filled * length, (batch, length)))
    outside = np.arange(batch) >= round(batch * (1 - clipped))
    shift = np.where(outside, -0.5, 0.0)[:, None] + 0.01 * rng.standard_normal((batch, length))
    logp = jax.jit(gspo.linear_token_logps)(hidden, weight, tokens)
    advantages = np.where(outside | (np.arange(batch) % 2 == 0), 1.0, -1.0)
    return hidden, weight, tokens, logp + jnp.asarray(shift, logp.dtype), mask, jnp.asarray(advantages, jnp.float32)


def _differentiated(loss: Callable[..., Any]) -> Program:
    def program(hidden: Any, weight: Any, *rest: Any) -> tuple[Any, Any, Any]:
        (value, metrics), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, weight, *rest)
        return value, gradients, metrics

    return program


def all_logits(hidden: Any, weight: Any, tokens: Any, old: Any, mask: Any, advantages: Any) -> Any:
    logits = jnp.einsum("btd,vd->btv", hidden, weight, preferred_element_type=jnp.float32)
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), tokens[..., None], axis=-1)[..., 0]
    return gspo.policy_loss(GSPO, logp=logp, old_logp=old, advantages=advantages, sequences=mask)


def fused(hidden: Any, weight: Any, tokens: Any, old: Any, mask: Any, advantages: Any) -> Any:
    rest = {"old_logp": old, "advantages": advantages, "sequences": mask}
    return gspo.linear_policy_loss(GSPO, hidden=hidden, weight=weight, tokens=tokens, **rest)


def single_pass(hidden: Any, weight: Any, tokens: Any, old: Any, mask: Any, advantages: Any) -> tuple[Any, Any, Any]:
    """Three products a chunk: gradients without the response's coefficient, which is known, and multiplied, at its end.

    The head's gradient of the response under way is a second array of the size of the head.
    """
    batch, length = tokens.shape
    size = min(length, max(128, 2**24 // weight.shape[0]))
    lengths = jnp.sum(mask, axis=1, dtype=jnp.float32)

    def response(row: Any, sums: Any) -> Any:
        loss, to_hidden, to_weight = sums

        def chunk(index: Any, kept: Any) -> Any:
            total, to_rows, to_head = kept
            at = index * size
            take = lambda values: jax.lax.dynamic_slice_in_dim(values[row], at, size)  # noqa: E731
            h, y, counts = take(hidden), take(tokens), take(mask)
            logits = jax.lax.dot_general(h, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
            logp = jax.nn.log_softmax(logits, axis=-1)
            hit = jax.lax.broadcasted_iota(jnp.int32, logp.shape, 1) == y[:, None]
            chosen = jnp.sum(jnp.where(hit, logp, 0.0), axis=-1)
            slope = jnp.where(counts[:, None], jnp.where(hit, 1 - jnp.exp(logp), -jnp.exp(logp)), 0.0).astype(
                weight.dtype
            )
            total = total + jnp.sum(jnp.where(counts, chosen - take(old), 0.0))
            rise = jax.lax.dot_general(slope, weight, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
            to_rows = jax.lax.dynamic_update_slice_in_dim(to_rows, rise, at, 0)
            to_head += jax.lax.dot_general(slope, h, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
            return total, to_rows, to_head

        start = jnp.float32(0), jnp.zeros(hidden.shape[1:], jnp.float32), jnp.zeros(weight.shape, jnp.float32)
        total, to_rows, to_head = jax.lax.fori_loop(0, length // size, chunk, start)
        ratio, advantage = jnp.exp(total / lengths[row]), advantages[row]
        kept = jnp.where(advantage > 0, ratio <= 1 + CLIP.high, ratio >= 1 - CLIP.low)
        bound = jnp.where(advantage > 0, 1 + CLIP.high, 1 - CLIP.low)
        scale = jnp.where(kept, -ratio * advantage / (batch * lengths[row]), 0.0)
        loss = loss - jnp.where(kept, ratio, bound) * advantage / batch
        return loss, to_hidden.at[row].set((scale * to_rows).astype(hidden.dtype)), to_weight + scale * to_head

    zero = jnp.float32(0), jnp.zeros_like(hidden), jnp.zeros(weight.shape, jnp.float32)
    loss, to_hidden, to_weight = jax.lax.fori_loop(0, batch, response, zero)
    return loss, (to_hidden, to_weight.astype(weight.dtype)), ()


def tunix_head() -> Program:
    """Tunix's own `gspo-token` loss on a model whose only layer is the head."""
    from flax import nnx
    from tunix.rl.algo_core import grpo_loss_fn

    class Model(nnx.Module):
        def __init__(self, hidden: Any, weight: Any) -> None:
            self.hidden, self.weight = nnx.Param(hidden), nnx.Param(weight)

        def __call__(self, tokens: Any, **_: Any) -> tuple[Any, None]:
            # One position before the first completion token, whose logits Tunix takes for that token.
            logits = jnp.einsum("btd,vd->btv", self.hidden[...], self.weight[...], preferred_element_type=jnp.float32)
            return jnp.pad(logits, ((0, 0), (tokens.shape[1] - logits.shape[1] - 1, 1), (0, 0))), None

    def loss(hidden: Any, weight: Any, tokens: Any, old: Any, mask: Any, advantages: Any) -> Any:
        example = SimpleNamespace(
            prompt_ids=jnp.ones((tokens.shape[0], 1), jnp.int32),
            completion_ids=tokens,
            completion_mask=mask,
            advantages=advantages,
            old_per_token_logps=old,
            ref_per_token_logps=None,
        )
        return grpo_loss_fn(Model(hidden, weight), example, tunix_config(), pad_id=-1, eos_id=-2)

    return _differentiated(loss)


def tunix_config() -> Any:
    """The paper's form, as near as its options come."""
    return SimpleNamespace(
        beta=0.0,
        epsilon=CLIP.low,
        epsilon_high=CLIP.high,
        loss_algo="gspo-token",
        loss_agg_mode="sequence-mean-token-mean",
        temperature=1.0,
        kl_loss_mode="kl",
        kl_clamp_value=None,
    )


HEAD_PATHS: dict[str, Callable[[], Program]] = {
    "all logits": lambda: _differentiated(lambda *arguments: tuple(all_logits(*arguments))),
    "tunix": tunix_head,
    "linear_policy_loss": lambda: _differentiated(lambda *arguments: tuple(fused(*arguments))),
    "single pass": lambda: single_pass,
}


def logp_batch(batch: int, length: int) -> tuple[Any, ...]:
    """Log-probabilities, old ones, mask, advantages; ragged lengths."""
    rng = np.random.default_rng(0)
    old = -rng.exponential(0.3, (batch, length))
    logp = old + 2e-4 * rng.standard_normal((batch, length))
    mask = np.arange(length) < rng.integers(length // 4, length + 1, batch)[:, None]
    floats = (jnp.asarray(values, jnp.float32) for values in (logp, old, rng.standard_normal(batch)))
    logp, old, advantages = floats
    return logp, old, jnp.asarray(mask), advantages


def by_autodiff(logp: Any, old: Any, mask: Any, advantages: Any) -> tuple[Any, Any, Any]:
    def loss(logp: Any) -> Any:
        return tuple(gspo.gspo_loss(logp, old, advantages, mask, clip=CLIP))

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(logp)
    return value, gradient, metrics


def in_closed_form(logp: Any, old: Any, mask: Any, advantages: Any) -> tuple[Any, Any, Any]:
    arguments = {"logp": logp, "old_logp": old, "advantages": advantages, "sequences": mask}
    found = gspo.policy_loss(GSPO, **arguments)
    return found.loss, gspo.policy_gradient(GSPO, **arguments), found.metrics


def tunix_logp() -> Program:
    """Tunix's own loss on given log-probabilities: its model call is replaced, its entropy has one logit a token."""
    from flax import nnx
    from tunix.rl import algo_core

    def program(logp: Any, old: Any, mask: Any, advantages: Any) -> tuple[Any, Any, Any]:
        example = SimpleNamespace(
            prompt_ids=None,
            completion_ids=None,
            completion_mask=mask,
            advantages=advantages,
            old_per_token_logps=old,
            ref_per_token_logps=None,
        )

        def loss(logp: Any) -> Any:
            algo_core.common.compute_per_token_logps = lambda *_, **__: (logp, logp[..., None])
            return algo_core.grpo_loss_fn(nnx.Module(), example, tunix_config(), pad_id=0, eos_id=0)

        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(logp)
        return value, gradient, metrics

    return program


LOGP_PATHS: dict[str, Callable[[], Program]] = {
    "autodiff": lambda: by_autodiff,
    "autodiff, loss alone": lambda: lambda *arguments: (*by_autodiff(*arguments)[:2], ()),
    "closed form": lambda: in_closed_form,
    "closed form, loss alone": lambda: lambda *arguments: (*in_closed_form(*arguments)[:2], ()),
    "tunix": tunix_logp,
}
