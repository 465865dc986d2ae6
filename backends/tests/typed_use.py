"""What a type checker says to users of the backends; basedpyright reads it, nothing runs it."""

from typing import assert_type

import jax
from torch import Tensor

import gspo_core
import gspo_jax
import gspo_torch
from gspo_torch.distributed import Union


def in_torch(objective: gspo_torch.Objective, values: Tensor) -> Tensor:
    """Losses are tensors, by whichever way they are asked for."""
    found = gspo_torch.policy_loss(objective, logp=values, old_logp=values, advantages=values, sequences=values)
    assert_type(found.metrics, dict[str, Tensor])
    assert_type(gspo_torch.gspo_loss(values, values, values, values).loss, Tensor)
    assert_type(gspo_torch.GSPOLoss(objective)(values, values, values, values).loss, Tensor)
    assert_type(Union(objective, [values], world_scale=1).result().loss, Tensor)
    assert_type(objective, gspo_core.Objective)
    return found.loss


def in_jax(objective: gspo_jax.Objective, values: jax.Array) -> jax.Array:
    """The same of arrays."""
    found = gspo_jax.policy_loss(objective, logp=values, old_logp=values, advantages=values, sequences=values)
    assert_type(found.metrics, dict[str, jax.Array])
    return found.loss
