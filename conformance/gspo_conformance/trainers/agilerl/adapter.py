"""`GRPO._loss_fn` of an agent without a model: its own validation of the options, its own window, its own reduction."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from inspect import signature
from typing import Any

import numpy as np
import torch

from ...target import INPUT_DTYPES, Case, Skip
from ...tensors import NumPyArray
from ...words import HarnessError
from .. import demands
from ..adapter import Settings, TrainerTarget, offered, tensor, torch_kl, torch_loss
from ..stubs import stub, without_init
from .dialect import DIALECT, NO_MASKS

stub("accelerate", "transformers", "peft", "wandb", "pettingzoo", "PIL", "safetensors", "tokenizers", "huggingface_hub")
stub("requests")
without_init("agilerl.algorithms")  # it imports them all

from agilerl.algorithms.grpo import GRPO
from agilerl.utils.llm_utils import calculate_k3_kl, masked_whiten

RELEASE = version("agilerl")
NAME = f"AgileRL {RELEASE}"
# Without liger-kernel, as installed here, an agent takes its standard path.
OPTIONS = {name: one.default for name, one in signature(GRPO.__init__).parameters.items()} | {"use_liger_loss": False}
if "importance_sampling_level" not in OPTIONS:
    raise HarnessError(
        f"{NAME} has no importance_sampling_level: 2.7.1 is the first release whose sequence ratio can be asked"
    )
# What holds in earlier releases, which have no such options.
WITHOUT = {
    "loss_norm": "micro_batch",
    "kl_clamp": None,
    "use_bias_correction_kl": False,
    "old_logprobs_source": "trainer",
    **NO_MASKS,
}
# Up to 2.52 a step of one micro-batch counts the tokens of its mask.
COUNTS = hasattr(GRPO, "_token_loss_weights")
# Up to 2.31 its loss calls it with the policy first.
REFERENCE_FIRST = next(iter(signature(calculate_k3_kl).parameters)) == "reference_log_probs"


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """The loss of one micro-batch that is the whole window."""
    agent = _agent(tuple(sorted(demands.had(settings, OPTIONS, WITHOUT, NAME).items())))
    mask = tensor(case.inputs["mask"])
    old = tensor(case.inputs["old_logp"], case.input_dtype)
    rest = {}
    if settings.get("old_logprobs_source") == "trainer":
        rest["sampling_log_probs"] = tensor(case.inputs["behavior_logp"], case.input_dtype)
    advantages = _window(agent, case, mask, tensor(_columns(case.inputs["advantages"])))

    def loss(logp: Any) -> Any:
        ref = tensor(case.inputs["ref_logp"], case.input_dtype) if "ref_logp" in case.inputs else logp.detach()
        try:
            return agent._loss_fn(mask, logp, old, ref, advantages, **rest)[0]
        except RuntimeError as error:
            raise RuntimeError(f"{NAME}'s own loss fails: {error}") from error

    return torch_loss(case, loss)


@cache
def _agent(settings: tuple[tuple[str, Any], ...]) -> Any:
    """An agent with these options and everything else as `GRPO.__init__` has it, but no model."""
    given = OPTIONS | dict(settings)
    agent = GRPO.__new__(GRPO)
    plain = "beta kl_clamp use_bias_correction_kl off_policy_token_mask_bounds off_policy_sequence_mask_threshold"
    for name in (*plain.split(), "use_liger_loss", "vllm_importance_sampling_cap"):
        setattr(agent, name, given.get(name))
    agent.gradient_accumulation_steps, agent.device = 1, "cpu"
    agent._uses_deepspeed, agent.accelerator = False, None
    agent.clip_coef, agent.clip_coef_min, agent.clip_coef_max = agent._resolve_clip_coef(given["clip_coef"])
    agent.loss_norm = _loss_norm(agent, given)
    for setup in (agent._setup_advantage_options, agent._setup_objective):
        setup(**{name: given[name] for name in signature(setup).parameters})
    return agent


def _loss_norm(agent: Any, given: Settings) -> str:
    """What is averaged over; a skip where this release does not know it. Before 2.10 there is `micro_batch` alone."""
    if "loss_norm" not in given:
        return "micro_batch"
    try:
        return agent._resolve_loss_norm(given["loss_norm"])
    except ValueError as error:
        raise Skip(f"{NAME} has no loss_norm {given['loss_norm']}") from error


def _window(agent: Any, case: Case, mask: Any, advantages: Any) -> Any:
    """Counts the tokens of the window as `learn` does, and weighs advantages where episodes are to weigh alike."""
    rows, normalizer = np.arange(len(mask)), case.parameters.get("normalizer")
    if agent.loss_norm == "episode":
        tokens = agent._row_episode_action_tokens(mask, rows)
        return agent._episode_balanced_advantages(advantages, mask, rows, tokens)
    if COUNTS:
        agent._record_global_window_action_tokens(mask, rows)
    if normalizer is not None:
        if agent.loss_norm == "micro_batch":
            raise Skip("loss_norm micro_batch divides by the responses of the micro-batch")
        if not COUNTS:
            raise Skip(f"{NAME} takes no count where a step has one micro-batch")
        agent._window_action_tokens = float(normalizer)
    return advantages


def _columns(advantages: NumPyArray) -> NumPyArray:
    return advantages[:, None] if advantages.ndim == 1 else advantages


def group_advantages(case: Case) -> Mapping[str, Any]:
    """`_calculate_advantage`, one call a group: a batch of AgileRL has groups of one size, side by side."""
    asked = {"center": "mean", "scale": "std", "ddof": 1, "eps": 1e-6} | dict(case.parameters)
    divided = asked["scale"] == "std" and (asked["ddof"], asked.get("eps_placement", "std")) == (1, "std")
    if asked["center"] != "mean" or not (divided or asked["scale"] == "none"):
        raise Skip("AgileRL subtracts the mean and divides by the standard deviation with ddof 1, or does not divide")
    groups, rewards = tensor(case.inputs["groups"]), tensor(case.inputs["rewards"])
    norm, found = "mean_std" if divided else "mean_only", torch.empty_like(rewards)
    for group, size in zip(*(one.tolist() for one in groups.unique(return_counts=True)), strict=True):
        if size == 1:
            raise Skip("group_size of AgileRL is above 1")
        agent, mine = _agent((("adv_norm", norm), ("group_size", size))), groups == group
        found[mine] = agent._calculate_advantage(rewards[mine], asked["eps"])[:, 0]
    return {"advantages": found.numpy()}


def kl_penalty(case: Case) -> Mapping[str, Any]:
    """`calculate_k3_kl`."""
    demands.estimator(case, "AgileRL", ("k3",))
    return torch_kl(case, lambda logp, ref: calculate_k3_kl(*((ref, logp) if REFERENCE_FIRST else (logp, ref))))


def whiten(case: Case) -> Mapping[str, Any]:
    """`masked_whiten`, and 0 where nothing is counted, which its losses never read."""
    asked = {"center": True, "ddof": 1, "eps": 1e-8} | dict(case.parameters)
    if (asked["ddof"], asked["eps"]) != (1, 1e-8) or "mask" not in case.inputs:
        raise Skip("AgileRL whitens over a mask, with ddof 1 and eps 1e-8")
    values, mask = tensor(case.inputs["values"]), tensor(case.inputs["mask"])
    found = masked_whiten(values, mask.to(values.dtype), shift_mean=asked["center"])
    return {"values": torch.where(mask.bool(), found, 0.0).numpy()}


OPERATIONS = {"group_advantages": group_advantages, "kl_penalty": kl_penalty, "whiten": whiten}
CAPABILITIES = offered(
    ("step", "pipeline", *OPERATIONS),
    "logp old_logp advantages mask ref_logp behavior_logp groups rewards values",
    "objective normalizer advantages center scale ddof eps eps_placement estimator",
    token_advantages=True,
    input_dtypes=INPUT_DTYPES,
)


def claims() -> TrainerTarget:
    """Every objective that `loss_type` and `loss_norm` claim, in float32: the weights of the reduction are no other."""
    versions = {"agilerl": RELEASE, "torch": torch.__version__}
    return TrainerTarget(versions, DIALECT, RELEASE, policy_loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """The class `GSPO` with a clip range, all else as it comes; the reference of its KL term is the policy itself."""
    return claims().as_documented(token_advantages=False)
