"""OpenRLHF's `PolicyLoss` with the counts of the whole step, its advantages and its KL estimators."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ..stubs import holding, stub, without_init

stub(
    *("deepspeed", "ray", "transformers", "peft", "vllm", "flash_attn", "aiohttp", "datasets", "pylatexenc"),
    *("sympy", "PIL"),
)
without_init("openrlhf.models", "openrlhf.trainer", "openrlhf.trainer.ray", "openrlhf.trainer.ppo_utils")
# The experience maker names this class in its annotations; the module starts engines.
holding("openrlhf.trainer.ray.launcher", RayActorGroup=object, PPORayActorGroup=object)

from openrlhf.models.loss import PolicyLoss
from openrlhf.models.utils import compute_approx_kl, compute_reward
from openrlhf.trainer.ppo_utils import experience_maker
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

from ...target import DTYPES, INPUT_DTYPES, Case, Skip
from ...words import HarnessError
from .. import demands
from ..adapter import Settings, TrainerTarget, offered, per_token, tensor, torch_kl, torch_loss
from .dialect import ACTOR, DIALECT

RELEASE = version("openrlhf")
NAME = f"OpenRLHF {RELEASE}"
Experience: Any = vars(experience_maker)["Experience"]
if "policy_loss_type" not in signature(PolicyLoss).parameters:
    raise HarnessError(f"{NAME} has no policy_loss_type gspo: 0.8.8 is the first release that has it")
# Up to 0.11.1 nothing on the command line says how a loss is aggregated; up to 0.10.2 it counts its micro-batch.
AGGREGATES = "loss_agg_mode" in Path(str(getattr(find_spec("openrlhf.cli.train_ppo_ray"), "origin", ""))).read_text()
COUNTS = "batch_num_tokens" in signature(PolicyLoss.forward).parameters


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """`PolicyLoss.forward` as `ActorPPOTrainer` calls it."""
    low, high = settings[ACTOR + "eps_clip_low_high"]
    module = PolicyLoss(
        clip_eps_low=low,
        clip_eps_high=high,
        dual_clip=settings.get(ACTOR + "dual_clip"),
        policy_loss_type=settings[ACTOR + "policy_loss_type"],
        **_aggregation(settings),
    )
    mask = tensor(case.inputs["mask"]).bool()
    old = tensor(case.inputs["old_logp"], case.input_dtype)
    advantages = tensor(per_token(case))
    counts = {"batch_num_tokens": int(mask.sum()), "global_batch_size": mask.shape[0]} if COUNTS else {}
    return torch_loss(case, lambda logp: module(logp, old, advantages, action_mask=mask, **counts)[0])


def _aggregation(settings: Settings) -> dict[str, bool]:
    """What the trainer hands over; without a setting for it the loss type decides."""
    mode = settings.get(ACTOR + "loss_agg_mode", "token-mean")
    if AGGREGATES:
        return {"token_level_loss": mode == "token-mean"}
    if settings[ACTOR + "policy_loss_type"] == "ppo" and mode != "token-mean":
        raise Skip(f"{NAME} has no setting {ACTOR}loss_agg_mode: ppo is a mean over tokens")
    return {}


def kl_penalty(case: Case) -> Mapping[str, Any]:
    """`compute_approx_kl`."""
    estimator = demands.estimator(case, "OpenRLHF", ("k1", "k2", "k3"))
    return torch_kl(case, partial(compute_approx_kl, kl_estimator=estimator))


def group_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_advantages_and_returns` with `group_norm`, `dr_grpo` or `rloo`, prompts one after another."""
    estimators = {("mean", "std"): "group_norm", ("mean", "none"): "dr_grpo", ("leave_one_out", "none"): "rloo"}
    center, scale = demands.center_and_scale(case, "OpenRLHF", estimators)
    if scale == "std":
        demands.std(case, "OpenRLHF", 1e-9)
    return {"advantages": _outcome(case, estimators[center, scale])}


def leave_one_out_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_advantages_and_returns` with `rloo`."""
    return {"advantages": _outcome(case, "rloo")}


def _outcome(case: Case, estimator: str) -> Any:
    def compute(rewards: Any, size: int) -> Any:
        if size == 1:
            raise Skip("OpenRLHF asks for more than one response to a prompt")
        return _computed(rewards, estimator, size).advantages[:, 0]

    return demands.by_prompt(case, compute)


def clip_rewards(case: Case) -> Mapping[str, Any]:
    """`reward.clip_range`, read off the returns of `reinforce`."""
    bounds = (case.parameters["low"], case.parameters["high"])
    return {"rewards": _computed(tensor(case.inputs["rewards"]), "reinforce", 1, bounds).returns[:, 0].numpy()}


def _computed(rewards: Any, estimator: str, size: int, bounds: tuple[float, float] | None = None) -> Any:
    """`compute_advantages_and_returns` of responses of one token, without a KL term."""
    one = torch.ones_like(rewards)[:, None]
    index = list(range(len(rewards)))
    experience = Experience(rewards=rewards, action_mask=one.bool(), kl=0 * one, index=index)
    experience.info = {}
    # Up to 0.10.1 the names of arguments have no dots.
    args = SimpleNamespace(
        algo=SimpleNamespace(advantage=SimpleNamespace(estimator=estimator, gamma=1.0, lambd=1.0, no_std_norm=False)),
        rollout=SimpleNamespace(n_samples_per_prompt=size),
        reward=SimpleNamespace(clip_range=bounds, overlong_buffer_len=None, stop_properly_penalty_coef=None),
        advantage_estimator=estimator,
        gamma=1.0,
        lambd=1.0,
        no_advantage_std_norm=False,
        n_samples_per_prompt=size,
        reward_clip_range=bounds,
        overlong_buffer_len=None,
    )
    kl_ctl = SimpleNamespace(value=0.0)
    strategy = SimpleNamespace(args=args)
    maker = SimpleNamespace(args=args, strategy=strategy, advantage_estimator=estimator, kl_ctl=kl_ctl)
    maker.get_cumulative_returns = RemoteExperienceMaker.get_cumulative_returns.__get__(maker)
    return RemoteExperienceMaker.compute_advantages_and_returns(maker, [experience])[0]


def gae_advantages(case: Case) -> Mapping[str, Any]:
    """`get_advantages_and_returns`, times the mask as the losses do."""
    rewards, values, mask = (tensor(case.inputs[name]) for name in ("rewards", "values", "mask"))
    gamma, lam = case.parameters.get("gamma", 1.0), case.parameters.get("lam", 1.0)
    found = RemoteExperienceMaker.get_advantages_and_returns(None, values, rewards, mask, gamma, lam)
    return {name: (one * mask).numpy() for name, one in zip(("advantages", "returns"), found, strict=True)}


def reinforce_returns(case: Case) -> Mapping[str, Any]:
    """`get_cumulative_returns`, times the mask as the losses do."""
    rewards, mask = tensor(case.inputs["rewards"]), tensor(case.inputs["mask"])
    found = RemoteExperienceMaker.get_cumulative_returns(None, rewards, mask, case.parameters.get("gamma", 1.0))
    return {"returns": (found * mask).numpy()}


def token_kl_rewards(case: Case) -> Mapping[str, Any]:
    """`compute_reward` with the KL estimate that the experience maker gives it."""
    mask = tensor(case.inputs["mask"]).bool()
    kl = torch.from_numpy(kl_penalty(case)["value"])
    found = compute_reward(tensor(case.inputs["rewards"]), case.parameters["coefficient"], kl, action_mask=mask)
    return {"rewards": (found * mask).numpy()}


OPERATIONS = {
    "kl_penalty": kl_penalty,
    "group_advantages": group_advantages,
    "leave_one_out_advantages": leave_one_out_advantages,
    "clip_rewards": clip_rewards,
    "gae_advantages": gae_advantages,
    "reinforce_returns": reinforce_returns,
    "token_kl_rewards": token_kl_rewards,
}
CAPABILITIES = offered(
    OPERATIONS,
    "logp old_logp advantages mask ref_logp rewards groups values",
    "objective estimator center scale ddof eps eps_placement gamma lam low high coefficient",
    dtypes=DTYPES,
    token_advantages=True,
    input_dtypes=INPUT_DTYPES,
)


def claims() -> TrainerTarget:
    """Every objective that `policy_loss_type` and `loss_agg_mode` claim."""
    versions = {"openrlhf": RELEASE, "torch": torch.__version__}
    return TrainerTarget(versions, DIALECT, RELEASE, policy_loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """`--actor.policy_loss_type gspo`, all else as it comes."""
    return claims().as_documented()
