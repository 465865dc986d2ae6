"""The losses of `gspo_jax` in EasyDeL's GRPO and GSPO trainers (easydel 0.3.0).

    from gspo_jax.integrations import easydel as gspo_easydel

    with gspo_easydel.install(gspo.Objective.gspo()):
        trainer = GSPOTrainer(GSPOConfig(beta=0.0, ...), model, reward, dataset, processing_class=tokenizer)
    trainer.train()

EasyDeL has no hook for a loss: `GRPOTrainer.configure_functions` compiles the function `grpo_step`, which `install`
replaces while trainers are built. Forward passes, sharding, minibatches, optimizer and logging stay EasyDeL's.

The objective says everything: `loss_type`, `importance_sampling_level`, `epsilon` and `epsilon_high` of the config are
not read, `beta` has to be the coefficient of the objective's penalty, 0 without one, and `delta` and
`top_entropy_quantile` are refused. `max_loss_completion_tokens` shortens the responses: mean, ratio and length are
those of the tokens that remain.

Old log-probabilities: EasyDeL's trainers put none into the batch and make one update of it, so that the policy is its
own old policy: every ratio is 1, nothing is clipped, and the metric `ratio_is_one` is 1. Where
`_preprocess_batch_input` of a subclass adds `old_per_token_logps`, they are used.

Gradient accumulation: EasyDeL adds up the losses of n minibatches of equally many rows and divides by n. Each is given
M/n, M being the normaliser of the whole batch, so that loss and gradient are those of the whole batch (GSPO-AGG-8), up
to rounding, for every aggregation; metrics are computed from the whole batch. Refused, because no M makes them right:
groups split over minibatches for `group_token_mean`, and a penalty with an aggregation of its own, unless it is a mean
over all responses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

import gspo_core
from gspo_core import Objective, Padded, PolicyLoss

Batch = Mapping[str, Any]
_ROW = "gspo_row"


def training_step(objective: Objective | None = None, *, normalizer: float | None = None) -> Callable[..., Any]:
    """A step with the positional signature of EasyDeL's `grpo_step` that minimises `policy_loss(objective, ...)`.

    Args:
        objective: `Objective.gspo()` where None.
        normalizer: M of the batch of one update (GSPO-AGG-8); counted in the batch where None.
    """
    objective = Objective.gspo() if objective is None else objective
    if not isinstance(objective, Objective):
        raise TypeError(f"objective: expected an Objective, got {type(objective).__name__}")
    if objective.correction:
        raise ValueError(
            "objective: expected no correction, since EasyDeL hands over no log-probabilities of its sampler"
        )
    return _Step(objective, normalizer, _easydel()).grpo_step


@contextmanager
def install(objective: Objective | None = None, *, normalizer: float | None = None) -> Iterator[None]:
    """GRPO and GSPO trainers built inside take `training_step(objective)`; those built before and after do not.

    Subclasses of `GRPOTrainer` that bring no `configure_functions` of their own take it too.
    """
    module = _easydel().grpo_trainer
    kept, module.grpo_step = module.grpo_step, training_step(objective, normalizer=normalizer)
    try:
        yield
    finally:
        module.grpo_step = kept


def batch_loss(
    objective: Objective,
    logp: jax.Array,
    batch: Batch,
    *,
    group_size: int | None = None,
    normalizer: Any = None,
) -> PolicyLoss:
    """`policy_loss` of a batch of EasyDeL and the log-probabilities `[B, T]` of its completions.

    Args:
        objective: as in `policy_loss`.
        logp: log π_θ of `completion_ids`, with a gradient.
        batch: `completion_mask`, `advantages` and, where there are any, `old_per_token_logps` and `ref_per_token_logps`.
        group_size: completions of one prompt, which stand together; one group where None.
        normalizer: replaces M.
    """
    old = batch.get("old_per_token_logps")
    advantages = jnp.asarray(batch["advantages"], jnp.float32)
    if advantages.ndim == 2 and advantages.shape[1] == 1:
        advantages = advantages[:, 0]
    return gspo_core.policy_loss(
        objective,
        logp=logp,
        old_logp=jax.lax.stop_gradient(logp) if old is None else old,
        ref_logp=None if objective.penalty is None else batch.get("ref_per_token_logps"),
        advantages=advantages,
        sequences=Padded(batch["completion_mask"] != 0),
        groups=_groups(batch, group_size),
        normalizer=normalizer,
    )


@dataclass(frozen=True)
class _Step:
    """The step, split by what it needs to know."""

    objective: Objective
    normalizer: float | None
    easydel: Any

    def grpo_step(
        self,
        state: Any,
        batch: Batch,
        num_generations: int,
        beta: float,
        loss_config: Any = None,
        learning_rate_fn: Any = None,
        partition_spec: Any = None,
        gradient_accumulation_steps: int = 1,
        is_training: bool = True,
        loss_type: str = "dapo",
        epsilon: float = 0.2,
        epsilon_high: float = 0.2,
        delta: float | None = None,
        importance_sampling_level: str = "token",
        top_entropy_quantile: float = 1.0,
        completion_chunk_size: int | None = None,
        max_loss_completion_tokens: int | None = None,
        logprob_vocab_chunk_size: int | None = None,
        straight_through_emulator: Callable[[Any], Any] | None = None,
    ) -> Any:
        """One update, `(state, metrics)`, or the metrics alone where `is_training` is False."""
        _check_settings(self.objective, beta, delta, top_entropy_quantile)
        batch, group_size = self._by_completion(state, _shortened(batch, max_loss_completion_tokens))
        _, size, spec = self.easydel.make_assertions_and_get_sizes(
            batch=batch, gradient_accumulation_steps=gradient_accumulation_steps, batch_partition_spec=partition_spec
        )
        parts = gradient_accumulation_steps if is_training else 1
        _check_parts(self.objective, batch, parts, size, group_size)
        batch = self.easydel.with_sharding_constraint(arr=batch, sharding=spec)
        share = self._normalizer(batch, group_size) / parts

        def loss_fn(tree: Any, minibatch: Batch) -> tuple[jax.Array, Any]:
            if is_training and straight_through_emulator is not None:
                tree = straight_through_emulator(tree)
            logp = self._logp(state.merge(tree), minibatch, completion_chunk_size, logprob_vocab_chunk_size)
            loss = batch_loss(self.objective, logp, minibatch, group_size=group_size, normalizer=share).loss
            seen = {"logp": _placed(logp * parts, minibatch[_ROW], batch)}
            return loss, self.easydel.LossMetrics(loss=loss, accuracy=1, other_metrics=seen)

        if not is_training:
            return self._reported(loss_fn(state.graphstate, batch)[1], batch, group_size)
        gradients, metrics = self.easydel.minibatch_call(
            state=state,
            batch=batch,
            minibatch_size=size,
            grad_fn=jax.value_and_grad(loss_fn, has_aux=True),
        )
        metrics = self.easydel.update_metrics(
            metrics=self._reported(metrics, batch, group_size),
            learning_rate_fn=learning_rate_fn,
            step=state.step,
            gradients=gradients,
        )
        state = self.easydel.update_state_respectfully(
            state=state, gradients=gradients, loss_config=loss_config, metrics=metrics
        )
        return state, metrics

    def _by_completion(self, state: Any, batch: Batch) -> tuple[dict[str, Any], int]:
        """The batch with a row for each completion, and how many completions a prompt has.

        EasyDeL cuts into minibatches only what has as many rows as there are completions, so prompts that are
        repeated inside a minibatch would stand beside the completions of others.
        """
        prompts, rows = batch["prompt_ids"].shape[0], batch["completion_ids"].shape[0]
        if not prompts or rows % prompts:
            raise ValueError(f"batch['prompt_ids']: expected a number of rows that divides {rows}, got {prompts}")
        factor = rows // prompts
        inputs = self.easydel.repeat_prompt_aligned_model_kwargs(
            self.easydel.extract_generation_model_kwargs(batch, model_callable=state.model.__call__),
            factor,
            prompt_batch_size=prompts,
        )
        repeated = {name: jnp.repeat(batch[name], factor, axis=0) for name in ("prompt_ids", "prompt_mask")}
        return {**batch, **inputs, **repeated, _ROW: jnp.arange(rows, dtype=jnp.int32)}, factor

    def _normalizer(self, batch: Batch, group_size: int) -> jax.Array:
        """M of the whole batch."""
        counted = batch["completion_mask"] != 0
        return gspo_core.aggregate_sum(
            jnp.zeros(counted.shape, jnp.float32),
            Padded(counted),
            self.objective.aggregation,
            groups=_groups(batch, group_size),
            normalizer=self.normalizer,
        ).count

    def _logp(self, module: Any, batch: Batch, chunk: int | None, vocab_chunk: int | None) -> jax.Array:
        """EasyDeL's log-probabilities of the completions, in forward passes of at most `chunk` rows."""
        whole = {
            name: jnp.concatenate([batch[f"prompt_{name}"], batch[f"completion_{name}"]], axis=1)
            for name in ("ids", "mask")
        }
        rows = whole["ids"].shape[0]
        inputs = self.easydel.extract_generation_model_kwargs(batch, model_callable=module.__call__)

        def forward(start: int, stop: int) -> jax.Array:
            kept = self.easydel.slice_prompt_aligned_model_kwargs(inputs, start, stop, prompt_batch_size=rows)
            return self.easydel.get_per_token_logps(
                module,
                whole["ids"][start:stop],
                whole["mask"][start:stop],
                batch["prompt_ids"].shape[1],
                model_kwargs=kept,
                logprob_vocab_chunk_size=vocab_chunk,
            )

        chunk = chunk or rows
        return jnp.concatenate([forward(start, min(start + chunk, rows)) for start in range(0, rows, chunk)])

    def _reported(self, metrics: Any, batch: Batch, group_size: int) -> Any:
        """EasyDeL's metrics with those of the loss of the whole batch, which the means of minibatches are not."""
        logp = metrics.other_metrics["logp"]
        found = batch_loss(self.objective, logp, batch, group_size=group_size, normalizer=self.normalizer)
        return metrics.replace(other_metrics=found.metrics)


def _groups(batch: Batch, group_size: int | None) -> jax.Array | None:
    rows = batch["completion_mask"].shape[0]
    return None if group_size is None else jnp.arange(rows, dtype=jnp.int32) // group_size


def _placed(logp: jax.Array, rows: jax.Array, batch: Batch) -> jax.Array:
    """The rows of a minibatch at their places in the batch, zeros elsewhere: EasyDeL adds minibatches up."""
    everywhere = jnp.zeros(batch["completion_mask"].shape, logp.dtype)
    return jax.lax.dynamic_update_slice_in_dim(everywhere, logp, rows[0], axis=0)


def _shortened(batch: Batch, columns: int | None) -> dict[str, Any]:
    """The batch with completions of at most `columns` tokens, and what belongs to them."""
    width = batch["completion_ids"].shape[1]
    kept = width if columns is None else min(columns, width)
    names = ("completion_ids", "completion_mask", "old_per_token_logps", "ref_per_token_logps")
    found = {name: batch[name][:, :kept] for name in names if batch.get(name) is not None}
    if batch["advantages"].ndim == 2:
        found["advantages"] = batch["advantages"][:, :kept]
    return {**batch, **found}


def _check_settings(objective: Objective, beta: float, delta: float | None, quantile: float) -> None:
    if objective.penalty is None and beta:
        raise ValueError(f"beta: expected 0, since the objective has no penalty, got {beta!r}")
    if objective.penalty is not None and beta != objective.penalty.coefficient:
        raise ValueError(
            f"beta: expected {objective.penalty.coefficient!r}, the coefficient of the objective's penalty, got {beta!r}"
        )
    if delta is not None:
        raise ValueError(f"delta: expected None, since the objective's surrogate says its bounds, got {delta!r}")
    if quantile != 1:
        raise ValueError(
            f"top_entropy_quantile: expected 1.0, since no objective leaves tokens out by their entropy, got {quantile!r}"
        )


def _check_parts(objective: Objective, batch: Batch, parts: int, size: int, group_size: int) -> None:
    """Refuses what EasyDeL's mean over minibatches cannot get right."""
    if parts == 1:
        return
    rows = size * parts
    own = None if objective.penalty is None else objective.penalty.aggregation
    if own is not None and not (own.mode.startswith("sequence_mean") and own.count == "all"):
        raise ValueError(
            f"gradient_accumulation_steps: expected 1 with a penalty aggregated by {own.mode} of its own, "
            f"whose normaliser differs between minibatches, got {parts}"
        )
    if objective.aggregation.mode == "group_token_mean" and size % group_size:
        raise ValueError(
            f"gradient_accumulation_steps: expected minibatches of whole groups of {group_size} for group_token_mean, "
            f"got {parts}, minibatches of {size} completions"
        )
    for name, value in batch.items():
        shape = getattr(value, "shape", ())
        if shape and shape[0] != rows:
            raise ValueError(
                f"batch[{name!r}]: expected {rows} rows with {parts} gradient_accumulation_steps, since EasyDeL cuts "
                f"nothing else into minibatches, got shape {tuple(shape)}"
            )


def _easydel() -> Any:
    """The parts of EasyDeL that this module uses."""
    try:
        from easydel.infra.loss_utils import LossMetrics
        from easydel.trainers import training_utils
        from easydel.trainers.group_relative_policy_optimization import _fn, grpo_trainer
        from eformer.escale import with_sharding_constraint
    except ImportError as error:
        raise ImportError(
            f"gspo_jax.integrations.easydel: expected easydel to be installed, got: {error}. "
            "Install it with: pip install easydel==0.3.0"
        ) from error

    names = (
        "extract_generation_model_kwargs",
        "make_assertions_and_get_sizes",
        "minibatch_call",
        "repeat_prompt_aligned_model_kwargs",
        "slice_prompt_aligned_model_kwargs",
        "update_metrics",
        "update_state_respectfully",
    )
    return SimpleNamespace(
        LossMetrics=LossMetrics,
        get_per_token_logps=_fn.get_per_token_logps,
        grpo_trainer=grpo_trainer,
        with_sharding_constraint=with_sharding_constraint,
        **{name: getattr(training_utils, name) for name in names},
    )
