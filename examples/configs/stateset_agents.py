"""GSPO of the paper in StateSet Agents: `gspo lint examples/configs/stateset_agents.py --dialect stateset_agents`."""

from stateset_agents.training.gspo_config import GSPOConfig

config = GSPOConfig(
    clip_range_left=3e-4,
    clip_range_right=4e-4,
    beta=0.0,
    num_generations=8,
    num_iterations=4,  # optimiser steps per rollout
    objective_overrides={"advantage_eps": 1e-6},
)
