"""`GRPOTrainer._compute_loss_and_metrics`, unbound, on an object that has what it reads; `compute_advantages`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from swift.rl_core.advantage import compute_advantages
from swift.rl_core.data import GRPOBatch
from swift.rlhf_trainers.grpo_trainer import GRPOTrainer

from ...target import Capabilities, Case, Skip
from ..adapter import Settings, TrainerTarget, check_std, per_token, tensor, torch_loss
from .dialect import DIALECT

PartialState()
RELEASE = version("ms-swift")
METHODS = (
    "_undo_gradient_accumulation_scaling",
    "_get_rollout_is_correction",
    "_apply_rollout_importance_sampling",
    "_compute_sequence_level_ratios",
    "_compute_off_policy_sequence_mask",
    "_compute_rollout_offpolicy_metrics",
    "_compute_is_correction_metrics",
)


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """One micro-batch that is the whole step."""
    trainer, batch = _trainer(settings), _batch(case)

    def loss(logp: Any) -> Any:
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logp, None)
        batch.ref_per_token_logps = logp.detach() if batch.ref_per_token_logps is None else batch.ref_per_token_logps
        return GRPOTrainer._compute_loss_and_metrics(trainer, trainer.model, {}, batch)[0]

    return torch_loss(case, loss)


def _trainer(settings: Settings) -> SimpleNamespace:
    """What the loss reads of a trainer; the values are those that the arguments have after their defaults."""
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
        **{name: value for name, value in every.items() if name not in ("epsilon", "epsilon_high")},
    )
    for name in METHODS:
        setattr(trainer, name, getattr(GRPOTrainer, name).__get__(trainer))
    return trainer


def _batch(case: Case) -> GRPOBatch:
    if (case.objective or {}).get("aggregation", {}).get("count") == "given" and "normalizer" not in case.parameters:
        raise Skip("ms-swift always has a count to divide by")
    mask = tensor(case.inputs["mask"]).bool()
    tensors = {
        "ref_per_token_logps": "ref_logp",
        "old_per_token_logps": "old_logp",
        "rollout_per_token_logps": "behavior_logp",
    }
    given = {key: tensor(case.inputs[name], case.input_dtype) for key, name in tensors.items() if name in case.inputs}
    return GRPOBatch(
        completion_mask=mask,
        truncated_mask=torch.zeros(mask.shape[0], dtype=torch.bool),
        seq_lengths=mask.sum(-1),
        advantages=tensor(per_token(case)),
        num_items_in_batch=_items(case, mask),
        **given,
    )


def _items(case: Case, mask: Any) -> Any:
    """The tokens of the whole step; only the mean over tokens has them from outside."""
    given = case.parameters.get("normalizer")
    if given is not None and (case.objective or {})["aggregation"]["mode"] != "token_mean":
        raise Skip("ms-swift divides by the responses of the micro-batch itself")
    return mask.sum() if given is None else torch.tensor(given)


def group_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_advantages`: `grpo` or `rloo`, with the groups one after another."""
    center, scale = case.parameters.get("center", "mean"), case.parameters.get("scale", "std")
    estimators = {"mean": "grpo", "leave_one_out": "rloo"}
    scales = {"std": "group", "batch_std": "batch", "none": "none"}
    if center not in estimators or scale not in scales:
        raise Skip(f"ms-swift has no advantages with center {center} and scale {scale}")
    if scale != "none":
        check_std(case, "ms-swift", 1e-4)
    return {"advantages": _computed(case, estimators[center], scales[scale])}


def leave_one_out_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_advantages` with `rloo`."""
    return {"advantages": _computed(case, "rloo", "none")}


def _computed(case: Case, estimator: str, scale: str) -> Any:
    rewards, groups = case.inputs["rewards"], case.inputs["groups"]
    _, sizes = np.unique(groups, return_counts=True)
    if len(set(sizes)) > 1:
        raise Skip("every prompt has the same number of responses")
    order = np.argsort(groups, kind="stable")
    weights = torch.ones(1, dtype=getattr(torch, case.dtype))
    found = np.empty_like(rewards)
    advantages, _ = compute_advantages(tensor(rewards[order])[:, None], weights, int(sizes[0]), estimator, scale)
    found[order] = advantages.numpy()
    return found


OPERATIONS = {"group_advantages": group_advantages, "leave_one_out_advantages": leave_one_out_advantages}
CAPABILITIES = Capabilities(
    operations=frozenset({"policy_loss", "step", "pipeline", *OPERATIONS}),
    dtypes=frozenset({"float32", "float64"}),
    gradient=True,
    token_advantages=True,
    input_dtypes=frozenset({"bfloat16", "float16"}),
    inputs=frozenset(["logp", "old_logp", "advantages", "mask", "ref_logp", "behavior_logp", "groups", "rewards"]),
    parameters=frozenset(["objective", "normalizer", "advantages", "center", "scale", "ddof", "eps", "eps_placement"]),
)


def claims() -> TrainerTarget:
    """Every objective that a `loss_type` claims."""
    versions = {"ms-swift": RELEASE, "torch": torch.__version__}
    return TrainerTarget("ms_swift", versions, DIALECT, RELEASE, policy_loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """`importance_sampling_level: sequence` and a clip range, all else as it comes; the reference of its KL term is the policy itself."""
    return claims().as_documented(token_advantages=False)
