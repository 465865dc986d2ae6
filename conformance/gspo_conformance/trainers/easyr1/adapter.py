"""`DataParallelPPOActor.update_policy` with given log-probabilities in the place of its model; the driver's own advantages and rewards."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from ...target import Case, Skip
from ...tensors import NumPyArray
from .. import demands
from ..adapter import (
    PaddedBatch,
    Settings,
    TrainerTarget,
    checkout,
    offered,
    parts_of,
    per_token,
    tensor,
    torch_kl,
    torch_loss,
)
from ..stubs import names_only, stub
from .dialect import AGGREGATIONS, DIALECT, ESTIMATORS
from .filtering import Rows
from .findings import ACTOR, ALGORITHM

SOURCE, RELEASE = checkout()
sys.path.insert(1, f"{SOURCE}/examples/reward_function")
stub(
    *("ray", "tensordict", "einops", "codetiming", "torchdata", "transformers", "accelerate", "peft", "flash_attn"),
    *("omegaconf", "datasets", "PIL", "qwen_vl_utils", "vllm", "jinja2", "wandb", "psutil", "pandas"),
    *("huggingface_hub", "safetensors", "mathruler", "tqdm", "cloudpickle", "pylatexenc", "numba", "msgspec"),
)
names_only("verl.utils.logger", "verl.workers.fsdp_workers")  # what writes logs, and the loop around the actor

from verl.trainer import core_algos, ray_trainer
from verl.utils import torch_functional
from verl.workers.actor import dp_actor
from verl.workers.actor.config import ActorConfig

overlong = import_module("dapo").soft_overlong_punishment
for module in (dp_actor, ray_trainer):
    module.tqdm = lambda parts, **_: parts
ESTIMATES = {value: key for key, value in ESTIMATORS.items()}
STEP = 0  # the size of a mini-batch that is the whole step


class Actor(dp_actor.DataParallelPPOActor):
    """The actor whose model answers with the log-probabilities of the case, and whose optimiser leaves them alone."""

    def _forward_micro_batch(self, micro_batch: dict[str, Any], temperature: float) -> Any:
        return micro_batch["logp"]

    def _optimizer_step(self) -> Any:
        return torch.zeros(())


class MiniBatch:
    """What `update_policy` asks of its `DataProto`, cut into micro-batches already."""

    def __init__(self, parts: Sequence[dict[str, Any]]) -> None:
        self.parts = parts
        self.meta_info = {"temperature": 1.0}
        self.batch = {"response_mask": torch.cat([part["response_mask"].flatten() for part in parts])}

    def select(self, *_: Any) -> MiniBatch:
        """Itself."""
        return self

    def split(self, size: int) -> list[Any]:
        """Itself as the one mini-batch of the step, then its micro-batches."""
        if size == STEP:
            return [self]
        return [SimpleNamespace(batch=part, non_tensor_batch={}) for part in self.parts]


def _losses(settings: Settings, parts: Sequence[dict[str, Any]], tokens: float | None) -> list[Any]:
    """What `update_policy` calls `backward` on, micro-batch after micro-batch; `tokens` are those of all ranks."""

    def all_reduce(total: Any, op: Any) -> None:
        if tokens is not None:
            total.fill_(tokens)

    dp_actor.dist = SimpleNamespace(all_reduce=all_reduce, ReduceOp=SimpleNamespace(SUM=None))
    with _recorded() as losses:
        Actor(_config(settings), torch.nn.Module()).update_policy(MiniBatch(parts))
    return losses


def _config(settings: Settings) -> ActorConfig:
    own = {key.removeprefix(ACTOR): value for key, value in settings.items() if key.startswith(ACTOR)}
    config = ActorConfig(**own, dynamic_batching=False, use_torch_compile=False)
    config.global_batch_size_per_device = STEP
    for name in ("disable_kl", "use_kl_loss", "kl_penalty", "kl_coef"):  # as `PPOConfig.post_init` hands them on
        if ALGORITHM + name in settings:
            setattr(config, name, settings[ALGORITHM + name])
    return config


@contextmanager
def _recorded() -> Iterator[list[Any]]:
    """The losses that `backward` is called on, kept in place of a backward pass."""
    losses: list[Any] = []
    with patch.object(torch.Tensor, "backward", lambda self: losses.append(self)):
        yield losses


def _part(case: Case, logp: Any) -> dict[str, Any]:
    """One micro-batch as the driver hands it over: float32, the mask as whole numbers."""
    batch = {
        "logp": logp,
        "response_mask": tensor(case.inputs["mask"]).long(),
        "old_log_probs": tensor(case.inputs["old_logp"]),
        "advantages": tensor(per_token(case)),
    }
    return batch | ({"ref_log_probs": tensor(case.inputs["ref_logp"])} if "ref_logp" in case.inputs else {})


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """`update_policy` of one micro-batch; the count of a step is that of its tokens."""
    tokens = demands.count(case, "EasyR1")
    if tokens is not None and settings[ACTOR + "loss_avg_mode"] == "seq":
        raise Skip("the only count of a step that EasyR1 has is that of its tokens")
    return torch_loss(case, lambda logp: _losses(settings, [_part(case, logp)], tokens)[0])


class EasyR1Target(TrainerTarget):
    """A step is one mini-batch that `update_policy` goes through in the micro-batches of the case."""

    def _step(self, case: Case) -> Mapping[str, Any]:
        settings = self.settings(case)
        cases = parts_of(case)
        leaves = [tensor(one.inputs["logp"]).requires_grad_() for one in cases]
        parts = [_part(one, logp) for one, logp in zip(cases, leaves, strict=True)]
        loss = sum(_losses(settings, parts, None), torch.zeros(()))
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        found = {
            f"gradient.{i}": (torch.zeros_like(leaf) if one is None else one).numpy()
            for i, (one, leaf) in enumerate(zip(gradients, leaves, strict=True))
        }
        return {"loss": loss.detach().numpy(), **found}


def aggregate(case: Case) -> Mapping[str, Any]:
    """`average_loss`."""
    mode = case.parameters["mode"]
    names = {value: key for key, value in AGGREGATIONS.items()}
    if mode["mode"] not in names or mode["constant"] != 1 or mode["count"] != "all" or "normalizer" in case.parameters:
        raise Skip(f"EasyR1 has no average_loss for {mode['mode']}, its count or its constant")
    mask = tensor(case.inputs["mask"]).long()
    return {"value": core_algos.average_loss(tensor(case.inputs["values"]), mask, names[mode["mode"]]).numpy()}


def kl_penalty(case: Case) -> Mapping[str, Any]:
    """`compute_kl`."""
    name = _kl_name(case)
    return torch_kl(case, lambda logp, ref: core_algos.compute_kl(logp, ref, name))


def _kl_name(case: Case) -> str:
    return ESTIMATES[demands.estimator(case, "EasyR1", ESTIMATES)]


def group_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_advantage` with `grpo`, or `rloo`."""
    center, _ = demands.center_and_scale(case, "EasyR1", (("mean", "std"), ("leave_one_out", "none")))
    if center == "leave_one_out":
        return leave_one_out_advantages(case)
    demands.std(case, "EasyR1", 1e-6)
    return {"advantages": _outcome(case, "grpo")}


def leave_one_out_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_advantage` with `rloo`."""
    return {"advantages": _outcome(case, "rloo")}


def _outcome(case: Case, estimator: str) -> NumPyArray:
    rewards = tensor(case.inputs["rewards"])[:, None]
    index = np.asarray([str(group) for group in case.inputs["groups"]], dtype=object)
    return _estimated(rewards, torch.ones_like(rewards).long(), estimator, index)["advantages"][:, 0].numpy()


def _estimated(rewards: Any, mask: Any, estimator: str, index: Any = None, gamma: float = 1.0) -> dict[str, Any]:
    batch = {"token_level_rewards": rewards, "response_mask": mask}
    data = SimpleNamespace(batch=batch, non_tensor_batch={"uid": index})
    return ray_trainer.compute_advantage(data, estimator, gamma=gamma).batch


def _returns(case: Case, name: str) -> tuple[dict[str, Any], Any]:
    mask = tensor(case.inputs["mask"]).long()
    rewards = tensor(case.inputs[name])
    return _estimated(rewards, mask, "reinforce_plus_plus", gamma=case.parameters["gamma"]), mask


def reinforce_returns(case: Case) -> Mapping[str, Any]:
    """The returns of `reinforce_plus_plus`, times the mask as in a loss."""
    found, mask = _returns(case, "rewards")
    return {"returns": (found["returns"] * mask).numpy()}


def reinforce_pp_advantages(case: Case) -> Mapping[str, Any]:
    """The advantages of `reinforce_plus_plus`, times the mask as in a loss."""
    if "groups" in case.inputs:
        raise Skip("EasyR1 subtracts no group mean from the rewards of tokens")
    demands.whitening(case, "EasyR1")
    found, mask = _returns(case, "token_rewards")
    return {"advantages": (found["advantages"] * mask).numpy()}


def whiten(case: Case) -> Mapping[str, Any]:
    """`masked_whiten`, times the mask as in a loss."""
    if case.parameters.get("ddof", 1) != 1 or not case.parameters.get("center", True):
        raise Skip("EasyR1 whitens with ddof 1 and subtracts the mean")
    mask = tensor(case.inputs["mask"]).long()
    found = torch_functional.masked_whiten(tensor(case.inputs["values"]), mask, case.parameters.get("eps", 1e-8))
    return {"values": (found * mask).numpy()}


def token_kl_rewards(case: Case) -> Mapping[str, Any]:
    """`apply_kl_penalty`; the reward of a response stands at its last counted token."""
    mask = tensor(case.inputs["mask"]).long()
    last = (mask * torch.arange(mask.shape[1])).argmax(dim=1)
    scores = torch.zeros(mask.shape)
    scores[torch.arange(len(last)), last] = tensor(case.inputs["rewards"])
    batch = PaddedBatch(
        token_level_scores=scores * mask,
        response_mask=mask,
        old_log_probs=tensor(case.inputs["logp"]),
        ref_log_probs=tensor(case.inputs["ref_logp"]),
    )
    batch.batch_size = mask.shape
    control = core_algos.FixedKLController(case.parameters["coefficient"])
    data, _ = ray_trainer.apply_kl_penalty(SimpleNamespace(batch=batch), control, _kl_name(case))
    return {"rewards": data.batch["token_level_rewards"].numpy()}


def soft_overlong_penalty(case: Case) -> Mapping[str, Any]:
    """`soft_overlong_punishment` of its reward function for DAPO."""
    limits = case.parameters["max_length"], case.parameters["cache"]
    found = [overlong(length, *limits) for length in case.inputs["lengths"].tolist()]
    return {"values": np.array(found).astype(case.dtype)}


def informative_groups(case: Case) -> Mapping[str, Any]:
    """`_make_batch_data` with `online_filtering`."""
    low, high = case.parameters.get("low"), case.parameters.get("high")
    if low is None or high is None:
        raise Skip("EasyR1 holds the mean of a group between two bounds, and always has both")
    return {"keep": Rows(case.inputs["groups"], case.inputs["rewards"]).kept(ray_trainer, low, high)}


OPERATIONS = {
    "aggregate": aggregate,
    "kl_penalty": kl_penalty,
    "group_advantages": group_advantages,
    "leave_one_out_advantages": leave_one_out_advantages,
    "reinforce_returns": reinforce_returns,
    "reinforce_pp_advantages": reinforce_pp_advantages,
    "whiten": whiten,
    "token_kl_rewards": token_kl_rewards,
    "soft_overlong_penalty": soft_overlong_penalty,
    "informative_groups": informative_groups,
}
CAPABILITIES = offered(  # float32: 1e-8 stands in every denominator, and KL estimates are float32 whatever comes in
    ("step", "pipeline", *OPERATIONS),
    "logp old_logp advantages mask ref_logp groups rewards token_rewards values lengths",
    "objective normalizer advantages mode center scale ddof eps eps_placement gamma estimator coefficient low high max_length cache",
    token_advantages=True,
)


def claims() -> EasyR1Target:
    """Every objective that a `loss_type` claims."""
    versions = {"easyr1": RELEASE, "torch": torch.__version__}
    return EasyR1Target(versions, DIALECT, RELEASE, policy_loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """Its example of GSPO, all else as it comes."""
    return claims().as_documented()
