"""`GSPOTrainer`: TRL's `GRPOTrainer` whose loss is this package's.

    from gspo_torch.integrations.trl import GSPOConfig, GSPOTrainer

    trainer = GSPOTrainer(model, reward_funcs, args=GSPOConfig("out"), train_dataset=dataset)

Generation, rewards, advantages, reference model, vLLM and logging are TRL's. The loss, its normaliser
over micro-batches and processes, and the metrics named `gspo/...` are ours. Tested with TRL 1.8 to 1.16.
"""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gspo_core import Aggregation, Clip, Correction, Objective, Padded, Penalty

from ..distributed import Union
from ..distributed.ranks import ALONE
from ..distributed.reduce import aggregations_of
from .absent import import_trainer

_AGGREGATIONS = {"grpo": "sequence_mean_token_mean", "dapo": "token_mean", "luspo": "sequence_mean_token_sum"}
_ACTIONS = {"truncate": "clamp", "mask": "mask"}


def objective_of(args: Any) -> Objective:
    """The objective that a `GRPOConfig` describes, for the loss types that are the same for any split into micro-batches.

    `dapo` is the token mean over the optimiser step; TRL's own divides by the mean over the generation batch.
    """
    if args.loss_type == "dr_grpo":
        aggregation = Aggregation("sequence_mean_token_sum", constant=args.max_completion_length)
    elif args.loss_type in _AGGREGATIONS:
        aggregation = Aggregation(_AGGREGATIONS[args.loss_type])
    else:
        raise ValueError(
            f"loss_type: expected one of {', '.join(map(repr, (*_AGGREGATIONS, 'dr_grpo')))}, or an objective beside "
            f"args, got {args.loss_type!r}"
        )
    high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    level = args.importance_sampling_level
    penalty = Penalty("k3", args.beta, importance=level if args.use_bias_correction_kl else None)
    return Objective(
        level,
        Clip(args.epsilon, high, args.delta),
        aggregation,
        penalty=penalty if args.beta else None,
        correction=tuple(_corrections(args)),
    )


def _corrections(args: Any) -> list[Correction]:
    found: list[Correction] = []
    if args.use_vllm and args.vllm_importance_sampling_correction:
        level, action = args.vllm_importance_sampling_mode.split("_")
        low, high = args.vllm_importance_sampling_clip_min, args.vllm_importance_sampling_clip_max
        found.append(Correction(level, _ACTIONS[action], low=low, high=high))
    if args.off_policy_mask_threshold is not None:
        # mean(log μ - log π) <= δ, for negative advantages: DeepSeek-V3.2's off-policy sequence mask.
        low = math.exp(-args.off_policy_mask_threshold)
        found.append(Correction("geometric", "reject", low=low, numerator="current", negative_only=True))
    return found


class GSPOLossMixin:
    """What `GSPOTrainer` adds to `GRPOTrainer`: `objective`, and the loss of each micro-batch as a share of the step's."""

    def __init__(self, *arguments: Any, objective: Objective | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.objective = self._chosen(objective)
        self._union: Union | None = None
        self._left = 0

    def _chosen(self, objective: Objective | None) -> Objective:
        args = self.args
        if objective is None and args.importance_sampling_level != "sequence":
            raise ValueError(
                f"args: expected importance_sampling_level 'sequence', which GSPOConfig has, or an objective beside "
                f"args, got {args.importance_sampling_level!r}"
            )
        objective = objective_of(args) if objective is None else objective
        if (objective.penalty is not None) != (args.beta != 0.0):
            raise ValueError(
                f"beta: expected {'a coefficient' if objective.penalty else '0'}, since TRL makes log-probabilities of "
                f"the reference policy where beta is not 0 and the objective "
                f"{'needs' if objective.penalty else 'has no use for'} them, got {args.beta}"
            )
        self._refuse(use_liger_kernel=False, top_entropy_quantile=1.0, entropy_coef=0.0, use_adaptive_entropy=False)
        return objective

    def _refuse(self, **expected: Any) -> None:
        """Options of TRL's loss that this one does not have."""
        for name, value in expected.items():
            found = getattr(self.args, name, value)
            if found != value:
                raise ValueError(
                    f"{name}: expected {value!r} with GSPOTrainer, whose loss has no such term, got {found!r}"
                )

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's, and the group of each completion, which survives the shuffle into micro-batches."""
        found = super()._generate_and_score_completions(inputs)
        rows = found["advantages"].shape[0]
        size = self.num_generations if self.model.training else self.num_generations_eval
        first = self.accelerator.process_index * rows
        found["groups"] = (torch.arange(rows, device=found["advantages"].device) + first) // size
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        logp, entropies, aux_loss = self._log_probabilities(model, inputs)
        mode = "train" if self.model.training else "eval"
        if self._union is None:
            self._begin(inputs, logp)
        assert self._union is not None
        loss = self._union.loss(**_arguments(self.objective, inputs, logp))
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * aux_loss / self._steps()
            self._metrics[mode]["aux_loss"].append(self.accelerator.gather_for_metrics(aux_loss).mean().item())
        self._log_entropy(mode, entropies, _mask(inputs))
        self._left -= 1
        if self._left == 0:
            for name, value in self._union.result().metrics.items():
                self._metrics[mode][f"gspo/{name}"].append(value.item())
            self._union = None
        return loss

    def _begin(self, inputs: dict[str, Any], logp: Tensor) -> None:
        """The normaliser of the optimiser step that starts here (GSPO-DIST-1, GSPO-DIST-2)."""
        processes, steps = self.accelerator.num_processes, self._steps()
        window, normalizer = self._window(inputs, steps), None
        if window is None:
            normalizer = self._rows_of_a_step(inputs, steps)
            window = []
        self._left = steps
        self._union = Union(
            self.objective,
            [(Padded(_mask(part)), part.get("groups")) for part in window],
            data=ALONE if processes == 1 else None,
            world_scale=processes,
            normalizer=normalizer,
            device=logp.device,
        )

    def _steps(self) -> int:
        """Micro-batches per optimiser step."""
        return self.current_gradient_accumulation_steps if self.model.training else 1

    def _window(self, inputs: dict[str, Any], steps: int) -> list[dict[str, Any]] | None:
        """The micro-batches of this optimiser step; None where completions are yet to be generated for some."""
        if steps == 1:
            return [inputs]
        generated = self.args.steps_per_generation * self.num_iterations
        if self._step % generated + steps > generated:
            return None
        per_generation = self.args.steps_per_generation
        return [self._buffered_inputs[(self._step + later) % per_generation] for later in range(steps)]

    def _rows_of_a_step(self, inputs: dict[str, Any], steps: int) -> int:
        aggregation, *own = aggregations_of(self.objective)
        if own or not aggregation.mode.startswith("sequence_mean") or aggregation.count != "all":
            raise ValueError(
                f"gradient_accumulation_steps: expected a divisor of steps_per_generation · num_iterations = "
                f"{self.args.steps_per_generation * self.num_iterations} with {(own or [aggregation])[0]!r}, whose normaliser needs "
                f"every completion of the step, got {steps}"
            )
        return inputs["completion_ids"].shape[0] * steps * self.accelerator.num_processes

    def _log_probabilities(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """log π_θ of the completions, their entropies, and the auxiliary loss of a mixture of experts."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attended = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        return self._get_per_token_logps_and_entropies(
            model,
            ids,
            attended,
            inputs["completion_ids"].size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: inputs[name] for name in _MODALITIES if name in inputs},
        )

    def _log_entropy(self, mode: str, entropies: Tensor, mask: Tensor) -> None:
        sums = torch.stack([(entropies * mask).sum(), mask.sum().to(entropies.dtype)])
        total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._metrics[mode]["entropy"].append(total / max(count, 1.0))


_MODALITIES = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)


def _mask(inputs: dict[str, Any]) -> Tensor:
    """Sampled tokens: neither padding nor what a tool returned (GSPO-DATA-4)."""
    mask = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask


def _arguments(objective: Objective, inputs: dict[str, Any], logp: Tensor) -> dict[str, Any]:
    old = inputs.get("old_per_token_logps")
    old = logp.detach() if old is None else old
    behavior = inputs.get("sampling_per_token_logps")
    # What vLLM could not score has no correction.
    behavior = old if behavior is None else torch.where(behavior.isnan(), old, behavior)
    return {
        "logp": logp,
        "old_logp": old,
        "advantages": inputs["advantages"],
        "sequences": Padded(_mask(inputs)),
        "ref_logp": inputs.get("ref_per_token_logps"),
        "behavior_logp": behavior if objective.correction else None,
        "groups": inputs.get("groups"),
    }


@cache
def _classes() -> dict[str, type]:
    """Made when first asked for, so that this module can be imported without TRL."""
    trl = import_trainer("trl", tested="1.16.0", command="pip install trl==1.16.0")
    paper = {
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
        "beta": 0.0,
        "importance_sampling_level": "sequence",
        "loss_type": "grpo",
    }
    known = {field.name: field for field in dataclasses.fields(trl.GRPOConfig)}
    fields = [
        (name, known[name].type, dataclasses.field(default=value, metadata=known[name].metadata))
        for name, value in paper.items()
    ]
    config = dataclasses.make_dataclass(
        "GSPOConfig", fields, bases=(trl.GRPOConfig,), namespace={"__module__": __name__}
    )
    config.__doc__ = (
        "`GRPOConfig` with the defaults of the GSPO paper: sequence level, mean of means, 3e-4 and 4e-4, no KL."
    )
    trainer = type("GSPOTrainer", (GSPOLossMixin, trl.GRPOTrainer), {"__module__": __name__, "__doc__": _TRAINER})
    return {"GSPOConfig": config, "GSPOTrainer": trainer}


_TRAINER = """`GRPOTrainer` whose loss is `objective`, or what its `args` describe; see `objective_of`."""


def __getattr__(name: str) -> type:
    if name not in ("GSPOConfig", "GSPOTrainer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _classes()[name]
