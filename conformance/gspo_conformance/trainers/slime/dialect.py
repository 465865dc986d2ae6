"""slime's command line: `--advantage-estimator` is the ratio too, `--calculate-per-token-loss` the aggregation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Finding, Inexpressible, Reading, asides, completed, entropy_bonus, lone

DEFAULTS: dict[str, Any] = {
    "advantage_estimator": "grpo",
    "eps_clip": 0.2,
    "eps_clip_high": None,
    "eps_clip_c": None,
    "calculate_per_token_loss": False,
    "use_kl_loss": False,
    "kl_loss_coef": 0.0,
    "kl_loss_type": "k1",
    "use_unbiased_kl": False,
    "kl_coef": 0.0,
    "entropy_coef": 0.0,
    "use_tis": False,
    "tis_clip": 2.0,
    "tis_clip_low": 0.0,
    "custom_tis_function_path": None,
    "use_opd": False,
    "opd_kl_coef": 1.0,
    "use_opsm": False,
    "opsm_delta": 1e-4,
    "use_rollout_logprobs": False,
    "normalize_advantages": False,
    "disable_grpo_std_normalization": False,
    "disable_rewards_normalization": False,
    "loss_type": "policy_loss",
    "custom_loss_function_path": None,
    "custom_reward_post_process_path": None,
    "custom_advantage_function_path": None,
    "custom_pg_loss_reducer_function_path": None,
    "n_samples_per_prompt": 1,
    "rollout_batch_size": None,
    "global_batch_size": None,
    "num_steps_per_rollout": None,
    "dynamic_sampling_filter_path": None,
}
ICEPOP = "slime.backends.megatron_utils.loss.icepop_function"
CUSTOM = (
    "custom_loss_function_path",
    "custom_reward_post_process_path",
    "custom_advantage_function_path",
    "custom_pg_loss_reducer_function_path",
    "custom_tis_function_path",
)
KINDS = {"k1": ("k1", None, None), "k2": ("k2", None, None), "k3": ("k3", None, None)}
PLAIN = {"level": "token", "numerator": "old", "negative_only": False}


class Slime(Dialect):
    """`gspo` as it comes is the paper's objective, but for the range; what a fork has otherwise is an attribute.

    `kinds`: estimator of the KL term, clamp of its log-ratio and clamp of its value, by `kl_loss_type`.
    """

    name = title = "slime"
    versions = ("624b824a",)
    defaults: ClassVar[dict[str, Any]] = DEFAULTS
    grouped: tuple[str, ...] = ("grpo", "gspo", "cispo")
    kinds: ClassVar[dict[str, tuple[str, float | None, float | None]]] = {**KINDS, "low_var_kl": ("k3", None, 10.0)}
    icepop = ICEPOP
    cap: float | None = None
    clip_keys = ("eps_clip", "eps_clip_high")
    fixes: ClassVar[dict[str, str]] = {
        "ratio": "--advantage-estimator gspo",
        "aggregation": "no --calculate-per-token-loss",
        "clip": "--eps-clip 3e-4 --eps-clip-high 4e-4",
        "dual": "no --eps-clip-c",
        "penalty": "no --use-kl-loss",
        "advantages": "--advantage-estimator gspo",
        "scale": "no --disable-grpo-std-normalization",
        "whiten": "no --normalize-advantages",
        "updates": "--num-steps-per-rollout 4",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What these arguments optimise."""
        given, every = completed(settings, self.defaults)
        estimator = str(every["advantage_estimator"])
        mode = "token_mean" if every["calculate_per_token_loss"] else "sequence_mean_token_mean"
        objective = {
            **PAPER,
            "ratio": "sequence" if estimator == "gspo" else "token",
            "surrogate": _surrogate(every),
            "aggregation": parts.aggregation(mode),
            "penalty": self._penalty(every),
            "correction": self._correction(every),
            "log_ratio_cap": self.cap,
        }
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages=self._advantages(every),
            estimator=estimator,
            whiten=bool(every["normalize_advantages"]),
            updates_per_rollout=_updates(every),
            settings=every,
            given=frozenset(given),
            findings=(*self.findings(every), *asides(every, {"dynamic_sampling_filter_path": "equal"})),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The arguments for an objective."""
        if objective["log_ratio_cap"] not in (None, self.cap):
            cap = "no log-ratio" if self.cap is None else f"the log-ratio at {self.cap:g}"
            raise Inexpressible(f"{self.title} caps {cap}")
        return {
            **self._written_surrogate(objective),
            **self._written_aggregation(objective["aggregation"]),
            **self._written_penalty(objective["penalty"]),
            **self._written_correction(objective["correction"]),
        }

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """`--advantage-estimator gspo` and a clip range."""
        return {"advantage_estimator": "gspo", "eps_clip": clip["low"], "eps_clip_high": clip["high"]}

    def findings(self, every: Mapping[str, Any]) -> Iterator[Finding]:
        """What only these arguments can do."""
        grouped = every["advantage_estimator"] in self.grouped
        if grouped and int(every["n_samples_per_prompt"]) == 1 and not every["disable_rewards_normalization"]:
            why = "its own reward is its baseline, and every advantage is 0"
            yield lone("n_samples_per_prompt", "nothing is learnt", "--n-samples-per-prompt 8", why)
        if every["kl_coef"] and grouped:
            told = f"kl_coef = {every['kl_coef']:g} has no effect: advantages of {every['advantage_estimator']} are made of the rewards alone"
            yield Finding("kl-ignored", "error", "kl_coef", told, "GSPO-REWARD-4", fix="no --kl-coef")
        penalty = self._penalty(every) or {"importance": None}
        if penalty["importance"] and penalty["value_clamp"] is not None:
            told = "the KL term is weighted by the ratio before its value is held at 10, not after"
            yield Finding("kl-clamp", "note", "use_unbiased_kl", told, "GSPO-KL-5")
        if every["use_opsm"]:
            told = "responses with a negative advantage lose their gradient where log s_i is below the negative of opsm_delta"
            cost = f"s_i < {math.exp(-every['opsm_delta']):.6g}, inside the clip range of the paper where opsm_delta is below 3e-4"
            yield Finding("sequence-mask", "warning", "use_opsm", told, "GSPO-CORR-6", cost, "no --use-opsm")
        if every["use_opd"] and every["opd_kl_coef"]:
            told = (
                f"every token's log-ratio to the teacher, times {every['opd_kl_coef']:g}, is taken from its advantage"
            )
            yield Finding("kl-in-advantage", "warning", "use_opd", told, "GSPO-KL-7", fix="no --use-opd")
        if every["use_rollout_logprobs"]:
            told = "the ratio is to the policy of the sampling engine, whose numerics enter s_i"
            yield Finding(
                "old-policy", "note", "use_rollout_logprobs", told, "GSPO-DATA-5", fix="no --use-rollout-logprobs"
            )
        if every["entropy_coef"]:
            yield entropy_bonus("entropy_coef", every["entropy_coef"], "--entropy-coef 0")
        for key in CUSTOM:
            if every.get(key) and every[key] != self.icepop and (key != CUSTOM[-1] or every["use_tis"]):
                told = f"{every[key]} takes the place of {self.title}'s own code, and is not read here"
                yield Finding("custom-code", "warning", key, told, "GSPO-AGG-1", fix=f"no --{key.replace('_', '-')}")

    def _penalty(self, every: Mapping[str, Any]) -> dict[str, Any] | None:
        if not every["use_kl_loss"] or not every["kl_loss_coef"]:
            return None
        estimator, clamp, value = self.kinds[every["kl_loss_type"]]
        return parts.kl_term(
            estimator,
            every["kl_loss_coef"],
            importance="token" if every["use_unbiased_kl"] else None,
            log_ratio_clamp=clamp,
            value_clamp=value,
        )

    def _correction(self, every: Mapping[str, Any]) -> list[dict[str, Any]]:
        if not every["use_tis"]:
            return []
        action = {None: "clamp", self.icepop: "mask"}.get(every["custom_tis_function_path"])
        if action is None:  # code of somebody's own, which is told
            return []
        high = None if math.isinf(every["tis_clip"]) else every["tis_clip"]
        return [parts.weight("token", action, every["tis_clip_low"] or None, high)]

    def _advantages(self, every: Mapping[str, Any]) -> dict[str, Any] | None:
        estimator = every["advantage_estimator"]
        if estimator not in (*self.grouped, "reinforce_plus_plus_baseline"):
            return None
        if every["disable_rewards_normalization"]:
            return {"center": "none", "scale": "none"}
        plain = every["disable_grpo_std_normalization"] or estimator not in self.grouped
        return {"center": "mean", "scale": "none" if plain else "std", "ddof": 1, "eps": 1e-6}

    def _written_surrogate(self, objective: Mapping[str, Any]) -> dict[str, Any]:
        surrogate, ratio = objective["surrogate"], objective["ratio"]
        kind = surrogate["kind"]
        if kind == "clip" and ratio in ("sequence", "token"):
            estimator = "gspo" if ratio == "sequence" else "grpo"
            bounds = {"eps_clip": surrogate["low"], "eps_clip_high": surrogate["high"]}
            return {"advantage_estimator": estimator, **bounds, "eps_clip_c": surrogate["dual"]}
        if kind == "cispo" and ratio == "token" and "cispo" in self.grouped:
            low, high = parts.cispo_low(surrogate), surrogate["high"]
            return {"advantage_estimator": "cispo", "eps_clip": low, "eps_clip_high": high}
        raise Inexpressible(f"no advantage_estimator of {self.title} has the surrogate {kind} on the {ratio} ratio")

    def _written_aggregation(self, aggregation: Mapping[str, Any]) -> dict[str, Any]:
        mode, constant = aggregation["mode"], aggregation["constant"]
        if aggregation["count"] == "non_empty":
            raise Inexpressible(f"{self.title} counts every response of a step, empty ones too")
        if mode not in ("sequence_mean_token_mean", "token_mean") or constant != 1:
            raise Inexpressible(f"{self.title} does not aggregate by {mode} with the constant {constant:g}")
        return {"calculate_per_token_loss": mode == "token_mean"}

    def _written_penalty(self, penalty: Mapping[str, Any] | None) -> dict[str, Any]:
        if penalty is None or not penalty["coefficient"]:
            return {"use_kl_loss": False}
        form = (penalty["estimator"], penalty["log_ratio_clamp"], penalty["value_clamp"])
        kind = next((name for name, one in self.kinds.items() if one == form), None)
        if kind is None or penalty["aggregation"]:
            clamped = "its value" if self.cap is None else f"its log-ratio clamped to {self.cap:g} and its value"
            told = f"k1, k2, k3, or k3 with {clamped} clamped to 10, aggregated as the loss"
            raise Inexpressible(f"{self.title}'s KL term is {told}")
        if penalty["importance"] == "sequence" or (penalty["importance"] and kind == "low_var_kl"):
            raise Inexpressible(
                f"{self.title}'s KL term is weighted by the ratio of its token, before its value is clamped"
            )
        unbiased = penalty["importance"] == "token"
        keys = {"use_kl_loss": True, "kl_loss_coef": penalty["coefficient"], "kl_loss_type": kind}
        return keys | {"use_unbiased_kl": unbiased}

    def _written_correction(self, corrections: Any) -> dict[str, Any]:
        if not corrections:
            return {"use_tis": False}
        one = corrections[0]
        plain = {key: one[key] for key in PLAIN} == PLAIN
        if len(corrections) > 1 or not plain or one["action"] == "reject":
            raise Inexpressible(f"{self.title}'s weights are those of tokens under the old policy, clamped or masked")
        bounds = {"tis_clip_low": one["low"] or 0.0, "tis_clip": math.inf if one["high"] is None else one["high"]}
        return {"use_tis": True, **bounds, "custom_tis_function_path": self.icepop if one["action"] == "mask" else None}


def _surrogate(every: Mapping[str, Any]) -> dict[str, Any]:
    low, high = every["eps_clip"], parts.upper(every, "eps_clip", "eps_clip_high")
    return (
        parts.cispo(low, high)
        if every["advantage_estimator"] == "cispo"
        else parts.clip(low, high, every["eps_clip_c"])
    )


def _updates(every: Mapping[str, Any]) -> int | None:
    """Optimiser steps per rollout; None where the sizes are not given."""
    if every["num_steps_per_rollout"] is not None:
        return int(every["num_steps_per_rollout"])
    if every["rollout_batch_size"] is None or every["global_batch_size"] is None:
        return None
    return max(
        1, int(every["rollout_batch_size"]) * int(every["n_samples_per_prompt"]) // int(every["global_batch_size"])
    )


DIALECT = Slime()
