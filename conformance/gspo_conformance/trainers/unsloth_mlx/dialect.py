"""`MLXGRPOConfig`: the keys of Unsloth's `GRPOConfig` that exist on MLX, with the same values where nothing is set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..dialect import Inexpressible, Reading, completed
from ..unsloth.dialect import Unsloth

DEFAULTS: dict[str, Any] = {
    "importance_sampling_level": "token",
    "loss_type": None,
    "epsilon": 0.2,
    "epsilon_high": None,
    "delta": None,
    "beta": None,
    "scale_rewards": "group",
    "num_generations": 8,
    "num_iterations": 1,
    "steps_per_generation": None,
    "gradient_accumulation_steps": 4,
    "generation_batch_size": None,
    "per_device_train_batch_size": 2,
    "max_completion_length": 256,
    "top_entropy_quantile": 1.0,
    "mask_truncated_completions": None,
    "use_vllm": False,
}
LOSSES = (None, "grpo", "bnpo", "dr_grpo", "dapo")
LOWERED = ("dr_grpo", "dapo")  # are taken in any case


class UnslothMlx(Unsloth):
    """`loss_type='grpo'` with `importance_sampling_level='sequence'` and `beta=0.0` is the paper's objective."""

    name = "unsloth_mlx"
    versions = ("2026.10.9",)

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What an `MLXGRPOConfig` optimises; the KL term has no weight, and low entropy is never masked."""
        given, every = completed(settings, DEFAULTS)
        if str(every["loss_type"]).lower() in LOWERED:
            every["loss_type"] = every["loss_type"].lower()
        if every["loss_type"] not in LOSSES or every["use_vllm"] or settings.get("use_liger_loss"):
            raise Inexpressible(f"Unsloth refuses loss_type {every['loss_type']!r}, vLLM and Liger's loss on MLX")
        if every["loss_type"] == "dapo" and every["mask_truncated_completions"] is None:
            every["mask_truncated_completions"] = True
        scaled = every["scale_rewards"] is None
        if scaled and every["loss_type"] != "dr_grpo":
            raise Inexpressible(
                "Unsloth refuses scale_rewards=None on MLX but with loss_type='dr_grpo', where it is 'group'"
            )
        read = every | {"use_bias_correction_kl": False, "top_entropy_quantile": 1.0}
        reading = super().read(read | ({"scale_rewards": "none"} if scaled else {}), version)
        resolved = {key: reading.settings[key] for key in DEFAULTS if key in reading.settings}
        if scaled:
            resolved["scale_rewards"] = "group"
            reading = replace(reading, advantages={**(reading.advantages or {}), "scale": "std"})
        return replace(reading, settings=every | resolved, given=frozenset(given))

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The arguments of `MLXGRPOConfig` for an objective."""
        penalty = objective["penalty"]
        if objective["correction"] or (penalty and penalty["importance"]):
            raise Inexpressible("Unsloth has no correction weights on MLX, and no weight of the KL term")
        keys = super().write(objective, version)
        if keys["loss_type"] not in LOSSES:
            raise Inexpressible(f"Unsloth has no loss_type {keys['loss_type']!r} on MLX")
        return {key: value for key, value in keys.items() if key in DEFAULTS}


DIALECT = UnslothMlx()
