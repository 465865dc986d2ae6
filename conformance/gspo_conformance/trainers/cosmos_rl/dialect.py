"""Cosmos-RL's TOML: `variant` is the ratio, `loss_type` the aggregation, both below `train.train_policy`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Inexpressible, Reading, asides, completed
from .findings import POLICY, findings, tells

DEFAULTS: dict[str, Any] = {
    **{
        POLICY + key: value
        for key, value in {
            "type": "grpo",
            "trainer_type": "grpo",
            "variant": "grpo",
            "algo": "grpo",
            "loss_type": "token-mean",
            "epsilon_low": 0.2,
            "epsilon_high": 0.2,
            "lower_bound_ratio": 3.0,
            "aipo_rho": None,
            "unbiased_loss_max_tokens": None,
            "unbiased_advantage": False,
            "kl_beta": 0.0,
            "unbiased_kl_estimate": False,
            "off_policy_masking_delta": None,
            "use_decoupled_loss": False,
            "behav_imp_weight_cap": None,
            "use_rollout_logprobs_for_loss": False,
            "entropy_coeff": 0.0,
            "positive_nll_coef": None,
            "temperature": 1.0,
            "mu_iterations": 1,
            "mini_batch": 2,
            "batch_size_per_optimize": None,
            "min_filter_prefix_tokens": None,
            "use_remote_reward": False,
            "uncentralized_training": False,
            "overlong_reward.enable_overlong_penalty": False,
        }.items()
    },
    "train.train_batch_per_replica": 8,
    "train.logprob_dtype": "float32",
    "policy.parallelism.dp_shard_size": 1,
    "rollout.n_generation": 16,
    "rollout.sampling_config.temperature": 1.0,
    "distillation.enable": False,
}
MODES = {
    "seq-mean-token-mean": "sequence_mean_token_mean",
    "seq-mean-token-sum": "sequence_mean_token_sum",
    "token-mean": "token_mean",
    "token-sum": "token_sum",
}
CAPS = {"gspo": 10.0, "grpo": 20.0, "dapo": 20.0}
NO_BOUND = 1e9


class CosmosRl(Dialect):
    """`variant = "gspo"` with `loss_type = "seq-mean-token-mean"` is the paper's objective."""

    name = "cosmos_rl"
    versions = ("0.4.7",)
    clip_keys = (POLICY + "epsilon_low", POLICY + "epsilon_high")
    group = ("rollout.n_generation", "every advantage is 0: nothing is learnt")
    fixes: ClassVar[dict[str, str]] = {
        "ratio": POLICY + 'variant = "gspo"',
        "surrogate": f"no {POLICY}aipo_rho, and epsilons that are not negative",
        "aggregation": POLICY + 'loss_type = "seq-mean-token-mean"',
        "clip": f"{POLICY}epsilon_low = 3e-4, {POLICY}epsilon_high = 4e-4",
        "dual": f"no {POLICY}aipo_rho",
        "penalty": POLICY + "kl_beta = 0.0",
        "scale": POLICY + "unbiased_advantage = false",
        "dtype": 'train.logprob_dtype = "float32"',
        "advantages": POLICY + 'algo = "grpo"',
        "updates": POLICY + "batch_size_per_optimize = a quarter of the responses of a step",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What this configuration optimises."""
        given, every = completed(settings, DEFAULTS)
        own = {key.removeprefix(POLICY): value for key, value in every.items()}
        for key, known in {"type": ("grpo",), "trainer_type": ("grpo",), "variant": CAPS, "loss_type": MODES}.items():
            if own[key] not in known:
                raise Inexpressible(f"the {key} {own[key]!r} of Cosmos-RL is not of this family")
        if any(key.startswith(POLICY) for key in settings) and POLICY + "variant" not in given and not tells(given):
            raise Inexpressible("Cosmos-RL reads this section as one of supervised fine-tuning: it has no type")
        objective = {
            **PAPER,
            "ratio": "sequence" if own["variant"] == "gspo" else "token",
            "surrogate": _surrogate(own),
            "aggregation": _aggregation(own),
            "penalty": _penalty(own),
            "correction": _correction(own),
            "log_ratio_cap": CAPS[own["variant"]],
        }
        scale = "none" if own["unbiased_advantage"] else "std"
        grouped = {"center": "mean", "scale": scale, "ddof": 0, "eps": 1e-6}
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages=grouped if own["algo"] == "grpo" else None,
            estimator="group" if own["algo"] == "grpo" else str(own["algo"]),
            dtype=str(own["train.logprob_dtype"]),
            updates_per_rollout=_updates(own),
            settings=every,
            given=frozenset(given),
            findings=(
                *findings(own, given),
                *asides(every, {POLICY + "overlong_reward.enable_overlong_penalty": "overlong"}),
            ),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The keys below `train.train_policy` for an objective."""
        ratio = objective["ratio"]
        if ratio not in ("token", "sequence"):
            raise Inexpressible(f"Cosmos-RL has no {ratio} ratio")
        variant = "gspo" if ratio == "sequence" else "grpo"
        if objective["log_ratio_cap"] not in (None, CAPS[variant]):
            raise Inexpressible("Cosmos-RL caps the log-ratio of a sequence at 10, that of a token at 20")
        keys = {
            "variant": variant,
            **_written_surrogate(objective["surrogate"], variant),
            **_written_aggregation(objective["aggregation"]),
            **_written_penalty(objective["penalty"]),
            **_written_correction(objective["correction"]),
        }
        return {POLICY + key: value for key, value in keys.items()}

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """`variant = "gspo"` and a clip range."""
        keys = {"variant": "gspo", "epsilon_low": clip["low"], "epsilon_high": clip["high"]}
        return {POLICY + key: value for key, value in keys.items()}


def _surrogate(own: Mapping[str, Any]) -> dict[str, Any]:
    """A negative epsilon is no bound; `aipo_rho` is a bound from above for either sign, and the only one."""
    rho = own["aipo_rho"]
    low, high = (own[f"epsilon_{side}"] for side in ("low", "high"))
    dual = None if own["variant"] == "gspo" or own["lower_bound_ratio"] >= NO_BOUND else own["lower_bound_ratio"]
    if rho is not None:
        low, high, dual = 1.0, round(rho - 1, 12), rho
    elif low < 0 and high < 0 and dual is None:
        return {"kind": "unclipped"}
    if dual is not None and dual <= 1:
        raise Inexpressible(f"a bound of {dual:g} on the ratio, which ends it at 1 or below, is not of this family")
    return parts.clip(1.0 if low < 0 else low, NO_BOUND if high < 0 else high, dual)


def _aggregation(own: Mapping[str, Any]) -> dict[str, Any]:
    longest = own["unbiased_loss_max_tokens"]
    if own["loss_type"] == "seq-mean-token-mean" and longest and longest > 0:
        return parts.aggregation("sequence_mean_token_sum", float(longest))
    return parts.aggregation(MODES[own["loss_type"]])


def _penalty(own: Mapping[str, Any]) -> dict[str, Any] | None:
    weight = "token" if own["unbiased_kl_estimate"] else None
    return parts.kl_term("k3", own["kl_beta"], importance=weight, **parts.CLAMPS) if own["kl_beta"] else None


def _correction(own: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The weights of tokens, then the mask of responses that drifted; without the weights that is from the old policy."""
    found, cap, drift = [], own["behav_imp_weight_cap"], own["off_policy_masking_delta"]
    if own["use_decoupled_loss"]:
        found.append(parts.weight("token", "clamp" if cap is None else "mask", high=cap))
    if drift is not None:
        found.append(_drifted(math.exp(-drift)))
    return found


def _drifted(low: float) -> dict[str, Any]:
    """The mask of responses with a negative advantage whose mean log-probability has fallen."""
    return parts.weight("geometric", "reject", low, numerator="current", negative_only=True)


def _updates(own: Mapping[str, Any]) -> int | None:
    """Optimiser steps on the responses of one; None where the ratio is to the sampler, or where a rank's part is not known."""
    size, shards = own["batch_size_per_optimize"], own["policy.parallelism.dp_shard_size"]
    if own["use_rollout_logprobs_for_loss"]:
        return None
    if not size or size <= 0:
        return int(own["mu_iterations"])
    if shards < 1:
        return None
    return int(own["mu_iterations"]) * math.ceil(own["train.train_batch_per_replica"] / shards / size)


def _written_surrogate(surrogate: Mapping[str, Any], variant: str) -> dict[str, Any]:
    if surrogate["kind"] not in ("clip", "unclipped"):
        raise Inexpressible(f"no variant of Cosmos-RL has the surrogate {surrogate['kind']}")
    low, high, dual = (surrogate.get(name) for name in ("low", "high", "dual"))
    if variant == "gspo" and dual is not None:
        if surrogate != parts.clip(1.0, dual - 1, dual):
            raise Inexpressible("gspo of Cosmos-RL has no dual clip")
        return {"aipo_rho": dual}
    bounds = {f"epsilon_{side}": -1.0 if one is None else one for side, one in (("low", low), ("high", high))}
    return bounds if variant == "gspo" else bounds | {"lower_bound_ratio": NO_BOUND if dual is None else dual}


def _written_aggregation(aggregation: Mapping[str, Any]) -> dict[str, Any]:
    mode, constant = aggregation["mode"], aggregation["constant"]
    if aggregation["count"] == "non_empty":
        raise Inexpressible("Cosmos-RL counts every response, empty ones too")
    if mode == "sequence_mean_token_sum" and constant != 1 and constant == int(constant):
        return {"loss_type": "seq-mean-token-mean", "unbiased_loss_max_tokens": int(constant)}
    found = next((key for key, value in MODES.items() if value == mode), None)
    if found is None or constant != 1:
        raise Inexpressible(f"no loss_type of Cosmos-RL aggregates by {mode} with the constant {constant:g}")
    return {"loss_type": found}


def _written_penalty(penalty: Mapping[str, Any] | None) -> dict[str, Any]:
    if penalty is None or not penalty["coefficient"]:
        return {"kl_beta": 0.0}
    clamps = {name: penalty[name] for name in parts.CLAMPS}
    plain = penalty["estimator"] == "k3" and penalty["aggregation"] is None
    if not plain or penalty["importance"] == "sequence" or clamps not in (parts.CLAMPS, dict.fromkeys(parts.CLAMPS)):
        raise Inexpressible(
            "Cosmos-RL's KL term is k3, clamped to 20 and 10, plain or weighted by the ratio of a token"
        )
    return {"kl_beta": penalty["coefficient"], "unbiased_kl_estimate": penalty["importance"] is not None}


def _written_correction(corrections: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not corrections:
        return {}
    first, *rest = map(dict, corrections)
    high, low = first["high"], rest[0]["low"] if rest else None
    weights = [parts.weight("token", "clamp" if high is None else "mask", high=high)]
    if [first, *rest] != weights + ([_drifted(low)] if low else []):
        raise Inexpressible("Cosmos-RL's weights are those of tokens, without bounds or with those above one dropped")
    keys = {"use_decoupled_loss": True, "behav_imp_weight_cap": high}
    return keys | ({"off_policy_masking_delta": -math.log(low)} if low else {})


DIALECT = CosmosRl()
