"""gspo_core: Group Sequence Policy Optimization and its family, once, against the Array API.

Works on the arrays you have (NumPy, PyTorch, JAX, anything that follows the standard) and imports no
framework itself.

    import gspo_core as gspo

    advantages = gspo.group_advantages(rewards, groups)
    out = gspo.gspo_loss(logp, old_logp, advantages, mask)
    out.loss, out.metrics["clip_fraction"]
"""

from .advantages import (
    clip_advantages,
    group_advantages,
    leave_one_out_advantages,
    reinforce_pp_advantages,
)
from .aggregation import AggregateSum, Aggregation, aggregate, aggregate_sum
from .backend import Backend, backend_of
from .correction import Correction
from .gradient import policy_gradient
from .groups import informative_groups
from .loss import (
    PolicyLoss,
    PolicyLossSum,
    grpo_loss,
    gspo_loss,
    gspo_token_loss,
    policy_loss,
    policy_loss_sum,
    ppo_loss,
)
from .objective import Objective
from .penalty import Penalty, kl_penalty
from .ratio import (
    gspo_token_ratio,
    sequence_log_ratio,
    sequence_ratio,
    token_log_ratio,
    token_ratio,
)
from .returns import gae_advantages, reinforce_returns, whiten
from .rewards import (
    RunningMoments,
    clip_rewards,
    normalize_rewards,
    soft_overlong_penalty,
    token_kl_rewards,
)
from .sequences import Packed, Padded
from .surrogate import Cispo, Clip, Gmpo, Reinforce, Sapo, Unclipped, Vespo, clipped_surrogate
from .validation import value_checks

__all__ = [
    "AggregateSum",
    "Aggregation",
    "Backend",
    "Cispo",
    "Clip",
    "Correction",
    "Gmpo",
    "Objective",
    "Packed",
    "Padded",
    "Penalty",
    "PolicyLoss",
    "PolicyLossSum",
    "Reinforce",
    "RunningMoments",
    "Sapo",
    "Unclipped",
    "Vespo",
    "aggregate",
    "aggregate_sum",
    "backend_of",
    "clip_advantages",
    "clip_rewards",
    "clipped_surrogate",
    "gae_advantages",
    "group_advantages",
    "grpo_loss",
    "gspo_loss",
    "gspo_token_loss",
    "gspo_token_ratio",
    "informative_groups",
    "kl_penalty",
    "leave_one_out_advantages",
    "normalize_rewards",
    "policy_gradient",
    "policy_loss",
    "policy_loss_sum",
    "ppo_loss",
    "reinforce_pp_advantages",
    "reinforce_returns",
    "sequence_log_ratio",
    "sequence_ratio",
    "soft_overlong_penalty",
    "token_kl_rewards",
    "token_log_ratio",
    "token_ratio",
    "value_checks",
    "whiten",
]
