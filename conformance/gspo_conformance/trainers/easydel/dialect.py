"""EasyDeL's `GSPOConfig`, a `GRPOConfig` with other defaults: `importance_sampling_level` is the ratio, `loss_type` the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Inexpressible, Reading, bare, bound_inside, completed
from .findings import findings

SECTIONS = ("config.trainer.", "trainer.")
GRPO: dict[str, Any] = {
    "trainer_type": "grpo",
    "importance_sampling_level": "token",
    "loss_type": "dapo",
    "epsilon": 0.2,
    "epsilon_high": None,
    "delta": None,
    "beta": 0.04,
    "scale_rewards": "group",
    "num_generations": None,
    "num_return_sequences": 4,
    "num_iterations": 1,
    "max_completion_length": 256,
    "max_loss_completion_tokens": None,
    "mask_truncated_completions": False,
    "top_entropy_quantile": 1.0,
}
GSPO: dict[str, Any] = {
    **GRPO,
    "trainer_type": "gspo",
    "importance_sampling_level": "sequence",
    "loss_type": "grpo",
    "epsilon": 3e-4,
    "epsilon_high": 4e-4,
    "beta": 0.0,
}
AGGREGATIONS = {
    "grpo": "sequence_mean_token_mean",
    "dapo": "token_mean",
    "bnpo": "token_mean",
    "dr_grpo": "sequence_mean_token_sum",
    "cispo": "token_mean",
}
SCALES = {"group": "std", True: "std", "batch": "batch_std", "none": "none", False: "none"}


class EasyDel(Dialect):
    """Settings are those of `GSPOConfig`, unless `trainer_type: grpo` says otherwise."""

    name = "easydel"
    versions = ("0.3.0",)
    clip_keys = ("epsilon", "epsilon_high")
    fixes: ClassVar[dict[str, str]] = {
        "ratio": "importance_sampling_level='sequence'",
        "aggregation": "loss_type='grpo'",
        "clip": "epsilon=3e-4, epsilon_high=4e-4",
        "dual": "delta=None",
        "penalty": "beta=0.0",
        "scale": "scale_rewards='group'",
        "updates": "no setting: num_iterations is read by nothing, and no old log-probabilities are handed over",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What a config optimises; the sections of the YAML runner may stand before its keys."""
        named = {bare(key, SECTIONS): value for key, value in settings.items()}
        given, every = completed(named, GRPO if named.get("trainer_type") == "grpo" else GSPO)
        loss, level = every["loss_type"], every["importance_sampling_level"]
        if loss not in AGGREGATIONS or level not in ("token", "sequence"):
            raise Inexpressible(f"EasyDeL refuses loss_type {loss!r} with importance_sampling_level {level!r}")
        high = parts.upper(every)
        objective = {
            **PAPER,
            "ratio": level,
            "surrogate": parts.held(loss, every["epsilon"], high, every["delta"]),
            "aggregation": _aggregation(loss, every),
            "penalty": parts.kl_term("k3", every["beta"]) if every["beta"] else None,
        }
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages={"center": "mean", "scale": SCALES[every["scale_rewards"]], "ddof": 0, "eps": 1e-4},
            updates_per_rollout=1,
            settings=every,
            given=frozenset(given),
            findings=(
                *findings(every),
                *bound_inside(
                    "cispo" if loss == "cispo" else "clip", ("epsilon_high", high), ("delta", every["delta"])
                ),
            ),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The fields of a config for an objective."""
        if objective["correction"] or objective["log_ratio_cap"] is not None:
            raise Inexpressible("EasyDeL has no correction weights and no cap of the log-ratio")
        loss, keys = _written_loss(objective)
        level = objective["ratio"]
        return {"importance_sampling_level": level, "loss_type": loss, **keys, **_written_penalty(objective["penalty"])}

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """`GSPOConfig` and a clip range."""
        return {**_loss_settings(GSPO), "epsilon": clip["low"], "epsilon_high": clip["high"]}


def _loss_settings(every: Mapping[str, Any]) -> dict[str, Any]:
    return {key: every[key] for key in ("importance_sampling_level", "loss_type", "beta")}


def _aggregation(loss: str, every: Mapping[str, Any]) -> dict[str, Any]:
    """dr_grpo divides by the columns of the loss, and a sequence ratio without a KL term has one column."""
    one = every["importance_sampling_level"] == "sequence" and not every["beta"]
    constant = 1.0 if loss != "dr_grpo" or one else float(every["max_completion_length"])
    return parts.aggregation(AGGREGATIONS[loss], constant)


def _written_loss(objective: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    surrogate, ratio, aggregation = objective["surrogate"], objective["ratio"], objective["aggregation"]
    kind, mode = surrogate["kind"], aggregation["mode"]
    if ratio not in ("token", "sequence") or aggregation["count"] != "all":
        raise Inexpressible(f"EasyDeL has no {ratio} ratio, and counts every response")
    if kind == "cispo" and mode == "token_mean" and surrogate["low"] is None:
        return kind, {"epsilon_high": surrogate["high"] + 1}
    if kind != "clip":
        raise Inexpressible(f"no loss_type of EasyDeL has the surrogate {kind} with {mode}")
    parts.check_dual(surrogate, "EasyDeL's delta")
    keys = {"epsilon": surrogate["low"], "epsilon_high": surrogate["high"], "delta": surrogate["dual"]}
    names = {"sequence_mean_token_mean": "grpo", "token_mean": "dapo"}
    return _written_sum(objective, keys) if mode not in names else (names[mode], keys)


def _written_sum(objective: Mapping[str, Any], keys: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    mode, constant = objective["aggregation"]["mode"], objective["aggregation"]["constant"]
    penalty = objective["penalty"]
    one = objective["ratio"] == "sequence" and not (penalty and penalty["coefficient"])
    if mode != "sequence_mean_token_sum" or (one and constant != 1) or constant != int(constant):
        raise Inexpressible(f"no loss_type of EasyDeL aggregates by {mode} with the constant {constant:g}")
    return "dr_grpo", keys if one else keys | {"max_completion_length": int(constant)}


def _written_penalty(penalty: Mapping[str, Any] | None) -> dict[str, Any]:
    if penalty is None:
        return {"beta": 0.0}
    if not parts.plain_k3(penalty):
        raise Inexpressible("EasyDeL's KL term is k3, aggregated as the loss is, without weight and clamps")
    return {"beta": penalty["coefficient"]}


DIALECT = EasyDel()
