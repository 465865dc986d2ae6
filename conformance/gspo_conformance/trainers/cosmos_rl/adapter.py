"""`compute_loss` of the trainer under a validated `Config`; advantages by its `GRPO`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from inspect import signature
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ...words import HarnessError
from ..stubs import holding, names_only, stub, without_init

RELEASE = version("cosmos-rl")
NAME = f"Cosmos-RL {RELEASE}"
os.environ["COSMOS_LOG_LEVEL"] = "CRITICAL"  # it logs to the stream of the answers
stub(
    *("datasets", "PIL", "filelock", "msgpack", "tqdm", "pynvml", "huggingface_hub", "transformers", "safetensors"),
    *("strenum", "redis", "requests", "psutil", "boto3", "botocore", "toml", "uvicorn", "fastapi"),
)
without_init("cosmos_rl", "cosmos_rl.utils", "cosmos_rl.policy", "cosmos_rl.policy.trainer", "cosmos_rl.policy.model")
if not find_spec("cosmos_rl.policy.trainer.llm_trainer"):
    raise HarnessError(f"{NAME} has its loss in its processes: 0.3.7 is the first release that can be checked")
without_init("cosmos_rl.policy.trainer.llm_trainer", "cosmos_rl.dispatcher", "cosmos_rl.dispatcher.algo")
without_init("cosmos_rl.dispatcher.data", "cosmos_rl.dispatcher.data.packer")
names_only("cosmos_rl.patch", "cosmos_rl.utils.distributed")

from cosmos_rl.dispatcher.algo.grpo import GRPO
from cosmos_rl.policy.config import Config, GrpoConfig
from cosmos_rl.policy.trainer.base import Trainer
from cosmos_rl.utils.util import compute_logprobs

holding("cosmos_rl.policy.trainer.llm_trainer.llm_trainer", LLMTrainer=Trainer)

from cosmos_rl.policy.trainer.llm_trainer.grpo_trainer import compute_loss

from ...target import DTYPES, INPUT_DTYPES, LAYOUTS, Case, Skip
from ...tensors import NumPyArray
from .. import demands
from ..adapter import Settings, TrainerTarget, added, offered, parts_of, per_token, tensor, torch_loss
from .dialect import DEFAULTS, DIALECT
from .findings import POLICY

HAS = {POLICY + name for name in GrpoConfig.model_fields}
COUNTS = "normalization_counts" in compute_loss.__code__.co_consts
# Up to 0.4.6 the packed responses of a mini-batch are one to it, from their log-probabilities on.
SEPARATES = "logprob_cu_seqlens" in signature(compute_logprobs).parameters


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """One mini-batch that is the whole step, or a chunk of one whose counts the pipeline hands over."""
    given = demands.count(case, "Cosmos-RL")
    if given is None:
        return _loss(settings, case, 1.0, None)
    if not COUNTS:
        raise Skip(f"{NAME} takes no count of the step")
    if settings[POLICY + "loss_type"] == "token-sum":
        raise Skip("token-sum of Cosmos-RL divides by nothing")
    counts = {"sequences": given, "tokens": torch.tensor(float(given)), "dp_workers": 1}
    return _loss(settings, case, 1.0, counts)


def _loss(settings: Settings, case: Case, share: float, counts: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """`compute_loss` of the counted tokens, times the part of the step that they are."""
    own = tuple(sorted(demands.had(settings, HAS, DEFAULTS, NAME).items()))
    config, mask, ends = _config(own), _mask(case), _ends(case)
    if "offsets" in case.inputs and not SEPARATES:
        ends = ends[[0, -1]]
    if min(settings[POLICY + "epsilon_low"], settings[POLICY + "epsilon_high"]) < 0 and not _unbounded():
        raise Skip(f"{NAME} has no loss without a bound on the ratio")
    given = {name: tensor(case.inputs[name], case.input_dtype) for name in TENSORS if name in case.inputs}
    flat = {name: values.reshape(mask.shape)[mask] for name, values in given.items()}
    advantages = tensor(_advantages(case)).reshape(mask.shape)
    weighted = (case.objective or {}).get("correction") and "behavior_logp" in flat
    sampled = [flat["behavior_logp"].tolist()] if weighted else None

    def loss(logp: Any) -> Any:
        counted = logp.reshape(mask.shape)[mask]
        old, ref = flat["old_logp"], flat.get("ref_logp")
        options = {"rollout_per_token_logps": sampled, "normalization_counts": counts}
        try:
            return compute_loss(counted, old, ref, advantages, ends, config, mask, **options)[0] * share
        except ValueError as error:
            raise demands.refused(error, {"Invalid loss type": POLICY + "loss_type"}, settings, NAME) from error

    return torch_loss(case, loss)


TENSORS = ("old_logp", "ref_logp", "behavior_logp")


@cache
def _config(settings: tuple[tuple[str, Any], ...]) -> Any:
    """The configuration as its validators leave it."""
    policy = {key.removeprefix(POLICY): value for key, value in settings}
    return Config.model_validate({"train": {"train_policy": {"type": "grpo", **policy}}})


@cache
def _unbounded() -> bool:
    """Whether a negative epsilon is no bound: up to 0.3.8 it is one on the wrong side of 1."""
    config = _config(((POLICY + "epsilon_low", -1.0), (POLICY + "epsilon_high", -1.0)))
    one, two = torch.zeros(1), torch.full((1,), 0.5)
    loss = compute_loss(two, one, None, torch.ones(1, 1), torch.tensor([0, 1]), config, torch.ones(1, 1).bool())
    return bool(loss[0] < -1)


def _mask(case: Case) -> Any:
    """`logprob_masks`: of packed responses one row, without what stands behind the last of them."""
    if "mask" in case.inputs:
        mask = tensor(case.inputs["mask"]).bool()
    else:
        mask = torch.ones(case.inputs["logp"].shape, dtype=torch.bool)
    if "offsets" not in case.inputs:
        return mask
    mask[int(case.inputs["offsets"][-1]) :] = False
    return mask[None]


def _ends(case: Case) -> Any:
    """`cu_seqlens`: where the counted tokens of each response end."""
    mask = _mask(case)
    if "offsets" in case.inputs:
        lengths = torch.stack([mask[0, start:end].sum() for start, end in pairwise(case.inputs["offsets"].tolist())])
    else:
        lengths = mask.sum(1)
    return torch.cat([torch.zeros(1, dtype=torch.int32), lengths.cumsum(0).int()])


def _advantages(case: Case) -> NumPyArray:
    """One number a token, as the trainer spreads that of a response."""
    given = case.inputs["advantages"]
    if "offsets" not in case.inputs:
        return per_token(case)
    if given.shape == case.inputs["logp"].shape:
        return given
    found = np.zeros(case.inputs["logp"].shape, case.dtype)
    for one, (start, end) in zip(given, pairwise(case.inputs["offsets"].tolist()), strict=True):
        found[start:end] = one
    return found


class CosmosTarget(TrainerTarget):
    """The loss of a mini-batch is scaled by its share of the responses of the step, whatever it divides by."""

    def _step(self, case: Case) -> Mapping[str, Any]:
        settings, cases = self.settings(case), parts_of(case)
        rows = [len(_ends(one)) - 1 for one in cases]
        return added([_loss(settings, one, own / sum(rows), None) for one, own in zip(cases, rows, strict=True)])


def group_advantages(case: Case) -> Mapping[str, Any]:
    """`GRPO.compute_advantage`, prompt by prompt; `unbiased_advantage` leaves out the standard deviation."""
    _, scale = demands.center_and_scale(case, "Cosmos-RL", (("mean", "std"), ("mean", "none")))
    demands.single(case, "Cosmos-RL")
    if scale == "std":
        demands.std(case, "Cosmos-RL", 1e-6, ddof=0)
    algorithm, rewards, groups = GRPO(None, unbiased=scale == "none"), case.inputs["rewards"], case.inputs["groups"]
    found = np.zeros(rewards.shape, case.dtype)
    for group in np.unique(groups):
        found[groups == group] = algorithm.compute_advantage(rewards[groups == group].tolist())
    return {"advantages": found}


CAPABILITIES = offered(
    ("step", "pipeline", "group_advantages"),
    "logp old_logp advantages mask offsets ref_logp behavior_logp groups rewards",
    "objective normalizer advantages center scale ddof eps eps_placement",
    dtypes=DTYPES,
    layouts=LAYOUTS,
    token_advantages=True,
    input_dtypes=INPUT_DTYPES,
)


def claims() -> TrainerTarget:
    """Every objective that a `variant`, a `loss_type` and the weights claim."""
    versions = {"cosmos-rl": RELEASE, "torch": torch.__version__}
    operations = {"group_advantages": group_advantages}
    return CosmosTarget(versions, DIALECT, RELEASE, policy_loss, operations, CAPABILITIES)


def default() -> TrainerTarget:
    """`variant = "gspo"` and a clip range, all else as it comes."""
    return claims().as_documented()
