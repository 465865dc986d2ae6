"""PipelineRL's keys below `finetune.rl`, with the values of its `conf/finetune/base.yaml`; every loss is a sum over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Inexpressible, Reading, asides, completed
from .findings import findings

TUNE, RL = "finetune.", "finetune.rl."
BESIDE = {RL + "overlong_filtering": "truncated", RL + "filter_zero_advantage_groups": "equal"}
DEFAULTS: dict[str, Any] = {
    RL + "policy_loss": "reinforce",
    RL + "epsilon_low": 0.02,
    RL + "epsilon_high": 0.02,
    RL + "kl_coef": 0.0,
    RL + "final_kl_coef": None,
    RL + "clamp_log_ratio_ref_new_value": 5,
    RL + "entropy_bonus": 0.0,
    RL + "final_entropy_bonus": 0.0,
    RL + "use_advantages": True,
    RL + "relu_log_p_weights": False,
    RL + "divide_advantage_by_std": False,
    RL + "group_normalization": False,
    RL + "reward_minus_kl_coef": 0.0,
    RL + "aggregate_loss": "sum",
    **dict.fromkeys(BESIDE, False),
    TUNE + "seq_packing": True,
    TUNE + "model_class": "causal-language-modeling",
    TUNE + "attempts": 8,
}
VALUE_HEAD = "causal-language-modeling-with-value-head"
# What the other files of `conf/finetune` set.
FILES: dict[str, dict[str, Any]] = {
    "base": {},
    "grpo": {RL + "policy_loss": "ppo"},
    "ppo": {RL + "policy_loss": "ppo", TUNE + "model_class": VALUE_HEAD, TUNE + "attempts": 1},
    "actor_critic": {TUNE + "model_class": VALUE_HEAD, TUNE + "attempts": 1},
}
SUM = "sequence_mean_token_sum"


class PipelineRl(Dialect):
    """`policy_loss: gspo` weighs a response by its length, as LUSPO does; its own comment says that this is meant."""

    name = "pipelinerl"
    versions = ("58d39345",)
    clip_keys = (RL + "epsilon_low", RL + "epsilon_high")
    fixes: ClassVar[dict[str, str]] = {
        "ratio": f"{RL}policy_loss=gspo",
        "aggregation": "no setting does that",
        "clip": f"{RL}epsilon_low=3e-4 {RL}epsilon_high=4e-4",
        "penalty": f"{RL}kl_coef=0",
        "advantages": f"{TUNE}model_class=causal-language-modeling {RL}use_advantages=true",
        "scale": f"{RL}divide_advantage_by_std=true",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What these keys optimise; keys of `conf/finetune` are read without their section too."""
        given, every = completed(settings, DEFAULTS | _file(settings), TUNE, RL)
        every = _derived(every)
        loss = every[RL + "policy_loss"]
        objective = {
            **PAPER,
            "ratio": "sequence" if loss == "gspo" else "token",
            "surrogate": _surrogate(every),
            "aggregation": parts.aggregation(SUM),
            "penalty": None if loss == "gspo" else _penalty(every),
        }
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages=_advantages(every),
            estimator="a value head" if every[TUNE + "model_class"] == VALUE_HEAD else "group",
            settings=every,
            given=frozenset(given),
            findings=(*findings(every), *asides(every, BESIDE)),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The keys for an objective."""
        aggregation = objective["aggregation"]
        if objective["log_ratio_cap"] is not None or objective["correction"]:
            raise Inexpressible(
                "PipelineRL caps no log-ratio and corrects for no sampler: its old policy is the sampler's"
            )
        if aggregation["count"] == "non_empty":
            raise Inexpressible("PipelineRL divides by the responses of a step, empty ones too")
        if aggregation["mode"] != SUM or aggregation["constant"] != 1:
            mode, constant = aggregation["mode"], aggregation["constant"]
            raise Inexpressible(
                f"PipelineRL sums over tokens and does not aggregate by {mode} with the constant {constant:g}"
            )
        keys = _written_surrogate(objective)
        keys |= _written_penalty(objective["penalty"], keys["policy_loss"])
        return {RL + key: value for key, value in keys.items()}

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """`policy_loss: gspo` and a clip range."""
        return {RL + "policy_loss": "gspo", **_bounds(clip)}


def _file(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the chosen file of `conf/finetune` sets, from `finetune=NAME` or the list of defaults."""
    listed = settings.get("defaults") or []
    groups = [one for one in (listed if isinstance(listed, list) else ()) if isinstance(one, Mapping)]
    named = [value for one in groups for key, value in one.items() if str(key).split()[-1] == "finetune"]
    chosen = settings.get("finetune", named[-1] if named else "base")
    return FILES.get(chosen, {}) if isinstance(chosen, str) else {}


def _derived(every: Mapping[str, Any]) -> dict[str, Any]:
    """The last coefficient of the KL term is the first one unless it is a number."""
    final = every[RL + "final_kl_coef"]
    unset = final is None or isinstance(final, str)
    return dict(every) | ({RL + "final_kl_coef": every[RL + "kl_coef"]} if unset else {})


def _surrogate(every: Mapping[str, Any]) -> dict[str, Any]:
    high = every[RL + "epsilon_high"]
    if every[RL + "policy_loss"] == "reinforce":
        return parts.cispo(None, high)
    return parts.clip(every[RL + "epsilon_low"], high)


def _penalty(every: Mapping[str, Any]) -> dict[str, Any] | None:
    if not every[RL + "kl_coef"]:
        return None
    return parts.kl_term("k3", every[RL + "kl_coef"], log_ratio_clamp=every[RL + "clamp_log_ratio_ref_new_value"])


def _advantages(every: Mapping[str, Any]) -> dict[str, Any] | None:
    if every[TUNE + "model_class"] == VALUE_HEAD:
        return None
    if not every[RL + "use_advantages"] and every[RL + "policy_loss"] != "gspo":
        return {"center": "none", "scale": "none"}
    scale = "std" if every[RL + "divide_advantage_by_std"] else "none"
    return {"center": "leave_one_out", "scale": scale, "ddof": 1, "eps": 1e-4}


def _bounds(surrogate: Mapping[str, Any]) -> dict[str, Any]:
    return {RL + "epsilon_low": surrogate["low"], RL + "epsilon_high": surrogate["high"]}


def _written_surrogate(objective: Mapping[str, Any]) -> dict[str, Any]:
    surrogate, ratio = objective["surrogate"], objective["ratio"]
    kind = surrogate["kind"]
    if kind == "clip" and surrogate["dual"] is None and ratio in ("sequence", "token"):
        loss = "gspo" if ratio == "sequence" else "ppo"
        return {"policy_loss": loss, "epsilon_low": surrogate["low"], "epsilon_high": surrogate["high"]}
    if kind == "cispo" and ratio == "token" and surrogate["low"] is None:
        return {"policy_loss": "reinforce", "epsilon_high": surrogate["high"]}
    dual = " with a dual clip" * (surrogate.get("dual") is not None)
    raise Inexpressible(f"no policy_loss of PipelineRL is {kind}{dual} on the {ratio} ratio")


def _written_penalty(penalty: Mapping[str, Any] | None, loss: str) -> dict[str, Any]:
    if penalty is None or not penalty["coefficient"]:
        return {"kl_coef": 0.0, "final_kl_coef": 0.0}
    if loss == "gspo":
        raise Inexpressible("PipelineRL's gspo has no KL term: kl_coef is ignored")
    if not parts.plain_k3(penalty, "log_ratio_clamp") or penalty["log_ratio_clamp"] is None:
        raise Inexpressible("PipelineRL's KL term is k3 of a clamped log-ratio, aggregated as the loss")
    coefficient = penalty["coefficient"]
    clamp = {"clamp_log_ratio_ref_new_value": penalty["log_ratio_clamp"]}
    return {"kl_coef": coefficient, "final_kl_coef": coefficient, **clamp}


DIALECT = PipelineRl()
