"""GSPO of the paper in Unsloth on MLX: gspo lint examples/configs/unsloth_mlx.py --dialect unsloth_mlx."""

from unsloth_zoo.mlx.trainer import MLXGRPOConfig

config = MLXGRPOConfig(
    importance_sampling_level="sequence",
    loss_type="grpo",  # the mean over responses of the mean over tokens; the default, dapo, is not GSPO
    beta=0.0,  # unset it would be 0.001
    epsilon=3e-4,
    epsilon_high=4e-4,
    scale_rewards="group",
    num_generations=8,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=4,
    steps_per_generation=16,  # four optimiser steps per rollout
)
