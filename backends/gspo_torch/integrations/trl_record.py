"""`recorded`: TRL's trainer, or ours, as a class whose training writes a trace for `gspo audit`. Tested with TRL 1.0 to 1.16.

    from gspo_torch.integrations.trl_record import recorded

    trainer = recorded(trl.GRPOTrainer, "trace", every=10)(model, reward_funcs, args=args, train_dataset=dataset)

What is recorded is what the trainer itself computed: its log-probabilities, its advantages, its loss.
"""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any, TypeVar

import torch
from torch import Tensor

from gspo_core.recording import guarded

from ..record import TorchRecorder
from .absent import import_trainer
from .trl import objective_of

_Trainer = TypeVar("_Trainer", bound=type)
_PLAIN = (bool, int, float, str, type(None))
_PRIVATE = ("token", "key", "password", "secret", "dir", "path", "name", "host", "url", "id")
_METRICS = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "kl")
_BY_TOKENS = ("dapo", "cispo", "vespo")


def recorded(trainer: _Trainer, path: str | os.PathLike[str], **options: Any) -> _Trainer:
    """`trainer`, a `GRPOTrainer` or a subclass, with its training recorded into the folder `path`; `options` as of `gspo_torch.record`."""
    members = {"_trace_path": path, "_trace_options": options, "__module__": __name__, "__doc__": trainer.__doc__}
    return type(f"Recorded{trainer.__name__}", (RecordingMixin, trainer), members)  # pyright: ignore


class RecordingMixin:
    """What `recorded` adds to a trainer."""

    _trace_path: Any = None
    _trace_options: Any = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        objective = _claimed(self)
        self.trace = _TrlRecorder(
            self._trace_path,
            rank=self.accelerator.process_index,
            ranks=self.accelerator.num_processes,
            trainer=_described(self),
            objective=None if objective is None else objective.to_dict(),
            group_size=self.num_generations,
            temperature=float(self.temperature),
            micro_batches="sum",
            rank_losses="mean",
            **self._trace_options,
        )
        self.add_callback(_callback(self.trace))

    def _calculate_rewards(self, *arguments: Any, **options: Any) -> Tensor:
        self._rewards_by_function = super()._calculate_rewards(*arguments, **options)
        return self._rewards_by_function

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's, with the reward and the group of each completion, which survive the shuffle into micro-batches."""
        found = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self.trace.generated(self, found)
        return found

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **options: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*arguments, **options)
        self._scored = found[0]
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        metrics = self._metrics["train"]
        before = {name: len(values) for name, values in metrics.items()}
        loss = super()._compute_loss(model, inputs)
        if self.model.training:
            new = {name: values[-1] for name, values in metrics.items() if len(values) > before.get(name, 0)}
            self.trace.computed(self, inputs, loss, new)
        return loss


class _TrlRecorder(TorchRecorder):
    """Reads a trainer's batches; the trainer's own callbacks end its steps."""

    @guarded
    def generated(self, trainer: Any, found: dict[str, Any]) -> None:
        """A rollout: `found` gains the rewards and groups of this process."""
        rows = found["advantages"].shape[0]
        first = trainer.accelerator.process_index * rows
        by_function = trainer._rewards_by_function[first : first + rows]
        weights = trainer.reward_weights.to(by_function.device)
        rewards = (by_function * weights).nansum(dim=1)
        rewards[by_function.isnan().all(dim=1)] = torch.nan
        if getattr(trainer, "multi_objective_aggregation", "") == "normalize_then_sum":
            rewards = None  # Advantages are then not those of one reward.
        groups = (torch.arange(rows, device=by_function.device) + first) // trainer.num_generations
        self.rollout(rewards=rewards, groups=groups, advantages=found["advantages"])
        found |= {"trace_groups": groups} | ({} if rewards is None else {"trace_rewards": rewards})

    @guarded
    def computed(self, trainer: Any, inputs: dict[str, Any], loss: Tensor, metrics: dict[str, float]) -> None:
        """A micro-batch that the trainer computed the loss of."""
        logp, old = trainer._scored, inputs.get("old_per_token_logps")
        mask = inputs["completion_mask"]
        mask = mask * inputs["tool_mask"] if "tool_mask" in inputs else mask
        self.part(
            objective=_claimed(trainer),
            # With other terms in it, the loss is not that of the objective.
            loss=None if _adds_terms(trainer) else loss,
            normalizer=_normalizer(trainer, inputs, mask),
            metrics={name: value for name, value in metrics.items() if name in _METRICS},
            logp=logp,
            old_logp=logp if old is None else old,
            behavior_logp=inputs.get("sampling_per_token_logps", _policy_that_sampled(trainer, logp, old)),
            ref_logp=inputs.get("ref_per_token_logps"),
            mask=mask,
            advantages=inputs["advantages"],
            rewards=inputs.get("trace_rewards"),
            groups=inputs.get("trace_groups"),
        )
        if (
            self.gradient
            and self.recording
            and logp.requires_grad
            and getattr(trainer, "top_entropy_quantile", 1.0) == 1
        ):
            self.watch(logp)


def _adds_terms(trainer: Any) -> bool:
    """Whether an auxiliary loss of experts or a bonus for entropy is in the loss, or tokens of low entropy are not; old releases have none."""
    return (
        getattr(trainer, "aux_loss_enabled", False)
        or getattr(trainer, "_entropy_bonus_enabled", False)
        or getattr(trainer, "top_entropy_quantile", 1.0) < 1
    )


def _claimed(trainer: Any) -> Any:
    """The objective, where the trainer has one, or where its settings mean more than `gspo lint` reads from them."""
    own = getattr(trainer, "objective", None)
    if own is not None or trainer.args.off_policy_mask_threshold is None:
        return own
    try:
        return objective_of(trainer.args)
    except ValueError:
        return None


def _policy_that_sampled(trainer: Any, logp: Tensor, old: Tensor | None) -> Tensor | None:
    """TRL's off-policy mask takes the old policy for the sampler where nobody scored with the sampler."""
    if trainer.args.off_policy_mask_threshold is None:
        return None
    return logp if old is None else old


def _normalizer(trainer: Any, inputs: dict[str, Any], mask: Tensor) -> Any:
    """The M that TRL divides a micro-batch by; None where it is this package's loss, which tells by itself."""
    steps, kind = trainer.current_gradient_accumulation_steps, trainer.loss_type
    if getattr(trainer, "objective", None) is not None:
        rows = mask.shape[0] * steps
        return float(rows) if trainer.objective.aggregation.mode.startswith("sequence_mean") else None
    if kind in _BY_TOKENS:
        tokens = inputs["num_items_in_batch"].clamp(min=1.0) / trainer.accelerator.num_processes
        return tokens * steps / trainer.args.steps_per_generation
    if kind == "bnpo":
        return mask.sum().clamp(min=1.0) * steps
    return float(mask.shape[0] * steps)


def _described(trainer: Any) -> dict[str, Any]:
    """The settings of the trainer that JSON can hold."""
    trl = import_trainer("trl", tested="1.16.0", command="pip install trl==1.16.0")
    fields = {field.name: getattr(trainer.args, field.name, None) for field in dataclasses.fields(trainer.args)}
    settings = {
        name: value
        for name, value in fields.items()
        if isinstance(value, _PLAIN) and not name.endswith(_PRIVATE) and value not in (math.inf, -math.inf)
    }
    return {"name": "trl", "version": trl.__version__, "settings": settings}


def _callback(recorder: TorchRecorder) -> Any:
    transformers = import_trainer("transformers", tested="5.0", command="pip install trl==1.16.0")

    class StepEnds(transformers.TrainerCallback):
        """Ends a step of the trace with each of the optimiser's."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            recorder.advance()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            recorder.close()

    return StepEnds()
