"""SkyRL's keys, below `trainer.algorithm`: `policy_loss_type` picks ratio and surrogate, `loss_reduction` the aggregation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Finding, Inexpressible, Reading, asides, completed, entropy_bonus
from .correction import CORRECTION, read_correction, write_correction
from .correction import DEFAULTS as CORRECTIONS

ALGORITHM = "trainer.algorithm."
GROUP = "generator.n_samples_per_prompt"
BESIDE = {
    ALGORITHM + "dynamic_sampling.type": "equal",
    ALGORITHM + "zero_variance_filter": "equal",
    "generator.apply_overlong_filtering": "truncated",
}
DEFAULTS: dict[str, Any] = {
    ALGORITHM + "policy_loss_type": "regular",
    ALGORITHM + "loss_reduction": "token_mean",
    ALGORITHM + "max_seq_len": None,
    ALGORITHM + "eps_clip_low": 0.2,
    ALGORITHM + "eps_clip_high": 0.2,
    ALGORITHM + "clip_ratio_c": 3.0,
    ALGORITHM + "cispo.cispo_eps_clip_low": 1.0,
    ALGORITHM + "cispo.cispo_eps_clip_high": 4.0,
    ALGORITHM + "cispo.cispo_anchor": "old",
    ALGORITHM + "sapo.tau_pos": 1.0,
    ALGORITHM + "sapo.tau_neg": 1.05,
    ALGORITHM + "use_kl_loss": True,
    ALGORITHM + "use_kl_in_reward": False,
    ALGORITHM + "kl_loss_coef": 0.001,
    ALGORITHM + "kl_estimator_type": "k3",
    ALGORITHM + "use_entropy_loss": False,
    ALGORITHM + "entropy_loss_coef": 0.01,
    ALGORITHM + "advantage_estimator": "grpo",
    ALGORITHM + "grpo_norm_by_std": True,
    ALGORITHM + "advantage_batch_normalize": False,
    **{ALGORITHM + CORRECTION + key: value for key, value in CORRECTIONS.items()},
    ALGORITHM + "use_tis": False,
    ALGORITHM + "tis_imp_ratio_cap": -1.0,
    GROUP: 5,
    "generator.step_wise_trajectories": False,
    **dict.fromkeys(BESIDE),
    "trainer.train_batch_size": 1024,
    "trainer.policy_mini_batch_size": 256,
    "trainer.update_epochs_per_batch": 1,
}
REDUCTIONS = {
    "token_mean": "token_mean",
    "sequence_mean": "sequence_mean_token_mean",
    "seq_mean_token_sum_norm": "sequence_mean_token_sum",
    "prompt_mean": "group_token_mean",
}
LEGACY = "token_mean_legacy"
CAPS = {"regular": 20.0, "dual_clip": 20.0, "sapo": 20.0, "cispo": 20.0, "gspo": 10.0}
ESTIMATORS = ("k1", "k2", "k3", "abs")
ROWS = {"mode": "sequence_mean_token_mean", "count": "all", "constant": 1.0}


class SkyRl(Dialect):
    """`gspo` warns where `loss_reduction` is not `sequence_mean`, and goes on: its default is `token_mean`."""

    name = "skyrl"
    versions = ("0.4.0",)
    clip_keys = (ALGORITHM + "eps_clip_low", ALGORITHM + "eps_clip_high")
    group: ClassVar[tuple[str, str]] = (GROUP, "its advantage is its reward: nothing is subtracted")
    fixes: ClassVar[dict[str, str]] = {
        "ratio": f"{ALGORITHM}policy_loss_type=gspo",
        "aggregation": f"{ALGORITHM}loss_reduction=sequence_mean",
        "clip": f"{ALGORITHM}eps_clip_low=3e-4 {ALGORITHM}eps_clip_high=4e-4",
        "penalty": f"{ALGORITHM}use_kl_loss=false",
        "advantages": f"{ALGORITHM}advantage_estimator=grpo",
        "scale": f"{ALGORITHM}grpo_norm_by_std=true",
        "whiten": f"{ALGORITHM}advantage_batch_normalize=false",
        "updates": "trainer.policy_mini_batch_size a quarter of trainer.train_batch_size",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What these keys optimise; keys without the prefix of the algorithm are accepted too."""
        given, every = completed(settings, DEFAULTS, ALGORITHM)
        own = {key.removeprefix(ALGORITHM): value for key, value in every.items()}
        if own["use_tis"] and own["tis_imp_ratio_cap"] > 0:
            cap = own["tis_imp_ratio_cap"]
            own |= {CORRECTION + "tis_ratio_type": "token", CORRECTION + "token_tis_ratio_clip_high": cap}
        ratio, surrogate, weights = _surrogate(own)
        objective = {
            **PAPER,
            "ratio": ratio,
            "surrogate": surrogate,
            "aggregation": _aggregation(own),
            "penalty": _penalty(own),
            "correction": [*weights, *read_correction(own)],
            "log_ratio_cap": CAPS.get(own["policy_loss_type"]),
        }
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages=_advantages(own),
            estimator=str(own["advantage_estimator"]),
            whiten=own["advantage_batch_normalize"],
            updates_per_rollout=_updates(every),
            settings=every,
            given=frozenset(given),
            findings=(*_findings(own), *asides(every, BESIDE)),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The keys for an objective."""
        keys = _written_surrogate(objective) | _written_aggregation(objective["aggregation"])
        keys |= _written_penalty(objective)
        if keys["policy_loss_type"] not in ("rollout_is", "importance_sampling"):
            if objective["ratio"] == "sequence" and any(one["level"] == "token" for one in objective["correction"]):
                raise Inexpressible("the gspo of SkyRL is GSPO-token, where the weight of a token acts on it alone")
            keys |= {CORRECTION + key: value for key, value in write_correction(objective["correction"]).items()}
        return {ALGORITHM + key: value for key, value in keys.items()}

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """`policy_loss_type: gspo` and a clip range."""
        keys = {"policy_loss_type": "gspo", "eps_clip_low": clip["low"], "eps_clip_high": clip["high"]}
        return {ALGORITHM + key: value for key, value in keys.items()}


def _surrogate(own: Mapping[str, Any]) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """Ratio, surrogate, and the weight that `rollout_is` is made of."""
    kind, low, high = own["policy_loss_type"], own["eps_clip_low"], own["eps_clip_high"]
    if kind in ("regular", "dual_clip", "gspo"):
        dual = own["clip_ratio_c"] if kind == "dual_clip" else None
        ratio = "gspo_token" if kind == "gspo" else "token"
        return ratio, parts.clip(low, high, dual), []
    if kind == "sapo":
        return "token", {"kind": "sapo", "tau_pos": own["sapo.tau_pos"], "tau_neg": own["sapo.tau_neg"]}, []
    if kind == "cispo" and own["cispo.cispo_anchor"] == "old":
        return "token", parts.cispo(own["cispo.cispo_eps_clip_low"], own["cispo.cispo_eps_clip_high"]), []
    if kind == "importance_sampling":
        return "token", {"kind": "unclipped"}, []
    if kind == "rollout_is":
        weight = parts.weight("token", "mask", max(0.0, 1 - low), 1 + high, numerator="current")
        return "token", {"kind": "reinforce", "gate": None}, [weight]
    raise Inexpressible(f"policy_loss_type {kind!r} is not an objective of this family")


def _aggregation(own: Mapping[str, Any]) -> dict[str, Any]:
    name = "token_mean" if own["loss_reduction"] == LEGACY else own["loss_reduction"]
    if name not in REDUCTIONS:
        raise Inexpressible(f"loss_reduction {name!r} is not accepted by SkyRL")
    constant = float(own["max_seq_len"] or 1) if name == "seq_mean_token_sum_norm" else 1.0
    return parts.aggregation(REDUCTIONS[name], constant)


def _penalty(own: Mapping[str, Any]) -> dict[str, Any] | None:
    """The KL term is the mean over responses of the mean over tokens, whatever `loss_reduction` says."""
    if not own["use_kl_loss"] or not own["kl_loss_coef"]:
        return None
    estimator = own["kl_estimator_type"]
    rows = None if own["loss_reduction"] == "sequence_mean" else dict(ROWS)
    return parts.kl_term(estimator, own["kl_loss_coef"], aggregation=rows, **parts.clamps(estimator))


def _advantages(own: Mapping[str, Any]) -> dict[str, Any] | None:
    if own["advantage_estimator"] == "grpo":
        return {"center": "mean", "scale": "std" if own["grpo_norm_by_std"] else "none", "ddof": 1, "eps": 1e-6}
    return {"center": "leave_one_out", "scale": "none"} if own["advantage_estimator"] == "rloo" else None


def _updates(every: Mapping[str, Any]) -> int:
    """Optimiser steps per rollout batch: mini-batches times epochs."""
    batch, part = int(every["trainer.train_batch_size"]), int(every["trainer.policy_mini_batch_size"])
    return max(1, batch // part) * int(every["trainer.update_epochs_per_batch"])


def _findings(own: Mapping[str, Any]) -> Iterator[Finding]:
    yield from _reduction(own)
    low, high = (own[f"{CORRECTION}token_mask_is_threshold_{side}"] for side in ("low", "high"))
    outliers = [own[f"{CORRECTION}outlier_token_is_threshold_{side}"] for side in ("low", "high")]
    if outliers != [None, None]:
        told = "a response is dropped where one of its tokens differs too much from the sampler"
        key = f"{ALGORITHM}{CORRECTION}outlier_token_is_threshold_{'high' if outliers[0] is None else 'low'}"
        yield Finding("filter", "warning", key, told, "GSPO-CORR-2", fix=f"{key}=null")
    if (low is None) != (high is None):
        told = "one bound of the token mask alone does nothing: SkyRL masks where both are set"
        key = f"{ALGORITHM}{CORRECTION}token_mask_is_threshold_{'high' if low is None else 'low'}"
        yield Finding("threshold-ignored", "error", key, told, "GSPO-CORR-2", fix=f"{key} too")
    if own["generator.step_wise_trajectories"] and own["policy_loss_type"] == "gspo":
        told = "with trajectories cut into steps the sequence of the ratio is one turn, not the response"
        key = "generator.step_wise_trajectories"
        yield Finding("step-wise", "warning", key, told, "GSPO-DATA-4", fix=f"{key}=false")
    if own["use_entropy_loss"] and own["entropy_loss_coef"]:
        key, coefficient = ALGORITHM + "use_entropy_loss", own["entropy_loss_coef"]
        yield entropy_bonus(key, coefficient, f"{key}=false", ", always a mean over tokens")
    if own["use_kl_in_reward"] and own["kl_loss_coef"]:
        told = f"a KL penalty of {own['kl_loss_coef']:g} is taken from the reward of every token"
        key = ALGORITHM + "use_kl_in_reward"
        yield Finding("kl-in-reward", "warning", key, told, "GSPO-REWARD-4", fix=f"{key}=false")
    if own["advantage_batch_normalize"]:
        told = "the mean that is taken off counts padding as zeros: it changes with the width of the batch"
        key = ALGORITHM + "advantage_batch_normalize"
        yield Finding("whitening-padding", "warning", key, told, "GSPO-ADV-10", fix=f"{key}=false")


def _reduction(own: Mapping[str, Any]) -> Iterator[Finding]:
    key, mend = ALGORITHM + "loss_reduction", f"{ALGORITHM}loss_reduction=sequence_mean"
    if own["loss_reduction"] == LEGACY:
        told = f"{LEGACY} is a mean of the means of micro-batches: the weight of a token depends on which responses share its micro-batch"
        yield Finding("micro-batches", "error", key, told, "GSPO-DIST-1", fix=mend)
    if own["loss_reduction"] == "seq_mean_token_sum_norm" and own["max_seq_len"] is None:
        told, cost = "seq_mean_token_sum_norm has no max_seq_len to divide by", "SkyRL stops before it trains"
        yield Finding("refused", "error", key, told, "GSPO-AGG-1", cost, f"{mend}, or {ALGORITHM}max_seq_len too")


def _written_surrogate(objective: Mapping[str, Any]) -> dict[str, Any]:
    surrogate, ratio, cap = objective["surrogate"], objective["ratio"], objective["log_ratio_cap"]
    kind = surrogate["kind"]
    keys: dict[str, Any] | None = None
    if kind == "clip" and ratio in ("sequence", "gspo_token") and surrogate["dual"] is None:
        keys = {"policy_loss_type": "gspo", **_bounds(surrogate)}
    elif kind == "clip" and ratio == "token" and surrogate["dual"] is None:
        keys = {"policy_loss_type": "regular", **_bounds(surrogate)}
    elif kind == "clip" and ratio == "token":
        keys = {"policy_loss_type": "dual_clip", "clip_ratio_c": surrogate["dual"], **_bounds(surrogate)}
    elif kind == "sapo" and ratio == "token":
        keys = {"policy_loss_type": "sapo", "sapo.tau_pos": surrogate["tau_pos"], "sapo.tau_neg": surrogate["tau_neg"]}
    elif kind == "cispo" and ratio == "token":
        low, high = parts.cispo_low(surrogate), surrogate["high"]
        keys = {"policy_loss_type": "cispo", "cispo.cispo_eps_clip_low": low, "cispo.cispo_eps_clip_high": high}
    elif kind == "unclipped" and ratio == "token" and not objective["correction"]:
        keys = {"policy_loss_type": "importance_sampling"}
    elif kind == "reinforce" and surrogate["gate"] is None and ratio == "token":
        keys = _written_rollout(objective["correction"])
    if keys is None:
        raise Inexpressible(f"no policy_loss_type of SkyRL has the surrogate {kind} on the {ratio} ratio")
    if cap not in (None, CAPS.get(keys["policy_loss_type"])):
        raise Inexpressible(
            f"policy_loss_type {keys['policy_loss_type']} of SkyRL does not cap the log-ratio at {cap:g}"
        )
    return keys


def _written_rollout(corrections: Any) -> dict[str, Any] | None:
    """`rollout_is` is REINFORCE with the weights π_θ/μ inside a range, and 0 outside."""
    if len(corrections) != 1 or corrections[0]["level"] != "token" or corrections[0]["numerator"] != "current":
        return None
    one = corrections[0]
    if one["action"] != "mask" or None in (one["low"], one["high"]) or one["negative_only"]:
        return None
    return {"policy_loss_type": "rollout_is", "eps_clip_low": 1 - one["low"], "eps_clip_high": one["high"] - 1}


def _bounds(surrogate: Mapping[str, Any]) -> dict[str, Any]:
    return {"eps_clip_low": surrogate["low"], "eps_clip_high": surrogate["high"]}


def _written_aggregation(aggregation: Mapping[str, Any]) -> dict[str, Any]:
    mode, constant = aggregation["mode"], aggregation["constant"]
    if aggregation["count"] != "all":
        raise Inexpressible("SkyRL counts every response of a mini-batch, empty ones too")
    names = {value: key for key, value in REDUCTIONS.items()}
    if mode not in names or constant != int(constant):
        raise Inexpressible(f"no loss_reduction of SkyRL aggregates by {mode} with the constant {constant:g}")
    length = {"max_seq_len": int(constant)} if mode == "sequence_mean_token_sum" else {}
    return {"loss_reduction": names[mode], **length}


def _written_penalty(objective: Mapping[str, Any]) -> dict[str, Any]:
    penalty = objective["penalty"]
    if penalty is None or not penalty["coefficient"]:
        return {"use_kl_loss": False}
    bounds = parts.clamps(penalty["estimator"])
    fixed = all(penalty[name] in (None, bounds.get(name)) for name in parts.CLAMPS)
    if penalty["estimator"] not in ESTIMATORS or penalty["importance"] or not fixed:
        raise Inexpressible(
            "SkyRL's KL term is k1, k2, k3 or abs, with no importance weight and no clamps of its own choice"
        )
    if (penalty["aggregation"] or objective["aggregation"]) != ROWS:
        raise Inexpressible("SkyRL's KL term is always the mean over responses of the mean over tokens")
    keys = {"use_kl_loss": True, "kl_loss_coef": penalty["coefficient"]}
    return keys | {"kl_estimator_type": penalty["estimator"]}


DIALECT = SkyRl()
