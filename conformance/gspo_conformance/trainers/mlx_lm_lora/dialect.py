"""mlx-lm-lora's GRPO trainer: flags of `mlx_lm_lora.train` and fields of `GRPOTrainingArgs`, which have the same names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Inexpressible, Reading, completed
from .findings import findings

DEFAULTS: dict[str, Any] = {
    "train_mode": "grpo",
    "importance_sampling_level": "token",
    "grpo_loss_type": "grpo",
    "epsilon": 1e-4,
    "epsilon_high": None,
    "beta": 0.1,
    "group_size": 4,
    "max_completion_length": 512,
    "reference_model_path": None,
}
# Of what other trainers have too; the temperature is 0.8 in `GRPOTrainingArgs`, 1 as a flag.
SAMPLING: dict[str, Any] = {"temperature": None, "top_p": 0.95, "top_k": 20, "min_p": 0.0}
AGGREGATIONS = {"grpo": "sequence_mean_token_mean", "bnpo": "token_mean", "dr_grpo": "sequence_mean_token_sum"}


class MlxLmLora(Dialect):
    """The keys can say the paper's objective; no setting gives the trainer an old policy."""

    name = "mlx_lm_lora"
    versions = ("5.10.2",)
    clip_keys = ("epsilon", "epsilon_high")
    fixes: ClassVar[dict[str, str]] = {
        "ratio": "--importance-sampling-level sequence",
        "aggregation": "--grpo-loss-type grpo",
        "clip": "--epsilon 3e-4 --epsilon-high 4e-4",
        "penalty": "--beta 0.0",
        "updates": "no setting: a rollout is used once, by the policy that sampled it",
    }
    # Their flags have defaults, and a file behind `--config` is asked only for what has none.
    settled_by_flags: ClassVar[dict[str, Any]] = {
        "importance_sampling_level": "token",
        "grpo_loss_type": "grpo",
        "epsilon": 1e-4,
        "group_size": 4,
        "max_completion_length": 512,
        "temperature": 1.0,
        "gradient_accumulation_steps": 1,
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What a run optimises, were its ratio not 1."""
        given, every = completed(settings, DEFAULTS | SAMPLING)
        level, loss, mode = (every[key] for key in ("importance_sampling_level", "grpo_loss_type", "train_mode"))
        if mode != "grpo":
            raise Inexpressible(f"train_mode {mode!r} is not of this family")
        if loss not in AGGREGATIONS or level not in ("token", "sequence"):
            raise Inexpressible(f"mlx-lm-lora refuses grpo_loss_type {loss!r} with importance_sampling_level {level!r}")
        constant = float(every["max_completion_length"]) if loss == "dr_grpo" else 1.0
        objective = {
            **PAPER,
            "ratio": level,
            "surrogate": parts.clip(every["epsilon"], parts.upper(every)),
            "aggregation": parts.aggregation(AGGREGATIONS[loss], constant),
            "penalty": parts.kl_term("k3", every["beta"]) if every["beta"] else None,
        }
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages={"center": "mean", "scale": "std", "ddof": 0, "eps": 1e-4},
            updates_per_rollout=1,
            settings=every,
            given=frozenset(given.keys() - SAMPLING.keys()),
            findings=tuple(findings(every)),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The settings for an objective."""
        ratio, surrogate, aggregation = (objective[name] for name in ("ratio", "surrogate", "aggregation"))
        if objective["correction"] or objective["log_ratio_cap"] is not None:
            raise Inexpressible("mlx-lm-lora has no correction weights and no cap of the log-ratio")
        if ratio not in ("token", "sequence") or surrogate["kind"] != "clip" or surrogate["dual"] is not None:
            raise Inexpressible(
                f"mlx-lm-lora has no {ratio} ratio with the surrogate {surrogate['kind']}, no dual clip"
            )
        loss = next((key for key, mode in AGGREGATIONS.items() if mode == aggregation["mode"]), None)
        constant = aggregation["constant"]
        if loss is None or aggregation["count"] != "all" or constant != int(constant):
            raise Inexpressible(
                f"mlx-lm-lora does not aggregate by {aggregation['mode']} with the constant {constant:g}"
            )
        return {
            "importance_sampling_level": ratio,
            "grpo_loss_type": loss,
            "epsilon": surrogate["low"],
            "epsilon_high": surrogate["high"],
            "beta": _written_penalty(objective["penalty"]),
            **({"max_completion_length": int(constant)} if loss == "dr_grpo" else {}),
        }

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """`importance_sampling_level="sequence"` and a clip range."""
        return {"importance_sampling_level": "sequence", "epsilon": clip["low"], "epsilon_high": clip["high"]}


def _written_penalty(penalty: Mapping[str, Any] | None) -> float:
    if penalty is None:
        return 0.0
    if not parts.plain_k3(penalty):
        raise Inexpressible("mlx-lm-lora's KL term is k3, aggregated as the loss is, without weight")
    return penalty["coefficient"]


DIALECT = MlxLmLora()
