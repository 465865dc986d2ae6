"""verl's keys, below `actor_rollout_ref.actor`: `policy_loss.loss_mode` picks ratio and surrogate, `loss_agg_mode` the aggregation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Inexpressible, Reading, asides, completed
from .findings import ACTOR, ROLLOUT, findings

GROUP = "actor_rollout_ref.rollout.n"
OVERLONG = "overlong_buffer_cfg.enable"
BESIDE = {
    "algorithm.filter_groups.enable": "equal",
    "reward_model.overlong_buffer.enable": "overlong",
    f"reward_model.reward_kwargs.{OVERLONG}": "overlong",
    f"reward.reward_kwargs.{OVERLONG}": "overlong",
}
DEFAULTS: dict[str, Any] = {
    ACTOR + "policy_loss.loss_mode": "vanilla",
    ACTOR + "clip_ratio": 0.2,
    ACTOR + "clip_ratio_low": 0.2,
    ACTOR + "clip_ratio_high": 0.2,
    ACTOR + "clip_ratio_c": 3.0,
    ACTOR + "loss_agg_mode": "token-mean",
    ACTOR + "loss_scale_factor": None,
    ACTOR + "tau_pos": 1.0,
    ACTOR + "tau_neg": 1.05,
    ACTOR + "use_kl_loss": False,
    ACTOR + "kl_loss_coef": 0.001,
    ACTOR + "kl_loss_type": "low_var_kl",
    ACTOR + "ppo_mini_batch_size": 256,
    ACTOR + "ppo_epochs": 1,
    ACTOR + "entropy_coeff": 0,
    GROUP: 1,
    "data.train_batch_size": 1024,
    "data.max_response_length": 512,
    "algorithm.adv_estimator": "gae",
    "algorithm.norm_adv_by_std_in_grpo": True,
    "algorithm.use_kl_in_reward": False,
    "algorithm.kl_ctrl.kl_coef": 0.001,
    ROLLOUT + "rollout_is": None,
    ROLLOUT + "rollout_is_threshold": 2.0,
    ROLLOUT + "rollout_is_batch_normalize": False,
    ROLLOUT + "rollout_rs": None,
    ROLLOUT + "bypass_mode": False,
    **dict.fromkeys(BESIDE),
}
NO_DUAL = 1e9
AGGREGATIONS = {
    "token-mean": "token_mean",
    "token-sum": "token_sum",
    "seq-mean-token-sum": "sequence_mean_token_sum",
    "seq-mean-token-sum-norm": "sequence_mean_token_sum",
    "seq-mean-token-mean": "sequence_mean_token_mean",
}
ESTIMATORS = {
    "kl": "k1",
    "k1": "k1",
    "abs": "abs",
    "mse": "k2",
    "k2": "k2",
    "low_var_kl": "k3",
    "k3": "k3",
    "mse+": "k2",
    "k2+": "k2",
    "k3+": "k3_plus",
    "low_var_kl+": "k3_plus",
}
FIXED = ("sapo", "geo_mean")
CAPS = {"gspo": 10.0, "vanilla": 20.0, "sapo": 20.0, "cispo": 20.0}


class Verl(Dialect):
    """From 0.6.1 to 0.9.0 the loss mode `gspo` ignores `loss_agg_mode`; from 0.9.1 it obeys."""

    name = "verl"
    versions = ("0.9.0", "0.9.1")
    group: ClassVar[tuple[str, str]] = (GROUP, "its advantage is its reward: nothing is subtracted")
    fixes: ClassVar[dict[str, str]] = {
        "ratio": f"{ACTOR}policy_loss.loss_mode=gspo",
        "aggregation": f"{ACTOR}loss_agg_mode=seq-mean-token-mean",
        "clip": f"{ACTOR}clip_ratio_low=3e-4 {ACTOR}clip_ratio_high=4e-4",
        "penalty": f"{ACTOR}use_kl_loss=False",
        "advantages": "algorithm.adv_estimator=grpo",
        "scale": "algorithm.norm_adv_by_std_in_grpo=True",
        "updates": f"{ACTOR}ppo_mini_batch_size a quarter of data.train_batch_size",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What these keys optimise; keys without the prefix of the actor are accepted too."""
        given, every = completed(settings, DEFAULTS, ACTOR)
        mode = every[ACTOR + "policy_loss.loss_mode"]
        surrogate, ratio = _surrogate(mode, every)
        objective = {
            **PAPER,
            "ratio": ratio,
            "surrogate": surrogate,
            "aggregation": _aggregation(mode, every, version),
            "penalty": _penalty(mode, every, version),
            "correction": _correction(mode, every),
            "log_ratio_cap": CAPS.get(mode),
        }
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages=_advantages(every),
            estimator=str(every["algorithm.adv_estimator"]),
            updates_per_rollout=_updates(every),
            settings=every,
            given=frozenset(given),
            findings=(*findings(mode, every, given, version), *asides(every, BESIDE)),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The keys for an objective."""
        if objective["correction"]:
            raise Inexpressible("verl computes correction weights before the loss, not in it")
        mode, keys = _mode(objective)
        keys |= {ACTOR + "policy_loss.loss_mode": mode}
        keys |= _written_aggregation(mode, objective["aggregation"], version)
        return keys | _written_penalty(objective["penalty"])

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """`loss_mode: gspo` and a clip range."""
        return {
            ACTOR + "policy_loss.loss_mode": "gspo",
            ACTOR + "clip_ratio_low": clip["low"],
            ACTOR + "clip_ratio_high": clip["high"],
        }


def _surrogate(mode: str, every: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    low, high = every[ACTOR + "clip_ratio_low"], every[ACTOR + "clip_ratio_high"]
    low = every[ACTOR + "clip_ratio"] if low is None else low
    high = every[ACTOR + "clip_ratio"] if high is None else high
    if mode == "vanilla":
        dual = every[ACTOR + "clip_ratio_c"]
        return parts.clip(low, high, None if dual >= NO_DUAL else dual), "token"
    if mode == "gspo":
        return parts.clip(low, high), "gspo_token"
    if mode == "sapo":
        return {"kind": "sapo", "tau_pos": every[ACTOR + "tau_pos"], "tau_neg": every[ACTOR + "tau_neg"]}, "token"
    if mode == "geo_mean":
        return {"kind": "gmpo", "low": low, "high": high}, "token"
    if mode == "cispo":
        return parts.cispo(low, high), "token"
    if mode == "gpg":
        return {"kind": "reinforce", "gate": None}, "token"
    raise Inexpressible(f"loss_mode {mode!r} is not an objective of this family")


def _fixed(mode: str, version: str) -> bool:
    """Whether the loss mode aggregates by seq-mean-token-mean, whatever `loss_agg_mode` says."""
    return mode in FIXED or (mode == "gspo" and version == "0.9.0")


def _aggregation(mode: str, every: Mapping[str, Any], version: str) -> dict[str, Any]:
    if _fixed(mode, version):
        return dict(PAPER["aggregation"])
    name = every[ACTOR + "loss_agg_mode"]
    width = every[ACTOR + "loss_scale_factor"] or every["data.max_response_length"]
    scale = width if name == "seq-mean-token-sum-norm" else None
    return parts.aggregation(AGGREGATIONS[name], float(scale or 1.0))


def _penalty(mode: str, every: Mapping[str, Any], version: str) -> dict[str, Any] | None:
    """The KL term obeys `loss_agg_mode` where the loss does not."""
    if not every[ACTOR + "use_kl_loss"]:
        return None
    kind = every[ACTOR + "kl_loss_type"]
    if kind not in ESTIMATORS:
        raise Inexpressible(f"kl_loss_type {kind!r} of verl is not of this family")
    estimator, own = ESTIMATORS[kind], _aggregation("", every, version)
    aggregation = None if own == _aggregation(mode, every, version) else own
    return parts.kl_term(estimator, every[ACTOR + "kl_loss_coef"], aggregation=aggregation, **parts.clamps(estimator))


def _correction(mode: str, every: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A weight for the sampler: one bound holds it, `lower_upper` drops what is outside. The bypass, or no bound, computes none."""
    level, bounds = every[ROLLOUT + "rollout_is"], every[ROLLOUT + "rollout_is_threshold"]
    if level in (None, False) or bounds is None or every[ROLLOUT + "bypass_mode"]:
        return []
    if mode == "geo_mean" and level == "token":
        raise Inexpressible(
            "geo_mean of verl takes the geometric mean of the weights of a response, each held on its own"
        )
    low, _, high = str(bounds).rpartition("_")
    action, lower = ("mask", float(low)) if low else ("clamp", None)
    return [parts.weight(level, action, lower, None if math.isinf(float(high)) else float(high))]


def _advantages(every: Mapping[str, Any]) -> dict[str, Any] | None:
    estimator = every["algorithm.adv_estimator"]
    if estimator in ("grpo", "grpo_vectorized"):
        by_std = every["algorithm.norm_adv_by_std_in_grpo"] or estimator == "grpo_vectorized"
        return {"center": "mean", "scale": "std" if by_std else "none", "ddof": 1, "eps": 1e-6}
    return {"center": "leave_one_out", "scale": "none"} if estimator in ("rloo", "rloo_vectorized") else None


def _updates(every: Mapping[str, Any]) -> int | None:
    """Optimiser steps per rollout batch: mini-batches times epochs. The asynchronous trainer, which has no such batch, sets its size to 0."""
    batch, part = int(every["data.train_batch_size"]), int(every[ACTOR + "ppo_mini_batch_size"])
    return max(1, -(-batch // part)) * int(every[ACTOR + "ppo_epochs"]) if batch > 0 else None


def _mode(objective: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    surrogate, ratio = objective["surrogate"], objective["ratio"]
    kind, cap = surrogate["kind"], objective["log_ratio_cap"]
    if kind == "clip" and ratio in ("sequence", "gspo_token") and surrogate["dual"] is None and cap in (None, 10.0):
        return "gspo", _bounds(surrogate)
    if cap not in (None, 20.0) or (cap and kind not in ("clip", "sapo", "cispo")):
        raise Inexpressible("verl caps the log-ratio of gspo at 10, that of a token at 20, and holds no other")
    if kind == "clip" and ratio == "token":
        return "vanilla", _bounds(surrogate) | {ACTOR + "clip_ratio_c": surrogate["dual"] or NO_DUAL}
    if kind == "sapo" and ratio == "token":
        return "sapo", {ACTOR + "tau_pos": surrogate["tau_pos"], ACTOR + "tau_neg": surrogate["tau_neg"]}
    if kind == "gmpo":
        return "geo_mean", _bounds(surrogate)
    if kind == "cispo" and ratio == "token":
        return "cispo", _bounds({"low": parts.cispo_low(surrogate), "high": surrogate["high"]})
    if kind == "reinforce" and surrogate["gate"] is None:
        return "gpg", {}
    raise Inexpressible(f"no loss_mode of verl has the surrogate {kind} on the {ratio} ratio")


def _bounds(surrogate: Mapping[str, Any]) -> dict[str, Any]:
    return {ACTOR + "clip_ratio_low": surrogate["low"], ACTOR + "clip_ratio_high": surrogate["high"]}


def _written_aggregation(mode: str, aggregation: Mapping[str, Any], version: str) -> dict[str, Any]:
    name, constant = aggregation["mode"], aggregation["constant"]
    if name == "group_token_mean":
        raise Inexpressible("verl has no token mean per group")
    if name == "token_sum" and constant != 1:
        raise Inexpressible("verl divides a token sum by nothing")
    if _fixed(mode, version) and name != "sequence_mean_token_mean":
        raise Inexpressible(f"loss_mode {mode} of verl {version} and before aggregates by seq-mean-token-mean alone")
    if name == "sequence_mean_token_sum" and constant != 1:
        return {ACTOR + "loss_agg_mode": "seq-mean-token-sum-norm", ACTOR + "loss_scale_factor": constant}
    return {ACTOR + "loss_agg_mode": next(key for key, value in AGGREGATIONS.items() if value == name)}


def _written_penalty(penalty: Mapping[str, Any] | None) -> dict[str, Any]:
    if penalty is None:
        return {ACTOR + "use_kl_loss": False}
    estimator = penalty["estimator"]
    parts.check_kl(penalty, "verl")
    kind = next(key for key, value in ESTIMATORS.items() if value == estimator)
    return {
        ACTOR + "use_kl_loss": True,
        ACTOR + "kl_loss_type": kind,
        ACTOR + "kl_loss_coef": penalty["coefficient"],
    }


DIALECT = Verl()
