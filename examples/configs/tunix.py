"""GSPO of the paper in Tunix: `gspo lint examples/configs/tunix.py --dialect tunix`."""

from tunix.rl.agentic.agentic_grpo_learner import GRPOConfig

config = GRPOConfig(
    loss_algo="gspo-token",
    loss_agg_mode="sequence-mean-token-mean",
    epsilon=3e-4,
    epsilon_high=4e-4,
    beta=0.0,
    advantage_estimator="grpo",
    num_generations=8,
    num_iterations=4,
    use_rollout_logps=False,  # old log-probabilities by the trainer's own forward pass
)
