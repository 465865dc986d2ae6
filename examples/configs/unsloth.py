"""GSPO of the paper in Unsloth: gspo lint examples/configs/unsloth.py --dialect unsloth."""

from unsloth import FastLanguageModel  # noqa: F401, I001
from trl import GRPOConfig

config = GRPOConfig(
    output_dir="gspo",
    importance_sampling_level="sequence",
    loss_type="grpo",  # the mean over responses of the mean over tokens; the default, dapo, is not GSPO
    beta=0.0,  # unset it would be 0.001
    epsilon=3e-4,
    epsilon_high=4e-4,
    scale_rewards="group",
    num_generations=8,
    gradient_accumulation_steps=8,
    steps_per_generation=32,  # four optimiser steps per rollout
)
