"""GSPO of the paper in EasyDeL: `gspo lint examples/configs/easydel.py --dialect easydel`.

What remains no setting mends: a generated batch gives one update, so that the ratio is 1, and the clip of negative advantages is inverted.
"""

from easydel import GSPOConfig

arguments = GSPOConfig(
    importance_sampling_level="sequence",
    loss_type="grpo",
    epsilon=3e-4,
    epsilon_high=4e-4,
    beta=0.0,
    scale_rewards="group",
    num_generations=8,
)
