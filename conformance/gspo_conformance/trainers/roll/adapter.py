"""`ActorWorker.loss_func`, unbound, on a stand-in for the worker; the pipeline's own reward and advantage functions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, fields
from inspect import signature
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch

from ...target import DTYPES, Case, Skip
from .. import demands
from ..adapter import Settings, TrainerTarget, checkout, offered, overlaid, per_token, tensor, torch_loss
from ..dialect import Inexpressible
from ..stubs import stub
from .dialect import DIALECT, SEED, written_aggregation

SOURCE, RELEASE = checkout()
LOGS = TemporaryDirectory(prefix="gspo-roll-", ignore_cleanup_errors=True)
os.chdir(LOGS.name)  # it writes its logs into the working directory
stub(
    *("ray", "codetiming", "hydra", "omegaconf", "transfer_queue", "modelscope", "accelerate", "imageio", "tokenizers"),
    *("transformers", "peft", "deepspeed", "trl", "vllm", "sglang", "mcore_adapter", "megatron", "datasets"),
    "pybase64",
    *("more_itertools", "PIL", "dacite", "tqdm", "grpc", "huggingface_hub", "google", "prometheus_client", "psutil"),
    *("opentelemetry.exporter", "opentelemetry.proto", "packaging", "requests"),
)

from roll.distributed.scheduler.protocol import DataProto
from roll.pipeline.rlvr.actor_worker import ActorWorker
from roll.pipeline.rlvr.rlvr_config import RLVRConfig
from roll.utils import functionals
from roll.utils.kl_controller import get_kl_controller

GLOBAL_COUNTS = "batch_num_tokens" in signature(functionals.agg_loss).parameters
if (RELEASE == SEED) == GLOBAL_COUNTS:
    raise RuntimeError(f"GSPO_SOURCE {SOURCE}: expected a checkout of ROLL at {RELEASE}, got another one")


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """`loss_func` under `settings`; the counts of the step are those that the strategy hands it."""
    _own_counts(case)
    worker = _worker(settings)
    batch = _batch(case, settings)

    def loss(logp: Any) -> Any:
        worker.strategy.op_compute_log_probs = lambda **_: logp
        batch.batch["ref_log_probs"] = batch.batch.get("ref_log_probs", logp.detach())
        return ActorWorker.loss_func(worker, batch, logp)[0]

    return torch_loss(case, loss)


def _worker(settings: Settings) -> SimpleNamespace:
    """What `loss_func` reads of a worker: its configuration and its strategy."""
    worker = SimpleNamespace(pipeline_config=config(settings), _logprobs_cache={})
    entropy = {"op_compute_entropy": lambda logits, attention_mask: torch.zeros_like(logits.detach())}
    worker.strategy = SimpleNamespace(**entropy)
    for name in ("compute_sample_weights", "get_old_log_probs_with_cache"):
        if hasattr(ActorWorker, name):
            setattr(worker, name, getattr(ActorWorker, name).__get__(worker))
    return worker


def config(settings: Settings) -> SimpleNamespace:
    """The real defaults of `RLVRConfig` with these settings over them; a key that it does not have is an error."""
    return overlaid(SimpleNamespace(**_defaults()), settings, f"RLVRConfig of {RELEASE}")


def _defaults() -> dict[str, Any]:
    """Values of plain fields, and the correction's own configuration."""
    plain = {entry.name: entry.default for entry in fields(RLVRConfig) if entry.default is not MISSING}
    made = {entry.name: entry.default_factory for entry in fields(RLVRConfig) if entry.default_factory is not MISSING}
    return plain | {name: make() for name, make in made.items() if name == "train_infer_correction"}


def _batch(case: Case, settings: Settings) -> Any:
    """Rows with one prompt token in front: ROLL drops the first position of its masks."""
    mask = with_prompt(case.inputs["mask"])
    tensors = {
        "input_ids": torch.zeros_like(mask),
        "response_mask": mask,
        "advantages": tensor(per_token(case)),
        "old_log_probs": tensor(case.inputs["old_logp"]),
    }
    names = {"ref_logp": "ref_log_probs", "behavior_logp": "infer_logprobs"}
    tensors |= {names[key]: tensor(case.inputs[key]) for key in names if key in case.inputs}
    batch = DataProto.from_dict(tensors=tensors)
    if GLOBAL_COUNTS:
        batch.meta_info |= _counts(mask, case, settings)
    return batch


def _counts(mask: Any, case: Case, settings: Settings) -> dict[str, Any]:
    """Tokens and responses with a token, over all ranks and micro-batches of the step."""
    tokens, rows = mask.sum().clamp(min=1), torch.any(mask > 0, dim=-1).sum()
    given = case.parameters.get("normalizer")
    if given is not None:
        token_mean = settings["loss_agg_mode"] == "token-mean"
        tokens, rows = (torch.tensor(given), rows) if token_mean else (tokens, torch.tensor(given))
    return {"batch_num_tokens": {"response_mask": tokens}, "global_valid_samples": {"response_mask": rows}}


def _own_counts(case: Case) -> None:
    if demands.count(case, "ROLL") is not None and not GLOBAL_COUNTS:
        raise Skip(f"ROLL {SEED} divides by the counts of the micro-batch itself")


def with_prompt(mask: Any) -> Any:
    """A mask with a column of zeros in front."""
    counted = tensor(mask).long()
    return torch.cat([torch.zeros_like(counted[:, :1]), counted], dim=1)


def aggregate(case: Case) -> Mapping[str, Any]:
    """`agg_loss`."""
    try:
        mode = written_aggregation({"count": "all", "constant": 1.0, **case.parameters["mode"]})
    except Inexpressible as reason:
        raise Skip(str(reason)) from None
    _own_counts(case)
    mask, counts = tensor(case.inputs["mask"]).long(), {}
    if GLOBAL_COUNTS:
        found = _counts(mask, case, {"loss_agg_mode": mode})
        counts = {name: value["response_mask"] for name, value in found.items()}
    return {"value": functionals.agg_loss(tensor(case.inputs["values"]), mask, mode, **counts).numpy()}


def kl_penalty(case: Case) -> Mapping[str, Any]:
    """`compute_approx_kl`."""
    logp, ref = (tensor(case.inputs[name]) for name in ("logp", "ref_logp"))
    return {"value": functionals.compute_approx_kl(logp, ref, kl_penalty=_estimator(case)).numpy()}


def _estimator(case: Case) -> str:
    names = {"k1": "kl", "abs": "abs", "k2": "mse", "k3": "k3"}
    return names[demands.estimator(case, "ROLL", names)]


def group_advantages(case: Case) -> Mapping[str, Any]:
    """`reward_postprocess` with the normalisation that means the same, prompts one after another."""
    return {"advantages": _normalized(case, _norm_keys(case))}


def _norm_keys(case: Case) -> Settings:
    center, scale = case.parameters.get("center", "mean"), case.parameters.get("scale", "std")
    kinds = {"std": "group", "batch_std": "batch", "none": None}
    if center not in ("mean", "none") or scale not in kinds:
        raise Skip(f"ROLL has no normalisation with center {center} and scale {scale}")
    if center == "mean" and scale == "std":
        return {"adv_estimator": "grpo"}
    if RELEASE != SEED:
        mean = "group" if center == "mean" else None
        return {"adv_estimator": "reinforce", "norm_mean_type": mean, "norm_std_type": kinds[scale]}
    if (center, scale) == ("mean", "none"):
        return {"adv_estimator": "grpo", "reward_shift": True}
    if (center, scale) == ("none", "none"):
        return {"adv_estimator": "reinforce"}
    raise Skip(f"ROLL {SEED} has no normalisation with center {center} and scale {scale}")


def _normalized(case: Case, settings: Settings, moments: Any = None) -> Any:
    _fixed(case)
    return demands.by_prompt(case, lambda rewards, size: _postprocess(rewards, settings, size, moments))


def _fixed(case: Case) -> None:
    if case.parameters.get("ddof", 1) != 1 or case.parameters.get("eps", 1e-6) != 1e-6:
        raise Skip("ROLL's standard deviation has ddof 1, and 1e-6 is added to it")


def _postprocess(rewards: Any, settings: Settings, size: int = 1, moments: Any = None) -> Any:
    made = config(settings)
    made.actor_infer = SimpleNamespace(generating_args=SimpleNamespace(num_return_sequences=size))
    batch = DataProto.from_dict(tensors={"response_level_rewards": rewards})
    batch, _ = functionals.reward_postprocess(batch, made, {"domain": moments})
    return batch.batch["response_level_rewards"]


def normalize_rewards(case: Case) -> Mapping[str, Any]:
    """`reward_postprocess` with the keys of that method; `running` with the moments of the batches before."""
    method, shift, scale = (case.parameters.get(name) for name in ("method", "shift", "scale"))
    if method == "running":
        demands.single(case, "ROLL")
    if RELEASE == SEED:
        keys = {"reward_norm": method if shift or scale else None, "reward_shift": not scale, "reward_scale": not shift}
    else:
        keys = {"norm_mean_type": method if shift else None, "norm_std_type": method if scale else None}
    moments = functionals.RunningMoments()
    start = 0
    for size in map(int, case.inputs.get("history_sizes", ())):
        moments.update(tensor(case.inputs["history"][start : start + size]))
        start += size
    return {"rewards": _normalized(case, {"adv_estimator": "reinforce", **keys}, moments)}


def clip_rewards(case: Case) -> Mapping[str, Any]:
    """`reward_postprocess` with `reward_clip`."""
    low, high = case.parameters["low"], case.parameters["high"]
    if low != -high:
        raise Skip("ROLL's bounds are symmetric")
    return {"rewards": _postprocess(tensor(case.inputs["rewards"]), {"reward_clip": high}).numpy()}


def token_kl_rewards(case: Case) -> Mapping[str, Any]:
    """`compute_token_reward`; the reward goes to the last position that the attention mask has."""
    mask = with_prompt(case.inputs["mask"])
    positions = torch.arange(mask.shape[1]).expand_as(mask)
    last = (mask * positions).max(dim=1, keepdim=True).values
    tensors = {
        "response_level_rewards": tensor(case.inputs["rewards"]),
        "old_log_probs": tensor(case.inputs["logp"]),
        "ref_log_probs": tensor(case.inputs["ref_logp"]),
        "response_mask": mask,
        "attention_mask": (positions <= last).long(),
        "position_ids": positions,
    }
    made = config({"add_token_level_kl": True, "kl_penalty": _estimator(case)})
    control = get_kl_controller(case.parameters["coefficient"])
    batch, _ = functionals.compute_token_reward(DataProto.from_dict(tensors=tensors), made, control)
    return {"rewards": batch.batch["token_level_rewards"].numpy()}


def _advantages(case: Case, rewards: str, estimator: str, **options: Any) -> Any:
    demands.single(case, "ROLL")
    tensors = {"token_level_rewards": tensor(case.inputs[rewards]), "response_mask": with_prompt(case.inputs["mask"])}
    if "values" in case.inputs:
        tensors["values"] = tensor(case.inputs["values"])
    gamma, lam = case.parameters.get("gamma", 1.0), case.parameters.get("lam", 1.0)
    batch = DataProto.from_dict(tensors=tensors)
    functionals.compute_advantage(batch, gamma, lam, estimator, **options)
    return batch.batch


def gae_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_advantage` with `gae`."""
    found = _advantages(case, "rewards", "gae")
    return {"advantages": found["advantages"].numpy(), "returns": found["returns"].numpy()}


def reinforce_returns(case: Case) -> Mapping[str, Any]:
    """`compute_advantage` with `reinforce`."""
    return {"returns": _advantages(case, "rewards", "reinforce")["advantages"].numpy()}


def reinforce_pp_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_advantage` with `reinforce` and `whiten_advantages`."""
    if "groups" in case.inputs:
        raise Skip("ROLL subtracts no group mean from the rewards of tokens")
    found = _advantages(case, "token_rewards", "reinforce", whiten_advantages=True)
    return {"advantages": found["advantages"].numpy()}


def whiten(case: Case) -> Mapping[str, Any]:
    """`masked_whiten`, times the mask as its caller does."""
    demands.single(case, "ROLL")
    demands.whitening(case, "ROLL")
    values = tensor(case.inputs["values"])
    mask = tensor(case.inputs["mask"]).long() if "mask" in case.inputs else torch.ones_like(values).long()
    found = functionals.masked_whiten(values, mask, shift_mean=case.parameters.get("center", True))
    return {"values": (found * mask).numpy()}


OPERATIONS = {
    "aggregate": aggregate,
    "kl_penalty": kl_penalty,
    "group_advantages": group_advantages,
    "normalize_rewards": normalize_rewards,
    "clip_rewards": clip_rewards,
    "token_kl_rewards": token_kl_rewards,
    "gae_advantages": gae_advantages,
    "reinforce_returns": reinforce_returns,
    "reinforce_pp_advantages": reinforce_pp_advantages,
    "whiten": whiten,
}
STEPS = {"step"} if GLOBAL_COUNTS else set()
CAPABILITIES = offered(
    ("pipeline", *STEPS, *OPERATIONS),
    "logp old_logp advantages mask ref_logp behavior_logp groups rewards values token_rewards history history_sizes",
    "objective normalizer mode center scale ddof eps eps_placement method shift gamma lam estimator coefficient low high advantages",
    dtypes=DTYPES,
)


def claims() -> TrainerTarget:
    """Every objective that the keys can express."""
    versions = {"roll": RELEASE, "torch": torch.__version__}
    return TrainerTarget(versions, DIALECT, RELEASE, policy_loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """The loss keys of ROLL's page on GSPO; the reference of its KL term is the policy itself, so that the term is 0."""
    return claims().as_documented()
