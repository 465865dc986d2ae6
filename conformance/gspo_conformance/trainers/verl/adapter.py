"""verl's `ppo_loss`, which picks the registered policy loss and adds the KL term, on padded tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from ...words import HarnessError
from ..stubs import stub

stub(
    *("datasets", "PIL", "torchdata", "wandb", "peft", "hydra", "pyarrow", "pandas", "dill", "accelerate"),
    *("uvicorn", "fastapi", "cachetools"),
)

RELEASE = version("verl")
NAME = f"verl {RELEASE}"
if find_spec("verl.workers.config") is None:
    raise HarnessError(f"{NAME} has no loss_mode gspo: 0.6.0 is the first release that has it")

from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig
from verl.workers.config.actor import PolicyLossConfig

from ...target import DTYPES, INPUT_DTYPES, Case, Skip
from .. import demands
from ..adapter import PaddedBatch, Settings, TrainerTarget, offered, per_token, tensor, torch_kl, torch_loss
from .dialect import DIALECT
from .findings import ACTOR

# Up to 0.6 it lies below roles, and means are of the micro-batch alone.
COUNTS = find_spec("verl.workers.utils") is not None
losses: Any = import_module("verl.workers.utils.losses" if COUNTS else "verl.workers.roles.utils.losses")
# The engine hands over unpadded nested tensors, to a function of either name; the cases are padded already.
losses.no_padding_2_padding = losses._slice_response_from_unpad_output = lambda values, data: values

MODE = "policy_loss.loss_mode"
# What earlier releases do that have no such key, and the key whose value a release refuses with these words.
WITHOUT = {"tau_pos": 1.0, "tau_neg": 1.05, "loss_scale_factor": None}
REFUSED = {"Unsupported loss mode": MODE, "Invalid loss_agg_mode": "loss_agg_mode", "": "kl_loss_type"}


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """`ppo_loss` under `settings`, with the global counts that the trainer hands it; a skip where this release has not what they say."""
    own = {key.removeprefix(ACTOR): value for key, value in settings.items() if key.startswith(ACTOR)}
    batch = _batch(case)
    try:
        config = _config(own)
        return torch_loss(case, lambda logp: losses.ppo_loss(config, {"log_probs": logp}, PaddedBatch(batch))[0])
    except (ValueError, NotImplementedError) as error:
        raise demands.refused(error, REFUSED, own, NAME) from error


def _config(own: Settings) -> ActorConfig:
    plain = {key: value for key, value in own.items() if key != MODE}
    return ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        policy_loss=PolicyLossConfig(loss_mode=own[MODE]),
        **demands.had(plain, {one.name for one in fields(ActorConfig)}, WITHOUT, NAME),
    )


def _batch(case: Case) -> dict[str, Any]:
    """The tensors and counts of one optimiser step on one rank; the trainer counts every response, empty ones too."""
    aggregation = (case.objective or {})["aggregation"]
    normalizer = case.parameters.get("normalizer")
    if normalizer is not None and not COUNTS:
        raise Skip(f"{NAME} divides by the counts of the micro-batch: it takes none of the whole step")
    rows, tokens = case.inputs["mask"].shape[0], int(case.inputs["mask"].sum())
    every = aggregation["count"] == "all"
    batch = {
        "dp_size": 1,
        "batch_num_tokens": tokens if normalizer is None else normalizer,
        "global_batch_size": (rows if every else None) if normalizer is None else normalizer,
        "response_mask": tensor(case.inputs["mask"]).bool(),
        "old_log_probs": tensor(case.inputs["old_logp"], case.input_dtype),
        "advantages": tensor(per_token(case)),
    }
    if "ref_logp" in case.inputs:
        batch["ref_log_prob"] = tensor(case.inputs["ref_logp"], case.input_dtype)
    return batch


def group_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_grpo_outcome_advantage`, or RLOO's."""
    center, scale = case.parameters.get("center", "mean"), case.parameters.get("scale", "std")
    if case.parameters.get("ddof", 1) != 1 or case.parameters.get("eps_placement", "std") != "std":
        raise Skip("verl's standard deviation has ddof 1, and eps is added to it")
    if center == "leave_one_out" and scale == "none":
        return {"advantages": _outcome(core_algos.compute_rloo_outcome_advantage, case)}
    if center != "mean" or scale not in ("std", "none"):
        raise Skip(f"verl has no outcome advantage with center {center} and scale {scale}")
    if scale == "std" and case.parameters.get("eps", 1e-6) != 1e-6:
        raise Skip("verl adds 1e-6 to the standard deviation, and no key changes it")
    by_std = {"norm_adv_by_std_in_grpo": scale == "std"}
    return {"advantages": _outcome(core_algos.compute_grpo_outcome_advantage, case, **by_std)}


def leave_one_out_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_rloo_outcome_advantage`."""
    return {"advantages": _outcome(core_algos.compute_rloo_outcome_advantage, case)}


def _outcome(estimator: Any, case: Case, **options: Any) -> Any:
    rewards = tensor(case.inputs["rewards"])[:, None]
    index = np.asarray([str(group) for group in case.inputs["groups"]], dtype=object)
    found, _ = estimator(rewards, torch.ones_like(rewards), index, **options)
    return found[:, 0].numpy()


def kl_penalty(case: Case) -> Mapping[str, Any]:
    """`kl_penalty`, without the straight-through gradient."""
    estimator = case.parameters["estimator"]
    if estimator not in ("k1", "k2", "k3", "abs"):
        raise Skip(f"verl's estimator {estimator} differs from k3 in its gradient alone")
    return torch_kl(case, lambda logp, ref: core_algos.kl_penalty(logp, ref, estimator))


OPERATIONS = {
    "group_advantages": group_advantages,
    "leave_one_out_advantages": leave_one_out_advantages,
    "kl_penalty": kl_penalty,
}
CAPABILITIES = offered(
    OPERATIONS,
    "logp old_logp advantages mask ref_logp groups rewards values",
    "objective normalizer center scale ddof eps eps_placement gamma lam estimator",
    dtypes=DTYPES,
    token_advantages=True,
    input_dtypes=INPUT_DTYPES,
)


def claims() -> TrainerTarget:
    """Every objective that a `loss_mode` claims."""
    versions = {"verl": RELEASE, "torch": torch.__version__}
    return TrainerTarget(versions, DIALECT, RELEASE, policy_loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """`loss_mode: gspo`, all else as it comes."""
    return claims().as_documented()
