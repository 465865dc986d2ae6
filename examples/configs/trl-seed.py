"""The recipe of TRL's paper index for GSPO; `gspo lint examples/configs/trl-seed.py --dialect trl` has nothing to say."""

from trl import GRPOConfig

training_args = GRPOConfig(
    importance_sampling_level="sequence",
    loss_type="grpo",
    beta=0.0,
    epsilon=3e-4,
    epsilon_high=4e-4,
    gradient_accumulation_steps=1,
    steps_per_generation=4,
)
