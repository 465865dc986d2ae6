"""gspo_torch: `gspo_core` made native in PyTorch.

The mathematics is the core's; this package adds what PyTorch can do with it.

    import gspo_torch as gspo

    out = gspo.gspo_loss(logp, old_logp, advantages, mask)
    out.loss.backward()
"""

import gspo_core
from gspo_core import *  # noqa: F403

from .backend import backend as backend
from .linear import linear_token_logps as linear_token_logps
from .linear_loss import linear_policy_loss as linear_policy_loss
from .logps import token_logps as token_logps
from .loss import grpo_loss as grpo_loss
from .loss import gspo_loss as gspo_loss
from .loss import gspo_token_loss as gspo_token_loss
from .loss import policy_loss as policy_loss
from .loss import ppo_loss as ppo_loss
from .module import GSPOLoss as GSPOLoss
from .record import record as record

__all__ = sorted(
    [*gspo_core.__all__, "GSPOLoss", "backend", "linear_policy_loss", "linear_token_logps", "record", "token_logps"],
)
