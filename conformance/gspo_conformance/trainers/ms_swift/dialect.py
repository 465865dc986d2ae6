"""ms-swift's arguments of `swift rlhf --rlhf_type grpo`: `importance_sampling_level` is the ratio, `loss_type` the surrogate with its aggregation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Finding, Inexpressible, Reading, asides, bound_inside, completed, updates

DEFAULTS: dict[str, Any] = {
    "importance_sampling_level": "token",
    "loss_type": None,
    "epsilon": 0.2,
    "epsilon_high": None,
    "delta": None,
    "beta": None,
    "kl_in_reward": None,
    "advantage_estimator": "grpo",
    "scale_rewards": None,
    "tau_pos": 1.0,
    "tau_neg": 1.05,
    "num_generations": 8,
    "num_iterations": 1,
    "steps_per_generation": None,
    "generation_batch_size": None,
    "gradient_accumulation_steps": None,
    "per_device_train_batch_size": 1,
    "max_completion_length": 512,
    "overlong_filter": False,
    "dynamic_sample": False,
    "top_entropy_quantile": 1.0,
    "rollout_importance_sampling_mode": None,
    "rollout_importance_sampling_threshold": 2.0,
    "off_policy_sequence_mask_delta": None,
    "advantage_reweight": None,
    "chord_sft_dataset": [],
    "sdar_loss_coef": 0.0,
}
EXTRAS = {
    "chord_sft_dataset": "the loss is mixed with one on demonstrations (CHORD)",
    "sdar_loss_coef": "a distillation term is added to the loss (SDAR)",
}
RATIOS = {"token": "token", "sequence": "sequence", "sequence_token": "gspo_token"}
CLIPPED = {
    "grpo": "sequence_mean_token_mean",
    "bnpo": "token_mean",
    "dapo": "token_mean",
    "dr_grpo": "sequence_mean_token_sum",
}
OTHERS = {"sapo": "sequence_mean_token_mean", "cispo": "token_mean"}
SCALES = {"group": "std", "batch": "batch_std", "none": "none"}
# Level and action of the weight that has the bound; where it rejects, the tokens keep weights without one.
MODES = {
    "token_truncate": ("token", "clamp"),
    "token_mask": ("token", "mask"),
    "sequence_truncate": ("geometric", "clamp"),
    "sequence_mask": ("geometric", "reject"),
}


class MsSwift(Dialect):
    """`importance_sampling_level: sequence` with the default `loss_type: grpo` is the paper's objective, but for range and KL."""

    name = "ms_swift"
    versions = ("4.6.0",)
    clip_keys = ("epsilon", "epsilon_high")
    group: ClassVar[tuple[str, str]] = ("num_generations", "its advantage is 0: nothing is learnt")
    fixes: ClassVar[dict[str, str]] = {
        "ratio": "importance_sampling_level: sequence",
        "aggregation": "loss_type: grpo",
        "clip": "epsilon: 3e-4, epsilon_high: 4e-4",
        "dual": "delta: null",
        "penalty": "beta: 0.0",
        "advantages": "advantage_estimator: grpo",
        "scale": "scale_rewards: group",
        "updates": "steps_per_generation: 4 times gradient_accumulation_steps, in micro-batches",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What these arguments optimise."""
        kind = settings.get("rlhf_type") or "grpo"
        if str(kind).lower() != "grpo":
            raise Inexpressible(f"rlhf_type {kind!r} is not of this family, rlhf_type grpo is")
        given, every = completed(settings, DEFAULTS)
        every = _derived(every)
        loss, level = every["loss_type"], every["importance_sampling_level"]
        if loss not in CLIPPED | OTHERS or level not in RATIOS:
            raise Inexpressible(f"loss_type {loss!r} with importance_sampling_level {level!r} is not of this family")
        if every["scale_rewards"] not in SCALES:
            raise Inexpressible(f"scale_rewards {every['scale_rewards']!r} is not of this family")
        constant = float(every["max_completion_length"]) if loss == "dr_grpo" else 1.0
        objective = {
            **PAPER,
            "ratio": RATIOS[level],
            "surrogate": _surrogate(every),
            "aggregation": parts.aggregation((CLIPPED | OTHERS)[loss], constant),
            "penalty": _penalty(every),
            "correction": _correction(every),
        }
        bounds = ("epsilon_high", parts.upper(every)), ("delta", every["delta"])
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages=_advantages(every),
            updates_per_rollout=_updates(every),
            settings=every,
            given=frozenset(given),
            findings=(
                *bound_inside(objective["surrogate"]["kind"], *bounds),
                *_findings(every),
                *asides(every, {"dynamic_sample": "equal"}),
            ),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The arguments for an objective."""
        levels = {value: key for key, value in RATIOS.items()}
        if objective["ratio"] not in levels or objective["log_ratio_cap"] is not None:
            capped = " with a capped log-ratio" if objective["log_ratio_cap"] is not None else ""
            raise Inexpressible(f"ms-swift has no {objective['ratio']} ratio{capped}")
        keys = {"importance_sampling_level": levels[objective["ratio"]], **_written_surrogate(objective)}
        return keys | _written_penalty(objective) | _written_correction(objective["correction"])

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """`importance_sampling_level: sequence` and a clip range."""
        return {"importance_sampling_level": "sequence", "epsilon": clip["low"], "epsilon_high": clip["high"]}


def _derived(every: Mapping[str, Any]) -> dict[str, Any]:
    """The values that ms-swift puts where nothing is set."""
    estimator = every["advantage_estimator"]
    scale = {"grpo": "group", "rloo": "none", "reinforce_plus_plus": "batch"}.get(str(estimator))
    derived = {
        "loss_type": "grpo",
        "beta": 0.04,
        "scale_rewards": scale,
        "kl_in_reward": estimator != "grpo",
        "gradient_accumulation_steps": 1,
    }
    return dict(every) | {key: value for key, value in derived.items() if every[key] is None}


def _surrogate(every: Mapping[str, Any]) -> dict[str, Any]:
    if every["loss_type"] == "sapo":
        return {"kind": "sapo", "tau_pos": every["tau_pos"], "tau_neg": every["tau_neg"]}
    return parts.held(every["loss_type"], every["epsilon"], parts.upper(every), every["delta"])


def _penalty(every: Mapping[str, Any]) -> dict[str, Any] | None:
    if not every["beta"] or every["kl_in_reward"]:
        return None
    return parts.kl_term("k3", every["beta"], **parts.CLAMPS)


def _correction(every: Mapping[str, Any]) -> list[dict[str, Any]]:
    mode, drift = every["rollout_importance_sampling_mode"], every["off_policy_sequence_mask_delta"]
    found = _weights(mode, every["rollout_importance_sampling_threshold"]) if mode else []
    return found if drift is None else [*found, _drifted(math.exp(-drift))]


def _weights(mode: str, high: float) -> list[dict[str, Any]]:
    level, action = MODES[mode]
    bounded = parts.weight(level, action, high=high)
    return [parts.weight("token", "clamp"), bounded] if action == "reject" else [bounded]


def _drifted(low: float) -> dict[str, Any]:
    """The mask of responses with a negative advantage that drifted below."""
    return parts.weight("geometric", "reject", low, numerator="current", negative_only=True)


def _advantages(every: Mapping[str, Any]) -> dict[str, Any]:
    center = "leave_one_out" if every["advantage_estimator"] == "rloo" else "mean"
    return {"center": center, "scale": SCALES[every["scale_rewards"]], "ddof": 1, "eps": 1e-4}


def _beside_the_objective(every: Mapping[str, Any]) -> Iterator[Finding]:
    """What the weights and masks do to the KL term, and what the divisor of REINFORCE++ is the spread of."""
    if every["beta"] and not every["kl_in_reward"]:
        told = "it multiplies the KL term of a response or token as well as its loss"
        for key in ("rollout_importance_sampling_mode", "off_policy_sequence_mask_delta"):
            if every[key] is not None:
                yield Finding("weighted-penalty", "note", key, told, "GSPO-CORR-4")
    if every["off_policy_sequence_mask_delta"] is not None and every["loss_type"] == "bnpo":
        told = "bnpo divides by the tokens of the responses that are kept, not by all"
        yield Finding("masked-count", "note", "off_policy_sequence_mask_delta", told, "GSPO-AGG-7")
    if every["advantage_estimator"] == "reinforce_plus_plus" and every["scale_rewards"] == "batch":
        told = "the standard deviation of the batch is that of the rewards less the mean of their group"
        cost = "where groups differ in their mean, advantages are larger than the rewards' own spread makes them"
        yield Finding("centred-spread", "note", "advantage_estimator", told, "GSPO-ADV-7", cost)


def _updates(every: Mapping[str, Any]) -> int | None:
    """Optimiser steps that see a generation batch, gone through `num_iterations` times; `steps_per_generation` counts micro-batches."""
    accumulation = int(every["gradient_accumulation_steps"])
    if every["steps_per_generation"] is None and every["generation_batch_size"]:
        return None
    steps = every["steps_per_generation"] or accumulation
    return updates(int(steps) * int(every["num_iterations"]), accumulation)


def _findings(every: Mapping[str, Any]) -> Iterator[Finding]:
    if every["kl_in_reward"] and every["beta"]:
        told = f"a KL penalty (k1, coefficient {every['beta']:g}) is taken from the rewards before they are normalised"
        yield Finding("kl-in-reward", "warning", "beta", told, "GSPO-REWARD-4", "", "beta: 0.0")
    if every["top_entropy_quantile"] < 1:
        told = "the entropy mask drops tokens from the loss, the ratio and the divisor of a response keep them"
        cost = f"gradients shrink to about {every['top_entropy_quantile']:g} of theirs"
        key = "top_entropy_quantile"
        yield Finding("entropy-mask", "warning", key, told, "GSPO-DATA-1", cost, f"{key}: 1.0")
    yield from (
        Finding("extra-term", "warning", key, told, "GSPO-SURR-1") for key, told in EXTRAS.items() if every[key]
    )
    if every["advantage_reweight"]:
        told = (
            f"advantages are weighted token by token ({every['advantage_reweight']}), by what a teacher thinks of them"
        )
        yield Finding("advantage-weights", "warning", "advantage_reweight", told, "GSPO-ADV-1")
    yield from _beside_the_objective(every)
    if every["overlong_filter"]:
        told = "truncated responses contribute 0 and still count in the mean over responses"
        yield Finding("overlong-filter", "note", "overlong_filter", told, "GSPO-AGG-7")


def _written_surrogate(objective: Mapping[str, Any]) -> dict[str, Any]:
    surrogate, aggregation = objective["surrogate"], objective["aggregation"]
    kind, mode = surrogate["kind"], aggregation["mode"]
    if aggregation["count"] == "non_empty":
        raise Inexpressible("ms-swift counts every response, empty ones too")
    if kind == "clip":
        keys = {"epsilon": surrogate["low"], "epsilon_high": surrogate["high"], "delta": surrogate["dual"]}
        parts.check_dual(surrogate, "ms-swift's delta")
        return keys | _written_aggregation(aggregation)
    if kind == "sapo" and mode == OTHERS[kind]:
        return {"loss_type": kind, "tau_pos": surrogate["tau_pos"], "tau_neg": surrogate["tau_neg"]}
    if kind == "cispo" and mode == OTHERS[kind] and surrogate["low"] is None:
        return {"loss_type": kind, "epsilon_high": surrogate["high"] + 1}
    raise Inexpressible(f"no loss_type of ms-swift has the surrogate {kind} with {mode}")


def _written_aggregation(aggregation: Mapping[str, Any]) -> dict[str, Any]:
    mode, constant = aggregation["mode"], aggregation["constant"]
    if mode == "sequence_mean_token_sum" and constant == int(constant):
        return {"loss_type": "dr_grpo", "max_completion_length": int(constant)}
    names = {"sequence_mean_token_mean": "grpo", "token_mean": "dapo"}
    if mode not in names or constant != 1:
        raise Inexpressible(f"no loss_type of ms-swift aggregates by {mode} with the constant {constant:g}")
    return {"loss_type": names[mode]}


def _written_penalty(objective: Mapping[str, Any]) -> dict[str, Any]:
    penalty = objective["penalty"]
    if penalty is None:
        return {"beta": 0.0}
    clamped = all(penalty[name] in (None, bound) for name, bound in parts.CLAMPS.items())
    if penalty["estimator"] != "k3" or penalty["importance"] or penalty["aggregation"] or not clamped:
        raise Inexpressible("ms-swift's KL term is k3 with its log-ratio clamped to 20 and its value to 10")
    if objective["correction"]:
        raise Inexpressible("ms-swift's correction multiplies the KL term too")
    return {"beta": penalty["coefficient"]}


def _written_correction(corrections: Any) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    rest = [dict(one) for one in corrections]
    if rest and rest[-1]["negative_only"]:
        last = rest.pop()
        if not last["low"] or last != _drifted(last["low"]):
            raise Inexpressible("ms-swift masks responses with a negative advantage by their geometric mean alone")
        keys["off_policy_sequence_mask_delta"] = -math.log(last["low"])
    return keys | _written_mode(rest)


def _written_mode(rest: list[dict[str, Any]]) -> dict[str, Any]:
    if not rest:
        return {}
    high = rest[-1]["high"]
    for mode in MODES:
        if high is not None and rest == _weights(mode, high):
            return {"rollout_importance_sampling_mode": mode, "rollout_importance_sampling_threshold": high}
    raise Inexpressible("no rollout_importance_sampling_mode of ms-swift has these weights")


DIALECT = MsSwift()
