"""gspo_torch: `gspo_core` made native in PyTorch.

The mathematics is the core's; this package adds what PyTorch can do with it.

    import gspo_torch as gspo

    out = gspo.gspo_loss(logp, old_logp, advantages, mask)
    out.loss.backward()
"""

import gspo_core
from gspo_core import AggregateSum as AggregateSum
from gspo_core import Aggregation as Aggregation
from gspo_core import Backend as Backend
from gspo_core import Cispo as Cispo
from gspo_core import Clip as Clip
from gspo_core import Correction as Correction
from gspo_core import Gmpo as Gmpo
from gspo_core import Objective as Objective
from gspo_core import Packed as Packed
from gspo_core import Padded as Padded
from gspo_core import Penalty as Penalty
from gspo_core import PolicyLossSum as PolicyLossSum
from gspo_core import Reinforce as Reinforce
from gspo_core import RunningMoments as RunningMoments
from gspo_core import Sapo as Sapo
from gspo_core import Unclipped as Unclipped
from gspo_core import Vespo as Vespo
from gspo_core import aggregate as aggregate
from gspo_core import aggregate_sum as aggregate_sum
from gspo_core import backend_of as backend_of
from gspo_core import clip_advantages as clip_advantages
from gspo_core import clip_rewards as clip_rewards
from gspo_core import clipped_surrogate as clipped_surrogate
from gspo_core import gae_advantages as gae_advantages
from gspo_core import group_advantages as group_advantages
from gspo_core import gspo_token_ratio as gspo_token_ratio
from gspo_core import informative_groups as informative_groups
from gspo_core import kl_penalty as kl_penalty
from gspo_core import leave_one_out_advantages as leave_one_out_advantages
from gspo_core import normalize_rewards as normalize_rewards
from gspo_core import policy_gradient as policy_gradient
from gspo_core import policy_loss_sum as policy_loss_sum
from gspo_core import reinforce_pp_advantages as reinforce_pp_advantages
from gspo_core import reinforce_returns as reinforce_returns
from gspo_core import sequence_log_ratio as sequence_log_ratio
from gspo_core import sequence_ratio as sequence_ratio
from gspo_core import soft_overlong_penalty as soft_overlong_penalty
from gspo_core import token_kl_rewards as token_kl_rewards
from gspo_core import token_log_ratio as token_log_ratio
from gspo_core import token_ratio as token_ratio
from gspo_core import value_checks as value_checks
from gspo_core import whiten as whiten

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
from .results import PolicyLoss as PolicyLoss

__all__ = sorted(
    [*gspo_core.__all__, "GSPOLoss", "backend", "linear_policy_loss", "linear_token_logps", "record", "token_logps"],
)
