"""`loss_function` of the Megatron backend, which hands the normaliser back, on lists of responses without padding."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..stubs import compile_nothing, stub, without_init

SOURCE, RELEASE = os.environ["GSPO_SOURCE"], os.environ["GSPO_VERSION"]
sys.path.insert(0, SOURCE)
stub(
    *("megatron", "ray", "sglang", "sglang_router", "httpx", "transformers", "PIL", "wandb", "tqdm", "yaml"),
    *("pybase64", "datasets", "omegaconf", "packaging", "aiohttp", "requests", "psutil", "orjson", "accelerate"),
    "urllib3",
)


def _one_rank() -> None:
    """Megatron's ranks with one of each, and its backend without the patches that `__init__` applies to a GPU's engine."""
    import megatron.core as core

    core.mpu = SimpleNamespace(
        get_context_parallel_world_size=lambda: 1,
        get_context_parallel_group=lambda: None,
        get_data_parallel_world_size=lambda with_context_parallel: 1,
    )
    without_init("slime.backends.megatron_utils")


_one_rank()
torch.compile = compile_nothing
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

from slime.backends.megatron_utils import loss as backend
from slime.ray.rollout import RolloutManager
from slime.utils import ppo_utils
from slime.utils.distributed_utils import distributed_masked_whiten

from ...target import Capabilities, Case, Skip
from ..adapter import Settings, TrainerTarget, tensor
from ..responses import Beside, ListLoss, ListTarget, arguments, places_of, put
from .dialect import DEFAULTS, DIALECT

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
    rewards, values = ([tensor(case.inputs[name])[place] for place in places] for name in ("rewards", "values"))
    lengths = [len(one) for one in rewards]
    gamma, lam = case.parameters["gamma"], case.parameters["lam"]
    advantages, returns = ppo_utils.get_advantages_and_returns_batch(lengths, lengths, values, rewards, gamma, lam)
    return {"advantages": put(case, places, advantages), "returns": put(case, places, returns)}


def reinforce_returns(case: Case) -> Mapping[str, Any]:
    """`chunked_discounted_returns` over the padded responses, as `get_reinforce_plus_plus_returns` does."""
    places = places_of(case)
    rewards = [tensor(case.inputs["rewards"])[place] for place in places]
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
INPUTS = "logp old_logp advantages mask offsets ref_logp behavior_logp groups rewards values"
GIVEN = "objective normalizer advantages center scale ddof eps eps_placement gamma lam estimator"
CAPABILITIES = Capabilities(
    operations=frozenset({"policy_loss", "step", "pipeline", *OPERATIONS}),
    dtypes=frozenset({"float32", "float64"}),
    layouts=frozenset({"padded", "packed"}),
    gradient=True,
    token_advantages=True,
    inputs=frozenset(INPUTS.split()),
    parameters=frozenset(GIVEN.split()),
)


def claims() -> ListTarget:
    """Every objective that an `--advantage-estimator` claims."""
    versions = {"slime": RELEASE, "torch": torch.__version__}
    loss = ListLoss("slime", _loss, ppo_utils.get_grpo_returns)
    return SlimeTarget("slime", versions, DIALECT, RELEASE, loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """`--advantage-estimator gspo` and a clip range, all else as it comes."""
    return claims().as_documented()
