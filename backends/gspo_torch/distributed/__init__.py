"""GSPO over ranks: data parallel, context parallel, groups across ranks, a vocabulary cut over ranks.

    from gspo_torch import distributed

    advantages = distributed.group_advantages(rewards, groups, data=mesh["dp"])
    out = distributed.reduce(objective, logp=logp, old_logp=old_logp, advantages=advantages, sequences=mask,
                             data=mesh["dp"], world_scale=mesh["dp"].size())
    out.loss.backward()

What `docs/distributed.md` says about gradients holds throughout: every rank differentiates the one loss.
"""

from .context import ContextSplit
from .reduce import Union, reduce
from .responses import group_advantages, informative_groups, leave_one_out_advantages
from .vocabulary import linear_token_logps

__all__ = [
    "ContextSplit",
    "Union",
    "group_advantages",
    "informative_groups",
    "leave_one_out_advantages",
    "linear_token_logps",
    "reduce",
]
