"""SkyRL's own two halves: the driver scales the advantages of a mini-batch, the worker adds up the loss of a micro-batch."""

from __future__ import annotations

import sys
import typing
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import typing_extensions

from ..stubs import stub

if sys.version_info < (3, 12):
    typing.TypedDict = typing_extensions.TypedDict  # pydantic asks for it
stub(
    *("transformers", "peft", "accelerate", "datasets", "tensordict", "torchdata", "vllm", "flash_attn", "hydra"),
    *("wandb", "tqdm", "tokenizers", "safetensors", "aiohttp", "httpx", "uvicorn", "fastapi", "orjson", "pybase64"),
    *("pandas", "func_timeout", "zstandard", "huggingface_hub", "PIL"),
)

from loguru import logger
from skyrl.backends.skyrl_train.training_batch import TrainingInputBatch
from skyrl.backends.skyrl_train.utils import ppo_utils
from skyrl.backends.skyrl_train.workers.worker import PolicyWorkerBase
from skyrl.train.config import AlgorithmConfig
from skyrl.train.dataset import preprocess
from skyrl.train.trainer import RayPPOTrainer
from skyrl.train.utils.trainer_utils import zero_variance_filter

from ...target import DTYPES, INPUT_DTYPES, Case, Skip
from ...words import HarnessError
from .. import demands
from ..adapter import Settings, TrainerTarget, added, offered, overlaid, per_token, tensor, torch_kl, torch_loss
from .dialect import ALGORITHM, DIALECT, ESTIMATORS

logger.remove()
torch.cuda.current_device = lambda: 0  # the worker moves its batch there
RELEASE = version("skyrl")
NAME = f"SkyRL {RELEASE}"
if not hasattr(RayPPOTrainer, "_normalize_advantages"):
    raise HarnessError(
        f"the driver of {NAME} does not scale advantages: 0.2.0 is the first release that can be checked"
    )
BOUNDARIES = getattr(preprocess, "compute_prompt_boundaries", None)
SINGLE = {"regular", "dual_clip", "cispo", "rollout_is"}


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """One mini-batch that is one micro-batch."""
    algorithm = _algorithm(settings)
    _precise(algorithm, case)
    (advantages,) = _scaled(algorithm, [case.inputs], case)
    return _micro_loss(algorithm, case, advantages, 1.0)


def _algorithm(settings: Settings) -> AlgorithmConfig:
    """The real defaults with these settings over them; a skip where this release lacks one."""
    own = {key.removeprefix(ALGORITHM): value for key, value in settings.items()}
    try:
        return overlaid(AlgorithmConfig(), own, f"AlgorithmConfig of {NAME}")
    except KeyError as error:
        raise Skip(error.args[0]) from None


def _precise(algorithm: AlgorithmConfig, case: Case) -> None:
    weighted = "behavior_logp" in case.inputs and bool((case.objective or {}).get("correction"))
    if case.dtype != "float32" and (algorithm.policy_loss_type in SINGLE or weighted):
        raise Skip("SkyRL computes the ratio of a token in float32 whatever comes in")


def _scaled(algorithm: AlgorithmConfig, parts: list[Any], case: Case) -> list[Any]:
    """`_normalize_advantages` of the driver over all parts of a mini-batch, prompt after prompt, cut into the parts again."""
    width = max(part["mask"].shape[1] for part in parts)
    rows = [part["mask"].shape[0] for part in parts]
    order, prompts = _prompts(parts, algorithm.loss_reduction == "prompt_mean")
    masks = torch.cat([_wide(tensor(part["mask"], "float32"), width) for part in parts])[order]
    values = torch.cat([_wide(tensor(per_token(replace(case, inputs=part))), width) for part in parts])[order]
    batch = TrainingInputBatch({"advantages": values, "response_mask": masks, "loss_mask": masks})
    trainer = SimpleNamespace(cfg=SimpleNamespace(trainer=SimpleNamespace(algorithm=algorithm)))
    trainer.cfg.trainer.micro_train_batch_size_per_gpu = 1
    given = {} if BOUNDARIES is None else {"prompt_boundaries": prompts}
    scaled = RayPPOTrainer._normalize_advantages(trainer, batch, [(0, sum(rows))], **given)["advantages"]
    cut = scaled[torch.argsort(order)].split(rows)
    return [one[:, : part["mask"].shape[1]] for one, part in zip(cut, parts, strict=True)]


def _prompts(parts: list[Any], needed: bool) -> tuple[Any, Any]:
    """The rows in the order of their prompts, and where each prompt begins and ends."""
    if needed and BOUNDARIES is None:
        raise Skip(f"{NAME} has no loss_reduction prompt_mean")
    if "groups" not in parts[0] or BOUNDARIES is None:
        if needed:
            raise Skip("SkyRL knows the prompt of every response")
        return torch.arange(sum(part["mask"].shape[0] for part in parts)), None
    groups = np.concatenate([part["groups"] for part in parts])
    order = np.argsort(groups, kind="stable")
    return torch.from_numpy(order), BOUNDARIES([str(one) for one in groups[order]])


def _wide(values: Any, width: int) -> Any:
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))


def _micro_loss(algorithm: AlgorithmConfig, case: Case, advantages: Any, weight: float) -> Mapping[str, Any]:
    """`_forward_backward_micro` with a model that has these log-probabilities, up to the backward pass."""
    experience = _experience(case, advantages)

    def loss(logp: Any) -> Any:
        if experience.base_action_log_probs is None:
            experience.base_action_log_probs = logp.detach()
        found: list[Any] = []
        worker = _worker(algorithm, logp, found)
        PolicyWorkerBase._forward_backward_micro(worker, experience, weight)
        return found[0]

    return torch_loss(case, loss)


def _worker(algorithm: AlgorithmConfig, logp: Any, found: list[Any]) -> SimpleNamespace:
    """What the worker reads of itself: model, strategy, configuration, ranks."""

    class Model:
        def train(self) -> None:
            """Nothing to switch."""

        def __call__(self, *_: Any, **__: Any) -> Any:
            return logp, {"entropy": torch.zeros(logp.shape[0], logp.shape[1] + 1)}

    return SimpleNamespace(
        model=Model(),
        optimizer=None,
        cfg=SimpleNamespace(algorithm=algorithm),
        mesh_rank=SimpleNamespace(dp_size=1),
        scheduler=SimpleNamespace(get_last_lr=lambda: [0.0]),
        strategy=SimpleNamespace(backward=lambda loss, model, optimizer: found.append(loss)),
        policy_loss_fn=ppo_utils.PolicyLossRegistry.get(algorithm.policy_loss_type),
    )


def _experience(case: Case, advantages: Any) -> SimpleNamespace:
    names = {"old_logp": "action_log_probs", "ref_logp": "base_action_log_probs", "behavior_logp": "rollout_logprobs"}
    given = {key: tensor(case.inputs[name], case.input_dtype) for name, key in names.items() if name in case.inputs}
    mask = tensor(case.inputs["mask"], "float32")
    absent = dict.fromkeys((*names.values(), "sequences", "attention_mask", "pixel_values", "image_grid_thw"))
    masks = dict.fromkeys(("loss_mask", "response_mask", "action_mask"), mask)
    fixed = {"advantages": advantages, "num_actions": mask.shape[1], **masks}
    return SimpleNamespace(**(absent | fixed | given), rollout_sample_support=None, to_device=lambda device: None)


class SkyRlTarget(TrainerTarget):
    """A step is one mini-batch for the driver, and one micro-batch a part for the worker."""

    def _step(self, case: Case) -> Mapping[str, Any]:
        """Losses of micro-batches add; the KL term of each is weighted by its share of the responses."""
        algorithm, parts = _algorithm(self.settings(case)), case.inputs["parts"]
        _precise(algorithm, replace(case, inputs=parts[0]))
        scaled = _scaled(algorithm, parts, case)
        total = sum(part["mask"].shape[0] for part in parts)
        outputs = [
            _micro_loss(algorithm, replace(case, inputs=part), advantages, part["mask"].shape[0] / total)
            for part, advantages in zip(parts, scaled, strict=True)
        ]
        return added(outputs)


def group_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_advantages_and_returns` with `grpo` or `rloo`."""
    own = (("mean", "std"), ("mean", "none"), ("leave_one_out", "none"))
    center, scale = demands.center_and_scale(case, "SkyRL", own)
    if center == "leave_one_out":
        return leave_one_out_advantages(case)
    if scale == "std":
        demands.std(case, "SkyRL", 1e-6)
    demands.single(case, "SkyRL")
    return {"advantages": _outcome(case, "grpo", grpo_norm_by_std=scale == "std")}


def leave_one_out_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_advantages_and_returns` with `rloo`."""
    return {"advantages": _outcome(case, "rloo")}


def _outcome(case: Case, estimator: str, **options: Any) -> Any:
    rewards = tensor(case.inputs["rewards"])[:, None]
    groups = np.asarray([str(group) for group in case.inputs["groups"]], dtype=object)
    found, _ = ppo_utils.compute_advantages_and_returns(
        rewards, torch.ones_like(rewards), groups, estimator, AlgorithmConfig(), **options
    )
    return found[:, 0].numpy()


def reinforce_pp_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_advantages_and_returns` with `reinforce++`."""
    if "groups" in case.inputs:
        raise Skip("SkyRL subtracts no group mean from the rewards of tokens")
    return {"advantages": _token_advantages(case, "token_rewards", "reinforce++")[0].numpy()}


def reinforce_returns(case: Case) -> Mapping[str, Any]:
    """The returns of `reinforce++`, times the mask as the loss of the critic does."""
    returns = _token_advantages(case, "rewards", "reinforce++")[1]
    return {"returns": (returns * tensor(case.inputs["mask"])).numpy()}


def _token_advantages(case: Case, rewards: str, estimator: str) -> Any:
    demands.single(case, "SkyRL")
    mask = tensor(case.inputs["mask"], "float32")
    gamma = case.parameters.get("gamma", 1.0)
    config, given = AlgorithmConfig(), tensor(case.inputs[rewards])
    return ppo_utils.compute_advantages_and_returns(given, mask, None, estimator, config, gamma=gamma)


def whiten(case: Case) -> Mapping[str, Any]:
    """`masked_whiten`, times the mask as its callers do."""
    demands.whitening(case, "SkyRL")
    demands.single(case, "SkyRL")
    values = tensor(case.inputs["values"])
    mask = tensor(case.inputs["mask"], "float32") if "mask" in case.inputs else torch.ones_like(values)
    found = ppo_utils.masked_whiten(values, mask, shift_mean=case.parameters.get("center", True))
    return {"values": (found * mask).numpy()}


def kl_penalty(case: Case) -> Mapping[str, Any]:
    """`compute_approx_kl`."""
    estimator = demands.estimator(case, "SkyRL", ESTIMATORS)
    return torch_kl(case, partial(ppo_utils.compute_approx_kl, kl_estimator_type=estimator))


def token_kl_rewards(case: Case) -> Mapping[str, Any]:
    """`apply_reward_kl_penalty`, the reward of a response on its last token."""
    mask = tensor(case.inputs["mask"], "float32")
    if not mask.any(dim=1).all():
        raise Skip("SkyRL has no response without a token")
    last = (mask * torch.arange(1, mask.shape[1] + 1)).argmax(dim=1)
    placed = torch.zeros(mask.shape, dtype=getattr(torch, case.dtype))
    placed[torch.arange(mask.shape[0]), last] = tensor(case.inputs["rewards"])
    names = {"action_log_probs": "logp", "base_action_log_probs": "ref_logp"}
    tensors = {key: tensor(case.inputs[name]) for key, name in names.items()}
    batch = TrainingInputBatch({"rewards": placed, "loss_mask": mask, **tensors})
    batch.metadata = {}
    config = AlgorithmConfig(
        kl_estimator_type=demands.estimator(case, "SkyRL", ESTIMATORS), kl_loss_coef=case.parameters["coefficient"]
    )
    trainer = SimpleNamespace(cfg=SimpleNamespace(trainer=SimpleNamespace(algorithm=config)))
    trainer.reward_kl_controller, trainer.all_metrics = None, {}
    return {"rewards": RayPPOTrainer.apply_reward_kl_penalty(trainer, batch)["rewards"].numpy()}


def informative_groups(case: Case) -> Mapping[str, Any]:
    """`zero_variance_filter` with the tolerance that is the default."""
    if case.parameters.get("low") is not None or case.parameters.get("high") is not None:
        raise Skip("SkyRL has no bounds on the mean reward of a group")
    rewards, groups = case.inputs["rewards"].tolist(), [str(one) for one in case.inputs["groups"]]
    tolerance = getattr(AlgorithmConfig(), "zero_variance_filter_tol", None)
    kept = zero_variance_filter(rewards, groups, **({} if tolerance is None else {"tol": tolerance}))
    return {"keep": np.isin(np.arange(len(rewards)), kept)}


OPERATIONS = {
    "group_advantages": group_advantages,
    "leave_one_out_advantages": leave_one_out_advantages,
    "reinforce_pp_advantages": reinforce_pp_advantages,
    "reinforce_returns": reinforce_returns,
    "whiten": whiten,
    "kl_penalty": kl_penalty,
    "token_kl_rewards": token_kl_rewards,
    "informative_groups": informative_groups,
}
CAPABILITIES = offered(
    ("step", "pipeline", *OPERATIONS),
    "logp old_logp advantages mask ref_logp behavior_logp groups rewards values token_rewards",
    "objective advantages center scale ddof eps eps_placement gamma estimator coefficient low high",
    dtypes=DTYPES,
    token_advantages=True,
    input_dtypes=INPUT_DTYPES,
)


def claims() -> TrainerTarget:
    """Every objective that a `policy_loss_type` claims."""
    versions = {"skyrl": RELEASE, "torch": torch.__version__}
    return SkyRlTarget(versions, DIALECT, RELEASE, policy_loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """`policy_loss_type: gspo`, all else as it comes; the reference of its KL term is the policy itself, so that the term is 0."""
    return claims().as_documented()
