"""GSPO of the paper in TextPolicy, as far as it goes: `gspo lint examples/configs/textpolicy.py --dialect textpolicy`.

What remains no setting mends: the trainer hands over no lengths, the ratio is clipped on both sides, and the advantages are
the rewards less their mean over the batch. Responses of one length, to one prompt a batch, take away the first and the last.
"""

from textpolicy.algorithms import grpo, gspo
from textpolicy.training import Trainer


def trainer(model, optimizer, buffer):
    return Trainer(
        model=model,
        optimizer=optimizer,
        loss_fn=gspo.create_gspo_policy_loss(variant="sequence", clip_ratio=3e-4),
        advantage_fn=grpo.compute_advantages,
        buffer=buffer,
        on_policy=False,  # call train() four times, then buffer.clear(): otherwise a rollout gives one update
    )
