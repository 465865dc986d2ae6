"""The loss and metrics of a step whose responses are spread over a mesh axis, inside `jax.shard_map`.

Under a plain `jax.jit` over sharded arrays none of this is needed: a program over global arrays is
already about the union, and XLA finds the collectives.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

import gspo_core
from gspo_core.aggregation import Aggregation, Weights, divide, token_weights
from gspo_core.loss import step_loss
from gspo_core.metrics import RatioSums, ratio_statistics, ratio_sums
from gspo_core.responses import Responses
from gspo_core.step import Step, prepare, unit_log_ratio

from .mesh import run_automatically
from .results import PolicyLoss

Axes: TypeAlias = str | tuple[str, ...]

_PER_TOKEN = ("clip_fraction", "clip_fraction_low", "clip_fraction_high", "clip_fraction_dual", "approx_kl")


def policy_loss(
    objective: gspo_core.Objective,
    *,
    logp: jax.Array,
    old_logp: jax.Array,
    advantages: jax.Array,
    sequences: Any,
    ref_logp: jax.Array | None = None,
    behavior_logp: jax.Array | None = None,
    groups: jax.Array | None = None,
    normalizer: Any = None,
    axis_name: Axes | None = None,
) -> PolicyLoss:
    """`gspo_core.policy_loss`, of the union of the responses along the mesh axis `axis_name`. Clause GSPO-DIST-2.

    Arguments as in `gspo_core.policy_loss`. Inside `jax.shard_map` each device holds its own responses,
    and with `Padded(mask, context=...)` or `Packed(offsets, context=...)` its own part of their tokens
    along another axis (GSPO-DIST-3). `axis_name` is the axis, or the axes, over which *responses* are
    spread: loss and metrics are those of the whole step, the same on every device. A `normalizer` is
    that of the whole step; `groups` may be split over devices.

    In `jax.shard_map` as it comes (`check_vma=True`) gradients are those of that one loss. With
    `check_vma=False`, and in `jax.pmap`, JAX differentiates the sum of the devices' equal losses:
    average gradients of shared parameters over all devices with `jax.lax.pmean`, as such programs do.
    """
    arguments: dict[str, Any] = {
        "logp": logp,
        "old_logp": old_logp,
        "advantages": advantages,
        "sequences": sequences,
        "ref_logp": ref_logp,
        "behavior_logp": behavior_logp,
        "groups": groups,
        "normalizer": normalizer,
    }
    if axis_name is None:
        if not isinstance(logp, jax.Array):
            return gspo_core.policy_loss(objective, **arguments)
        return run_automatically(lambda given: gspo_core.policy_loss(objective, **given), arguments, logp, P())
    _check_axes(axis_name)
    step = _of_union(prepare(objective, **arguments), groups, normalizer, axis_name)
    share = step_loss(step)
    loss = jax.lax.psum(share.loss, axis_name)
    return PolicyLoss(loss, _shares(share.metrics, axis_name) | _ratios(step, axis_name))


def _of_union(step: Step, groups: jax.Array | None, normalizer: Any, axes: Axes) -> Step:
    """`step` with the weights that its responses have in the union."""
    penalty = step.objective.penalty
    weights = _weights(step.objective.aggregation, step.weights, groups, normalizer, axes)
    if penalty is None or penalty.aggregation in (None, step.objective.aggregation):
        return step.replace(weights=weights, penalty_weights=weights)
    own = _weights(penalty.aggregation, step.penalty_weights, groups, None, axes)
    return step.replace(weights=weights, penalty_weights=own)


def _weights(aggregation: Aggregation, own: Weights, groups: jax.Array | None, normalizer: Any, axes: Axes) -> Weights:
    """ω of the responses here, and M of the union."""
    if aggregation.mode == "group_token_mean":
        lengths, ids = (None if part is None else _gather(part, axes) for part in (own.lengths, groups))
        whole = token_weights(aggregation, Responses(lengths), ids, normalizer, own.lengths.dtype)
        first = jax.lax.axis_index(axes) * own.lengths.size
        return Weights(jax.lax.dynamic_slice(whole.omega, (first,), own.lengths.shape), whole.count, own.lengths)
    if normalizer is not None or aggregation.mode == "token_sum":
        return own
    return own._replace(count=jax.lax.psum(own.count, axes))


def _shares(own: dict[str, jax.Array], axes: Axes) -> dict[str, jax.Array]:
    """Metrics that add: means over tokens by their numerators, counts, and what was divided by M before."""
    numerators = [own[name] * own["num_tokens"] for name in _PER_TOKEN]
    moved = 1 - own["ratio_is_one"]
    kl, sequences, tokens, moved, *sums = jax.lax.psum(
        jnp.stack([own["kl_penalty"], own["num_sequences"], own["num_tokens"], moved, *numerators]), axes
    )
    return {name: divide(total, tokens) for name, total in zip(_PER_TOKEN, sums, strict=True)} | {
        "kl_penalty": kl,
        "num_sequences": sequences,
        "num_tokens": tokens,
        "ratio_is_one": (moved == 0).astype(tokens.dtype),
    }


def _ratios(step: Step, axes: Axes) -> dict[str, jax.Array]:
    """Statistics over the units of the union; what is relative to the greatest ratio is put on one scale first."""
    own = ratio_sums(step, jax.lax.stop_gradient(unit_log_ratio(step)))
    top, low = jax.lax.pmax(jnp.stack([own.top, -own.low]), axes)
    scale = jnp.where(own.top == top, jnp.ones_like(top), jnp.exp(own.top - top))
    scale = jnp.where(own.count > 0, scale, 0.0)
    count, total, scaled, squares = jax.lax.psum(
        jnp.stack([own.count, own.total, own.scaled * scale, own.squares * scale * scale]), axes
    )
    return ratio_statistics(RatioSums(count, total, -low, top, scaled, squares))


def _gather(values: jax.Array, axes: Axes) -> jax.Array:
    return jax.lax.all_gather(values, axes, tiled=True)


def _check_axes(axes: Any) -> None:
    names = (axes,) if isinstance(axes, str) else axes
    if not isinstance(names, tuple) or not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"axis_name: expected the name of a mesh axis, or a tuple of names, got {axes!r}")
