"""GSPO of the paper in TRL: `gspo lint examples/configs/trl.py --dialect trl`."""

from trl import GRPOConfig

training_args = GRPOConfig(
    importance_sampling_level="sequence",
    loss_type="grpo",
    epsilon=3e-4,
    epsilon_high=4e-4,
    beta=0.0,
    scale_rewards="group",
    num_generations=8,
    gradient_accumulation_steps=4,
    steps_per_generation=16,  # micro-batches: four optimiser steps per rollout
)
