"""Liger-Kernel's `LigerFusedLinearGRPOLoss`: `importance_sampling_level` is the ratio, `loss_type` the surrogate with its aggregation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Finding, Inexpressible, Reading, bound_inside, completed
from ..trl.dialect import SAPO, VESPO, kl_term, written_aggregation, written_penalty

DEFAULTS: dict[str, Any] = {
    "importance_sampling_level": "token",
    "loss_type": "dapo",
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "delta": None,
    "beta": 0.04,
    "use_ref_model": True,
    "use_bias_correction_kl": False,
    "max_completion_length": None,
    "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 1.05,
    "vespo_k_pos": 2.0,
    "vespo_lambda_pos": 3.0,
    "vespo_k_neg": 3.0,
    "vespo_lambda_neg": 2.0,
    "temperature": 1.0,
    "chunk_size": 1,
}
AGGREGATIONS = {
    "grpo": "sequence_mean_token_mean",
    "bnpo": "token_mean",
    "dapo": "token_mean",
    "dr_grpo": "sequence_mean_token_sum",
    "luspo": "sequence_mean_token_sum",
    "sapo": "sequence_mean_token_mean",
    "cispo": "token_mean",
    "vespo": "token_mean",
}
TOKEN_ONLY = ("sapo", "cispo", "vespo")


class Liger(Dialect):
    """`loss_type: grpo` with `importance_sampling_level: sequence` and `beta: 0` is the paper's objective."""

    name = "liger"
    versions = ("0.8.5",)
    fixes: ClassVar[dict[str, str]] = {
        "ratio": "importance_sampling_level='sequence'",
        "aggregation": "loss_type='grpo'",
        "clip": "epsilon_low=3e-4, epsilon_high=4e-4",
        "dual": "delta=None",
        "penalty": "beta=0.0, use_ref_model=False",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What the loss optimises; advantages come from whoever calls it."""
        given, every = completed(settings, DEFAULTS)
        loss, level = every["loss_type"], every["importance_sampling_level"]
        levels = ("token",) if loss in TOKEN_ONLY else ("token", "sequence")
        if loss not in AGGREGATIONS or level not in levels:
            raise Inexpressible(f"Liger refuses loss_type {loss!r} with importance_sampling_level {level!r}")
        objective = {
            **PAPER,
            "ratio": "product" if loss == "vespo" else level,
            "surrogate": _surrogate(loss, every),
            "aggregation": _aggregation(loss, every),
            "penalty": kl_term(level, every),
            "log_ratio_cap": 20.0 if loss == "vespo" else None,
        }
        bounds = ("epsilon_high", every["epsilon_high"]), ("delta", every["delta"])
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            estimator="unknown",
            settings=every,
            given=frozenset(given),
            findings=(*bound_inside(objective["surrogate"]["kind"], *bounds), *_findings(every)),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The arguments of the loss for an objective."""
        if objective["correction"]:
            raise Inexpressible("Liger takes correction weights ready made")
        if objective["aggregation"]["count"] != "all":
            raise Inexpressible("Liger counts every response of the micro-batch, empty ones too")
        loss, keys = _written_loss(objective)
        level = "sequence" if objective["ratio"] == "sequence" else "token"
        return {"loss_type": loss, "importance_sampling_level": level, **keys, **written_penalty(objective, "Liger")}

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """`importance_sampling_level="sequence"` and a clip range."""
        return {"importance_sampling_level": "sequence", "epsilon_low": clip["low"], "epsilon_high": clip["high"]}


def _surrogate(loss: str, every: Mapping[str, Any]) -> dict[str, Any]:
    if loss in ("sapo", "vespo"):
        names = SAPO if loss == "sapo" else VESPO
        return {"kind": loss, **{name: every[key] for name, key in names.items()}}
    return parts.held(loss, every["epsilon_low"], every["epsilon_high"], every["delta"])


def _aggregation(loss: str, every: Mapping[str, Any]) -> dict[str, Any]:
    constant = float(every["max_completion_length"] or 1) if loss == "dr_grpo" else 1.0
    return parts.aggregation(AGGREGATIONS[loss], constant)


def _findings(every: Mapping[str, Any]) -> Iterator[Finding]:
    loss = every["loss_type"]
    if loss == "luspo" and (every["importance_sampling_level"] == "token" or every["beta"]):
        told = "the weighted loss is a mean over the columns of the batch, not over counted tokens: padding enters it"
        yield Finding("padding-in-mean", "error", "loss_type", told, "GSPO-DATA-2", fix=Liger.fixes["aggregation"])
    if loss == "dr_grpo" and every["max_completion_length"] is None:
        told = "dr_grpo divides by max_completion_length, and none is given: the first call fails"
        yield Finding("missing-length", "error", "max_completion_length", told, "GSPO-AGG-4")
    if every["use_ref_model"] and not every["beta"]:
        told = "reference log-probabilities are demanded, and beta = 0 makes no use of them"
        yield Finding("unused-reference", "note", "use_ref_model", told, fix="use_ref_model=False")
    if every["temperature"] != 1:
        told = f"log-probabilities are taken at the temperature {every['temperature']:g}: the old ones must be too"
        yield Finding("temperature", "note", "temperature", told, "GSPO-DATA-5")


def _written_loss(objective: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    surrogate, ratio, mode = objective["surrogate"], objective["ratio"], objective["aggregation"]["mode"]
    kind, cap = surrogate["kind"], objective["log_ratio_cap"]
    if kind == "clip" and ratio in ("token", "sequence") and cap is None:
        parts.check_dual(surrogate, "Liger's delta")
        keys = {"epsilon_low": surrogate["low"], "epsilon_high": surrogate["high"], "delta": surrogate["dual"]}
        return _written_clip(objective, keys)
    if kind == "sapo" and ratio == "token" and cap is None and mode == AGGREGATIONS[kind]:
        return kind, {key: float(surrogate[name]) for name, key in SAPO.items()}
    if kind == "vespo" and ratio == "product" and cap in (None, 20.0) and mode == AGGREGATIONS[kind]:
        return kind, {key: float(surrogate[name]) for name, key in VESPO.items()}
    if kind == "cispo" and ratio == "token" and cap is None and mode == AGGREGATIONS[kind] and surrogate["low"] is None:
        return kind, {"epsilon_high": surrogate["high"] + 1}
    raise Inexpressible(f"no loss_type of Liger has the surrogate {kind} on the {ratio} ratio with {mode}")


def _written_clip(objective: Mapping[str, Any], keys: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    mode, constant = objective["aggregation"]["mode"], objective["aggregation"]["constant"]
    unpadded = objective["ratio"] == "sequence" and objective["penalty"] is None
    if mode == "sequence_mean_token_sum" and constant == 1 and unpadded:
        return "luspo", keys
    loss, length = written_aggregation(mode, constant, "Liger")
    return loss, keys | length


DIALECT = Liger()
