"""AgileRL's `GSPO(...)` and `GRPO(loss_type=...)`: `loss_norm` is the aggregation, masks against off-policy tokens are on unless unset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Inexpressible, Reading, completed
from .findings import findings

DEFAULTS: dict[str, Any] = {
    "loss_type": "grpo",
    "importance_sampling_level": None,
    "clip_coef": 0.2,
    "loss_norm": "accumulation_window",
    "beta": 0.001,
    "kl_clamp": 10.0,
    "use_bias_correction_kl": True,
    "use_kl_advantage_shaping": False,
    "off_policy_token_mask_bounds": (0.5, 5.0),
    "off_policy_sequence_mask_threshold": 0.03,
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_cap": 2.0,
    "old_logprobs_source": None,
    "adv_norm": "mean_only",
    "whiten_advantages": False,
    "adv_clip_range": None,
    "filter_zero_adv": False,
    "group_size": 8,
    "batch_size": 16,
    "mini_batch_size": None,
    "update_epochs": 1,
}
LEVELS = {"token": "token", "trajectory": "sequence"}
AGGREGATIONS = {
    "micro_batch": "sequence_mean_token_mean",
    "accumulation_window": "token_mean",
    "episode": "sequence_mean_token_mean",
}
NO_MASKS = {"off_policy_token_mask_bounds": None, "off_policy_sequence_mask_threshold": None}


class AgileRl(Dialect):
    """`loss_type: gspo` with `loss_norm: micro_batch`, no KL term and no masks is the paper's objective."""

    name = "agilerl"
    versions = ("2.58.0",)
    clip_keys = ("clip_coef",)
    fixes: ClassVar[dict[str, str]] = {
        "ratio": "loss_type='gspo', or the class GSPO",
        "aggregation": "loss_norm='micro_batch'",
        "clip": "clip_coef=(0.9997, 1.0004), bounds of the ratio itself",
        "penalty": "beta=0.0",
        "scale": "adv_norm='mean_std'",
        "whiten": "whiten_advantages=False",
        "updates": "mini_batch_size a quarter of batch_size * group_size",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What an agent optimises; `INIT_HP.` may stand before its keys."""
        named = dict(map(_plain, settings.items()))
        given, every = completed(named | ({"loss_type": "gspo"} if named.get("algo") == "GSPO" else {}), DEFAULTS)
        level = "trajectory" if every["loss_type"] == "gspo" else every["importance_sampling_level"] or "token"
        if level not in LEVELS or every["loss_type"] not in ("grpo", "gspo", "cispo"):
            raise Inexpressible(f"loss_type {every['loss_type']!r} per {level} is not an objective of this family")
        if every["loss_norm"] not in AGGREGATIONS:
            raise Inexpressible(f"loss_norm {every['loss_norm']!r} is not accepted by AgileRL")
        objective = {
            **PAPER,
            "ratio": LEVELS[level],
            "surrogate": _surrogate(every),
            "aggregation": _aggregation(every),
            "penalty": _penalty(every, LEVELS[level]),
            "correction": _correction(every),
        }
        scale = "none" if every["adv_norm"] == "mean_only" else "std"
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages={"center": "mean", "scale": scale, "ddof": 1, "eps": 1e-8},
            whiten=bool(every["whiten_advantages"]),
            updates_per_rollout=_updates(every),
            settings=every,
            given=frozenset(given),
            findings=tuple(findings(every, level)),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The arguments of an agent for an objective."""
        level = next((key for key, value in LEVELS.items() if value == objective["ratio"]), None)
        if level is None or objective["log_ratio_cap"] is not None:
            raise Inexpressible(f"AgileRL has no {objective['ratio']} ratio with a cap of {objective['log_ratio_cap']}")
        return {
            **_written_surrogate(objective, level),
            **_written_aggregation(objective["aggregation"], objective["penalty"]),
            **_written_penalty(objective),
            **_written_correction(objective["correction"], objective["penalty"]),
        }

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The class `GSPO` and a clip range."""
        return {"loss_type": "gspo", "clip_coef": (1 - clip["low"], 1 + clip["high"])}


def _plain(item: tuple[str, Any]) -> tuple[str, Any]:
    """Keys as the class spells them; the YAML files of AgileRL have them in capitals below INIT_HP."""
    key = item[0].removeprefix("INIT_HP.")
    return (key.lower() if key.isupper() else key), item[1]


def _bounds(coefficient: Any) -> tuple[float, float]:
    """How far the ratio may go below and above 1."""
    if isinstance(coefficient, Sequence):
        return round(1 - coefficient[0], 12), round(coefficient[1] - 1, 12)
    return float(coefficient), float(coefficient)


def _surrogate(every: Mapping[str, Any]) -> dict[str, Any]:
    low, high = _bounds(every["clip_coef"])
    if every["loss_type"] == "cispo":
        return parts.cispo(None, high)
    return parts.clip(low, high)


def _aggregation(every: Mapping[str, Any]) -> dict[str, Any]:
    norm = every["loss_norm"]
    return parts.aggregation(AGGREGATIONS[norm], count="non_empty" if norm == "episode" else "all")


def _penalty(every: Mapping[str, Any], ratio: str) -> dict[str, Any] | None:
    if not every["beta"] or every["use_kl_advantage_shaping"]:
        return None
    return parts.kl_term(
        "k3",
        every["beta"],
        importance=ratio if every["use_bias_correction_kl"] else None,
        aggregation=parts.aggregation("token_mean") if every["loss_norm"] == "episode" else None,
        value_clamp=every["kl_clamp"],
    )


def _correction(every: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The weight of a colocated sampler, where the old policy is said to be the trainer's, and the masks against drift."""
    found = []
    if every["old_logprobs_source"] == "trainer" and every["vllm_importance_sampling_correction"]:
        found.append(parts.weight("token", "clamp", high=every["vllm_importance_sampling_cap"]))
    if every["off_policy_token_mask_bounds"] is not None:
        low, high = every["off_policy_token_mask_bounds"]
        found.append(parts.weight("token", "reject", low, high, numerator="current"))
    if every["off_policy_sequence_mask_threshold"] is not None:
        low = math.exp(-every["off_policy_sequence_mask_threshold"])
        found.append(parts.weight("geometric", "reject", low, numerator="current", negative_only=True))
    return found


def _updates(every: Mapping[str, Any]) -> int:
    """Optimiser steps per rollout, times `update_epochs`."""
    responses = int(every["batch_size"]) * int(every["group_size"])
    return max(1, responses // int(every["mini_batch_size"] or responses)) * int(every["update_epochs"])


def _written_surrogate(objective: Mapping[str, Any], level: str) -> dict[str, Any]:
    surrogate, gspo = objective["surrogate"], level == "trajectory"
    if surrogate["kind"] == "cispo" and surrogate["low"] is None:
        high = 1 + surrogate["high"]
        return {"loss_type": "cispo", "importance_sampling_level": level, "clip_coef": (0.0, high)}
    if surrogate["kind"] != "clip" or surrogate["dual"] is not None:
        raise Inexpressible(f"no loss_type of AgileRL is {surrogate['kind']} with these bounds")
    bounds = (1 - surrogate["low"], 1 + surrogate["high"])
    return {"loss_type": "gspo" if gspo else "grpo", "importance_sampling_level": level, "clip_coef": bounds}


def _written_aggregation(aggregation: Mapping[str, Any], penalty: Mapping[str, Any] | None) -> dict[str, Any]:
    mode, count = aggregation["mode"], aggregation["count"]
    if mode == "token_mean" and count != "given":
        return {"loss_norm": "accumulation_window"}
    if mode != "sequence_mean_token_mean" or count == "given":
        raise Inexpressible(f"no loss_norm of AgileRL aggregates by {mode}, counting {count}")
    episode = count == "non_empty"
    if penalty and penalty["coefficient"] and penalty["aggregation"] != ("token_mean" if episode else None):
        raise Inexpressible("the KL term of loss_norm episode is a mean over tokens, that of micro_batch is not")
    return {"loss_norm": "episode" if episode else "micro_batch"}


def _written_penalty(objective: Mapping[str, Any]) -> dict[str, Any]:
    penalty = objective["penalty"]
    if penalty is None or not penalty["coefficient"]:
        return {"beta": 0.0}
    plain = parts.plain_k3(penalty, "importance", "aggregation")
    if not plain or penalty["importance"] not in (None, objective["ratio"]):
        raise Inexpressible(
            "AgileRL's KL term is k3, plain or weighted by the ratio of its own level; its clamp drops tokens"
        )
    return {
        "beta": penalty["coefficient"],
        "use_bias_correction_kl": penalty["importance"] is not None,
        "kl_clamp": None,
    }


def _written_correction(corrections: Sequence[Mapping[str, Any]], penalty: Mapping[str, Any] | None) -> dict[str, Any]:
    """With the sampler's log-probabilities the weight is always there; masks drop the KL term too."""
    keys: dict[str, Any] = dict(NO_MASKS)
    for one in corrections:
        form = (one["level"], one["action"], one["numerator"], one["negative_only"])
        if form == ("token", "clamp", "old", False) and one["low"] is None and one["high"] is not None:
            keys["vllm_importance_sampling_cap"] = one["high"]
        elif form == ("token", "reject", "current", False) and None not in (one["low"], one["high"]):
            keys["off_policy_token_mask_bounds"] = (one["low"], one["high"])
        elif form == ("geometric", "reject", "current", True) and one["high"] is None and one["low"]:
            keys["off_policy_sequence_mask_threshold"] = -math.log(one["low"])
        else:
            raise Inexpressible(f"AgileRL has no correction {one['action']} per {one['level']} of this form")
    masks = any(keys[name] is not None for name in NO_MASKS)
    if corrections and ("vllm_importance_sampling_cap" not in keys or (masks and penalty)):
        raise Inexpressible("AgileRL weighs by a clamped ratio wherever it has the sampler's log-probabilities")
    return keys | ({"old_logprobs_source": "trainer"} if corrections else {})


DIALECT = AgileRl()
