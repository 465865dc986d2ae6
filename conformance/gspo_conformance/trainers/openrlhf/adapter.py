"""OpenRLHF's `PolicyLoss` with the counts of the whole step, its advantages and its KL estimators."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

from ..stubs import stub

stub("deepspeed", "ray", "transformers", "peft", "vllm", "flash_attn", "aiohttp", "datasets")


def _package(name: str) -> None:
    """A package of OpenRLHF without its `__init__`, which imports engines for a GPU."""
    spec = find_spec("openrlhf")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    module = ModuleType(name)
    module.__path__ = [spec.submodule_search_locations[0] + "/" + "/".join(name.split(".")[1:])]
    sys.modules[name] = module


_package("openrlhf.models")

from openrlhf.models.loss import PolicyLoss
from openrlhf.models.utils import compute_approx_kl

from ...target import Capabilities, Case, Skip
from ..adapter import Settings, TrainerTarget, per_token, tensor, torch_loss
from .dialect import ACTOR, DIALECT

RELEASE = version("openrlhf")


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """`PolicyLoss.forward` as `ActorPPOTrainer` calls it."""
    low, high = settings[ACTOR + "eps_clip_low_high"]
    module = PolicyLoss(
        clip_eps_low=low,
        clip_eps_high=high,
        dual_clip=settings.get(ACTOR + "dual_clip"),
        token_level_loss=settings.get(ACTOR + "loss_agg_mode", "token-mean") == "token-mean",
        policy_loss_type=settings[ACTOR + "policy_loss_type"],
    )
    mask = tensor(case.inputs["mask"]).bool()
    old = tensor(case.inputs["old_logp"], case.input_dtype)
    advantages = tensor(per_token(case))
    counts = {"batch_num_tokens": int(mask.sum()), "global_batch_size": mask.shape[0]}
    return torch_loss(case, lambda logp: module(logp, old, advantages, action_mask=mask, **counts)[0])


def kl_penalty(case: Case) -> Mapping[str, Any]:
    """`compute_approx_kl`."""
    estimator = case.parameters["estimator"]
    if estimator not in ("k1", "k2", "k3"):
        raise Skip(f"OpenRLHF has no estimator {estimator}")
    logp, ref = (tensor(case.inputs[name], case.input_dtype) for name in ("logp", "ref_logp"))
    return {"value": compute_approx_kl(logp, ref, kl_estimator=estimator).to(getattr(torch, case.dtype)).numpy()}


OPERATIONS = {"kl_penalty": kl_penalty}
CAPABILITIES = Capabilities(
    operations=frozenset({"policy_loss", *OPERATIONS}),
    dtypes=frozenset({"float32", "float64"}),
    gradient=True,
    token_advantages=True,
    input_dtypes=frozenset({"bfloat16", "float16"}),
    inputs=frozenset({"logp", "old_logp", "advantages", "mask", "ref_logp"}),
    parameters=frozenset({"objective", "estimator"}),
)


def claims() -> TrainerTarget:
    """Every objective that `policy_loss_type` and `loss_agg_mode` claim."""
    return _target("openrlhf", OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """`--actor.policy_loss_type gspo`, all else as it comes."""
    alone = replace(CAPABILITIES, operations=frozenset({"policy_loss"}), parameters=frozenset({"objective"}))
    return _target("openrlhf:default", {}, alone, default=True)


def _target(name: str, operations: Any, capabilities: Capabilities, *, default: bool = False) -> TrainerTarget:
    versions = {"openrlhf": RELEASE, "torch": torch.__version__}
    return TrainerTarget(name, versions, DIALECT, RELEASE, policy_loss, operations, capabilities, default)
