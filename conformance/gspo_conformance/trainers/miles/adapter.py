"""`loss_function` of the training backends, with Megatron's scaling, on lists of responses without padding."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from ...target import Case
from ..adapter import Settings, TrainerTarget
from ..responses import (
    Beside,
    ListLoss,
    ListTarget,
    arguments,
    listed,
    masks_of,
    offered_of_lists,
    one_rank,
    places_of,
    put,
)
from .dialect import DEFAULTS, DIALECT

RELEASE = one_rank("msgpack", "msgspec", "zmq", "mooncake")

from miles.backends.training_utils import loss as backend
from miles.backends.training_utils.loss_hub import losses, math_utils
from miles.backends.training_utils.parallel import ParallelState, set_parallel_state
from miles.ray.rollout.train_data_conversion import _post_process_rewards
from miles.utils.distributed_utils import distributed_masked_whiten
from miles.utils.ft_utils.process_group_utils import GroupInfo

FIXED = {
    "get_mismatch_metrics": False,
    "recompute_loss_function": False,
    "allgather_cp": False,
    "observe_training_entropy": False,
    "true_on_policy_mode": False,
    "qkv_format": "thd",
}
BESIDE = Beside("Miles")
RANKS = ("intra_dp", "intra_dp_cp", "cp", "tp", "pp", "ep", "etp", "indep_dp")
set_parallel_state(ParallelState(**{name: GroupInfo(0, 1, None) for name in RANKS}))


def _loss(settings: Settings, batch: dict[str, Any], logp: Any, count: int, rows: float) -> tuple[Any, Any]:
    """`loss_function` of a micro-batch, as the Megatron backend calls it."""
    losses.get_log_probs_and_entropy = lambda logits, **_: {"log_probs": batch["responses"]}
    options = {"apply_megatron_loss_scaling": True, "num_rollouts": rows}
    return backend.loss_function(arguments(DEFAULTS | settings, FIXED), batch, count, logp, **options)[:2]


def group_advantages(case: Case) -> Mapping[str, Any]:
    """`_post_process_rewards`, with the prompt of every response as its `group_index`."""
    by_std = BESIDE.by_std(case)
    args = SimpleNamespace(advantage_estimator="gspo", rewards_normalization=True, grpo_std_normalization=by_std)
    rewards, groups = case.inputs["rewards"].tolist(), case.inputs["groups"].tolist()
    samples = [
        SimpleNamespace(group_index=group, index=i, rollout_id=None, get_reward_value=lambda _, reward=reward: reward)
        for i, (reward, group) in enumerate(zip(rewards, groups, strict=True))
    ]
    return {"advantages": torch.tensor(_post_process_rewards(args, samples, None)[1]).numpy()}


def gae_advantages(case: Case) -> Mapping[str, Any]:
    """`get_advantages_and_returns_batch`; all rewards are those of tokens."""
    places, rewards = places_of(case), listed(case, "rewards")
    lengths = [len(one) for one in rewards]
    advantages, returns = math_utils.get_advantages_and_returns_batch(
        total_lengths=lengths,
        response_lengths=lengths,
        values_list=listed(case, "values"),
        rewards_list=rewards,
        terminal_rewards=[0.0] * len(lengths),
        qkv_format="thd",
        max_seq_lens=None,
        loss_masks=masks_of(case, places),
        gamma=case.parameters["gamma"],
        lambd=case.parameters["lam"],
    )
    return {"advantages": put(case, places, advantages), "returns": put(case, places, returns)}


def reinforce_returns(case: Case) -> Mapping[str, Any]:
    """`get_reinforce_plus_plus_returns`; all rewards are those of tokens, which it has as a KL penalty."""
    places, rewards = places_of(case), listed(case, "rewards")
    lengths = [len(one) for one in rewards]
    found = math_utils.get_reinforce_plus_plus_returns(
        rewards=torch.zeros(len(lengths)),
        kl=[-one for one in rewards],
        loss_masks=masks_of(case, places),
        response_lengths=lengths,
        total_lengths=lengths,
        kl_coef=1.0,
        gamma=case.parameters["gamma"],
    )
    return {"returns": put(case, places, found)}


OPERATIONS = {
    "group_advantages": group_advantages,
    "kl_penalty": partial(BESIDE.kl_penalty, math_utils.compute_approx_kl),
    "whiten": partial(BESIDE.whiten, distributed_masked_whiten),
    "gae_advantages": gae_advantages,
    "reinforce_returns": reinforce_returns,
}
CAPABILITIES = offered_of_lists(OPERATIONS)  # the ratio is computed in float32 whatever comes in


def claims() -> ListTarget:
    """Every objective that an `--advantage-estimator` claims."""
    versions = {"miles": RELEASE, "torch": torch.__version__}
    loss = ListLoss("Miles", _loss, math_utils.get_grpo_returns)
    return ListTarget(versions, DIALECT, RELEASE, loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """`--advantage-estimator gspo` and a clip range, all else as it comes."""
    return claims().as_documented()
