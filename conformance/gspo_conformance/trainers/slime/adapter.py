"""`loss_function` of the Megatron backend, which hands the normaliser back, on lists of responses without padding."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ...target import DTYPES, Case, Skip
from ..adapter import Settings, TrainerTarget
from ..responses import Beside, ListLoss, ListTarget, arguments, listed, offered_of_lists, one_rank, places_of, put
from ..stubs import without_init
from .dialect import DEFAULTS, DIALECT

RELEASE = one_rank("packaging")
import megatron.core as core

core.mpu = SimpleNamespace(
    get_context_parallel_world_size=lambda: 1,
    get_context_parallel_group=lambda: None,
    get_data_parallel_world_size=lambda with_context_parallel: 1,
)
without_init("slime.backends.megatron_utils")  # it patches the engine of a GPU

from slime.backends.megatron_utils import loss as backend
from slime.ray.rollout import RolloutManager
from slime.utils import ppo_utils
from slime.utils.distributed_utils import distributed_masked_whiten

FIXED = {
    "use_opd": False,
    "get_mismatch_metrics": False,
    "recompute_loss_function": False,
    "allgather_cp": False,
    "rollout_top_p": 1.0,
}
BESIDE = Beside("slime")


def _loss(settings: Settings, batch: dict[str, Any], logp: Any, count: int, rows: float) -> tuple[Any, Any]:
    """`loss_function` of a micro-batch."""
    responses = batch["responses"]
    found = {"log_probs": responses, "entropy": [torch.zeros_like(one) for one in responses]}
    backend.get_log_probs_and_entropy = lambda logits, **_: (None, found)
    return backend.loss_function(arguments(DEFAULTS | settings, FIXED), batch, count, rows, logp)[:2]


class SlimeTarget(ListTarget):
    """The arguments of a case, where slime is as precise as its dtype."""

    def settings(self, case: Case) -> Settings:
        """The arguments of this case."""
        if case.dtype != "float32" and (case.objective or {}).get("penalty"):
            raise Skip("slime computes KL estimates in float32 whatever comes in")
        return super().settings(case)


def group_advantages(case: Case) -> Mapping[str, Any]:
    """`_post_process_rewards`, prompt after prompt; the number of responses is that of the largest group."""
    by_std = BESIDE.by_std(case)
    rewards, groups = case.inputs["rewards"], case.inputs["groups"]
    _, sizes = np.unique(groups, return_counts=True)
    order = np.argsort(groups, kind="stable")
    found = np.empty_like(rewards)
    found[order] = _post_processed(rewards[order].tolist(), int(sizes.max()), len(sizes), by_std)
    return {"advantages": found}


def _post_processed(rewards: list[float], size: int, prompts: int, by_std: bool) -> Any:
    args = SimpleNamespace(
        advantage_estimator="gspo",
        rewards_normalization=True,
        grpo_std_normalization=by_std and size > 1,  # its arguments switch it off for one response a prompt
        n_samples_per_prompt=size,
        rollout_batch_size=prompts,
    )
    manager = SimpleNamespace(args=args, custom_reward_post_process_func=None)
    samples = [SimpleNamespace(get_reward_value=lambda _, reward=reward: reward) for reward in rewards]
    return np.asarray(RolloutManager._post_process_rewards(manager, samples)[1])


def gae_advantages(case: Case) -> Mapping[str, Any]:
    """`get_advantages_and_returns_batch`."""
    places = places_of(case)
    rewards, values = (listed(case, name) for name in ("rewards", "values"))
    lengths = [len(one) for one in rewards]
    gamma, lam = case.parameters["gamma"], case.parameters["lam"]
    advantages, returns = ppo_utils.get_advantages_and_returns_batch(lengths, lengths, values, rewards, gamma, lam)
    return {"advantages": put(case, places, advantages), "returns": put(case, places, returns)}


def reinforce_returns(case: Case) -> Mapping[str, Any]:
    """`chunked_discounted_returns` over the padded responses, as `get_reinforce_plus_plus_returns` does."""
    places = places_of(case)
    rewards = listed(case, "rewards")
    padded = torch.nn.utils.rnn.pad_sequence(rewards, batch_first=True)
    found = ppo_utils.chunked_discounted_returns(padded, case.parameters["gamma"])
    cut = [one[: len(own)] for one, own in zip(found, rewards, strict=True)]
    return {"returns": put(case, places, cut)}


OPERATIONS = {
    "group_advantages": group_advantages,
    "kl_penalty": partial(BESIDE.kl_penalty, ppo_utils.compute_approx_kl),
    "whiten": partial(BESIDE.whiten, distributed_masked_whiten),
    "gae_advantages": gae_advantages,
    "reinforce_returns": reinforce_returns,
}
CAPABILITIES = offered_of_lists(OPERATIONS, dtypes=DTYPES)


def claims() -> ListTarget:
    """Every objective that an `--advantage-estimator` claims."""
    versions = {"slime": RELEASE, "torch": torch.__version__}
    loss = ListLoss("slime", _loss, ppo_utils.get_grpo_returns)
    return SlimeTarget(versions, DIALECT, RELEASE, loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """`--advantage-estimator gspo` and a clip range, all else as it comes."""
    return claims().as_documented()
