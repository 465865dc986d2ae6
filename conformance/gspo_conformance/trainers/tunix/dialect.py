"""Tunix's `GRPOConfig`: `loss_algo` is the ratio, `loss_agg_mode` the aggregation; the agentic one has more fields than the plain one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Inexpressible, Reading, bare, completed
from .findings import findings

SECTIONS = ("agentic_grpo_config.", "grpo_config.", "rl_training_config.", "training_config.")
DEFAULTS: dict[str, Any] = {
    "loss_algo": "grpo",
    "loss_agg_mode": "sequence-mean-token-mean",
    "epsilon": 0.2,
    "epsilon_high": None,
    "beta": 0.04,
    "kl_loss_mode": "kl",
    "kl_clamp_value": None,
    "advantage_estimator": "grpo",
    "policy_loss_fn": "grpo",
    "num_generations": 2,
    "num_iterations": 1,
    "max_response_length": 1024,
    "max_seq_token_per_tpu": None,
    "use_rollout_logps": True,
    "sampler_is": None,
    "sampler_is_threshold": 2.0,
    "degenerate_group_masking": False,
}
# Fields of the agentic GRPOConfig that the plain one lacks.
AGENTIC = (
    "epsilon_high",
    "max_response_length",
    "use_rollout_logps",
    "sampler_is",
    "sampler_is_threshold",
    "degenerate_group_masking",
)
OTHER_FIELDS = (
    "algo_variant",
    "reward_manager",
    "force_compute_kl",
    "system_prompt",
    "max_concurrency",
    "off_policy_steps",
    "episode_timeout",
    "filter_statuses",
    "overlong_filter",
)
RATIOS = {"grpo": "token", "gspo-token": "gspo_token"}
CAPS = {"grpo": 20.0, "gspo-token": 10.0}
AGGREGATIONS = {
    "sequence-mean-token-mean": "sequence_mean_token_mean",
    "token-mean": "token_mean",
    "seq-mean-token-sum": "sequence_mean_token_sum",
    "sequence-mean-token-scale": "sequence_mean_token_sum",
    "sequence-mean-token-sum-norm": "sequence_mean_token_sum",
}
ESTIMATORS = {"kl": "k1", "mse_kl": "k2", "low_var_kl": "k3"}
ADVANTAGES: dict[str, dict[str, Any]] = {
    "grpo": {"center": "mean", "scale": "std", "ddof": 1, "eps": 1e-6},
    "drgrpo": {"center": "mean", "scale": "none"},
    "rloo": {"center": "leave_one_out", "scale": "none"},
}


class Tunix(Dialect):
    """`loss_algo: gspo-token` with `beta: 0` is the paper's objective, in its token form."""

    name = "tunix"
    versions = ("0.1.7",)
    clip_keys = ("epsilon", "epsilon_high")
    fixes: ClassVar[dict[str, str]] = {
        "ratio": "loss_algo='gspo-token'",
        "aggregation": "loss_agg_mode='sequence-mean-token-mean'",
        "clip": "epsilon=3e-4, epsilon_high=4e-4 of tunix.rl.agentic's GRPOConfig",
        "penalty": "beta=0.0",
        "advantages": "advantage_estimator='grpo'",
        "scale": "advantage_estimator='grpo'",
        "updates": "num_iterations=4",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What a `GRPOConfig` optimises; the sections of Tunix's own YAML may stand before its keys."""
        given, every = completed({bare(key, SECTIONS): value for key, value in settings.items()}, DEFAULTS)
        agentic = bool(set(AGENTIC) & set(given)) or any(key.startswith(SECTIONS[0]) for key in settings)
        algo, estimator = every["loss_algo"], str(every["advantage_estimator"])
        if algo not in RATIOS:
            raise Inexpressible(f"loss_algo {algo!r} is not one of {', '.join(RATIOS)}")
        if every["policy_loss_fn"] != "grpo":
            raise Inexpressible(
                f"loss_algo {algo!r} with policy_loss_fn {every['policy_loss_fn']!r} is not GRPO's loss"
            )
        objective = {
            **PAPER,
            "ratio": RATIOS[algo],
            "surrogate": parts.clip(every["epsilon"], parts.upper(every)),
            "aggregation": _aggregation(every),
            "penalty": _penalty(every),
            "correction": _correction(every),
            "log_ratio_cap": CAPS[algo],
        }
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages=ADVANTAGES.get(estimator),
            estimator=estimator,
            whiten=estimator == "gae",
            updates_per_rollout=_updates(every, agentic),
            settings=every,
            given=frozenset(given),
            findings=tuple(findings(every, agentic, _unknown(settings))),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The fields of the agentic `GRPOConfig` for an objective."""
        surrogate = objective["surrogate"]
        if objective["correction"]:
            raise Inexpressible("Tunix computes correction weights before the loss, not in it")
        names = {"token": "grpo", "sequence": "gspo-token", "gspo_token": "gspo-token"}
        algo = names.get(objective["ratio"])
        if surrogate["kind"] != "clip" or surrogate["dual"] is not None or algo is None:
            raise Inexpressible(f"no loss_algo of Tunix has {surrogate['kind']} on the {objective['ratio']} ratio")
        if objective["log_ratio_cap"] not in (None, CAPS[algo]):
            raise Inexpressible(f"Tunix caps the log-ratio of {algo} at {CAPS[algo]:g} and at nothing else")
        return {
            "loss_algo": algo,
            "epsilon": surrogate["low"],
            "epsilon_high": surrogate["high"],
            **_written_aggregation(objective["aggregation"]),
            **_written_penalty(objective["penalty"]),
        }

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """`loss_algo="gspo-token"` and a clip range."""
        return {"loss_algo": "gspo-token", "epsilon": clip["low"], "epsilon_high": clip["high"]}


def _unknown(settings: Mapping[str, Any]) -> list[str]:
    """Keys of the agentic section that are no fields: the command line drops these without a word."""
    known = {*DEFAULTS, *OTHER_FIELDS}
    return [key for key in settings if key.startswith(SECTIONS[0]) and bare(key, SECTIONS) not in known]


def _aggregation(every: Mapping[str, Any]) -> dict[str, Any]:
    mode = every["loss_agg_mode"]
    if mode not in AGGREGATIONS:
        raise Inexpressible(f"loss_agg_mode {mode!r} is not accepted by Tunix, which has {', '.join(AGGREGATIONS)}")
    constant = float(every["max_response_length"]) if mode == "sequence-mean-token-scale" else 1.0
    return parts.aggregation(AGGREGATIONS[mode], constant, "non_empty")


def _penalty(every: Mapping[str, Any]) -> dict[str, Any] | None:
    if not every["beta"]:
        return None
    return parts.kl_term(ESTIMATORS[every["kl_loss_mode"]], every["beta"], value_clamp=every["kl_clamp_value"])


def _correction(every: Mapping[str, Any]) -> list[dict[str, Any]]:
    bounded = every["sampler_is"] == "token"
    return [parts.weight("token", "clamp", high=every["sampler_is_threshold"])] if bounded else []


def _updates(every: Mapping[str, Any], agentic: bool) -> int | None:
    """Without iterations the plain learner hands over no old log-probabilities; the agentic one has the sampler's."""
    iterations = int(every["num_iterations"])
    return None if agentic and iterations == 1 else iterations


def _written_aggregation(aggregation: Mapping[str, Any]) -> dict[str, Any]:
    mode, constant = aggregation["mode"], aggregation["constant"]
    if aggregation["count"] == "given":
        raise Inexpressible("Tunix counts the responses of the micro-batch itself")
    if mode == "sequence_mean_token_sum" and constant != 1:
        if constant != int(constant):
            raise Inexpressible(f"max_response_length is a whole number, not {constant:g}")
        return {"loss_agg_mode": "sequence-mean-token-scale", "max_response_length": int(constant)}
    found = next((key for key, value in AGGREGATIONS.items() if value == mode), None)
    if found is None:
        raise Inexpressible(f"no loss_agg_mode of Tunix aggregates by {mode}")
    return {"loss_agg_mode": found}


def _written_penalty(penalty: Mapping[str, Any] | None) -> dict[str, Any]:
    if penalty is None:
        return {"beta": 0.0}
    names = {value: key for key, value in ESTIMATORS.items()}
    plain = not penalty["importance"] and penalty["aggregation"] is None and penalty["log_ratio_clamp"] is None
    if penalty["estimator"] not in names or not plain:
        raise Inexpressible("Tunix's KL term is k1, k2 or k3, aggregated as the loss is, without a weight")
    return {
        "beta": penalty["coefficient"],
        "kl_loss_mode": names[penalty["estimator"]],
        "kl_clamp_value": penalty["value_clamp"],
    }


DIALECT = Tunix()
