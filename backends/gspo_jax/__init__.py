"""gspo_jax: `gspo_core` on JAX, and the losses that never hold the logits of a batch.

import gspo_jax as gspo

loss, gradient = jax.value_and_grad(lambda logp: gspo.gspo_loss(logp, old_logp, advantages, mask).loss)(logp)
"""

import gspo_core
from gspo_core import *  # noqa: F403

from .backend import backend as backend

__all__ = sorted([*gspo_core.__all__, "backend"])
