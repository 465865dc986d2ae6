"""A KL penalty beside a loss in closed form, in host memory: one pass over rows, added to loss, metrics and gradient.

Σ_t KL_t of each response and the slopes dKL_t / d log π_θ are all that the penalty adds (GSPO-KL-6), whatever the surrogate is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gspo_core import Objective, Penalty
from gspo_core.aggregation import divide, token_weights
from gspo_core.arrays import compute_dtype
from gspo_core.step import penalty_weights

from .backend import BITS
from .solution import Solution
from .tokens import blocks_of, exp_minus_one, subtract


def covers(penalty: Penalty | None, layout: Any) -> bool:
    """Whether `penalty` is a plain estimator over a padded batch."""
    if penalty is None or layout.counted.ndim != 2:
        return False
    return penalty.importance is None and penalty.log_ratio_clamp is None and penalty.value_clamp is None


def add_penalty(
    found: Solution, objective: Objective, layout: Any, logp: Tensor, rest: dict[str, Any]
) -> Solution | None:
    """The solution of `objective` from that of its policy term; None where something overflows or is not finite."""
    penalty, groups, dtype = objective.penalty, rest["groups"], compute_dtype(logp, rest["old_logp"])
    assert penalty is not None
    slopes = logp.new_empty(logp.shape, dtype=dtype)
    sums = [
        _fill(penalty.estimator, logp[b], rest["ref_logp"][b], layout.counted[b], slopes[b])
        for b in blocks_of(layout.counted)
    ]
    per_response = torch.cat(sums)
    if not math.isfinite(per_response.sum().item()):
        return None
    own = token_weights(objective.aggregation, layout, groups, rest["normalizer"], dtype)
    weights = penalty_weights(objective, layout, groups, dtype, own)
    kl = divide((weights.omega * per_response).sum(), weights.count)
    share = (penalty.coefficient * divide(weights.omega, weights.count))[:, None]
    return Solution(
        found.loss + penalty.coefficient * kl,
        found.metrics | {"kl_penalty": kl},
        lambda factor: found.gradient(factor).addcmul_(slopes, share * factor),
        found.counted,
    )


def _fill(estimator: str, new: Tensor, reference: Tensor, counted: Tensor, slopes: Tensor) -> Tensor:
    """Σ_t KL_t of some rows; `slopes` is filled, with 0 at uncounted tokens."""
    keep = counted.view(torch.int8).to(BITS[slopes.dtype])
    z = subtract(new, reference, torch.empty_like(slopes))
    z.view(keep.dtype).mul_(keep)
    if estimator == "k1":
        slopes.copy_(keep)
        return z.sum(1)
    if estimator == "abs":
        torch.sign(z, out=slopes)
        return z.abs_().sum(1)
    if estimator != "k3":
        slopes.copy_(z)
    if estimator == "k2":
        return z.square_().sum(1) / 2
    falling = torch.neg(z)
    exp_minus_one(falling, falling)
    if estimator == "k3":
        torch.neg(falling, out=slopes)
    return falling.add_(z).sum(1)
