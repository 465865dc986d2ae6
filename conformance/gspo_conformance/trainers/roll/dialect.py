"""ROLL's keys of an RLVR pipeline: `importance_sampling` is the ratio, `loss_agg_mode` the aggregation, `adv_estimator` and the norm keys the advantages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Inexpressible, Reading, completed
from . import agentic, variants
from .findings import findings

SEED, HEAD = "c0c0d2b1", "8eb27cc2"
WEIGHT = "train_infer_correction.is_weight."
STEPS = "actor_train.training_args."
SHARED: dict[str, Any] = {
    "importance_sampling": "token",
    "pg_clip": 0.2,
    "dual_clip_loss": False,
    "use_kl_loss": False,
    "kl_loss_coef": 0.0,
    "add_token_level_kl": False,
    "kl_penalty": "kl",
    "init_kl_coef": 0.2,
    "adv_estimator": "gae",
    "whiten_advantages": False,
    "whiten_rewards": False,
    "advantage_clip": None,
    "reward_clip": None,
    "rl_loss_coef": 1.0,
    "entropy_loss_coef": 0.0,
    "difficulty_loss_weight": False,
    "length_loss_weight": False,
    "max_len_mask": False,
    "difficulty_mask": False,
    "error_max_len_clip": False,
    "ppo_epochs": 1,
    "rollout_batch_size": 128,
    "num_return_sequences_in_group": 1,
    "prompt_length": 1024,
    "response_length": None,
    "sequence_length": None,
    f"{STEPS}per_device_train_batch_size": None,
    f"{STEPS}gradient_accumulation_steps": None,
}
OWN: dict[str, dict[str, Any]] = {
    SEED: {
        "loss_agg_mode": "seq-mean-token-sum",
        "reward_norm": None,
        "reward_shift": False,
        "reward_scale": False,
        "postive_loss_coef": 0.0,
        "use_topr_neg_loss_coef": 0.0,
    },
    HEAD: {
        "loss_agg_mode": "seq-mean-token-mean",
        "use_pg_clip_range": False,
        "pg_clip_low": 0.2,
        "pg_clip_high": 0.2,
        "norm_mean_type": None,
        "norm_std_type": None,
        f"{WEIGHT}enabled": False,
        f"{WEIGHT}weight_type": "token",
        f"{WEIGHT}upper_bound": 1.2,
        "train_infer_correction.filters": (),
        "force_disable_old_logprobs_recompute": False,
    },
}
AGGREGATIONS = {
    "token-mean": "token_mean",
    "seq-mean-token-sum": "sequence_mean_token_sum",
    "seq-mean-token-mean": "sequence_mean_token_mean",
    "seq-mean-token-sum-norm": "token_sum",
}
RATIOS = {"token": "token", "seq": "sequence"}
LEVELS = ("token", "geometric", "sequence")
OVER_BATCH = ("batch", "running")


class Roll(Dialect):
    """`c0c0d2b1` is of August 2025, when GSPO was first documented; `8eb27cc2` of August 2026."""

    name = "roll"
    versions = (SEED, HEAD)
    clip_keys = ("pg_clip", "pg_clip_low", "pg_clip_high")
    fixes: ClassVar[dict[str, str]] = {
        "ratio": "importance_sampling: seq; in the pipeline for agents, ratio_type: segment",
        "aggregation": "loss_agg_mode: seq-mean-token-mean",
        "clip": "use_pg_clip_range: true, pg_clip_low: 3e-4, pg_clip_high: 4e-4; before these keys, pg_clip: 3e-4",
        "dual": "dual_clip_loss: false",
        "penalty": "use_kl_loss: false",
        "whiten": "whiten_advantages: false",
        "advantages": f"adv_estimator: grpo; in the pipeline for agents, {agentic.GROUPED}",
        "scale": f"adv_estimator: grpo; in the pipeline for agents, {agentic.GROUPED}",
        "updates": "rollout_batch_size * num_return_sequences_in_group a multiple of what one optimiser step takes",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What these keys optimise in this version; `given` holds the keys that this version reads."""
        agents, own = version == HEAD and agentic.is_agentic(settings), variants.is_variant(settings)
        defaults = SHARED | OWN[version] | (agentic.DEFAULTS if agents else {}) | (variants.DEFAULTS if own else {})
        given, every = completed(settings, defaults)
        if every["importance_sampling"] not in RATIOS or every["loss_agg_mode"] not in AGGREGATIONS:
            told = f"importance_sampling {every['importance_sampling']!r} with loss_agg_mode {every['loss_agg_mode']!r}"
            raise Inexpressible(f"{told} is not accepted by ROLL")
        objective = {
            **PAPER,
            "ratio": agentic.ratio(every) if agents else "token" if own else RATIOS[every["importance_sampling"]],
            "surrogate": variants.surrogate(every, _surrogate(every)) if own else _surrogate(every),
            "aggregation": _aggregation(every),
            "penalty": _penalty(every),
            "correction": _correction(every),
        }
        reading = Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages=_advantages(every),
            estimator=_estimator(every),
            whiten=bool(every["whiten_advantages"]),
            updates_per_rollout=_updates(every),
            settings=every,
            given=frozenset(given),
        )
        return reading.with_findings(
            *findings(every, settings, reading),
            *(agentic.findings(every, settings) if agents else ()),
            *(variants.findings(settings, agents) if own else ()),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The keys for an objective; responses without a counted token never count in ROLL."""
        keys = {"importance_sampling": _written_ratio(objective), **_written_clip(objective, version)}
        keys["loss_agg_mode"] = written_aggregation(objective["aggregation"])
        return keys | _written_penalty(objective["penalty"]) | _written_correction(objective["correction"], version)

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The loss keys of ROLL's own page on GSPO, with a clip range, which the page leaves at 0.2."""
        documented = "seq-mean-token-sum" if version == SEED else "seq-mean-token-mean"
        return {
            "importance_sampling": "seq",
            "loss_agg_mode": documented,
            "dual_clip_loss": True,
            "use_kl_loss": True,
            "kl_loss_coef": 0.001,
            **_range(clip, version),
        }


def _surrogate(every: Mapping[str, Any]) -> dict[str, Any]:
    clip, ranged = every["pg_clip"], every.get("use_pg_clip_range")
    low, high = (every["pg_clip_low"], every["pg_clip_high"]) if ranged else (clip, clip)
    return parts.clip(low, high, 1 + 2 * clip if every["dual_clip_loss"] else None)


def _aggregation(every: Mapping[str, Any]) -> dict[str, Any]:
    """Every mode divides by the responses that have a counted token; the last one by the padded width instead."""
    mode = AGGREGATIONS[every["loss_agg_mode"]]
    if mode != "token_sum":
        return parts.aggregation(mode, count="all" if mode == "token_mean" else "non_empty")
    width = every["sequence_length"] or every["prompt_length"] + (every["response_length"] or 0)
    return parts.aggregation(mode, float(width - 1))


def _penalty(every: Mapping[str, Any]) -> dict[str, Any] | None:
    if not (every["use_kl_loss"] and every["kl_loss_coef"]):
        return None
    return parts.kl_term("k3", every["kl_loss_coef"], value_clamp=10.0)


def _correction(every: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not every.get(f"{WEIGHT}enabled"):
        return []
    level, high = every[f"{WEIGHT}weight_type"], every[f"{WEIGHT}upper_bound"]
    if level not in LEVELS:
        raise Inexpressible(f"a correction weight per {level} is not an objective of this family")
    return [parts.weight(level, "clamp", high=high)]


def _advantages(every: Mapping[str, Any]) -> dict[str, Any] | None:
    """The normalisation of rewards, which is all that `grpo` and `reinforce` do to them."""
    estimator = every["adv_estimator"]
    if estimator not in ("grpo", "reinforce", "agentic_reinforce"):
        return None
    mean, std = _norms(every)
    if mean in OVER_BATCH:
        return None
    scales = {"group": "std", "batch": "batch_std", "running": "batch_std", None: "none"}
    return {"center": "mean" if mean == "group" else "none", "scale": scales[std], "ddof": 1, "eps": 1e-6}


def _estimator(every: Mapping[str, Any]) -> str:
    """Where the advantages come from: a mean over the batch is none of a group."""
    estimator = str(every["adv_estimator"])
    grouped = estimator in ("grpo", "reinforce", "agentic_reinforce") and _norms(every)[0] in OVER_BATCH
    return "rewards less the mean of the batch" if grouped else estimator


def _norms(every: Mapping[str, Any]) -> tuple[str | None, str | None]:
    return agentic.norm(every) if "ratio_type" in every else _norm(every)


def _norm(every: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Over what the mean and the standard deviation are taken."""
    if "norm_mean_type" in every:
        grpo = every["adv_estimator"] == "grpo"
        return ("group", "group") if grpo else (every["norm_mean_type"], every["norm_std_type"])
    over = "group" if every["adv_estimator"] == "grpo" else every["reward_norm"]
    if over == "running" and every["reward_scale"] and not every["reward_shift"]:
        return None, over
    return over, None if every["reward_shift"] else over


def _updates(every: Mapping[str, Any]) -> int | None:
    """Optimiser steps per rollout batch, where they are one whatever the number of ranks."""
    part, steps = every[f"{STEPS}per_device_train_batch_size"], every[f"{STEPS}gradient_accumulation_steps"]
    if not part or not steps or every["ppo_epochs"] > 1:
        return None
    batch = every["rollout_batch_size"] * every["num_return_sequences_in_group"]
    return 1 if batch <= part * steps else None


def _written_ratio(objective: Mapping[str, Any]) -> str:
    names = {value: key for key, value in RATIOS.items()}
    if objective["ratio"] not in names or objective["log_ratio_cap"] is not None:
        capped = " with a capped log-ratio" if objective["log_ratio_cap"] is not None else ""
        raise Inexpressible(f"ROLL has no {objective['ratio']} ratio{capped}")
    return names[objective["ratio"]]


def _written_clip(objective: Mapping[str, Any], version: str) -> dict[str, Any]:
    surrogate = objective["surrogate"]
    if surrogate["kind"] != "clip":
        raise Inexpressible(f"ROLL has no {surrogate['kind']} surrogate in this pipeline")
    keys, dual = _range(surrogate, version), surrogate["dual"]
    if dual is None:
        return keys | {"dual_clip_loss": False}
    if version == SEED and abs(1 + 2 * keys["pg_clip"] - dual) > 1e-12:
        raise Inexpressible("ROLL's dual clip is at 1 + 2 pg_clip and its clip range at pg_clip")
    return keys | {"pg_clip": (dual - 1) / 2, "dual_clip_loss": True}


def _range(clip: Mapping[str, Any], version: str) -> dict[str, Any]:
    if version == SEED:
        if clip["low"] != clip["high"]:
            raise Inexpressible(f"ROLL {SEED} has one clip range for both sides")
        return {"pg_clip": clip["low"]}
    return {"use_pg_clip_range": True, "pg_clip_low": clip["low"], "pg_clip_high": clip["high"]}


def written_aggregation(aggregation: Mapping[str, Any]) -> str:
    """The `loss_agg_mode` for an aggregation, whatever it says of responses without a counted token."""
    names = {value: key for key, value in AGGREGATIONS.items() if value != "token_sum"}
    if aggregation["mode"] not in names or aggregation["constant"] != 1:
        raise Inexpressible(
            f"ROLL cannot aggregate by {aggregation['mode']} with the constant {aggregation['constant']:g}"
        )
    return names[aggregation["mode"]]


def _written_penalty(penalty: Mapping[str, Any] | None) -> dict[str, Any]:
    if penalty is None:
        return {"use_kl_loss": False}
    if not parts.plain_k3(penalty, "value_clamp") or penalty["value_clamp"] not in (None, 10.0):
        raise Inexpressible("ROLL's KL term is k3 with its value clamped to 10")
    return {"use_kl_loss": True, "kl_loss_coef": penalty["coefficient"]}


def _written_correction(corrections: Any, version: str) -> dict[str, Any]:
    if not corrections:
        return {}
    one = corrections[0]
    plain = one["action"] == "clamp" and not one["low"] and one["numerator"] == "old" and not one["negative_only"]
    if version == SEED or len(corrections) > 1 or not plain or one["level"] not in LEVELS:
        raise Inexpressible("ROLL's correction is one weight of the old policy over the sampler, clamped from above")
    return {f"{WEIGHT}enabled": True, f"{WEIGHT}weight_type": one["level"], f"{WEIGHT}upper_bound": one["high"]}


DIALECT = Roll()
