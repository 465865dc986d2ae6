"""OpenRLHF's command line: `--actor.policy_loss_type` is ratio and aggregation at once, `--algo.kl.*` the KL term."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any, ClassVar

from .. import parts
from ..dialect import (
    PAPER,
    Dialect,
    Finding,
    Inexpressible,
    Reading,
    asides,
    clamped,
    completed,
    entropy_bonus,
    kl_in_reward,
)

ACTOR, KL, ADVANTAGE = "actor.", "algo.kl.", "algo.advantage."
REWARDS = "reward.clip_range"
BESIDE = {
    "algo.dynamic_filtering_enable": "equal",
    "reward.overlong_buffer_len": "overlong",
    "reward.stop_properly_penalty_coef": "overlong",
}
DEFAULTS: dict[str, Any] = {
    ACTOR + "policy_loss_type": "ppo",
    ACTOR + "loss_agg_mode": "token-mean",
    ACTOR + "eps_clip": 0.2,
    ACTOR + "eps_clip_low_high": None,
    ACTOR + "dual_clip": None,
    ACTOR + "entropy_coef": None,
    KL + "use_loss": False,
    KL + "init_coef": 0.01,
    KL + "estimator": "k1",
    ADVANTAGE + "estimator": "gae",
    ADVANTAGE + "no_std_norm": False,
    ADVANTAGE + "is_correction_level": "off",
    ADVANTAGE + "is_correction_mode": "mask",
    ADVANTAGE + "is_correction_gating": "ratio",
    ADVANTAGE + "is_correction_threshold": (0.5, 5.0),
    KL + "unbiased_gradient": False,
    REWARDS: (-10.0, 10.0),
    "rollout.batch_size": 1024,
    "rollout.n_samples_per_prompt": 1,
    "train.batch_size": 128,
    "train.max_epochs": 1,
    **dict.fromkeys(BESIDE),
}
# The flags of earlier versions, flat.
FORMER = {
    "policy_loss_type": ACTOR + "policy_loss_type",
    "eps_clip": ACTOR + "eps_clip",
    "eps_clip_low_high": ACTOR + "eps_clip_low_high",
    "dual_clip": ACTOR + "dual_clip",
    "entropy_loss_coef": ACTOR + "entropy_coef",
    "use_kl_loss": KL + "use_loss",
    "init_kl_coef": KL + "init_coef",
    "kl_estimator": KL + "estimator",
    "advantage_estimator": ADVANTAGE + "estimator",
    "reward_clip_range": REWARDS,
    "rollout_batch_size": "rollout.batch_size",
    "n_samples_per_prompt": "rollout.n_samples_per_prompt",
    "train_batch_size": "train.batch_size",
    "max_epochs": "train.max_epochs",
    "dynamic_filtering": "algo.dynamic_filtering_enable",
    "overlong_buffer_len": "reward.overlong_buffer_len",
}
CORRECTION = ("level", "mode", "gating", "threshold")
ACCEPTED = {"level": ("off", "token", "seq"), "mode": ("mask", "clip"), "gating": ("ratio", "binary_kl", "tv")}
CORRECTIONS = ("enable_vllm_is_correction", ADVANTAGE + "is_correction_enable")
# Level and mode of the former names of corrections; `tis` was the default.
TYPE = ADVANTAGE + "is_correction_type"
K3 = "use_kl_estimator_k3"
TYPES = {"tis": ("token", "clip"), "icepop": ("token", "mask"), "seq-mask-tis": ("seq", "mask")}
AGGREGATIONS = {"token-mean": "token_mean", "seq-mean-token-mean": "sequence_mean_token_mean"}
ESTIMATORS: dict[str, dict[str, Any]] = {
    "group_norm": {"center": "mean", "scale": "std", "ddof": 1, "eps": 1e-9},
    "dr_grpo": {"center": "mean", "scale": "none"},
    "reinforce_baseline": {"center": "mean", "scale": "none"},
    "rloo": {"center": "leave_one_out", "scale": "none"},
}
ALIASES = {"grpo": "group_norm"}
WHITENED = ("gae", "reinforce", "reinforce_baseline")


class OpenRlhf(Dialect):
    """`gspo` forces the mean over responses, whatever `loss_agg_mode` says."""

    name = "openrlhf"
    versions = ("0.11.2",)
    fixes: ClassVar[dict[str, str]] = {
        "ratio": "--actor.policy_loss_type gspo",
        "aggregation": "--actor.policy_loss_type gspo",
        "clip": "--actor.eps_clip_low_high 3e-4 4e-4",
        "dual": "no --actor.dual_clip",
        "penalty": "--algo.kl.init_coef 0",
        "advantages": "--algo.advantage.estimator group_norm",
        "updates": "--train.batch_size a quarter of the responses of a rollout",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What these arguments optimise."""
        former = _former(settings)
        given, every = completed(_renamed(settings, former), DEFAULTS)
        _check_correction(every)
        gspo = every[ACTOR + "policy_loss_type"] == "gspo"
        mode = "seq-mean-token-mean" if gspo else every[ACTOR + "loss_agg_mode"]
        low, high = every[ACTOR + "eps_clip_low_high"] or (every[ACTOR + "eps_clip"],) * 2
        objective = {
            **PAPER,
            "ratio": "sequence" if gspo else "token",
            "surrogate": parts.clip(low, high, every[ACTOR + "dual_clip"]),
            "aggregation": parts.aggregation(AGGREGATIONS[mode]),
            "penalty": _penalty(every),
            "correction": [] if gspo else _correction(every),
            "log_ratio_cap": None if gspo else 20.0,
        }
        estimator = ALIASES.get(str(every[ADVANTAGE + "estimator"]), str(every[ADVANTAGE + "estimator"]))
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages=ESTIMATORS.get(estimator),
            estimator=estimator,
            whiten=estimator in WHITENED,
            updates_per_rollout=_updates(every),
            settings=every,
            given=frozenset(given),
            findings=(
                *_former_flags(former),
                *_findings(every, gspo),
                *_bounds(every, estimator, given),
                *asides(every, BESIDE),
            ),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The arguments for an objective."""
        surrogate, mode = objective["surrogate"], objective["aggregation"]["mode"]
        if objective["aggregation"]["count"] == "non_empty":
            raise Inexpressible("OpenRLHF counts every response of an optimiser step, empty ones too")
        kind = {"sequence": "gspo", "token": "ppo"}.get(objective["ratio"])
        if surrogate["kind"] != "clip" or kind is None:
            raise Inexpressible(
                f"no policy_loss_type of OpenRLHF has {surrogate['kind']} on the {objective['ratio']} ratio"
            )
        if objective["correction"] or objective["log_ratio_cap"] not in ((None,) if kind == "gspo" else (None, 20.0)):
            raise Inexpressible("OpenRLHF's correction weights and caps of the log-ratio are not of this choice")
        names = {value: key for key, value in AGGREGATIONS.items()}
        if mode not in names or (kind == "gspo" and mode != "sequence_mean_token_mean"):
            raise Inexpressible(f"policy_loss_type {kind} of OpenRLHF does not aggregate by {mode}")
        return {
            ACTOR + "policy_loss_type": kind,
            ACTOR + "loss_agg_mode": names[mode],
            ACTOR + "eps_clip_low_high": (surrogate["low"], surrogate["high"]),
            ACTOR + "dual_clip": surrogate["dual"],
            **_written_penalty(objective["penalty"]),
        }

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """`--actor.policy_loss_type gspo` and a clip range."""
        return {ACTOR + "policy_loss_type": "gspo", ACTOR + "eps_clip_low_high": (clip["low"], clip["high"])}


def _penalty(every: Mapping[str, Any]) -> dict[str, Any] | None:
    if not every[KL + "use_loss"] or not every[KL + "init_coef"]:
        return None
    clamp = 10.0 if every[KL + "estimator"] == "k3" else None
    return parts.kl_term(
        every[KL + "estimator"],
        every[KL + "init_coef"],
        aggregation=parts.aggregation("token_mean"),
        log_ratio_clamp=clamp,
        value_clamp=10.0,
    )


def _check_correction(every: Mapping[str, Any]) -> None:
    """Refuses what OpenRLHF refuses, also where GSPO then ignores it."""
    for name, accepted in ACCEPTED.items():
        value = every[f"{ADVANTAGE}is_correction_{name}"]
        if value not in accepted:
            raise Inexpressible(f"is_correction_{name}: OpenRLHF has {', '.join(accepted)}, not {value!r}")


def _correction(every: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The weight of a token, and the band outside which tokens or responses are dropped or held; a divergence drops what no weight says."""
    level, mode, gating, bounds = (every[f"{ADVANTAGE}is_correction_{name}"] for name in CORRECTION)
    if level == "off":
        return []
    if gating != "ratio":
        return [parts.weight("token", "clamp")]
    low, high = (None, *bounds)[-2:] if isinstance(bounds, (list, tuple)) else (None, bounds)
    if level == "seq":
        return [parts.weight("token", "clamp"), parts.weight("geometric", "reject", low, high)]
    return [parts.weight("token", "clamp" if mode == "clip" else mode, low, high)]


def _written_penalty(penalty: Mapping[str, Any] | None) -> dict[str, Any]:
    if penalty is None or not penalty["coefficient"]:
        return {KL + "use_loss": False}
    raise Inexpressible("OpenRLHF adds the KL term in its training loop, always as a mean over tokens")


def _updates(every: Mapping[str, Any]) -> int:
    responses = int(every["rollout.batch_size"]) * int(every["rollout.n_samples_per_prompt"])
    return max(1, responses // int(every["train.batch_size"])) * int(every["train.max_epochs"])


def _former(settings: Mapping[str, Any]) -> list[str]:
    """The flags of earlier versions among the settings."""
    switches = [key for key in (*CORRECTIONS, TYPE) if settings.get(key)]
    return [*(key for key in settings if key in FORMER or key in switches), *[K3] * bool(settings.get(K3))]


def _renamed(settings: Mapping[str, Any], former: Container[str]) -> dict[str, Any]:
    """The settings as this version spells them; what a former switch implies gives way to what is said."""
    named = {FORMER.get(key, key): value for key, value in settings.items()}
    if any(key in former for key in CORRECTIONS):
        level, mode = TYPES.get(str(settings.get(TYPE)), TYPES["tis"])
        named = {ADVANTAGE + "is_correction_level": level, ADVANTAGE + "is_correction_mode": mode} | named
    return {KL + "estimator": "k3"} | named if K3 in former else named


def _former_flags(keys: list[str]) -> list[Finding]:
    if not keys:
        return []
    named = {**FORMER, **dict.fromkeys(CORRECTIONS, ADVANTAGE + "is_correction_level token")}
    named |= {TYPE: ADVANTAGE + "is_correction_mode", K3: KL + "estimator k3"}
    told = f"flags of earlier versions are read as those that took their place: --{keys[0]} as --{named[keys[0]]}"
    cost = f"this version refuses them: {', '.join(f'--{key}' for key in keys)}"
    return [Finding("former-flags", "note", keys[0], told, consequence=cost)]


def _findings(every: Mapping[str, Any], gspo: bool) -> Iterator[Finding]:
    level, coefficient = every[ADVANTAGE + "is_correction_level"], every[KL + "init_coef"]
    if gspo and level != "off":
        told = "the ratio is taken to the sampler's policy, and mode, gating and threshold of the correction have no effect"
        key = ADVANTAGE + "is_correction_level"
        yield Finding("correction-ignored", "error", key, told, "GSPO-DATA-5", fix=f"--{key} off")
    gating = every[ADVANTAGE + "is_correction_gating"]
    if not gspo and level != "off" and gating != "ratio":
        told = f"what differs too much from the sampler by {gating} is dropped from the loss"
        yield Finding("filter", "note", ADVANTAGE + "is_correction_gating", told, "GSPO-CORR-2")
    if coefficient and every[KL + "use_loss"] and every[KL + "unbiased_gradient"]:
        told = f"the KL term has the value of {every[KL + 'estimator']} and the gradient of the KL itself, weighted by the ratio"
        yield Finding("kl-gradient", "note", KL + "unbiased_gradient", told, "GSPO-KL-5")
    if coefficient and not every[KL + "use_loss"]:
        yield kl_in_reward(KL + "init_coef", coefficient, f"--{KL}init_coef 0")
    if every[ACTOR + "entropy_coef"]:
        key = ACTOR + "entropy_coef"
        yield entropy_bonus(key, every[key], f"--{key} 0")
    if every[ADVANTAGE + "no_std_norm"] and every[ADVANTAGE + "estimator"] in WHITENED:
        told = "advantages are lessened by the mean over all tokens of the batch, and not divided"
        yield Finding("centred-only", "note", ADVANTAGE + "no_std_norm", told, "GSPO-ADV-10")
    if every[ADVANTAGE + "estimator"] in ALIASES:
        key = ADVANTAGE + "estimator"
        told = f"OpenRLHF has no estimator {every[key]}: {ALIASES[every[key]]} is what it calls this"
        yield Finding("refused", "error", key, told, "GSPO-ADV-1", fix=f"--{key} {ALIASES[every[key]]}")
    if every[ADVANTAGE + "estimator"] == "group_norm":
        told = "equal rewards of a group leave the rounding of their mean, divided by 1e-9: eight rewards of 0.1 give |A| = 0.83 in float32"
        yield Finding("tiny-eps", "note", ADVANTAGE + "estimator", told, "GSPO-ADV-3")


def _bounds(every: Mapping[str, Any], estimator: str, given: Container[str]) -> list[Finding]:
    """The range of normalised rewards, which are the advantages; a default that no advantage reaches is not told."""
    if not every[REWARDS]:
        return []
    low, high = every[REWARDS]
    scaled = estimator == "group_norm"
    group, bounds = int(every["rollout.n_samples_per_prompt"]), f"[{low:g}, {high:g}]"
    found = clamped(REWARDS, bounds, min(-low, high), group, scaled, f"--{REWARDS} -1000 1000")
    return [found] if REWARDS in given or (scaled and found.severity == "warning") else []


DIALECT = OpenRlhf()
