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

__all__ = sorted(
    [*gspo_core.__all__, "backend", "linear_policy_loss", "linear_token_logps", "token_logps"],
)
