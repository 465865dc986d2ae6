"""GSPO of the paper in ART: `gspo lint examples/configs/art.py --dialect art`."""

import art
from art.local import LocalBackend


async def update(backend: LocalBackend, model: art.TrainableModel, groups: list[art.TrajectoryGroup]) -> None:
    """One call on the responses of a rollout: every packed row is an optimiser step."""
    await backend.train(
        model,
        groups,
        loss_fn="ppo",  # the clipped surrogate; without it the loss is that of CISPO
        importance_sampling_level="sequence",
        epsilon=3e-4,
        epsilon_high=4e-4,
        precalculate_logprobs=True,  # old log-probabilities by the trainer's own forward pass
        scale_rewards=True,
        kl_penalty_coef=0.0,
    )
