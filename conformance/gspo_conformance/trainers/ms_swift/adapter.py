"""`GRPOTrainer._compute_loss_and_metrics`, unbound, on an object that has what it reads; `compute_advantages`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import PartialState

from ...target import DTYPES, INPUT_DTYPES, Case, Skip
from .. import demands
from ..adapter import Settings, TrainerTarget, offered, per_token, tensor, torch_loss
from . import releases
from .dialect import DIALECT
from .releases import RELEASE

PartialState()


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """One micro-batch that is the whole step."""
    trainer, batch = _trainer(settings), _batch(case)

    def loss(logp: Any) -> Any:
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logp, None)
        ref = logp.detach() if batch["ref_per_token_logps"] is None else batch["ref_per_token_logps"]
        return releases.loss(trainer, batch | {"ref_per_token_logps": ref})

    return torch_loss(case, loss)


def _trainer(settings: Settings) -> SimpleNamespace:
    """What the loss reads of a trainer; the values are those that the arguments have after their defaults."""
    releases.had(settings)
    every = DIALECT.read(settings, RELEASE).settings
    high = every["epsilon"] if every["epsilon_high"] is None else every["epsilon_high"]
    trainer = SimpleNamespace(
        args=SimpleNamespace(**every, log_entropy=False),
        accelerator=SimpleNamespace(num_processes=1, gather_for_metrics=lambda values: values),
        model=SimpleNamespace(training=True),
        epsilon_low=every["epsilon"],
        epsilon_high=high,
        current_gradient_accumulation_steps=1,
        model_accepts_loss_kwargs=False,
        compute_loss_func=None,
        compute_entropy=False,
        disable_rollout_importance_sampling=False,
        log_rollout_offpolicy_metrics=False,
        chord_sft_iterator=None,
        _has_teacher=False,
        template=SimpleNamespace(padding_free=False),
        **{name: value for name, value in every.items() if name not in ("epsilon", "epsilon_high")},
    )
    return releases.given_methods(trainer)


def _batch(case: Case) -> dict[str, Any]:
    mask = tensor(case.inputs["mask"]).bool()
    tensors = {
        "ref_per_token_logps": "ref_logp",
        "old_per_token_logps": "old_logp",
        "rollout_per_token_logps": "behavior_logp",
    }
    return {
        "completion_mask": mask,
        "truncated_mask": torch.zeros(mask.shape[0], dtype=torch.bool),
        "seq_lengths": mask.sum(-1),
        "advantages": tensor(per_token(case) if releases.BATCHES else case.inputs["advantages"]),
        "num_items_in_batch": _items(case, mask),
        **{
            key: tensor(case.inputs[name], case.input_dtype) if name in case.inputs else None
            for key, name in tensors.items()
        },
    }


def _items(case: Case, mask: Any) -> Any:
    """The tokens of the whole step; only the mean over tokens has them from outside."""
    given = demands.count(case, "ms-swift")
    if given is not None and (case.objective or {})["aggregation"]["mode"] != "token_mean":
        raise Skip("ms-swift divides by the responses of the micro-batch itself")
    return mask.sum() if given is None else torch.tensor(given)


def group_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_advantages`: `grpo` or `rloo`, with the groups one after another."""
    estimators = {"mean": "grpo", "leave_one_out": "rloo"}
    scales = {"std": "group", "batch_std": "batch", "none": "none"}
    center, scale = demands.center_and_scale(case, "ms-swift", list(product(estimators, scales)))
    if scale != "none":
        demands.std(case, "ms-swift", 1e-4)
    return {"advantages": _computed(case, estimators[center], scales[scale])}


def leave_one_out_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_advantages` with `rloo`."""
    return {"advantages": _computed(case, "rloo", "none")}


def _computed(case: Case, estimator: str, scale: str) -> Any:
    weights = torch.ones(1, dtype=getattr(torch, case.dtype))
    return demands.by_prompt(
        case, lambda rewards, size: releases.advantages(rewards[:, None], weights, size, estimator, scale)
    )


OPERATIONS = {"group_advantages": group_advantages, "leave_one_out_advantages": leave_one_out_advantages}
CAPABILITIES = offered(
    ("step", "pipeline", *OPERATIONS),
    "logp old_logp advantages mask ref_logp behavior_logp groups rewards",
    "objective normalizer advantages center scale ddof eps eps_placement",
    dtypes=DTYPES,
    token_advantages=releases.BATCHES,
    input_dtypes=INPUT_DTYPES,
)


def claims() -> TrainerTarget:
    """Every objective that a `loss_type` claims."""
    versions = {"ms-swift": RELEASE, "torch": torch.__version__}
    return TrainerTarget(versions, DIALECT, RELEASE, policy_loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """`importance_sampling_level: sequence` and a clip range, all else as it comes; the reference of its KL term is the policy itself."""
    return claims().as_documented(token_advantages=False)
