"""The losses of `gspo_jax` in Tunix, through its registry of policy losses (google-tunix 0.1.7).

    from gspo_jax.integrations import tunix as gspo_tunix

    config = GRPOConfig(policy_loss_fn=gspo_tunix.register(gspo.Objective.gspo()), beta=0.0, num_iterations=2)
    learner = GRPOLearner(rl_cluster, config, reward_fns)
    rl_cluster.actor_trainer.with_rl_metrics_to_log(gspo_tunix.METRICS)

The objective says everything: `loss_algo`, `loss_agg_mode`, `epsilon` and `kl_loss_mode` of the config are
not read, and `beta` has to agree with the objective, because Tunix computes reference log-probabilities
only where it is not 0. Without old log-probabilities (`num_iterations=1`) the policy is its own old
policy: every ratio is 1, which the metric `ratio_is_one` reports.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gspo_core
from gspo_core import Objective, Packed, Padded, PolicyLoss

_NAMES = (
    "clip_fraction",
    "clip_fraction_low",
    "clip_fraction_high",
    "ratio_mean",
    "ratio_min",
    "ratio_max",
    "approx_kl",
    "effective_sample_size",
    "ratio_is_one",
)
# What a learner logs: the two names that it expects of every policy loss, then ours.
METRICS: dict[str, Callable[[Any], Any]] = dict.fromkeys(("kl", "pg_clipfrac", *_NAMES), np.mean)


def register(objective: Objective | None = None, *, name: str = "gspo", normalizer: float | None = None) -> str:
    """Puts `policy_loss(objective, ...)` under `name` into Tunix's registry; returns `name`, for `policy_loss_fn`.

    Args:
        objective: `Objective.gspo()` where None.
        name: what `GRPOConfig(policy_loss_fn=...)` will say.
        normalizer: M of every micro-batch (GSPO-AGG-8). Tunix averages the losses of micro-batches; where
            packing puts different numbers of responses into them, only a constant M weighs responses alike.
    """
    registry = _tunix().function_registry
    loss = policy_loss_fn(Objective.gspo() if objective is None else objective, normalizer=normalizer)
    registry.register_policy_loss_fn(name)(loss)
    return name


def policy_loss_fn(objective: Objective, *, normalizer: float | None = None) -> Callable[..., tuple[jax.Array, Any]]:
    """`(model, train_example, algo_config, pad_id, eos_id) -> (loss, aux)`, what Tunix calls a policy loss."""
    if not isinstance(objective, Objective):
        raise TypeError(f"objective: expected an Objective, got {type(objective).__name__}")
    tunix = _tunix()

    def loss(model: Any, train_example: Any, algo_config: Any, pad_id: int, eos_id: int, **_: Any) -> Any:
        graphdef, state = tunix.nnx.split(model)
        logp = tunix.common.compute_per_token_logps(
            graphdef,
            state,
            prompt_tokens=train_example.prompt_ids,
            completion_tokens=train_example.completion_ids,
            pad_id=pad_id,
            eos_id=eos_id,
            stop_gradient=False,
            segment_ids=getattr(train_example, "segment_ids", None),
            segment_positions=getattr(train_example, "segment_positions", None),
            temperature=algo_config.temperature,
        )
        found = example_loss(objective, logp, train_example, beta=algo_config.beta, normalizer=normalizer)
        aux = {"kl": found.metrics["kl_penalty"], "pg_clipfrac": found.metrics["clip_fraction"]}
        return found.loss, found.metrics | aux

    return loss


def example_loss(
    objective: Objective, logp: jax.Array, example: Any, *, beta: float | None = 0.0, normalizer: Any = None
) -> PolicyLoss:
    """`policy_loss` of a `TrainExample`: one response a row, or packed rows with `segment_ids` (0 is padding)."""
    _check_example(objective, example, beta)
    counted = example.completion_mask != 0
    old = jax.lax.stop_gradient(logp) if example.old_per_token_logps is None else example.old_per_token_logps
    tokens = {"logp": logp, "old_logp": old, "ref_logp": example.ref_per_token_logps}
    if objective.penalty is None:
        del tokens["ref_logp"]
    advantages = example.advantages.astype(jnp.float32)
    segments = getattr(example, "segment_ids", None)
    if segments is None:
        rest = {"advantages": advantages, "sequences": Padded(counted), "normalizer": normalizer}
        return gspo_core.policy_loss(objective, **tokens, **rest)
    offsets, number = segment_offsets(segments)
    flat = {name: values.reshape(-1) for name, values in tokens.items()}
    sequences = Packed(offsets, mask=counted.reshape(-1))
    if not objective.allows_token_advantages:
        advantages = _of_segments(advantages.reshape(-1), sequences)
    normalizer = _segment_normalizer(objective, number) if normalizer is None else normalizer
    return gspo_core.policy_loss(
        objective, **flat, advantages=advantages.reshape(-1), sequences=sequences, normalizer=normalizer
    )


def segment_offsets(segments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Offsets of the runs of equal ids within the rows of `[B, L]`, and how many runs are not padding.

    There is room for one run more than there are tokens, so that advantages by segment and by token
    never have the same shape.
    """
    column = jnp.arange(segments.shape[1], dtype=jnp.int32)
    starts = (segments != jnp.roll(segments, 1, axis=1)) | (column == 0)[None, :]
    size = segments.size
    (first,) = jnp.nonzero(starts.reshape(-1), size=size + 1, fill_value=size)
    return jnp.append(first, size).astype(jnp.int32), jnp.sum(starts & (segments != 0), dtype=jnp.float32)


def _of_segments(values: jax.Array, sequences: Packed) -> jax.Array:
    """The value at the counted tokens of each segment, where it is the same at all of them."""
    position = jnp.arange(values.size, dtype=sequences.offsets.dtype)
    owner = jnp.searchsorted(sequences.offsets[1:], position, side="right")
    counted = jnp.where(sequences.mask, values, -jnp.inf)
    found = jax.ops.segment_max(counted, owner, values.size + 1, indices_are_sorted=True)
    return jnp.where(jnp.isfinite(found), found, 0.0)


def _segment_normalizer(objective: Objective, number: jax.Array) -> jax.Array | None:
    """M where it is the number of responses: packed rows have room for more than there are."""
    by_response = objective.aggregation.mode.startswith("sequence_mean") and objective.aggregation.count == "all"
    return jnp.maximum(number, jnp.ones_like(number)) if by_response else None


def _check_example(objective: Objective, example: Any, beta: float | None) -> None:
    if objective.correction or getattr(example, "sampler_is_weights", None) is not None:
        raise ValueError(
            "objective: expected no correction and no sampler weights, since Tunix hands over no sampler log-probabilities"
        )
    if objective.penalty is None and beta:
        raise ValueError(f"beta: expected 0, since the objective has no penalty, got {beta!r}")
    if objective.penalty is not None and beta != objective.penalty.coefficient:
        raise ValueError(
            f"beta: expected {objective.penalty.coefficient!r}, the coefficient of the objective's penalty, got {beta!r}"
        )


def _tunix() -> Any:
    """The parts of Tunix that this module uses."""
    try:
        from flax import nnx
        from tunix.rl import common, function_registry
    except ImportError as error:
        raise ImportError(
            f"gspo_jax.integrations.tunix: expected google-tunix to be installed, got: {error}. "
            "Install it with: pip install google-tunix==0.1.7"
        ) from error

    return SimpleNamespace(nnx=nnx, common=common, function_registry=function_registry)
