"""A KL penalty beside a loss in closed form, in host memory: one pass over blocks of tokens, added to loss, metrics and gradient.

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

from .backend import keep_bits, numpy
from .solution import Solution
from .tokens import blocks_of, exp_minus_one, joined, log_ratio_sums, subtract


def add_penalty(
    found: Solution, objective: Objective, layout: Any, logp: Tensor, rest: dict[str, Any]
) -> Solution | None:
    """The solution of `objective` from that of its policy term; None where something overflows or is not finite."""
    penalty, groups, dtype = objective.penalty, rest["groups"], compute_dtype(logp, rest["old_logp"])
    assert penalty is not None
    slopes, blocks = logp.new_empty(logp.shape, dtype=dtype), blocks_of(layout)
    sums = []
    for block in blocks:
        b = block.tokens
        tokens = (logp[b], rest["old_logp"][b], rest["ref_logp"][b], layout.counted[b])
        sums.append(block.sums(_fill(penalty, *tokens, slopes[b])))
    per_response, ratio = joined(blocks, sums, layout), 1.0
    if penalty.importance == "sequence":
        ratio = _through_ratios(per_response, slopes, layout, logp, rest["old_logp"])
        per_response = per_response * ratio
    if not math.isfinite(per_response.sum().item()):
        return None
    own = token_weights(objective.aggregation, layout, groups, rest["normalizer"], dtype)
    weights = penalty_weights(objective, layout, groups, dtype, own)
    kl = divide((weights.omega * per_response).sum(), weights.count)
    share = penalty.coefficient * divide(weights.omega, weights.count) * ratio

    def gradient(factor: Tensor) -> Tensor:
        whole = found.gradient(factor)
        for block in blocks:
            whole[block.tokens].addcmul_(slopes[block.tokens], block.spread(share * factor))
        return whole

    return Solution(found.loss + penalty.coefficient * kl, found.metrics | {"kl_penalty": kl}, gradient, found.reads)


def _fill(penalty: Penalty, new: Tensor, old: Tensor, reference: Tensor, counted: Tensor, slopes: Tensor) -> Tensor:
    """The KL of some tokens, with a token's importance; `slopes` is filled. Both are 0 at uncounted tokens."""
    keep = keep_bits(counted, slopes.dtype)
    z = subtract(new, reference, torch.empty_like(slopes))
    z.view(keep.dtype).mul_(keep)
    moves = _hold(z, penalty.log_ratio_clamp, keep)
    values = _estimate(penalty.estimator, z, slopes)
    moves = _hold(values, penalty.value_clamp, moves)
    if penalty.importance == "token" and penalty.estimator == "k3":
        # k3' + k3 is z: as a sum it would lose the digits that e^{-z} does not leave (GSPO-KL-5).
        slopes.copy_(z).view(keep.dtype).mul_(moves)
        if moves is not keep:
            z.copy_(values).view(keep.dtype).mul_(1 - moves)
            slopes.add_(z)
    else:
        slopes.view(keep.dtype).mul_(moves)
        if penalty.importance == "token":
            slopes.add_(values)
    if penalty.importance == "token":
        subtract(new, old, z).view(keep.dtype).mul_(keep)
        slopes.mul_(z.exp_())
        values.mul_(z)
    return values


def _hold(values: Tensor, bound: float | None, moves: Tensor) -> Tensor:
    """Holds `values` to ±`bound`, and returns `moves`, 0 where that takes the gradient."""
    if bound is None:
        return moves
    inside = torch.from_numpy(numpy.less_equal(values.abs().numpy(), bound))
    values.clamp_(-bound, bound)
    return moves * inside.view(torch.int8)


def _estimate(estimator: str, z: Tensor, slopes: Tensor) -> Tensor:
    """The core's `estimate`, a new tensor, and its `estimate_slope`, into `slopes`."""
    if estimator == "k1":
        slopes.fill_(1.0)
        return z.clone()
    if estimator == "abs":
        torch.sign(z, out=slopes)
        return z.abs()
    if estimator != "k3":
        slopes.copy_(z)
    if estimator == "k2":
        return z.square().div_(2)
    falling = torch.neg(z)
    exp_minus_one(falling, falling)
    if estimator == "k3":
        torch.neg(falling, out=slopes)
    return falling.add_(z)


def _through_ratios(per_response: Tensor, slopes: Tensor, layout: Any, logp: Tensor, old_logp: Tensor) -> Tensor:
    """s_i, the importance of every token of a response, whose own derivative adds the mean KL to each slope."""
    sums = log_ratio_sums(logp, old_logp, layout, slopes.dtype)
    means = divide(per_response, sums.lengths)
    for block in blocks_of(layout):
        flags = layout.counted[block.tokens].view(torch.int8).to(slopes.dtype)
        slopes[block.tokens].addcmul_(flags, block.spread(means))
    return divide(sums.log_ratio, sums.lengths).exp()
