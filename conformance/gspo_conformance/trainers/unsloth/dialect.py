"""Unsloth's `GRPOConfig` is TRL's with other defaults, some of which depend on what else is set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from ..dialect import Finding, Inexpressible, Reading, completed
from ..parts import CLAMPS
from ..trl.dialect import DEFAULTS as TRL
from ..trl.dialect import Trl

DEFAULTS = TRL | {"loss_type": None, "beta": None, "vllm_importance_sampling_correction": False}
MODES = ("clamp", "mask")


class Unsloth(Trl):
    """`loss_type='grpo'` with `importance_sampling_level='sequence'` and `beta=0.0` is the paper's objective."""

    name = "unsloth"
    versions = ("2026.10.9",)
    clip_keys = ("epsilon", "epsilon_high")
    fixes: ClassVar[dict[str, str]] = {**Trl.fixes, "penalty": "beta=0.0, which loss_type='grpo' does not imply"}

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What a `GRPOConfig` optimises once Unsloth has put its values where nothing is set."""
        given, asked = completed(settings, DEFAULTS)
        every = _resolved(asked)
        reading = super().read(every, version)
        penalty = reading.objective["penalty"]
        objective = {**reading.objective, "penalty": penalty and {**penalty, **CLAMPS}}
        if reading.objective["surrogate"]["kind"] == "vespo":
            raise Inexpressible("Unsloth takes the weights of vespo from the TRL that is installed")
        own = replace(reading, trainer=self.name, objective=objective, given=frozenset(given), settings=every)
        return own.with_findings(*_findings(asked, every))

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The arguments of `GRPOConfig` for an objective; all that Unsloth would choose are set."""
        if objective["surrogate"]["kind"] == "vespo":
            raise Inexpressible("Unsloth takes the weights of vespo from the TRL that is installed")
        penalty = objective["penalty"]
        if penalty and any(penalty[name] not in (None, bound) for name, bound in CLAMPS.items()):
            raise Inexpressible("Unsloth's KL term has its log-ratio clamped to 20 and its value to 10")
        plain = penalty and {**penalty, **dict.fromkeys(CLAMPS)}
        keys = super().write({**objective, "penalty": plain, "correction": []}, version)
        return {**keys, **_written_correction(objective["correction"])}


def _resolved(every: Mapping[str, Any]) -> dict[str, Any]:
    """The values that Unsloth's configuration class computes."""
    loss, named = every["loss_type"] or "dapo", every["loss_type"] is not None
    found = {**every, "loss_type": loss}
    if every["beta"] is None:
        found["beta"] = 0.0 if loss in ("dapo", "dr_grpo") else 0.001
    if loss == "dr_grpo" and every["scale_rewards"] in (True, "group"):
        found["scale_rewards"] = False
    if every["epsilon_high"] is None:
        found["epsilon_high"] = {"dapo": 0.28 if named else None, "cispo": 5.0}.get(loss)
    return found


def _findings(asked: Mapping[str, Any], every: Mapping[str, Any]) -> Iterator[Finding]:
    if every["beta"] and every["use_bias_correction_kl"]:
        told = "the KL term is weighted by the ratio before it is held at 10, not after"
        yield Finding("kl-clamp", "note", "use_bias_correction_kl", told, "GSPO-KL-5")
    if asked["epsilon_high"] is None and every["epsilon_high"] is not None:
        told = f"loss_type={every['loss_type']!r} sets epsilon_high to {every['epsilon_high']:g} where it is not given; the default loss_type does not"
        yield Finding("silent-override", "warning", "epsilon_high", told, "GSPO-SURR-3", fix="epsilon_high=4e-4")
    if asked["scale_rewards"] != every["scale_rewards"]:
        told = "loss_type='dr_grpo' turns scale_rewards='group' off, also where that is set"
        yield Finding("silent-override", "warning", "scale_rewards", told, "GSPO-ADV-7", fix="loss_type='grpo'")


def _written_correction(corrections: Any) -> dict[str, Any]:
    if not corrections:
        return {"use_vllm": False}
    one = corrections[0]
    if len(corrections) > 1 or one["action"] not in MODES or one["numerator"] != "old" or one["negative_only"]:
        raise Inexpressible("Unsloth has one weight, of the old policy, clamped or masked")
    if one["action"] == "clamp" and one["low"] is None and one["high"] is None:
        raise Inexpressible("Unsloth's clamped weight has a bound")
    action = {"clamp": "truncate", "mask": "mask"}[one["action"]]
    return {
        "use_vllm": True,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": f"{one['level']}_{action}",
        "vllm_importance_sampling_clip_min": one["low"],
        "vllm_importance_sampling_clip_max": one["high"],
    }


DIALECT = Unsloth()
