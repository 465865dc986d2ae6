"""Trinity-RFT's YAML: `algorithm.algorithm_type` names functions, `algorithm` and the arguments of each function change them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Inexpressible, Reading
from .findings import between_synchronisations, findings, interval
from .functions import ADVANTAGES, ALGORITHMS, CHANGES, KINDS, LOSSES, MODES, UNSET

ALGORITHM, ARGUMENTS, KL = "algorithm.", "algorithm.policy_loss_fn_args.", "algorithm.kl_loss_fn_args.kl_coef"
DEFAULTS: dict[str, Any] = {
    "algorithm.algorithm_type": "ppo",
    "algorithm.repeat_times": 1,
    "algorithm.policy_loss_fn": None,
    "algorithm.advantage_fn": None,
    "algorithm.kl_loss_fn": None,
    "algorithm.kl_penalty_fn": None,
    "algorithm.loss_agg_mode": None,
    KL: 0.001,
    "algorithm.kl_penalty_fn_args.kl_coef": 0.001,
    "algorithm.entropy_loss_fn_args.entropy_coef": 0.0,
    "algorithm.bypass_old_logprobs": True,
    **{f"algorithm.{name}_args": None for name in ("policy_loss_fn", "advantage_fn", "kl_loss_fn", "kl_penalty_fn")},
    "algorithm.entropy_loss_fn": None,
    "algorithm.entropy_loss_fn_args": None,
    "buffer.batch_size": None,
    "buffer.train_batch_size": None,
    "synchronizer.sync_interval": 1,
    "synchronizer.explorer_sync_interval": None,
    "synchronizer.trainer_sync_interval": None,
    "synchronizer.sync_offset": 0,
    "synchronizer.sync_style": "fixed",
    "trainer.use_dynamic_bsz": True,
    **{f"algorithm.advantage_fn_args.{name}": value for name, value in (UNSET["grpo"] | CHANGES).items()},
}
CORRECTION, NO_DUAL = "algorithm.rollout_correction.", 1e9


class TrinityRft(Dialect):
    """`algorithm_type: gspo` is the paper's loss once `loss_agg_mode` and `kl_loss_fn` are set."""

    name = "trinity_rft"
    versions = ("0.6.0",)
    clip_keys = (ARGUMENTS + "clip_range_low", ARGUMENTS + "clip_range_high")
    fixes: ClassVar[dict[str, str]] = {
        "ratio": "algorithm.algorithm_type: gspo",
        "surrogate": "algorithm.algorithm_type: gspo",
        "aggregation": "algorithm.loss_agg_mode: seq-mean-token-mean",
        "clip": "algorithm.policy_loss_fn_args: {clip_range_low: 0.0003, clip_range_high: 0.0004}",
        "penalty": "algorithm.kl_loss_fn: none",
        "advantages": "algorithm.advantage_fn: grpo",
        "scale": "algorithm.advantage_fn: grpo",
        "updates": "synchronizer.sync_interval: 4",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What this configuration optimises, once the validator has set what it leaves unset."""
        given = {
            key: value
            for key, value in settings.items()
            if key in DEFAULTS or _is_argument(key) or key.startswith(CORRECTION)
        }
        every = complete(given)
        loss, mode = every["algorithm.policy_loss_fn"], MODES[every["algorithm.loss_agg_mode"]]
        arguments = {key.removeprefix(ARGUMENTS): value for key, value in every.items() if key.startswith(ARGUMENTS)}
        own = MODES[arguments["loss_agg_mode"]]
        objective = {
            **PAPER,
            **_loss(loss, arguments),
            "aggregation": parts.aggregation(own),
            "penalty": _penalty(every, None if mode == own else mode),
        }
        estimator = every["algorithm.advantage_fn"]
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages=_advantages(estimator, every),
            estimator=estimator,
            whiten=estimator in ("ppo", "reinforceplusplus"),
            updates_per_rollout=_updates(every),
            settings=every,
            given=frozenset(given),
            findings=tuple(findings(every, given, arguments)),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The keys for an objective."""
        if objective["correction"]:
            raise Inexpressible("Trinity-RFT's loss takes no correction weights")
        loss, arguments = _written_loss(objective)
        mode = _written_mode(objective["aggregation"], loss, arguments)
        keys = {"algorithm_type": "gspo" if loss == "gspo" else "grpo", "policy_loss_fn": loss, "loss_agg_mode": mode}
        written = {ALGORITHM + key: value for key, value in keys.items()}
        written |= {ARGUMENTS + key: value for key, value in (arguments | {"loss_agg_mode": mode}).items()}
        if loss == "rec":
            del written[ARGUMENTS + "loss_agg_mode"]
        return written | _written_penalty(objective["penalty"])

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """`algorithm_type: gspo`, and a clip range where it is not the one that comes with it."""
        low, high = clip["low"], clip["high"]
        bounds = {ARGUMENTS + "clip_range_low": low, ARGUMENTS + "clip_range_high": high}
        return {"algorithm.algorithm_type": "gspo"} | ({} if (low, high) == (3e-4, 4e-4) else bounds)


def _is_argument(key: str) -> bool:
    return key.startswith(ARGUMENTS) and any(key.removeprefix(ARGUMENTS) in one for one in LOSSES.values())


def complete(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `AlgorithmConfigValidator` and the constructors of the functions make of the keys that are given.

    Arguments of a loss are replaced as a whole. `algorithm.loss_agg_mode` takes the place of the one among them, where there is one.
    """
    every = DEFAULTS | dict(given)
    kind = every["algorithm.algorithm_type"]
    if kind not in ALGORITHMS:
        raise Inexpressible(f"the algorithm_type {kind!r} of Trinity-RFT is not of this family")
    named = {ALGORITHM + key: value for key, value in ALGORITHMS[kind].items()} | {
        "algorithm.loss_agg_mode": "token-mean"
    }
    every |= {key: value for key, value in named.items() if every[key] is None}
    loss = every["algorithm.policy_loss_fn"]
    if loss not in LOSSES:
        raise Inexpressible(f"the policy_loss_fn {loss!r} of Trinity-RFT is not of this family")
    own = {key.removeprefix(ARGUMENTS): value for key, value in given.items() if key.startswith(ARGUMENTS)}
    arguments = (UNSET[loss] | own) if own else dict(LOSSES[loss])
    if not own or "loss_agg_mode" in own:
        arguments["loss_agg_mode"] = every["algorithm.loss_agg_mode"]
    if loss == "rec":
        sequence = arguments["clip_mode"] == "gspo-one-side"
        arguments["loss_agg_mode"] = "seq-mean-token-mean" if sequence else "token-mean"
    if arguments["loss_agg_mode"] not in MODES:
        raise Inexpressible(f"the loss_agg_mode {arguments['loss_agg_mode']!r} divides by the width of a micro-batch")
    return every | {ARGUMENTS + key: value for key, value in arguments.items()}


def bounds(arguments: Mapping[str, Any]) -> tuple[float, float]:
    """The clip range of `ppo` and `gspo`: each side falls back on `clip_range`; 0 where neither is given, which is refused."""
    low, high = (arguments[f"clip_range_{side}"] for side in ("low", "high"))
    both = arguments["clip_range"] or 0.0
    return float(both if low is None else low), float(both if high is None else high)


def _loss(loss: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Ratio, surrogate and cap of a policy loss."""
    if loss in ("gspo", "ppo"):
        dual = arguments.get("clip_ratio_c")
        clip = parts.clip(*bounds(arguments), None if dual is None or dual >= NO_DUAL else dual)
        cap = {"log_ratio_cap": 20.0} if loss == "ppo" else {}
        return {"ratio": "token" if loss == "ppo" else "gspo_token", "surrogate": clip, **cap}
    if loss == "cispo":
        low, high = arguments["clip_range_low"], arguments["clip_range_high"]
        if low is None or high is None:
            raise Inexpressible("cispo of Trinity-RFT takes numbers as its clip range, and stops without")
        return {"ratio": "token", "surrogate": parts.cispo(low, max(high, 0.0))}
    if loss == "sapo":
        gate = {key: arguments[key] for key in ("tau_pos", "tau_neg")}
        return {"ratio": "token", "surrogate": {"kind": "sapo", **gate}}
    if loss == "importance_sampling":
        return {"ratio": "token", "surrogate": {"kind": "unclipped"}, "log_ratio_cap": 20.0}
    return _weighted(loss, arguments)


def _weighted(loss: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`opmd` and `rec`: the ratio enters through a gate alone."""
    mode = arguments.get("clip_mode", "none")
    plain = {arguments.get(name, "none") for name in ("weight", "regularizer")} == {"none"}
    if not plain or mode not in ("none", "one-side", "gspo-one-side"):
        raise Inexpressible(
            f"Trinity-RFT's rec with clip_mode {mode!r}, weight {arguments['weight']!r} and regularizer {arguments['regularizer']!r} is not of this family"
        )
    gate = {"low": arguments.get("epsilon_low"), "high": arguments.get("epsilon_high"), "dual": None}
    surrogate = {"kind": "reinforce", "gate": None if mode == "none" else gate}
    return {"ratio": "sequence" if mode == "gspo-one-side" else "token", "surrogate": surrogate}


def _penalty(every: Mapping[str, Any], mode: str | None) -> dict[str, Any] | None:
    kind, coefficient = every["algorithm.kl_loss_fn"], every[KL]
    if kind == "none" or not coefficient:
        return None
    if kind not in KINDS:
        raise Inexpressible(f"the kl_loss_fn {kind!r} of Trinity-RFT is not of this family")
    estimator, log_clamp, value_clamp = KINDS[kind]
    return parts.kl_term(
        estimator,
        coefficient,
        importance="token" if kind == "corrected_k3" else None,
        aggregation=None if mode is None else parts.aggregation(mode),
        log_ratio_clamp=log_clamp,
        value_clamp=value_clamp,
    )


def _advantages(estimator: str, every: Mapping[str, Any]) -> dict[str, Any] | None:
    form, given = ADVANTAGES.get(estimator), "algorithm.advantage_fn_args."
    if estimator == "opmd" and every[given + "opmd_baseline"] != "mean":
        return None
    if estimator == "rec" and every[given + "std_normalize"]:
        return {"center": "mean", "scale": "std", "ddof": 0, "eps": every[given + "epsilon"]}
    if form is None or "ddof" not in form:
        return form
    scale = "batch_std" if every["algorithm.advantage_fn_args.std_cal_level"] == "batch" else "std"
    return form | {"scale": scale, "eps": every["algorithm.advantage_fn_args.epsilon"]}


def _updates(every: Mapping[str, Any]) -> int | None:
    """Optimiser steps between two synchronisations; None where the trainer does not use up what the explorer makes."""
    made, taken = between_synchronisations(every)
    fixed = every["synchronizer.sync_style"] == "fixed" and not every["synchronizer.sync_offset"]
    return interval(every, "trainer") if fixed and made == taken else None


def _written_loss(objective: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    surrogate, ratio, cap = objective["surrogate"], objective["ratio"], objective["log_ratio_cap"]
    kind, per_token = surrogate["kind"], ratio == "token"
    range_ = {f"clip_range_{side}": surrogate.get(side) for side in ("low", "high")}
    if cap not in ((None, 20.0) if per_token and kind in ("clip", "unclipped") else (None,)):
        raise Inexpressible(
            "Trinity-RFT clamps the log-ratio of a token to 20 either way, and of a sequence not at all"
        )
    if kind == "clip" and ratio in ("sequence", "gspo_token") and surrogate["dual"] is None:
        return "gspo", range_
    if kind == "clip" and per_token:
        return "ppo", range_ | {"clip_ratio_c": surrogate["dual"] or NO_DUAL}
    if kind == "cispo" and per_token:
        return "cispo", range_ | {"clip_range_low": parts.cispo_low(surrogate)}
    if kind == "sapo" and per_token and surrogate["tau_neg"] >= surrogate["tau_pos"]:
        return "sapo", {key: surrogate[key] for key in ("tau_pos", "tau_neg")}
    if kind == "unclipped" and per_token:
        return "importance_sampling", {}
    if kind == "reinforce":
        return _written_gate(surrogate["gate"], ratio)
    raise Inexpressible(f"no policy_loss_fn of Trinity-RFT has the surrogate {kind} on the {ratio} ratio")


def _written_gate(gate: Mapping[str, Any] | None, ratio: str) -> tuple[str, dict[str, Any]]:
    if gate is None:
        return "opmd", {"tau": 0.0}
    if (
        gate.get("dual") is not None
        or ratio not in ("token", "sequence")
        or not 0 < gate["low"] <= 1
        or gate["high"] <= 0
    ):
        raise Inexpressible("the gate of Trinity-RFT's rec is that of a token or a sequence, without a dual bound")
    mode = "one-side" if ratio == "token" else "gspo-one-side"
    return "rec", {"clip_mode": mode, "epsilon_low": gate["low"], "epsilon_high": gate["high"]}


def _written_mode(aggregation: Mapping[str, Any], loss: str, arguments: Mapping[str, Any]) -> str:
    wanted = aggregation["mode"]
    found = next((key for key, value in MODES.items() if value == wanted), None)
    if found is None or aggregation["constant"] != 1 or aggregation["count"] == "non_empty":
        raise Inexpressible(
            f"Trinity-RFT does not aggregate by {wanted}, counting {aggregation['count']}, over {aggregation['constant']:g}"
        )
    fixed = {"one-side": "token-mean", "gspo-one-side": "seq-mean-token-mean"}
    if loss == "rec" and found != fixed[arguments["clip_mode"]]:
        raise Inexpressible(
            "Trinity-RFT's rec has one aggregation for the gate of a token, and one for that of a sequence"
        )
    return found


def _written_penalty(penalty: Mapping[str, Any] | None) -> dict[str, Any]:
    if penalty is None or not penalty["coefficient"]:
        return {"algorithm.kl_loss_fn": "none"}
    asked = (penalty["estimator"], penalty["log_ratio_clamp"], penalty["value_clamp"])
    kind = next((name for name, form in KINDS.items() if form == asked and name != "corrected_k3"), None)
    if kind is None or penalty["importance"] or penalty["aggregation"]:
        raise Inexpressible(
            "Trinity-RFT's KL term is k1, k2, k3, abs, or k3 clamped to 20 and 10, aggregated as the loss"
        )
    return {"algorithm.kl_loss_fn": kind, KL: penalty["coefficient"]}


DIALECT = TrinityRft()
