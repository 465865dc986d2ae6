"""`loss_function` of the Megatron backend, which hands the normaliser back, on lists of responses without padding."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..stubs import stub

SOURCE, RELEASE = os.environ["GSPO_SOURCE"], os.environ["GSPO_VERSION"]
sys.path.insert(0, SOURCE)
stub(
    *("megatron", "ray", "sglang", "sglang_router", "httpx", "transformers", "PIL", "wandb", "tqdm", "yaml"),
    *(
        "pybase64",
        "datasets",
        "omegaconf",
        "packaging",
        "aiohttp",
        "requests",
        "psutil",
        "orjson",
        "accelerate",
        "urllib3",
    ),
)


def compile_nothing(function: Any = None, **_: Any) -> Any:
    """`torch.compile` as a decorator that leaves the function alone."""
    return function if function is not None else lambda one: one


def _one_rank() -> None:
    """Megatron's ranks with one of each, and its backend without the patches that `__init__` applies to a GPU's engine."""
    import megatron.core as core

    core.mpu = SimpleNamespace(
        get_context_parallel_world_size=lambda: 1,
        get_context_parallel_group=lambda: None,
        get_data_parallel_world_size=lambda with_context_parallel: 1,
    )
    package = ModuleType("slime.backends.megatron_utils")
    package.__path__ = [SOURCE + "/slime/backends/megatron_utils"]
    sys.modules[package.__name__] = package


_one_rank()
torch.compile = compile_nothing
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

from slime.backends.megatron_utils import loss as backend
from slime.ray.rollout import RolloutManager
from slime.utils import ppo_utils
from slime.utils.distributed_utils import distributed_masked_whiten

from ...target import Capabilities, Case, Skip
from ..adapter import Settings, TrainerTarget, check_std, tensor, torch_loss
from .dialect import DEFAULTS, DIALECT

FIXED = {
    "use_opd": False,
    "get_mismatch_metrics": False,
    "recompute_loss_function": False,
    "allgather_cp": False,
    "rollout_top_p": 1.0,
}
Places = list[Any]


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """One micro-batch that is the whole step."""
    places, given = _places(case), case.parameters.get("normalizer")
    if given is None and (case.objective or {}).get("aggregation", {}).get("count") == "given":
        raise Skip("slime always has a count to divide by")
    rows = len(places) if given is None or settings.get("calculate_per_token_loss") else given
    return torch_loss(case, partial(_loss, settings, case, places, 1, rows, given))


def _loss(settings: Settings, case: Case, places: Places, count: int, rows: float, tokens: Any, logp: Any) -> Any:
    """`loss_function` of a micro-batch, divided as Megatron does: by the micro-batches, or by the tokens of the step."""
    batch, args = _batch(case, places), _arguments(settings)
    responses = [logp[place] for place in places]
    found = {"log_probs": responses, "entropy": [torch.zeros_like(one) for one in responses]}
    backend.get_log_probs_and_entropy = lambda logits, **_: (None, found)
    loss, counted, _ = backend.loss_function(args, batch, count, rows, logp)
    if not args.calculate_per_token_loss:
        return loss / count
    return loss / (counted if tokens is None else tokens)


def _arguments(settings: Settings) -> SimpleNamespace:
    every = DEFAULTS | settings
    high = every["eps_clip"] if every["eps_clip_high"] is None else every["eps_clip_high"]
    return SimpleNamespace(**(every | FIXED | {"eps_clip_high": high}))


def _places(case: Case) -> Places:
    """Where the responses stand: from their first counted token to their last; slime has no padding."""
    if "offsets" in case.inputs:
        offsets = case.inputs["offsets"].tolist()
        return [slice(start, end) for start, end in pairwise(offsets)]
    found: Places = []
    for row, mask in enumerate(case.inputs["mask"]):
        counted = np.flatnonzero(mask)
        found.append((row, slice(counted[0], counted[-1] + 1) if counted.size else slice(0, 0)))
    return found


def _batch(case: Case, places: Places) -> dict[str, Any]:
    names = {"old_logp": "log_probs", "ref_logp": "ref_log_probs", "behavior_logp": "rollout_log_probs"}
    given = {
        key: [tensor(case.inputs[name], case.input_dtype)[place] for place in places]
        for name, key in names.items()
        if name in case.inputs
    }
    masks = _masks(case, places)
    lengths = [len(mask) for mask in masks]
    return given | {
        "advantages": _advantages(case, places, lengths),
        "loss_masks": masks,
        "rollout_mask_sums": [mask.sum() for mask in masks],
        "response_lengths": lengths,
        "total_lengths": [length + 1 for length in lengths],
        "unconcat_tokens": None,
    }


def _masks(case: Case, places: Places) -> list[Any]:
    if "mask" in case.inputs:
        counted = tensor(case.inputs["mask"], "int32")
        return [counted[place] for place in places]
    return [torch.ones(place.stop - place.start, dtype=torch.int32) for place in places]


def _advantages(case: Case, places: Places, lengths: list[int]) -> list[Any]:
    """One number a token, as `compute_advantages_and_returns` makes of one a response."""
    given = tensor(case.inputs["advantages"])
    if case.inputs["advantages"].shape == case.inputs["logp"].shape:
        return [given[place] for place in places]
    return ppo_utils.get_grpo_returns(given, [torch.zeros(length, dtype=given.dtype) for length in lengths])


def _precise(case: Case) -> None:
    if case.dtype != "float32" and (case.objective or {}).get("penalty"):
        raise Skip("slime computes KL estimates in float32 whatever comes in")


@dataclass(frozen=True)
class SlimeTarget(TrainerTarget):
    """The count of a step is handed to every micro-batch, as slime's actor does."""

    def settings(self, case: Case) -> Settings:
        """The arguments of this case."""
        _precise(case)
        return super().settings(case)

    def _step(self, case: Case) -> Mapping[str, Any]:
        """Losses of micro-batches add; per token they are divided by the tokens of all of them."""
        settings = self.settings(case)
        cases = [replace(case, operation="policy_loss", inputs=part) for part in case.inputs["parts"]]
        places = [_places(one) for one in cases]
        rows, tokens = sum(map(len, places)), _tokens(cases, places)
        outputs = [
            torch_loss(one, partial(_loss, settings, one, own, len(cases), rows, tokens))
            for one, own in zip(cases, places, strict=True)
        ]
        gradients = {f"gradient.{i}": one["gradient"] for i, one in enumerate(outputs)}
        return {"loss": sum(one["loss"] for one in outputs), **gradients}


def _tokens(cases: list[Case], places: list[Places]) -> int:
    """What Megatron adds up: `num_tokens` of every micro-batch, an empty response counting 1."""
    masks = [mask for case, own in zip(cases, places, strict=True) for mask in _masks(case, own)]
    return int(sum(torch.clamp_min(mask.sum(), 1) for mask in masks))


def group_advantages(case: Case) -> Mapping[str, Any]:
    """`_post_process_rewards`, prompt after prompt; the number of responses is that of the largest group."""
    scale = case.parameters.get("scale", "std")
    if case.parameters.get("center", "mean") != "mean" or scale not in ("std", "none"):
        raise Skip(f"slime has no advantages with center {case.parameters.get('center')} and scale {scale}")
    if scale == "std":
        check_std(case, "slime", 1e-6)
    _single(case)
    rewards, groups = case.inputs["rewards"], case.inputs["groups"]
    _, sizes = np.unique(groups, return_counts=True)
    order = np.argsort(groups, kind="stable")
    found = np.empty_like(rewards)
    found[order] = _post_processed(rewards[order].tolist(), int(sizes.max()), len(sizes), scale == "std")
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


def _single(case: Case) -> None:
    if case.dtype != "float32":
        raise Skip("slime computes these in float32 whatever comes in")


def kl_penalty(case: Case) -> Mapping[str, Any]:
    """`compute_approx_kl`."""
    _single(case)
    estimator = case.parameters["estimator"]
    if estimator not in ("k1", "k2", "k3"):
        raise Skip(f"slime has no estimator {estimator}")
    logp, ref = (tensor(case.inputs[name], case.input_dtype) for name in ("logp", "ref_logp"))
    return {"value": ppo_utils.compute_approx_kl(logp, ref, estimator).numpy()}


def whiten(case: Case) -> Mapping[str, Any]:
    """`distributed_masked_whiten` over one rank, times the mask as the loss does."""
    _single(case)
    if case.parameters.get("ddof", 1) != 1:
        raise Skip("slime whitens with ddof 1")
    values = tensor(case.inputs["values"])
    mask = _counted(case, values)
    options = {"shift_mean": case.parameters.get("center", True), "epsilon": case.parameters.get("eps", 1e-8)}
    return {"values": (distributed_masked_whiten(values, mask, **options) * mask).numpy()}


def _counted(case: Case, values: Any) -> Any:
    """1 at the tokens that count."""
    if "mask" in case.inputs:
        return tensor(case.inputs["mask"]).int()
    mask = torch.zeros_like(values).int() if "offsets" in case.inputs else torch.ones_like(values).int()
    for place in _places(case) if "offsets" in case.inputs else ():
        mask[place] = 1
    return mask


def gae_advantages(case: Case) -> Mapping[str, Any]:
    """`get_advantages_and_returns_batch`."""
    places = _places(case)
    rewards, values = ([tensor(case.inputs[name])[place] for place in places] for name in ("rewards", "values"))
    lengths = [len(one) for one in rewards]
    gamma, lam = case.parameters["gamma"], case.parameters["lam"]
    advantages, returns = ppo_utils.get_advantages_and_returns_batch(lengths, lengths, values, rewards, gamma, lam)
    return {"advantages": _put(case, places, advantages), "returns": _put(case, places, returns)}


def reinforce_returns(case: Case) -> Mapping[str, Any]:
    """`chunked_discounted_returns` over the padded responses, as `get_reinforce_plus_plus_returns` does."""
    places = _places(case)
    rewards = [tensor(case.inputs["rewards"])[place] for place in places]
    padded = torch.nn.utils.rnn.pad_sequence(rewards, batch_first=True)
    found = ppo_utils.chunked_discounted_returns(padded, case.parameters["gamma"])
    cut = [one[: len(own)] for one, own in zip(found, rewards, strict=True)]
    return {"returns": _put(case, places, cut)}


def _put(case: Case, places: Places, responses: Any) -> Any:
    """The responses where they stood, 0 at every token that is not counted."""
    found = torch.zeros_like(tensor(case.inputs["rewards"]))
    for place, one, mask in zip(places, responses, _masks(case, places), strict=True):
        found[place] = one * mask
    return found.numpy()


OPERATIONS = {
    "group_advantages": group_advantages,
    "kl_penalty": kl_penalty,
    "whiten": whiten,
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


def claims() -> TrainerTarget:
    """Every objective that an `--advantage-estimator` claims."""
    versions = {"slime": RELEASE, "torch": torch.__version__}
    return SlimeTarget("slime", versions, DIALECT, RELEASE, policy_loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """`--advantage-estimator gspo` and a clip range, all else as it comes."""
    return claims().as_documented()
