"""TRL's `GRPOConfig`: `importance_sampling_level` is the ratio, `loss_type` the surrogate together with its aggregation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Finding, Inexpressible, Reading, asides, bound_inside, completed, updates

DEFAULTS: dict[str, Any] = {
    "importance_sampling_level": "token",
    "loss_type": "dapo",
    "epsilon": 0.2,
    "epsilon_high": None,
    "delta": None,
    "beta": 0.0,
    "use_bias_correction_kl": True,
    "scale_rewards": "group",
    "num_generations": 8,
    "num_iterations": 1,
    "steps_per_generation": None,
    "gradient_accumulation_steps": 1,
    "generation_batch_size": None,
    "per_device_train_batch_size": 8,
    "max_completion_length": 512,
    "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 1.05,
    "vespo_k_pos": 2.0,
    "vespo_lambda_pos": 3.0,
    "vespo_k_neg": 3.0,
    "vespo_lambda_neg": 2.0,
    "off_policy_mask_threshold": None,
    "multi_objective_aggregation": "sum_then_normalize",
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "top_entropy_quantile": 1.0,
    "use_vllm": False,
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "sequence_mask",
    "vllm_importance_sampling_cap": None,
    "vllm_importance_sampling_clip_max": 3.0,
    "vllm_importance_sampling_clip_min": None,
    "mask_truncated_completions": False,
}
CLIPPED = {
    "grpo": "sequence_mean_token_mean",
    "bnpo": "token_mean",
    "dapo": "token_mean",
    "dr_grpo": "sequence_mean_token_sum",
    "luspo": "sequence_mean_token_sum",
}
OTHERS = {"sapo": "sequence_mean_token_mean", "cispo": "token_mean", "vespo": "token_mean"}
LEVELS = ("token", "sequence")
SAPO = {"tau_pos": "sapo_temperature_pos", "tau_neg": "sapo_temperature_neg"}
VESPO = {"k_pos": "vespo_k_pos", "lam_pos": "vespo_lambda_pos", "k_neg": "vespo_k_neg", "lam_neg": "vespo_lambda_neg"}


class Trl(Dialect):
    """`loss_type: grpo` with `importance_sampling_level: sequence` is the paper's objective."""

    name = "trl"
    versions = ("1.16.0",)
    fixes: ClassVar[dict[str, str]] = {
        "ratio": "importance_sampling_level='sequence'",
        "aggregation": "loss_type='grpo'",
        "clip": "epsilon=3e-4, epsilon_high=4e-4",
        "dual": "delta=None",
        "penalty": "beta=0.0",
        "scale": "scale_rewards='group'",
        "updates": "steps_per_generation = 4 * gradient_accumulation_steps",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What a `GRPOConfig` optimises."""
        given, every = completed(settings, DEFAULTS)
        loss, level = every["loss_type"], every["importance_sampling_level"]
        if loss not in CLIPPED | OTHERS or level not in LEVELS:
            raise Inexpressible(f"loss_type {loss!r} with importance_sampling_level {level!r} is not accepted by TRL")
        objective = {
            **PAPER,
            "ratio": "product" if loss == "vespo" else level,
            "surrogate": _surrogate(loss, every),
            "aggregation": _aggregation(loss, every),
            "penalty": kl_term(level, every),
            "correction": _correction(every),
            "log_ratio_cap": 20.0 if loss == "vespo" else None,
        }
        bounds = ("epsilon_high", parts.upper(every)), ("delta", every["delta"])
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages={"center": "mean", "scale": _scale(every["scale_rewards"]), "ddof": 1, "eps": 1e-4},
            updates_per_rollout=_updates(every),
            settings=every,
            given=frozenset(given),
            findings=(
                *bound_inside(objective["surrogate"]["kind"], *bounds),
                *_findings(every),
                *asides(every, {"mask_truncated_completions": "truncated"}),
            ),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The arguments of `GRPOConfig` for an objective."""
        if objective["correction"]:
            raise Inexpressible("TRL computes correction weights before the loss, not in it")
        loss, keys = _written_surrogate(objective)
        level = "token" if objective["ratio"] == "product" else objective["ratio"]
        return {"loss_type": loss, "importance_sampling_level": level, **keys, **written_penalty(objective, "TRL")}

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """`importance_sampling_level="sequence"` and a clip range."""
        return {"importance_sampling_level": "sequence", "epsilon": clip["low"], "epsilon_high": clip["high"]}


def _surrogate(loss: str, every: Mapping[str, Any]) -> dict[str, Any]:
    if loss == "sapo":
        return {"kind": loss, **{name: every[key] for name, key in SAPO.items()}}
    if loss == "vespo":
        found = {name: every[key] for name, key in VESPO.items()}
        return {"kind": loss, **found, **{name: max(found[name], 1e-4) for name in ("lam_pos", "lam_neg")}}
    return parts.held(loss, every["epsilon"], parts.upper(every), every["delta"])


def _aggregation(loss: str, every: Mapping[str, Any]) -> dict[str, Any]:
    constant = float(every["max_completion_length"]) if loss == "dr_grpo" else 1.0
    return parts.aggregation((CLIPPED | OTHERS)[loss], constant)


def kl_term(level: str, every: Mapping[str, Any]) -> dict[str, Any] | None:
    """k3 where `beta` is not 0, plain or with the weight of this level."""
    weight = level if every["use_bias_correction_kl"] else None
    return parts.kl_term("k3", every["beta"], importance=weight) if every["beta"] else None


def _correction(every: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not (every["use_vllm"] and every["vllm_importance_sampling_correction"]) or every["loss_type"] == "vespo":
        return []
    cap = every["vllm_importance_sampling_cap"]
    level, action = str(every["vllm_importance_sampling_mode"]).split("_")
    low, high = every["vllm_importance_sampling_clip_min"], every["vllm_importance_sampling_clip_max"]
    return [parts.weight(level, {"truncate": "clamp", "mask": "mask"}[action], low, high if cap is None else cap)]


def _scale(value: Any) -> str:
    return {"group": "std", True: "std", "batch": "batch_std", "none": "none", False: "none"}[value]


def _updates(every: Mapping[str, Any]) -> int:
    """Optimiser steps that see a generation batch, which is gone through `num_iterations` times."""
    accumulation = int(every["gradient_accumulation_steps"])
    steps = every["steps_per_generation"]
    if steps is None and every["generation_batch_size"]:
        steps = int(every["generation_batch_size"]) // int(every["per_device_train_batch_size"])
    return updates((accumulation if steps is None else int(steps)) * int(every["num_iterations"]), accumulation)


def _findings(every: Mapping[str, Any]) -> Iterator[Finding]:
    if every["top_entropy_quantile"] < 1:
        key, told, cost = (
            "top_entropy_quantile",
            "tokens of low entropy leave the loss, and still count in its divisor",
            "",
        )
        if every["importance_sampling_level"] == "sequence":
            told = "the entropy mask drops tokens from the loss, while the sequence ratio still sends gradient to them"
            cost = "gradients shrink by the fraction of tokens that is kept"
        yield Finding("entropy-mask", "warning", key, told, "GSPO-DATA-1", cost, f"{key}=1.0")
    if every["loss_type"] == "vespo" and every["use_vllm"] and every["vllm_importance_sampling_correction"]:
        yield _corrected_vespo(str(every["vllm_importance_sampling_mode"]))
    if every["entropy_coef"] or every["use_adaptive_entropy"]:
        key = "entropy_coef" if every["entropy_coef"] else "use_adaptive_entropy"
        told = "an entropy bonus where the paper has none, always a mean over the tokens of a micro-batch"
        yield Finding("entropy-bonus", "warning", key, told, "GSPO-AGG-1", fix="entropy_coef=0.0")
    if every["multi_objective_aggregation"] != "sum_then_normalize":
        key = "multi_objective_aggregation"
        told = "every reward function is normalised within its group, and their sum once more over the batch"
        yield Finding("normalised-twice", "warning", key, told, "GSPO-ADV-10", fix=f"{key}='sum_then_normalize'")
    if every["off_policy_mask_threshold"] is not None:
        told = "responses with a negative advantage that drifted further than the threshold are dropped"
        yield Finding("off-policy-mask", "note", "off_policy_mask_threshold", told, "GSPO-CORR-6")


def _corrected_vespo(mode: str) -> Finding:
    """VESPO has its correction inside the kernel, and per token alone."""
    key, fix = "vllm_importance_sampling_correction", "vllm_importance_sampling_correction=False"
    if mode.startswith("token"):
        told = "the weights of the sampler enter the ratio that the kernel sees, as a product over the response"
        return Finding("denominator", "warning", key, told, "GSPO-DATA-5", fix=fix)
    told = f"TRL refuses vespo with vllm_importance_sampling_mode={mode!r}"
    return Finding("refused", "error", "vllm_importance_sampling_mode", told, "GSPO-CORR-7", fix=fix)


def _written_surrogate(objective: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    surrogate, ratio, cap = objective["surrogate"], objective["ratio"], objective["log_ratio_cap"]
    kind, mode, constant = surrogate["kind"], objective["aggregation"]["mode"], objective["aggregation"]["constant"]
    if objective["aggregation"]["count"] == "non_empty":
        raise Inexpressible("TRL counts every response, empty ones too")
    if kind == "clip" and ratio in LEVELS and cap is None:
        parts.check_dual(surrogate, "TRL's delta")
        keys = {"epsilon": surrogate["low"], "epsilon_high": surrogate["high"], "delta": surrogate["dual"]}
        if mode == "sequence_mean_token_sum" and constant == 1:
            return "luspo", keys
        loss, length = written_aggregation(mode, constant, "TRL")
        return loss, keys | length
    if kind == "sapo" and ratio in LEVELS and cap is None and mode == OTHERS["sapo"]:
        return kind, {key: surrogate[name] for name, key in SAPO.items()}
    if kind == "cispo" and ratio in LEVELS and cap is None and mode == OTHERS["cispo"] and surrogate["low"] is None:
        return kind, {"epsilon_high": surrogate["high"] + 1}
    if kind == "vespo" and ratio == "product" and mode == OTHERS["vespo"]:
        return kind, {key: float(surrogate[name]) for name, key in VESPO.items()}
    raise Inexpressible(f"no loss_type of TRL has the surrogate {kind} on the {ratio} ratio with {mode}")


def written_aggregation(mode: str, constant: float, trainer: str) -> tuple[str, dict[str, Any]]:
    """The clipped loss that aggregates so without padding in its mean, and the length it divides by."""
    if mode == "sequence_mean_token_sum" and constant == int(constant):
        return "dr_grpo", {"max_completion_length": int(constant)}
    names = {"sequence_mean_token_mean": "grpo", "token_mean": "dapo"}
    if mode not in names:
        raise Inexpressible(f"no loss_type of {trainer} aggregates by {mode} with the constant {constant:g}")
    return names[mode], {}


def written_penalty(objective: Mapping[str, Any], trainer: str) -> dict[str, Any]:
    """The KL term of TRL, and of those that took it over: k3, plain or with a weight."""
    penalty = objective["penalty"]
    if penalty is None:
        return {"beta": 0.0}
    if not parts.plain_k3(penalty, "importance") or penalty["importance"] not in (None, objective["ratio"]):
        raise Inexpressible(f"{trainer}'s KL term is k3, plain or weighted by the ratio of its own level")
    return {"beta": penalty["coefficient"], "use_bias_correction_kl": penalty["importance"] is not None}


DIALECT = Trl()
