"""AReaL's keys, below `actor`: `importance_sampling_level` is the ratio; the aggregation is the mean over tokens, whatever is set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Inexpressible, Reading, asides
from .findings import findings

ACTOR = "actor."
MERGED, WHEEL = "981e3f68", "1.0.4"
CAP = f"{ACTOR}behav_imp_weight_cap"
REJECTION = f"{ACTOR}rejection_sampling"
NORM: dict[str, Any] = {
    "mean_level": "batch",
    "mean_leave1out": False,
    "std_level": "batch",
    "std_unbiased": True,
    "eps": 1e-5,
    "group_size": 1,
}
BOUNDS: dict[str, Any] = {
    "level": "token",
    "action": "mask",
    "metric": "ratio",
    "agg": "mean",
    "upper": 5.0,
    "lower": None,
}
SHARED: dict[str, Any] = {
    f"{ACTOR}importance_sampling_level": "token",
    f"{ACTOR}eps_clip": 0.2,
    f"{ACTOR}eps_clip_higher": None,
    f"{ACTOR}c_clip": None,
    f"{ACTOR}kl_ctl": 0.1,
    f"{ACTOR}kl_estimator": "k1",
    f"{ACTOR}reward_scaling": 1.0,
    f"{ACTOR}reward_bias": 0.0,
    f"{ACTOR}reward_clip": 20.0,
    f"{ACTOR}overlong_reward_penalty": False,
    f"{ACTOR}mask_no_eos_with_zero": False,
    f"{ACTOR}discount": 1.0,
    f"{ACTOR}gae_lambda": 1.0,
    f"{ACTOR}recompute_logprob": False,
    f"{ACTOR}use_decoupled_loss": False,
    f"{ACTOR}ppo_n_minibatches": 4,
    f"{ACTOR}m2_threshold": None,
    f"{ACTOR}reward_norm": None,
    f"{ACTOR}adv_norm": None,
    "gconfig.n_samples": 1,
}
OWN: dict[str, dict[str, Any]] = {
    MERGED: {CAP: None, f"{ACTOR}dynamic_sampling": False, f"{ACTOR}group_size": 1},
    WHEEL: {
        REJECTION: None,
        f"{ACTOR}prox_logp_method": "recompute",
        f"{ACTOR}use_sapo_loss": False,
        f"{ACTOR}sapo_tau_pos": 1.0,
        f"{ACTOR}sapo_tau_neg": 1.05,
    },
}
BESIDE = {f"{ACTOR}dynamic_sampling": "equal", f"{ACTOR}overlong_reward_penalty": "overlong"}
NESTED = {f"{ACTOR}reward_norm": NORM, f"{ACTOR}adv_norm": NORM, REJECTION: BOUNDS}
LEVELS = {"token": "token", "sequence": "geometric"}


class Areal(Dialect):
    """`981e3f68` is the commit that merged GSPO (November 2025), `1.0.4` the package."""

    name = "areal"
    versions = (MERGED, WHEEL)
    clip_keys = (f"{ACTOR}eps_clip", f"{ACTOR}eps_clip_higher")
    fixes: ClassVar[dict[str, str]] = {
        "ratio": f"{ACTOR}importance_sampling_level=sequence",
        "aggregation": "no setting of AReaL gives it (its issue 1423): put the loss of gspo_torch in its place",
        "clip": f"{ACTOR}eps_clip=3e-4 {ACTOR}eps_clip_higher=4e-4",
        "dual": f"{ACTOR}c_clip=null",
        "penalty": f"{ACTOR}kl_ctl=0",
        "advantages": f"{ACTOR}reward_norm.mean_level=group {ACTOR}reward_norm.group_size=the number of responses",
        "scale": f"{ACTOR}reward_norm.std_level=group",
        "whiten": f"{ACTOR}adv_norm=null",
        "updates": f"{ACTOR}ppo_n_minibatches=4",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What these keys optimise; keys without the prefix of the actor are accepted too."""
        known = SHARED | OWN[version]
        given = {key: _resolved(value, settings) for key, value in _prefixed(settings, known).items()}
        every = known | _nested(given) | given
        level = every[f"{ACTOR}importance_sampling_level"]
        if level not in ("token", "sequence"):
            raise Inexpressible(f"importance_sampling_level {level!r} is not accepted by AReaL")
        objective = {
            **PAPER,
            "ratio": level,
            "surrogate": _surrogate(every),
            "aggregation": parts.aggregation("token_mean"),
            "correction": _correction(every, version),
        }
        reading = Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages=_advantages(every),
            estimator="rewards less the mean of the batch" if _advantages(every) is None else "group",
            whiten="batch" in (_of(every, "adv_norm", "mean_level"), _of(every, "adv_norm", "std_level")),
            updates_per_rollout=_updates(every),
            settings=every,
            given=frozenset(given),
        )
        return reading.with_findings(*findings(every, settings, reading), *asides(every, BESIDE))

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The keys for an objective."""
        aggregation = objective["aggregation"]
        if aggregation["mode"] != "token_mean" or aggregation["count"] == "given":
            raise Inexpressible(
                f"AReaL aggregates by the mean over tokens alone, not by {aggregation['mode']} (its issue 1423)"
            )
        if objective["penalty"] is not None:
            raise Inexpressible("AReaL's KL term is in the rewards, not in the loss")
        keys = {f"{ACTOR}importance_sampling_level": objective["ratio"], **_written_surrogate(objective, version)}
        return keys | _written_correction(objective, version)

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """`importance_sampling_level: sequence` and a clip range."""
        keys = {"importance_sampling_level": "sequence", "eps_clip": clip["low"], "eps_clip_higher": clip["high"]}
        return {ACTOR + key: value for key, value in keys.items()}


def _prefixed(settings: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that this version reads, a whole nested configuration among them."""
    found = {}
    for key, value in settings.items():
        full = key if key in known or key.startswith(ACTOR) else ACTOR + key
        outer, _, inner = full.rpartition(".")
        if full in known or (outer in known and inner in NESTED.get(outer, {})):
            found[full] = value
    return found


def _resolved(value: Any, settings: Mapping[str, Any]) -> Any:
    """`${gconfig.n_samples}` is the value of that key."""
    reference = isinstance(value, str) and value.startswith("${") and value.endswith("}")
    return settings.get(value[2:-1], value) if reference else value


def _nested(given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of every nested configuration of which a key is given."""
    found = {}
    for outer, inner in NESTED.items():
        if any(key.startswith(f"{outer}.") for key in given):
            found |= {outer: True} | {f"{outer}.{key}": value for key, value in inner.items()}
    return found


def _of(every: Mapping[str, Any], outer: str, inner: str) -> Any:
    return every.get(f"{ACTOR}{outer}.{inner}") if every.get(f"{ACTOR}{outer}") else None


def _surrogate(every: Mapping[str, Any]) -> dict[str, Any]:
    if every.get(f"{ACTOR}use_sapo_loss"):
        return {"kind": "sapo", "tau_pos": every[f"{ACTOR}sapo_tau_pos"], "tau_neg": every[f"{ACTOR}sapo_tau_neg"]}
    high = parts.upper(every, f"{ACTOR}eps_clip", f"{ACTOR}eps_clip_higher")
    return parts.clip(every[f"{ACTOR}eps_clip"], high, every[f"{ACTOR}c_clip"])


def _correction(every: Mapping[str, Any], version: str) -> list[dict[str, Any]]:
    """The weight of the proximal policy over the sampler, where the loss is decoupled."""
    if not every[f"{ACTOR}use_decoupled_loss"]:
        return []
    if version == MERGED:
        return [parts.weight("token", "mask", high=every[CAP])]
    if not every[REJECTION]:
        return []
    level, action, low, high = (every[f"{REJECTION}.{name}"] for name in ("level", "action", "lower", "upper"))
    if every[f"{REJECTION}.metric"] != "ratio":
        return [parts.weight("token", "clamp")]
    if level == "token" or action == "clamp" or every[f"{REJECTION}.agg"] == "mean":
        return [parts.weight(LEVELS[level], action, low, high)]
    free = parts.weight(LEVELS[level], "clamp")
    return [free, parts.weight("sequence", "reject", low, high)] if every[f"{REJECTION}.agg"] == "sum" else [free]


def _advantages(every: Mapping[str, Any]) -> dict[str, Any] | None:
    """The normalisation of the rewards; without one they are their own advantages."""
    if not every[f"{ACTOR}reward_norm"]:
        return {"center": "none", "scale": "none"}
    names = ("mean_level", "mean_leave1out", "std_level", "std_unbiased", "eps")
    mean, others, std, unbiased, eps = (_of(every, "reward_norm", name) for name in names)
    if mean == "batch":
        return None
    center = ("leave_one_out" if others else "mean") if mean == "group" else "none"
    return {
        "center": center,
        "scale": {"group": "std", "batch": "batch_std", None: "none"}[std],
        "ddof": int(bool(unbiased)),
        # It is added to the spread of scaled rewards.
        "eps": eps / (abs(every[f"{ACTOR}reward_scaling"]) or 1.0),
    }


def _updates(every: Mapping[str, Any]) -> int | None:
    """Mini-batches per rollout batch; one alone leaves the ratio at 1 only where its denominator is recomputed."""
    parts = int(every[f"{ACTOR}ppo_n_minibatches"])
    recomputed = every[f"{ACTOR}recompute_logprob"] or every[f"{ACTOR}use_decoupled_loss"]
    return parts if parts > 1 or recomputed else None


def _written_surrogate(objective: Mapping[str, Any], version: str) -> dict[str, Any]:
    surrogate, ratio = objective["surrogate"], objective["ratio"]
    if ratio not in ("token", "sequence") or objective["log_ratio_cap"] is not None:
        raise Inexpressible(f"AReaL has no {ratio} ratio" + " with a cap" * (objective["log_ratio_cap"] is not None))
    if surrogate["kind"] == "sapo" and version == WHEEL:
        taus = {f"{ACTOR}sapo_{name}": surrogate[name] for name in ("tau_pos", "tau_neg")}
        return {f"{ACTOR}use_sapo_loss": True, **taus}
    if surrogate["kind"] != "clip":
        raise Inexpressible(f"AReaL {version} has no {surrogate['kind']} surrogate")
    keys = {"eps_clip": surrogate["low"], "eps_clip_higher": surrogate["high"], "c_clip": surrogate["dual"]}
    return {ACTOR + key: value for key, value in keys.items()}


def _written_correction(objective: Mapping[str, Any], version: str) -> dict[str, Any]:
    if not objective["correction"]:
        return {f"{ACTOR}use_decoupled_loss": False}
    one = objective["correction"][0]
    if (
        len(objective["correction"]) > 1
        or one["numerator"] != "old"
        or one["negative_only"]
        or one["action"] == "reject"
    ):
        raise Inexpressible("AReaL's correction is one weight of the proximal policy over the sampler")
    if objective["surrogate"]["kind"] == "sapo":
        raise Inexpressible("AReaL's SAPO is not decoupled")
    return {
        f"{ACTOR}use_decoupled_loss": True,
        **(_cap(one) if version == MERGED else _rejection(one, objective["ratio"])),
    }


def _cap(one: Mapping[str, Any]) -> dict[str, Any]:
    unbounded = one["low"] is None and one["high"] is None
    if one["level"] != "token" or one["low"] or not (unbounded or one["action"] == "mask"):
        raise Inexpressible(f"AReaL {MERGED} weights tokens, and drops those above a bound")
    return {CAP: one["high"]}


def _rejection(one: Mapping[str, Any], ratio: str) -> dict[str, Any]:
    names = {value: key for key, value in LEVELS.items()}
    high = math.inf if one["high"] is None else one["high"]
    if one["level"] not in names or high <= 1 or (one["low"] is not None and one["low"] <= 0):
        raise Inexpressible(
            "AReaL's weights are per token or geometric means per response, bounded from above beyond 1"
        )
    if one["action"] == "mask" and one["level"] == "token" and ratio == "sequence":
        raise Inexpressible("AReaL takes the tokens that it masks out of the sequence ratio too")
    keys = {
        "level": names[one["level"]],
        "action": one["action"],
        "metric": "ratio",
        "upper": high,
        "lower": one["low"],
    }
    return {f"{REJECTION}.{key}": value for key, value in keys.items()}


DIALECT = Areal()
