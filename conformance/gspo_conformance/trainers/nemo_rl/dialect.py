"""NeMo-RL's keys below `loss_fn`: `sequence_level_importance_ratios` is the ratio and the level of the correction at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Inexpressible, Reading, asides, completed
from .correction import read_correction, write_correction
from .findings import findings

LOSS, GRPO, ESTIMATOR = "loss_fn.", "grpo.", "grpo.adv_estimator."
BESIDE = {GRPO + "use_dynamic_sampling": "equal", GRPO + "reward_shaping.enabled": "overlong"}
DEFAULTS: dict[str, Any] = {
    LOSS + "sequence_level_importance_ratios": False,
    LOSS + "token_level_loss": True,
    LOSS + "ratio_clip_min": 0.2,
    LOSS + "ratio_clip_max": 0.2,
    LOSS + "ratio_clip_c": None,
    LOSS + "disable_ppo_ratio": False,
    LOSS + "force_on_policy_ratio": False,
    LOSS + "use_cispo": False,
    LOSS + "reference_policy_kl_penalty": 0.01,
    LOSS + "reference_policy_kl_type": "k3",
    LOSS + "kl_input_clamp_value": 20.0,
    LOSS + "kl_output_clamp_value": 10.0,
    LOSS + "use_kl_in_reward": False,
    LOSS + "use_on_policy_kl_approximation": False,
    LOSS + "use_importance_sampling_correction": False,
    LOSS + "truncated_importance_sampling_type": None,
    LOSS + "truncated_importance_sampling_ratio": None,
    LOSS + "truncated_importance_sampling_ratio_min": None,
    LOSS + "positive_example_nll_weight": 0.0,
    ESTIMATOR + "name": "grpo",
    ESTIMATOR + "normalize_rewards": None,
    ESTIMATOR + "use_leave_one_out_baseline": None,
    ESTIMATOR + "minus_baseline": True,
    GRPO + "normalize_rewards": True,
    GRPO + "use_leave_one_out_baseline": True,
    GRPO + "advantage_clip_low": None,
    GRPO + "advantage_clip_high": None,
    GRPO + "overlong_filtering": False,
    **dict.fromkeys(BESIDE, False),
    GRPO + "num_prompts_per_step": 32,
    GRPO + "num_generations_per_prompt": 16,
    "policy.train_global_batch_size": 512,
}
WHITENED = ("reinforce_plus_plus",)


class NemoRl(Dialect):
    """`sequence_level_importance_ratios: true` with `token_level_loss: false` is the paper's loss; any other pair with it is refused."""

    name = "nemo_rl"
    versions = ("7ea279ab",)
    clip_keys = (LOSS + "ratio_clip_min", LOSS + "ratio_clip_max")
    group: ClassVar[tuple[str, str]] = (GRPO + "num_generations_per_prompt", "its advantage is 0: nothing is learnt")
    fixes: ClassVar[dict[str, str]] = {
        "ratio": f"{LOSS}sequence_level_importance_ratios=true {LOSS}token_level_loss=false",
        "aggregation": f"{LOSS}token_level_loss=false",
        "clip": f"{LOSS}ratio_clip_min=3e-4 {LOSS}ratio_clip_max=4e-4",
        "dual": f"{LOSS}ratio_clip_c=null",
        "penalty": f"{LOSS}reference_policy_kl_penalty=0",
        "advantages": f"{ESTIMATOR}name=grpo",
        "scale": f"{GRPO}normalize_rewards=true {GRPO}use_leave_one_out_baseline=false",
        "whiten": f"{ESTIMATOR}name=grpo",
        "updates": "policy.train_global_batch_size a quarter of the responses of a step",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What these keys optimise; keys of the loss without their prefix are accepted too."""
        given, every = completed(settings, DEFAULTS, LOSS)
        every = _derived(every)
        own = {key.removeprefix(LOSS): value for key, value in every.items()}
        mode = "token_mean" if own["token_level_loss"] else "sequence_mean_token_mean"
        objective = {
            **PAPER,
            "ratio": "sequence" if own["sequence_level_importance_ratios"] else "token",
            "surrogate": _surrogate(own),
            "aggregation": parts.aggregation(mode),
            "penalty": _penalty(own),
            "correction": read_correction(own),
        }
        estimator = str(every[ESTIMATOR + "name"])
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages=_advantages(every),
            estimator=estimator,
            whiten=estimator in WHITENED,
            updates_per_rollout=_updates(every),
            settings=every,
            given=frozenset(given),
            findings=(*findings(every), *asides(every, BESIDE)),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The keys for an objective."""
        if objective["log_ratio_cap"] is not None:
            raise Inexpressible("NeMo-RL caps no log-ratio")
        keys = _written_aggregation(objective["aggregation"]) | _written_surrogate(objective)
        keys |= _written_penalty(objective["penalty"])
        keys |= write_correction(objective["correction"], sequence=keys["sequence_level_importance_ratios"])
        return {LOSS + key: value for key, value in keys.items()}

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """`sequence_level_importance_ratios` with `token_level_loss: false`, and a clip range."""
        keys = {"sequence_level_importance_ratios": True, "token_level_loss": False}
        return {LOSS + key: value for key, value in (keys | _bounds(clip)).items()}


def _derived(every: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the estimator are those of `grpo` where they are not set."""
    names = ("normalize_rewards", "use_leave_one_out_baseline")
    unset = {
        ESTIMATOR + name: every[GRPO + name] for name in names if every[ESTIMATOR + name] in (None, f"${{grpo.{name}}}")
    }
    return dict(every) | unset


def _surrogate(own: Mapping[str, Any]) -> dict[str, Any]:
    low, high = own["ratio_clip_min"], own["ratio_clip_max"]
    if own["disable_ppo_ratio"]:
        return {"kind": "reinforce", "gate": None}
    if own["use_cispo"]:
        return parts.cispo(low, high)
    return parts.clip(low, high, own["ratio_clip_c"])


def _penalty(own: Mapping[str, Any]) -> dict[str, Any] | None:
    if own["use_kl_in_reward"] or not own["reference_policy_kl_penalty"]:
        return None
    return parts.kl_term(
        own["reference_policy_kl_type"],
        own["reference_policy_kl_penalty"],
        importance="token" if own["use_on_policy_kl_approximation"] else None,
        log_ratio_clamp=own["kl_input_clamp_value"],
        value_clamp=own["kl_output_clamp_value"],
    )


def _advantages(every: Mapping[str, Any]) -> dict[str, Any] | None:
    if every[ESTIMATOR + "name"] == "reinforce_plus_plus":
        return {"center": "mean" if every[ESTIMATOR + "minus_baseline"] else "none", "scale": "none"}
    if every[ESTIMATOR + "name"] != "grpo":
        return None
    alone, scaled = every[ESTIMATOR + "use_leave_one_out_baseline"], every[ESTIMATOR + "normalize_rewards"]
    scale = ("leave_one_out_std" if alone else "std") if scaled else "none"
    return {"center": "leave_one_out" if alone else "mean", "scale": scale, "ddof": 1, "eps": 1e-6}


def _updates(every: Mapping[str, Any]) -> int:
    responses = int(every[GRPO + "num_prompts_per_step"]) * int(every[GRPO + "num_generations_per_prompt"])
    return max(1, responses // int(every["policy.train_global_batch_size"]))


def _bounds(surrogate: Mapping[str, Any]) -> dict[str, Any]:
    return {"ratio_clip_min": surrogate["low"], "ratio_clip_max": surrogate["high"]}


def _written_aggregation(aggregation: Mapping[str, Any]) -> dict[str, Any]:
    mode, constant = aggregation["mode"], aggregation["constant"]
    if aggregation["count"] == "non_empty":
        raise Inexpressible("NeMo-RL counts every response whose loss_multiplier is 1, empty ones too")
    if mode not in ("token_mean", "sequence_mean_token_mean") or constant != 1:
        raise Inexpressible(f"NeMo-RL does not aggregate by {mode} with the constant {constant:g}")
    return {"token_level_loss": mode == "token_mean"}


def _written_surrogate(objective: Mapping[str, Any]) -> dict[str, Any]:
    surrogate, ratio = objective["surrogate"], objective["ratio"]
    kind, per_token = surrogate["kind"], objective["aggregation"]["mode"] == "token_mean"
    keys = {"sequence_level_importance_ratios": ratio == "sequence"}
    if kind == "clip" and (ratio == "token" or (ratio == "sequence" and not per_token)):
        return keys | _bounds(surrogate) | {"ratio_clip_c": surrogate["dual"]}
    if kind == "cispo" and ratio == "token" and per_token:
        bounds = {"low": parts.cispo_low(surrogate), "high": surrogate["high"]}
        return keys | _bounds(bounds) | {"use_cispo": True}
    if kind == "reinforce" and ratio == "token" and surrogate["gate"] is None:
        return keys | {"disable_ppo_ratio": True}
    mode = objective["aggregation"]["mode"]
    raise Inexpressible(f"no key of NeMo-RL gives {kind} on the {ratio} ratio with {mode}")


def _written_penalty(penalty: Mapping[str, Any] | None) -> dict[str, Any]:
    if penalty is None or not penalty["coefficient"]:
        return {"reference_policy_kl_penalty": 0.0}
    if penalty["estimator"] not in ("k1", "k2", "k3") or penalty["aggregation"] or penalty["importance"] == "sequence":
        raise Inexpressible("NeMo-RL's KL term is k1, k2 or k3, aggregated as the loss")
    return {
        "reference_policy_kl_penalty": penalty["coefficient"],
        "reference_policy_kl_type": penalty["estimator"],
        "kl_input_clamp_value": penalty["log_ratio_clamp"],
        "kl_output_clamp_value": penalty["value_clamp"],
        "use_on_policy_kl_approximation": penalty["importance"] == "token",
    }


DIALECT = NemoRl()
