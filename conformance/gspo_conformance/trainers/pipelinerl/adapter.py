"""`rl_step` on responses that `collate_packed` packed, each behind one prompt token; `populate_rl_data` for the advantages."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ...target import LAYOUTS, Case, Skip
from ...tensors import NumPyArray
from .. import demands
from ..adapter import Settings, TrainerTarget, checkout, offered, torch_loss
from ..responses import masks_of, places_of
from ..stubs import holding, names_only, stub
from .dialect import DEFAULTS, DIALECT, RL

_, RELEASE = checkout()
stub(
    *("accelerate", "deepspeed", "datasets", "omegaconf", "hydra", "litellm", "redis", "orjson", "aiohttp", "wandb"),
    *("tenacity", "psutil", "fastapi", "uvicorn", "PIL", "jsonref", "vllm", "peft", "ring_flash_attn", "tapeagents"),
    *("joblib", "math_verify"),
)
names_only("pipelinerl.llm", "pipelinerl.async_llm", "pipelinerl.finetune_loop")  # engines, and the loop of steps
import_module("datasets")
holding("datasets", disable_caching=lambda: None)

from pipelinerl.domains.math.rollouts import length_penalty
from pipelinerl.finetune.data import MASKED_TOKEN_ID, collate_packed
from pipelinerl.finetune.rl import RLConfig, populate_rl_data, rl_step
from pipelinerl.preprocess import filter_zero_advantage_groups

EOS = 1


class Normalised(torch.Tensor):
    """Logits whose log-sum-exp is 0, so that the log-probability of the one token that is looked up is its logit."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        """Lookups leave it, and the sum over the vocabulary is 1."""
        if function is torch.logsumexp:
            return torch.zeros(arguments[0].shape[:-1])
        found: Any = super().__torch_function__(function, types, arguments, options or {})
        return found.as_subclass(torch.Tensor) if function is torch.gather else found


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """`rl_step` of one micro-batch, with the responses of the whole step as its `batch_size`."""
    given = demands.count(case, "PipelineRL")
    places = places_of(case)
    config = _config(settings)
    config.batch_size = len(places) if given is None else given
    batch = collate_packed(_examples(case, places), None, 1)

    def loss(logp: Any) -> Any:
        prompt = torch.zeros(1)
        tokens = torch.cat([part for place in places for part in (prompt, logp[place])])
        logits = torch.cat([tokens[1:], prompt])[None, :, None].as_subclass(Normalised)
        return rl_step(lambda **_: SimpleNamespace(logits=logits), batch, 0, 1, config)[0]

    return torch_loss(case, loss)


def _config(settings: Settings) -> RLConfig:
    """What the trainer makes of its configuration."""
    every = DEFAULTS | settings
    own = {key.removeprefix(RL): value for key, value in every.items() if key.startswith(RL)}
    own["final_kl_coef"] = own["kl_coef"] if own["final_kl_coef"] is None else own["final_kl_coef"]
    return RLConfig(**own)


def _examples(case: Case, places: list[Any]) -> list[dict[str, Any]]:
    """Every response behind a prompt of one token, with the columns that the preprocessor fills."""
    advantages = case.inputs["advantages"]
    per_token = advantages.shape == case.inputs["logp"].shape
    found = []
    for i, (place, mask) in enumerate(zip(places, masks_of(case, places), strict=True)):
        counted, length = mask.bool().tolist(), len(mask) + 1
        weights = [0.0, *advantages[place].tolist()] if per_token else [float(advantages[i])] * length
        old = [0.0, *case.inputs["old_logp"][place].tolist()]
        found.append(
            {
                "input_ids": [0] * length,
                "labels": [MASKED_TOKEN_ID, *(0 if one else MASKED_TOKEN_ID for one in counted)],
                "rewards": [0.0] * length,
                "advantages": weights,
                "old_logprobs": old,
                "ref_logprobs": [0.0, *case.inputs["ref_logp"][place].tolist()] if "ref_logp" in case.inputs else old,
                "overflow": [0.0] * length,
                "group_tokens": [float(length)] * length,
                "num_labels": [sum(counted)] * length,
                "model_version": 0,
            }
        )
    return found


def _rows(case: Case, scaled: bool) -> list[dict[str, Any]]:
    """The rows of `populate_rl_data`, one step and one token a rollout, with what it adds."""
    rewards, groups = case.inputs["rewards"].tolist(), case.inputs["groups"].tolist()
    placeholders = {"advantages": [0.0], "group_tokens": [0], "overflow": [0], "num_labels": [1]}
    rows = [
        {"group_id": group, "rollout_index": i, "step_index": 0, "rewards": [reward], **placeholders}
        | {"input_ids": [EOS], "labels": [EOS]}
        for i, (reward, group) in enumerate(zip(rewards, groups, strict=True))
    ]
    return populate_rl_data(rows, EOS, _config({RL + "divide_advantage_by_std": scaled}))


def _estimated(case: Case, scaled: bool) -> NumPyArray:
    return np.array([row["advantages"][0] for row in _rows(case, scaled)]).astype(case.dtype)


def group_advantages(case: Case) -> Mapping[str, Any]:
    """`populate_rl_data`: the mean of the others, the standard deviation of the group."""
    own = (("leave_one_out", "std"), ("leave_one_out", "none"))
    _, scale = demands.center_and_scale(case, "PipelineRL", own)
    if scale == "std":
        demands.std(case, "PipelineRL", 1e-4)
    return {"advantages": _estimated(case, scale == "std")}


def leave_one_out_advantages(case: Case) -> Mapping[str, Any]:
    """`populate_rl_data` with `divide_advantage_by_std: false`."""
    return {"advantages": _estimated(case, False)}


def informative_groups(case: Case) -> Mapping[str, Any]:
    """`filter_zero_advantage_groups` after `populate_rl_data`, its threshold as it comes."""
    if case.parameters.get("low") is not None or case.parameters.get("high") is not None:
        raise Skip("PipelineRL has no bounds on the mean reward of a group")
    kept = {row["rollout_index"] for row in filter_zero_advantage_groups(_rows(case, False))[0]}
    return {"keep": np.array([i in kept for i in range(len(case.inputs["rewards"]))])}


def soft_overlong_penalty(case: Case) -> Mapping[str, Any]:
    """`length_penalty` of its mathematics domain."""
    limits = case.parameters["max_length"], case.parameters["cache"]
    found = [length_penalty(limits[0], length, limits[1]) for length in case.inputs["lengths"].tolist()]
    return {"values": np.array(found).astype(case.dtype)}


OPERATIONS = {
    "group_advantages": group_advantages,
    "leave_one_out_advantages": leave_one_out_advantages,
    "informative_groups": informative_groups,
    "soft_overlong_penalty": soft_overlong_penalty,
}
CAPABILITIES = offered(  # a batch is made float32 whatever comes in
    ("step", "pipeline", *OPERATIONS),
    "logp old_logp advantages mask offsets ref_logp groups rewards lengths",
    "objective normalizer advantages center scale ddof eps eps_placement low high max_length cache",
    layouts=LAYOUTS,
    token_advantages=True,
)


def claims() -> TrainerTarget:
    """Every objective that a `policy_loss` claims."""
    versions = {"pipelinerl": RELEASE, "torch": torch.__version__}
    return TrainerTarget(versions, DIALECT, RELEASE, policy_loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """`policy_loss: gspo` and a clip range, all else as it comes."""
    return claims().as_documented()
