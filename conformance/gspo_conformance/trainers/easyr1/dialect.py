"""EasyR1's keys: `worker.actor.loss_type` picks ratio and surrogate, `loss_avg_mode` the aggregation; the defaults are those of its classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Inexpressible, Reading, asides, completed
from .findings import ACTOR, ALGORITHM, BESIDE, GROUP, LOSSES, OVERLONG, REWARD, findings

BATCH = "data.rollout_batch_size"
# Settings of its own that the objective does not depend on, and that resemble one of those that it does.
NEIGHBOURS = ("data.mini_rollout_batch_size", "worker.reward.reward_function")
DEFAULTS: dict[str, Any] = {
    ACTOR + "loss_type": "default",
    ACTOR + "loss_avg_mode": "token",
    ACTOR + "clip_ratio_low": 0.2,
    ACTOR + "clip_ratio_high": 0.3,
    ACTOR + "clip_ratio_dual": 3.0,
    ACTOR + "tau_positive": 1.0,
    ACTOR + "tau_negative": 1.05,
    ACTOR + "ppo_epochs": 1,
    ACTOR + "global_batch_size": 256,
    ACTOR + "micro_batch_size_per_device_for_update": 4,
    ACTOR + "dynamic_batching": True,
    GROUP: 1,
    BATCH: 512,
    ALGORITHM + "adv_estimator": "grpo",
    ALGORITHM + "disable_kl": False,
    ALGORITHM + "use_kl_loss": False,
    ALGORITHM + "kl_penalty": "kl",
    ALGORITHM + "kl_coef": 1e-3,
    ALGORITHM + "kl_type": "fixed",
    REWARD: None,
    **dict.fromkeys(NEIGHBOURS),
    **dict.fromkeys(BESIDE),
}
NO_DUAL = 1e9
CAP = 20.0
AGGREGATIONS = {"token": "token_mean", "seq": "sequence_mean_token_mean"}
RATIOS = {"gspo": "sequence", "gspo_token": "gspo_token", "default": "token"}
ESTIMATORS = {"kl": "k1", "abs": "abs", "mse": "k2", "low_var_kl": "k3"}
# Who else than the mean of a group makes advantages, and which of them are whitened over the tokens of the batch.
ELSEWHERE = {
    "gae": "a value head",
    "grpo_passk": "the lead of the best response of a group",
    "reinforce_plus_plus": "discounted returns",
    "remax": "the reward of a greedy response",
}
WHITENED = ("gae", "reinforce_plus_plus")


class EasyR1(Dialect):
    """`gspo` and `gspo_token` are the paper's ratio; the dual clip is always on, and 1e9 is as good as none."""

    name = "easyr1"
    versions = ("b44b311b",)
    clip_keys = (ACTOR + "clip_ratio_low", ACTOR + "clip_ratio_high")
    group: ClassVar[tuple[str, str]] = (GROUP, "the run is refused")
    fixes: ClassVar[dict[str, str]] = {
        "ratio": f"{ACTOR}loss_type=gspo",
        "surrogate": f"{ACTOR}loss_type=gspo",
        "aggregation": f"{ACTOR}loss_avg_mode=seq",
        "clip": f"{ACTOR}clip_ratio_low=3e-4 {ACTOR}clip_ratio_high=4e-4",
        "dual": f"{ACTOR}clip_ratio_dual=1e9",
        "penalty": f"{ALGORITHM}disable_kl=true",
        "advantages": f"{ALGORITHM}adv_estimator=grpo",
        "scale": f"{ALGORITHM}adv_estimator=grpo",
        "whiten": f"{ALGORITHM}adv_estimator=grpo",
        "updates": f"{ACTOR}global_batch_size a quarter of {BATCH}",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What these keys optimise; keys without the prefix of the actor are accepted too."""
        given, every = completed(settings, DEFAULTS, ACTOR)
        # The arguments of its reward function for DAPO come as one word, or one by one.
        if "overlong_penalty_factor" in str(every[REWARD]):
            every[OVERLONG] = every[REWARD]
        estimator = every[ALGORITHM + "adv_estimator"]
        objective = {
            **PAPER,
            "ratio": RATIOS.get(every[ACTOR + "loss_type"], "token"),
            "surrogate": _surrogate(every),
            "aggregation": parts.aggregation(_named(AGGREGATIONS, every, ACTOR + "loss_avg_mode")),
            "penalty": _penalty(every),
            "log_ratio_cap": None if every[ACTOR + "loss_type"] == "cispo" else CAP,
        }
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages=_advantages(estimator),
            estimator=ELSEWHERE.get(estimator, "group"),
            whiten=estimator in WHITENED,
            updates_per_rollout=_updates(every),
            settings=every,
            given=frozenset(given),
            findings=(*findings(every), *asides(every, BESIDE)),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The keys for an objective."""
        if objective["correction"]:
            raise Inexpressible("EasyR1 corrects for no sampler: its old log-probabilities are the trainer's own")
        if objective["log_ratio_cap"] not in (None, CAP):
            raise Inexpressible(f"EasyR1 caps the log-ratio at {CAP:g}, and at no other number")
        keys = _written_surrogate(objective["surrogate"], objective["ratio"])
        keys |= _written_aggregation(objective["aggregation"])
        return keys | _written_penalty(objective["penalty"])

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """Its example of GSPO: `gspo_token`, the mean over sequences, a clip range and no KL term."""
        return {
            ACTOR + "loss_type": "gspo_token",
            ACTOR + "loss_avg_mode": "seq",
            **_bounds(clip),
            ALGORITHM + "disable_kl": True,
        }


def _named(names: Mapping[str, str], every: Mapping[str, Any], key: str) -> str:
    """What a word means; one that the trainer refuses is refused."""
    if every[key] not in names:
        raise Inexpressible(f"{key} = {every[key]!r} of EasyR1 is not of this family")
    return names[every[key]]


def _surrogate(every: Mapping[str, Any]) -> dict[str, Any]:
    low, high, dual = (every[ACTOR + f"clip_ratio_{side}"] for side in ("low", "high", "dual"))
    loss = every[ACTOR + "loss_type"]
    if loss == "sapo":
        return {"kind": "sapo", "tau_pos": every[ACTOR + "tau_positive"], "tau_neg": every[ACTOR + "tau_negative"]}
    if loss == "cispo":
        return parts.cispo(low, high)
    return parts.clip(low, high, None if dual >= NO_DUAL else dual)


def _penalty(every: Mapping[str, Any]) -> dict[str, Any] | None:
    if every[ALGORITHM + "disable_kl"] or not every[ALGORITHM + "use_kl_loss"]:
        return None
    estimator = _named(ESTIMATORS, every, ALGORITHM + "kl_penalty")
    return parts.kl_term(estimator, every[ALGORITHM + "kl_coef"], **parts.clamps(estimator))


def _advantages(estimator: str) -> dict[str, Any] | None:
    if estimator == "grpo":
        return {"center": "mean", "scale": "std", "ddof": 1, "eps": 1e-6}
    return {"center": "leave_one_out", "scale": "none"} if estimator == "rloo" else None


def _updates(every: Mapping[str, Any]) -> int:
    """Optimiser steps per rollout batch, both counted in prompts: mini-batches times epochs."""
    batch, part = int(every[BATCH]), int(every[ACTOR + "global_batch_size"])
    return max(1, batch // part) * int(every[ACTOR + "ppo_epochs"])


def _bounds(surrogate: Mapping[str, Any]) -> dict[str, Any]:
    return {ACTOR + "clip_ratio_low": surrogate["low"], ACTOR + "clip_ratio_high": surrogate["high"]}


def _written_surrogate(surrogate: Mapping[str, Any], ratio: str) -> dict[str, Any]:
    kind, loss = surrogate["kind"], ACTOR + "loss_type"
    if kind == "clip" and ratio in RATIOS.values():
        name = next(key for key, value in RATIOS.items() if value == ratio)
        return {loss: name, ACTOR + "clip_ratio_dual": surrogate["dual"] or NO_DUAL, **_bounds(surrogate)}
    if kind == "sapo" and ratio == "token":
        return {loss: kind, ACTOR + "tau_positive": surrogate["tau_pos"], ACTOR + "tau_negative": surrogate["tau_neg"]}
    if kind == "cispo" and ratio == "token":
        return {loss: kind, **_bounds({"low": parts.cispo_low(surrogate), "high": surrogate["high"]})}
    raise Inexpressible(f"no {LOSSES} of EasyR1 has the surrogate {kind} on the {ratio} ratio")


def _written_aggregation(aggregation: Mapping[str, Any]) -> dict[str, Any]:
    mode, count, constant = aggregation["mode"], aggregation["count"], aggregation["constant"]
    if mode not in AGGREGATIONS.values() or constant != 1:
        raise Inexpressible(f"EasyR1 does not aggregate by {mode} with the constant {constant:g}")
    if mode == AGGREGATIONS["seq"] and count == "non_empty":
        raise Inexpressible("EasyR1 divides by the responses of a micro-batch, empty ones too")
    return {ACTOR + "loss_avg_mode": next(key for key, value in AGGREGATIONS.items() if value == mode)}


def _written_penalty(penalty: Mapping[str, Any] | None) -> dict[str, Any]:
    if penalty is None:
        return {ALGORITHM + "disable_kl": True}
    estimator = penalty["estimator"]
    parts.check_kl(penalty, "EasyR1")
    if estimator not in ESTIMATORS.values():
        raise Inexpressible(f"EasyR1 has no KL estimator {estimator}")
    kind = next(key for key, value in ESTIMATORS.items() if value == estimator)
    return {
        ALGORITHM + "use_kl_loss": True,
        ALGORITHM + "kl_penalty": kind,
        ALGORITHM + "kl_coef": penalty["coefficient"],
    }


DIALECT = EasyR1()
