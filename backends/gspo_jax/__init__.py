"""gspo_jax: `gspo_core` on JAX, losses that never hold the logits of a batch, losses over a mesh.

import gspo_jax as gspo

loss, gradient = jax.value_and_grad(lambda logp: gspo.gspo_loss(logp, old_logp, advantages, mask).loss)(logp)
"""

import gspo_core
from gspo_core import *  # noqa: F403

from .backend import backend as backend
from .distributed import policy_loss as policy_loss
from .linear import linear_policy_loss as linear_policy_loss
from .linear import linear_token_logps as linear_token_logps
from .linear import token_logps as token_logps
from .named import group_advantages as group_advantages
from .named import grpo_loss as grpo_loss
from .named import gspo_loss as gspo_loss
from .named import gspo_token_loss as gspo_token_loss
from .named import informative_groups as informative_groups
from .named import leave_one_out_advantages as leave_one_out_advantages
from .named import ppo_loss as ppo_loss
from .record import record as record

__all__ = sorted(
    {*gspo_core.__all__, "backend", "linear_policy_loss", "linear_token_logps", "record", "token_logps"},
)
