"""`GRPOTrainer._compute_loss`, unbound, on an object that has the attributes it reads: real config, real accelerator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from inspect import signature
from tempfile import gettempdir
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from trl import GRPOConfig, GRPOTrainer

from ...target import DTYPES, INPUT_DTYPES, Case, Skip
from ..adapter import Settings, TrainerTarget, offered, tensor, torch_loss
from .dialect import DIALECT

RELEASE = version("trl")
# Up to 1.7 there is no loss of experts among what is returned.
_RETURNED = 3 if "compute_aux_loss" in signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters else 2
# What earlier releases have not yet, `_compute_loss` does not read there.
_OPTIONS = ("off_policy_mask_threshold", "vllm_importance_sampling_correction")
_METHODS = ("get_gamma_weights", "get_high_entropy_mask", "get_off_policy_mask")


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """One optimiser step of one micro-batch that is the whole generation batch."""
    trainer = _trainer(tuple(sorted(settings.items())))
    inputs = _inputs(case)
    return torch_loss(case, lambda logp: _compute(trainer, inputs, logp))


def _compute(trainer: SimpleNamespace, inputs: dict[str, Any], logp: Any) -> Any:
    found = (logp, torch.zeros_like(logp.detach()), None)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: found[:_RETURNED]
    try:
        return GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    except ValueError as error:
        if str(error).startswith("Unknown loss type"):
            raise Skip(f"TRL {RELEASE} has no loss_type {trainer.loss_type}") from error
        raise


@cache
def _trainer(settings: tuple[tuple[str, Any], ...]) -> SimpleNamespace:
    """What `_compute_loss` reads of a trainer."""
    plain = {
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "num_generations": 2,
        "per_device_train_batch_size": 2,
    }
    unknown = [name for name, _ in settings if name not in GRPOConfig.__dataclass_fields__]
    if unknown:
        raise Skip(f"TRL {RELEASE} has no setting {unknown[0]}")
    args = GRPOConfig(output_dir=f"{gettempdir()}/gspo-trl", **plain, **dict(settings))
    high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    return SimpleNamespace(
        args=args,
        accelerator=Accelerator(cpu=True),
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        aux_loss_enabled=False,
        top_entropy_quantile=args.top_entropy_quantile,
        importance_sampling_level=args.importance_sampling_level,
        beta=args.beta,
        loss_type=args.loss_type,
        epsilon_low=args.epsilon,
        epsilon_high=high,
        max_completion_length=args.max_completion_length,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        **{name: getattr(args, name) for name in _OPTIONS if hasattr(args, name)},
        **{name: getattr(GRPOTrainer, name) for name in _METHODS if hasattr(GRPOTrainer, name)},
    )


def _inputs(case: Case) -> dict[str, Any]:
    mask = tensor(case.inputs["mask"]).int()
    rows = torch.zeros(mask.shape[0], 1, dtype=torch.int64)
    inputs = {
        "prompt_ids": rows,
        "prompt_mask": torch.ones_like(rows),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.int64),
        "completion_mask": mask,
        "advantages": tensor(case.inputs["advantages"]),
        "old_per_token_logps": tensor(case.inputs["old_logp"], case.input_dtype),
        "num_items_in_batch": mask.sum().to(getattr(torch, case.dtype)),
    }
    if "ref_logp" in case.inputs:
        inputs["ref_per_token_logps"] = tensor(case.inputs["ref_logp"], case.input_dtype)
    if inputs["advantages"].shape == mask.shape and (case.objective or {}).get("ratio") == "sequence":
        raise Skip("advantages per token with a sequence ratio")
    return inputs


CAPABILITIES = offered(
    (),
    "logp old_logp advantages mask ref_logp",
    "objective",
    dtypes=DTYPES,
    token_advantages=True,
    input_dtypes=INPUT_DTYPES,
)


def claims() -> TrainerTarget:
    """Every objective that a `loss_type` claims."""
    versions = {"trl": RELEASE, "torch": torch.__version__}
    return TrainerTarget(versions, DIALECT, RELEASE, policy_loss, {}, CAPABILITIES)


def default() -> TrainerTarget:
    """`importance_sampling_level="sequence"`, all else as it comes: `loss_type="dapo"`."""
    return claims().as_documented(token_advantages=False)
