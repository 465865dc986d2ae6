"""`TrinityPolicyLoss` under an `AlgorithmConfig` that the validator of Trinity-RFT completes; advantages by its registered functions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ...words import HarnessError
from ..stubs import stub, without_init

os.environ["TRINITY_LOG_LEVEL"] = "CRITICAL"  # it logs to the stream of the answers
stub(
    *("ray", "verl", "tensordict", "omegaconf", "transformers", "openai", "datasets", "safetensors", "pandas"),
    *("sqlalchemy", "huggingface_hub", "requests", "peft", "PIL", "tqdm", "yaml", "pydantic"),
)
without_init("trinity.trainer", "trinity.trainer.verl")
RELEASE = version("trinity-rft")
if find_spec("trinity.trainer.verl.losses") is None:
    raise HarnessError(
        f"Trinity-RFT {RELEASE} has its loss inside a training step: 0.6.0 is the first release that can be checked"
    )
import transformers

transformers.__version__ = "5.12.1"

from trinity.algorithm import ADVANTAGE_FN, KL_FN
from trinity.algorithm.utils import aggregate_loss, masked_whiten
from trinity.common.config import AlgorithmConfig, Config
from trinity.common.config_validator import AlgorithmConfigValidator
from trinity.common.experience import EID, Experience
from trinity.trainer.verl import losses

from ...target import DTYPES, INPUT_DTYPES, Case, Skip
from .. import demands
from ..adapter import PaddedBatch, Settings, TrainerTarget, offered, per_token, tensor, torch_kl, torch_loss
from .dialect import DIALECT
from .functions import KINDS, MODES

# The engine hands over unpadded nested tensors; the cases are padded already.
losses.no_padding_2_padding = lambda values, data: values


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """One micro-batch that is the whole step; the reference of a KL term that nobody asked for is the policy itself."""
    if case.parameters.get("normalizer") is not None or (case.objective or {})["aggregation"]["count"] == "given":
        raise Skip("Trinity-RFT divides by the counts of a micro-batch alone")
    loss = _loss(tuple(sorted(settings.items())))
    batch = PaddedBatch(_batch(case))

    def value(logp: Any) -> Any:
        batch["ref_log_prob"] = batch.get("ref_log_prob", logp.detach())
        return loss({"log_probs": logp}, batch)[0]

    return torch_loss(case, value)


@cache
def _loss(settings: tuple[tuple[str, Any], ...]) -> Any:
    """The loss for these keys, made as a worker makes it."""
    own: dict[str, Any] = {}
    for key, value in settings:
        *sections, name = key.removeprefix("algorithm.").split(".")
        (own.setdefault(sections[0], {}) if sections else own)[name] = value
    config = Config()
    config.algorithm = AlgorithmConfig(**own)
    AlgorithmConfigValidator().validate(config)
    return losses.TrinityPolicyLoss(config.algorithm)


def _batch(case: Case) -> dict[str, Any]:
    names = {"old_logp": "old_log_probs", "ref_logp": "ref_log_prob"}
    given = {key: tensor(case.inputs[name], case.input_dtype) for name, key in names.items() if name in case.inputs}
    mask = tensor(case.inputs["mask"]).bool()
    return given | {"response_mask": mask, "advantages": tensor(per_token(case))}


class TrinityTarget(TrainerTarget):
    """verl's engine calls the loss once for every micro-batch and adds their gradients: no count of the step reaches it."""

    def _step(self, case: Case) -> Mapping[str, Any]:
        parameters = {key: value for key, value in case.parameters.items() if key != "normalizer"}
        return super()._step(replace(case, parameters=parameters))


def group_advantages(case: Case) -> Mapping[str, Any]:
    """The registered functions: `grpo` with the spread of the group or the batch, `opmd` without one, `rloo`."""
    own = (("mean", "std"), ("mean", "batch_std"), ("mean", "none"), ("leave_one_out", "none"))
    center, scale = demands.center_and_scale(case, "Trinity-RFT", own)
    if center == "leave_one_out":
        return leave_one_out_advantages(case)
    demands.single(case, "Trinity-RFT")
    if scale == "none":
        return {"advantages": _grouped(case, ADVANTAGE_FN.get("opmd")())}
    eps = case.parameters.get("eps", 1e-6)
    demands.std(case, "Trinity-RFT", eps)
    level = "batch" if scale == "batch_std" else "group"
    return {"advantages": _grouped(case, ADVANTAGE_FN.get("grpo")(epsilon=eps, std_cal_level=level))}


def _grouped(case: Case, estimator: Any) -> Any:
    """The advantages of responses of one token each, task by task."""
    rewards, groups = case.inputs["rewards"].tolist(), case.inputs["groups"].tolist()
    every = [
        Experience(eid=EID(task=group, run=run), tokens=torch.zeros(2, dtype=torch.int64), reward=reward)
        for run, (reward, group) in enumerate(zip(rewards, groups, strict=True))
    ]
    estimator(every)
    return np.array([one.advantages.item() for one in every], case.dtype)


def leave_one_out_advantages(case: Case) -> Mapping[str, Any]:
    """`rloo`."""
    demands.single(case, "Trinity-RFT")
    rewards = tensor(case.inputs["rewards"])[:, None]
    batch = SimpleNamespace(
        batch={"token_level_rewards": rewards, "response_mask": torch.ones_like(rewards)},
        non_tensor_batch={"uid": case.inputs["groups"]},
    )
    ADVANTAGE_FN.get("rloo")()(batch)
    return {"advantages": batch.batch["advantages"][:, 0].numpy()}


def kl_penalty(case: Case) -> Mapping[str, Any]:
    """`calculate_kl` of the estimator."""
    own = [name for name, form in KINDS.items() if form == (name, None, None)]
    return torch_kl(case, KL_FN.get(demands.estimator(case, "Trinity-RFT", own))().calculate_kl)


def aggregate(case: Case) -> Mapping[str, Any]:
    """`aggregate_loss`."""
    mode, normalizer = case.parameters["mode"], case.parameters.get("normalizer")
    name = next((key for key, value in MODES.items() if value == mode["mode"]), None)
    if name is None or mode["count"] != "all" or mode["constant"] != 1 or normalizer is not None:
        raise Skip(f"Trinity-RFT does not aggregate by {mode['mode']}, counting {mode['count']}")
    found = aggregate_loss(tensor(case.inputs["values"]), tensor(case.inputs["mask"]).bool(), name)
    return {"value": found.numpy()}


def whiten(case: Case) -> Mapping[str, Any]:
    """`masked_whiten`, times the mask as its callers take it."""
    asked = {"center": True, "ddof": 1, "eps": 1e-8} | dict(case.parameters)
    if (asked["ddof"], asked["eps"]) != (1, 1e-8) or "mask" not in case.inputs:
        raise Skip("Trinity-RFT whitens padded rows with ddof 1, and adds 1e-8 to the variance")
    values, mask = tensor(case.inputs["values"]), tensor(case.inputs["mask"])
    return {"values": (masked_whiten(values, mask, shift_mean=asked["center"]) * mask).numpy()}


OPERATIONS = {
    "group_advantages": group_advantages,
    "leave_one_out_advantages": leave_one_out_advantages,
    "kl_penalty": kl_penalty,
    "aggregate": aggregate,
    "whiten": whiten,
}
CAPABILITIES = offered(
    ("step", "pipeline", *OPERATIONS),
    "logp old_logp advantages mask ref_logp groups rewards values",
    "objective normalizer advantages center scale ddof eps eps_placement estimator mode",
    dtypes=DTYPES,
    token_advantages=True,
    input_dtypes=INPUT_DTYPES,
)


def claims() -> TrainerTarget:
    """Every objective that a `policy_loss_fn` and a `kl_loss_fn` claim."""
    versions = {"trinity-rft": RELEASE, "torch": torch.__version__}
    return TrinityTarget(versions, DIALECT, RELEASE, policy_loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """`algorithm_type: gspo` and a clip range where it is not the paper's, all else as it comes."""
    return claims().as_documented()
