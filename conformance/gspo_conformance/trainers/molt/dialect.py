"""Molt's command line: `--actor.loss_mode` is ratio and surrogate; no argument is the aggregation, which is a mean over tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Inexpressible, Reading, completed
from .findings import ACTOR, ADVANTAGE, CORRECTION, DISTILLED, FILTER, KL, REWARDS, WHITENED, findings, responses

DEFAULTS: dict[str, Any] = {
    ACTOR + "loss_mode": "ppo",
    ACTOR + "eps_clip_low_high": None,
    ACTOR + "dual_clip": None,
    ACTOR + "entropy_coef": None,
    KL + "use_loss": False,
    KL + "init_coef": None,
    KL + "estimator": "k1",
    ADVANTAGE + "estimator": "reinforce",
    ADVANTAGE + "lam": 1.0,
    ADVANTAGE + "no_whiten": False,
    CORRECTION + "level": "off",
    CORRECTION + "mode": "mask",
    CORRECTION + "threshold": (0.5, 5.0),
    REWARDS: (-10.0, 10.0),
    "rollout.batch_size": 1024,
    "rollout.n_samples_per_prompt": 1,
    "train.batch_size": 128,
    "train.max_epochs": 1,
    "train.force_on_policy": False,
    FILTER: False,
}
ACCEPTED: dict[str, tuple[str, ...]] = {
    ACTOR + "loss_mode": ("ppo", "gspo", "cispo"),
    KL + "estimator": ("k1", "k2", "k3"),
    CORRECTION + "level": ("off", "token", "seq", "geo"),
    CORRECTION + "mode": ("mask", "clip", "trunc"),
}
ESTIMATORS: dict[str, dict[str, Any]] = {
    "grpo": {"center": "mean", "scale": "std", "ddof": 1, "eps": 1e-9},
    "dr_grpo": {"center": "mean", "scale": "none"},
    "reinforce_baseline": {"center": "mean", "scale": "none"},
    "rloo": {"center": "leave_one_out", "scale": "none"},
}
CAP = 30.0
UNITS = {"seq": "sequence", "geo": "geometric"}


class Molt(Dialect):
    """`gspo` has the paper's ratio and clip; the mean over tokens of the whole step is left to no setting."""

    name = "molt"
    versions = ("2d626085",)
    clip_keys = (ACTOR + "eps_clip_low_high",)
    group = ("rollout.n_samples_per_prompt", "Molt refuses it")
    fixes: ClassVar[dict[str, str]] = {
        "ratio": f"--{ACTOR}loss_mode gspo",
        "surrogate": f"--{ACTOR}loss_mode gspo",
        "aggregation": "no setting of Molt gives it: put the loss of gspo_torch in its place",
        "clip": f"--{ACTOR}eps_clip_low_high 3e-4 4e-4",
        "dual": f"no --{ACTOR}dual_clip",
        "penalty": f"no --{KL}use_loss",
        "advantages": f"--{ADVANTAGE}estimator grpo",
        "scale": f"--{ADVANTAGE}estimator grpo",
        "whiten": f"--{ADVANTAGE}estimator grpo",
        "updates": "--train.batch_size a quarter of the responses of a rollout, and no --train.force_on_policy",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What these arguments optimise."""
        given, every = completed(settings, DEFAULTS)
        for key, known in ACCEPTED.items():
            if every[key] not in known:
                raise Inexpressible(f"{key}: Molt has {', '.join(known)}, not {every[key]!r}")
        every = _derived(every)
        loss, estimator = every[ACTOR + "loss_mode"], str(every[ADVANTAGE + "estimator"])
        objective = {
            **PAPER,
            "ratio": "gspo_token" if loss == "gspo" else "token",
            "surrogate": _surrogate(every),
            "aggregation": parts.aggregation("token_mean"),
            "penalty": _penalty(every),
            "correction": _correction(every),
            "log_ratio_cap": CAP if loss == "ppo" else None,
        }
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages=ESTIMATORS.get(estimator),
            estimator=estimator,
            whiten=estimator in WHITENED and not every[ADVANTAGE + "no_whiten"],
            updates_per_rollout=_updates(every),
            settings=every,
            given=frozenset(given),
            findings=tuple(findings(every, settings)),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The arguments for an objective."""
        aggregation = objective["aggregation"]
        if aggregation["mode"] != "token_mean" or aggregation["constant"] != 1:
            raise Inexpressible(f"Molt has the mean over all tokens alone, not {aggregation['mode']}")
        keys = _written_surrogate(objective["surrogate"], objective["ratio"])
        if objective["log_ratio_cap"] not in ((None, CAP) if keys[ACTOR + "loss_mode"] == "ppo" else (None,)):
            raise Inexpressible("Molt holds the log-ratio of a token at 30 with ppo, and caps no other")
        if objective["correction"] and objective["ratio"] == "sequence":
            raise Inexpressible("Molt's weights of tokens act on each token's own gradient: its ratio is gspo_token")
        return {**keys, **_written_penalty(objective["penalty"]), **_written_correction(objective["correction"])}

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """`--actor.loss_mode gspo` and a clip range."""
        return {ACTOR + "loss_mode": "gspo", ACTOR + "eps_clip_low_high": (clip["low"], clip["high"])}


def _derived(every: Mapping[str, Any]) -> dict[str, Any]:
    """What Molt fills in behind the arguments."""
    found = dict(every)
    distilled = every[ADVANTAGE + "estimator"] == DISTILLED
    if distilled:
        found |= {KL + "estimator": "k1", KL + "use_loss": False}
    if found[KL + "init_coef"] is None:
        found[KL + "init_coef"] = 1.0 if distilled else 0.01
    found[ACTOR + "eps_clip_low_high"] = found[ACTOR + "eps_clip_low_high"] or (0.2, 0.2)
    return found


def _surrogate(every: Mapping[str, Any]) -> dict[str, Any]:
    """The upper width is the bound of CISPO's weight itself."""
    low, high = every[ACTOR + "eps_clip_low_high"]
    if every[ACTOR + "loss_mode"] == "cispo":
        return parts.cispo_below(high)
    return parts.clip(low, high, every[ACTOR + "dual_clip"] if every[ACTOR + "loss_mode"] == "ppo" else None)


def _penalty(every: Mapping[str, Any]) -> dict[str, Any] | None:
    estimator, coefficient = every[KL + "estimator"], every[KL + "init_coef"]
    if not every[KL + "use_loss"] or coefficient <= 0:
        return None
    mean = parts.aggregation("token_mean")
    return parts.kl_term(estimator, coefficient, aggregation=mean, value_clamp=_value_clamp(estimator))


def _value_clamp(estimator: str) -> float | None:
    return None if estimator == "k1" else 10.0


def _correction(every: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The weight of a token, cut or not, and the band outside which tokens or responses are dropped."""
    level, mode, (low, high) = (every[CORRECTION + name] for name in ("level", "mode", "threshold"))
    if level == "off":
        return []
    if level != "token":
        return [parts.weight("token", "clamp"), parts.weight(UNITS[level], "reject", low or None, high)]
    if mode == "mask":
        return [parts.weight("token", "mask", low or None, high)]
    return [parts.weight("token", "clamp", low or None if mode == "clip" else None, high)]


def _updates(every: Mapping[str, Any]) -> int:
    if every["train.force_on_policy"]:
        return 1
    return responses(every) // int(every["train.batch_size"]) * int(every["train.max_epochs"])


def _written_surrogate(surrogate: Mapping[str, Any], ratio: str) -> dict[str, Any]:
    kind, mode, width = surrogate["kind"], ACTOR + "loss_mode", ACTOR + "eps_clip_low_high"
    if kind == "clip" and ratio == "token":
        bounds = (surrogate["low"], surrogate["high"])
        return {mode: "ppo", width: bounds, ACTOR + "dual_clip": surrogate["dual"]}
    if kind == "clip" and ratio in ("sequence", "gspo_token") and surrogate["dual"] is None:
        return {mode: "gspo", width: (surrogate["low"], surrogate["high"])}
    if kind == "cispo" and ratio == "token" and surrogate["low"] is None:
        return {mode: "cispo", width: (0.2, 1 + surrogate["high"])}
    raise Inexpressible(f"no loss_mode of Molt has {kind} with these bounds on the {ratio} ratio")


def _written_penalty(penalty: Mapping[str, Any] | None) -> dict[str, Any]:
    if penalty is None or not penalty["coefficient"]:
        return {KL + "use_loss": False}
    estimator, clamps = penalty["estimator"], (penalty["log_ratio_clamp"], penalty["value_clamp"])
    own = penalty["aggregation"] in (None, parts.aggregation("token_mean")) and not penalty["importance"]
    if estimator not in ACCEPTED[KL + "estimator"] or not own or clamps != (None, _value_clamp(estimator)):
        raise Inexpressible("Molt's KL term is k1, k2 or k3, the last two clamped to 10, as a mean over all tokens")
    return {KL + "use_loss": True, KL + "init_coef": penalty["coefficient"], KL + "estimator": estimator}


def _written_correction(corrections: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not corrections:
        return {}
    one, inf = dict(corrections[-1]), float("inf")
    bounds = (one["low"] or 0.0, inf if one["high"] is None else one["high"])
    for level in ("token", *UNITS):
        for mode in ACCEPTED[CORRECTION + "mode"][: 3 if level == "token" else 1]:
            keys = {CORRECTION + "level": level, CORRECTION + "mode": mode, CORRECTION + "threshold": bounds}
            if _unbounded(_correction(keys)) == [dict(each) for each in corrections]:
                return keys
    raise Inexpressible("Molt's weights are those of tokens, cut, masked, or beside a band for whole responses")


def _unbounded(corrections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An upper bound of infinity is none."""
    return [one | {"high": None if one["high"] == float("inf") else one["high"]} for one in corrections]


DIALECT = Molt()
