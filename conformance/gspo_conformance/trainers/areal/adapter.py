"""`ppo_actor_loss_fn` and `sapo_loss_fn`, padded and packed; `Normalization`, `KLEstimator`, and `PPOActor.compute_advantages` on its real configuration."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ..stubs import stub

SOURCE = os.environ.get("GSPO_SOURCE", "")
if SOURCE:
    sys.path.insert(0, SOURCE)
stub(
    *("aiohttp", "ray", "datasets", "peft", "accelerate", "torchdata", "swanlab", "trackio", "wandb", "tensorboardX"),
    *("numba", "pandas", "openai", "PIL", "orjson", "einops", "aiofiles", "psutil", "pybase64", "megatron", "mbridge"),
)

from areal.api import cli_args
from areal.api.cli_args import NormConfig, PPOActorConfig
from areal.utils import functional
from areal.utils.data import KLEstimator, Normalization

from ...target import DTYPES, LAYOUTS, Case, Skip
from .. import demands
from ..adapter import Settings, TrainerTarget, offered, tensor, torch_loss
from .dialect import ACTOR, DIALECT, MERGED, WHEEL
from .rows import in_groups, reward_first, shifted

RELEASE = os.environ["GSPO_VERSION"]
if (RELEASE == MERGED) != hasattr(functional, "dynamic_sampling"):
    raise RuntimeError(f"GSPO_SOURCE {SOURCE!r}: expected AReaL {RELEASE}, got another one")
if RELEASE == WHEEL:
    from areal.trainer.ppo.actor import PPOActor
else:
    from areal.engine.ppo.actor import PPOActor


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """One mini-batch on one rank: padded rows, or a pack with `cu_seqlens`."""
    config = _config(settings)
    old = tensor(case.inputs["old_logp"])
    sampled = tensor(case.inputs["behavior_logp"]) if config.use_decoupled_loss else old
    if config.use_decoupled_loss and case.dtype == "float64":
        raise Skip("AReaL's weights are computed in float32")
    plain = {
        "advantages": tensor(_advantages(case)),
        "loss_mask": tensor(_mask(case)),
        "importance_sampling_level": config.importance_sampling_level,
        "cu_seqlens": _bounds(case),
    }
    if getattr(config, "use_sapo_loss", False):
        taus = {"tau_pos": config.sapo_tau_pos, "tau_neg": config.sapo_tau_neg}
        return torch_loss(case, lambda logp: functional.sapo_loss_fn(logp, old, **plain, **taus)[0])
    clip = {name: getattr(config, name) for name in ("eps_clip", "eps_clip_higher", "c_clip", _correction())}
    return torch_loss(case, lambda logp: functional.ppo_actor_loss_fn(logp, old, sampled, **plain, **clip)[0])


def _correction() -> str:
    return "rejection_sampling" if RELEASE == WHEEL else "behav_imp_weight_cap"


def _config(settings: Settings) -> PPOActorConfig:
    own = {key.removeprefix(ACTOR): value for key, value in settings.items()}
    inner = {key: own.pop(key) for key in list(own) if key.startswith("rejection_sampling.")}
    if inner:
        own["rejection_sampling"] = cli_args.RejectionSamplingConfig(
            **{key.partition(".")[2]: inner[key] for key in inner}
        )
    return PPOActorConfig(experiment_name="", trial_name="", path="", **own)


def _mask(case: Case, of: str = "logp") -> Any:
    """Which tokens count; in a pack those behind its end do not."""
    if "offsets" not in case.inputs:
        return case.inputs["mask"] != 0
    counted = np.arange(case.inputs[of].shape[0]) < case.inputs["offsets"][-1]
    return counted & (case.inputs["mask"] != 0) if "mask" in case.inputs else counted


def _bounds(case: Case) -> Any:
    """`cu_seqlens`; padding at the end of a pack is a sequence of its own, as AReaL pads packs."""
    if "offsets" not in case.inputs:
        return None
    bounds, size = list(case.inputs["offsets"]), case.inputs["logp"].shape[0]
    return torch.tensor([*bounds, size] if size > bounds[-1] else bounds, dtype=torch.int32)


def _advantages(case: Case) -> Any:
    """Per token; `compute_advantages` leaves that of a response on every position up to its last counted token, holes and prompt included."""
    given, mask = case.inputs["advantages"], _mask(case)
    if given.shape == mask.shape:
        return np.where(mask, given, 0).astype(case.dtype)
    if "offsets" not in case.inputs:
        return np.where(_followed(mask), given[:, None], 0).astype(case.dtype)
    spans = zip(case.inputs["offsets"], case.inputs["offsets"][1:], given, strict=False)
    found = np.zeros(mask.shape)
    for start, end, advantage in spans:
        found[start:end] = np.where(_followed(mask[start:end]), advantage, 0)
    return found.astype(case.dtype)


def _followed(mask: Any) -> Any:
    """Where a counted token comes, here or later."""
    return np.flip(np.logical_or.accumulate(np.flip(mask, -1), -1), -1)


def _rows(case: Case) -> None:
    if "offsets" in case.inputs:
        raise Skip("AReaL computes rewards and advantages on padded rows")


def _single(case: Case) -> None:
    if case.dtype != "float32":
        raise Skip("AReaL returns float32 here whatever comes in")


def _norm(case: Case, mean: str | None, std: str | None, size: int = 1, *, others: bool = False) -> Normalization:
    unbiased = case.parameters.get("ddof", 1) == 1
    eps = case.parameters.get("eps", 1e-6)
    return Normalization(NormConfig(mean, others, std, unbiased, eps, size))


def group_advantages(case: Case) -> Mapping[str, Any]:
    """`Normalization` as `reward_norm`, with the groups one after another."""
    _single(case)
    center, scale = case.parameters.get("center", "mean"), case.parameters.get("scale", "std")
    if scale == "leave_one_out_std" or case.parameters.get("eps_placement", "std") != "std":
        raise Skip("AReaL adds eps to a standard deviation over the whole group")
    levels = {"std": "group", "batch_std": "batch", "none": None}
    mean = None if center == "none" else "group"
    norm = _norm(case, mean, levels[scale], demands.prompts(case)[1], others=center == "leave_one_out")
    return {"advantages": in_groups(case, norm)}


def leave_one_out_advantages(case: Case) -> Mapping[str, Any]:
    """`Normalization` with `mean_leave1out`."""
    _single(case)
    return {"advantages": in_groups(case, _norm(case, "group", None, demands.prompts(case)[1], others=True))}


def normalize_rewards(case: Case) -> Mapping[str, Any]:
    """`Normalization` over the batch or over groups."""
    _single(case)
    method = case.parameters.get("method")
    if method == "running":
        raise Skip("AReaL has no running normalisation")
    mean, std = (method if case.parameters.get(name) else None for name in ("shift", "scale"))
    size = demands.prompts(case)[1] if method == "group" else 1
    return {"rewards": in_groups(case, _norm(case, mean, std, size))}


def whiten(case: Case) -> Mapping[str, Any]:
    """`Normalization` as `adv_norm`; its eps is added to the standard deviation."""
    _single(case)
    if case.parameters.get("eps", 1e-8) > 1e-8 or not case.parameters.get("center", True):
        raise Skip("AReaL's eps is added to the standard deviation, and its mean is not added back")
    values = tensor(case.inputs["values"])
    tokens = "mask" in case.inputs or "offsets" in case.inputs
    mask = tensor(_mask(case, "values")).float() if tokens else None
    return {"values": _norm(case, "batch", "batch")(values, mask).numpy()}


def kl_penalty(case: Case) -> Mapping[str, Any]:
    """`KLEstimator`."""
    _single(case)
    return {"value": _estimator(case)(tensor(case.inputs["logp"]), tensor(case.inputs["ref_logp"])).numpy()}


def _estimator(case: Case) -> KLEstimator:
    return KLEstimator(demands.estimator(case, "AReaL", ("k1", "k2", "k3")))


def _computed(case: Case, batch: Mapping[str, Any], **options: Any) -> Mapping[str, Any]:
    """`PPOActor.compute_advantages` of rows that have one prompt token in front."""
    norm = options.pop("adv_norm", None)
    config = PPOActorConfig(experiment_name="", trial_name="", path="", adv_norm=norm, **options)
    actor = PPOActor(config, SimpleNamespace())
    found = dict(batch)
    compute = getattr(actor, "_compute_advantages", actor.compute_advantages)
    return compute(found) or found


def token_kl_rewards(case: Case) -> Mapping[str, Any]:
    """The rewards of the tokens that `compute_advantages` leaves in `tot_rewards`."""
    _single(case)
    _rows(case)
    _estimator(case)
    keys = {"kl_ctl": case.parameters["coefficient"], "kl_estimator": case.parameters["estimator"]}
    batch = shifted(case, case.inputs["logp"], case.inputs["ref_logp"])
    found = _computed(case, batch | {"rewards": tensor(case.inputs["rewards"])}, **keys)
    return {"rewards": found["tot_rewards"][:, :-1].numpy()}


def gae_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_advantages` with values; the rewards of the tokens enter as its KL term with coefficient 1."""
    found = _returned(case, "rewards")
    return {name: found[name] for name in ("advantages", "returns")}


def reinforce_returns(case: Case) -> Mapping[str, Any]:
    """`compute_advantages` without values, which are then 0."""
    return {"returns": _returned(case, "rewards")["returns"]}


def reinforce_pp_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_advantages` without values, and `adv_norm` over the batch."""
    if "groups" in case.inputs:
        raise Skip("AReaL subtracts no group mean from the rewards of tokens")
    norm = NormConfig("batch", False, "batch", True, case.parameters.get("eps", 1e-8))
    return {"advantages": _returned(case, "token_rewards", adv_norm=norm)["advantages"]}


def _returned(case: Case, name: str, **options: Any) -> dict[str, Any]:
    _single(case)
    _rows(case)
    batch = reward_first(case, name)
    keys = {"discount": case.parameters.get("gamma", 1.0), "gae_lambda": case.parameters.get("lam", 1.0)}
    found = _computed(case, batch, kl_ctl=1.0, **keys, **options)
    counted = case.inputs["mask"] != 0
    return {key: np.where(counted, found[key][:, : counted.shape[1]].numpy(), 0) for key in ("advantages", "returns")}


def soft_overlong_penalty(case: Case) -> Mapping[str, Any]:
    """`reward_overlong_penalty` on rewards of 0."""
    lengths, longest = case.inputs["lengths"], case.parameters["max_length"]
    mask = np.arange(int(lengths.max()) + 1) < lengths[:, None]
    batch = {"rewards": torch.zeros(len(lengths)), "loss_mask": tensor(mask), "input_ids": tensor(mask)}
    found = functional.reward_overlong_penalty(batch, int(case.parameters["cache"]), 1.0, int(longest))
    return {"values": found["rewards"].numpy()}


def informative_groups(case: Case) -> Mapping[str, Any]:
    """`dynamic_sampling`: which rows it keeps."""
    if case.parameters.get("low") is not None or case.parameters.get("high") is not None:
        raise Skip("AReaL's dynamic sampling has no bounds")
    order, size = demands.prompts(case)
    batch = {"rewards": tensor(case.inputs["rewards"][order]), "row": tensor(order)}
    kept, _ = functional.dynamic_sampling(batch, size)
    return {"keep": np.isin(np.arange(len(order)), kept["row"].numpy())}


OPERATIONS = {
    "group_advantages": group_advantages,
    "leave_one_out_advantages": leave_one_out_advantages,
    "normalize_rewards": normalize_rewards,
    "whiten": whiten,
    "kl_penalty": kl_penalty,
    "token_kl_rewards": token_kl_rewards,
    "gae_advantages": gae_advantages,
    "reinforce_returns": reinforce_returns,
    "reinforce_pp_advantages": reinforce_pp_advantages,
    "soft_overlong_penalty": soft_overlong_penalty,
    **({"informative_groups": informative_groups} if RELEASE == MERGED else {}),
}
CAPABILITIES = offered(
    OPERATIONS,
    "logp old_logp advantages mask offsets ref_logp behavior_logp groups rewards values token_rewards lengths",
    "objective center scale ddof eps eps_placement method shift gamma lam estimator coefficient max_length cache low high",
    dtypes=DTYPES,
    layouts=LAYOUTS,
    token_advantages=True,
)


def claims() -> TrainerTarget:
    """Every objective that the keys can express: those whose aggregation is the mean over tokens."""
    versions = {"areal": RELEASE if SOURCE else version("areal"), "torch": torch.__version__}
    return TrainerTarget(versions, DIALECT, RELEASE, policy_loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """`importance_sampling_level: sequence` and a clip range, all else as it comes."""
    return claims().as_documented(token_advantages=False)
