"""verl's `ppo_loss`, which picks the registered policy loss and adds the KL term, on padded tensors."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from ..stubs import stub

stub(
    *("datasets", "PIL", "torchdata", "wandb", "peft", "hydra", "pyarrow", "pandas", "dill", "accelerate"),
    *("uvicorn", "fastapi", "cachetools"),
)

from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig
from verl.workers.config.actor import PolicyLossConfig
from verl.workers.utils import losses

from ...target import DTYPES, INPUT_DTYPES, Case, Skip
from ..adapter import PaddedBatch, Settings, TrainerTarget, offered, per_token, tensor, torch_kl, torch_loss
from .dialect import DIALECT
from .findings import ACTOR

RELEASE = version("verl")
# The engine hands over unpadded nested tensors; the cases are padded already.
losses.no_padding_2_padding = lambda values, data: values


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """`ppo_loss` under `settings`, with the global counts that the trainer hands it."""
    config = _config(settings)
    batch = _batch(case)
    return torch_loss(case, lambda logp: losses.ppo_loss(config, {"log_probs": logp}, PaddedBatch(batch))[0])


def _config(settings: Settings) -> ActorConfig:
    own = {key.removeprefix(ACTOR): value for key, value in settings.items() if key.startswith(ACTOR)}
    mode = own.pop("policy_loss.loss_mode")
    return ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        policy_loss=PolicyLossConfig(loss_mode=mode),
        **own,
    )


def _batch(case: Case) -> dict[str, Any]:
    """The tensors and counts of one optimiser step on one rank; the trainer counts every response, empty ones too."""
    aggregation = (case.objective or {})["aggregation"]
    normalizer = case.parameters.get("normalizer")
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
