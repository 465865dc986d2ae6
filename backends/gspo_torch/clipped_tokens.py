"""PPO's clip token by token, in host memory: one pass over rows that stay in the cache.

One interval of ratios per response makes J = A · clip(x, interval): of its tokens a response needs Σ_t clip(x_t)
alone, and dJ/dℓ = A x wherever the clip leaves x alone. That is NaN or wrong where something
overflows; then nothing is found here, and the caller goes the long way.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gspo_core import Clip, Objective, PolicyLoss
from gspo_core.aggregation import divide, token_weights
from gspo_core.arrays import Array
from gspo_core.metrics import RatioSums, TokenSums, metrics_of
from gspo_core.responses import Responses
from gspo_core.step import unit_advantages
from gspo_core.surrogate import Clipped

from .backend import BITS
from .tokens import blocks_of, subtract, sum_of_divergence

# Squares of ratios up to e^40 and down to e^-40 stay in the range of float32.
_LARGEST = 40.0


class Sums(NamedTuple):
    """Per response Σ_t clip(x_t), T, how many x_t are in the interval and above it; of all tokens, what metrics need."""

    clipped: Array
    lengths: Array
    inside: Array
    above: Array
    ratios: RatioSums
    tokens: TokenSums


def covers(objective: Objective, layout: Any, advantages: Any) -> bool:
    """Whether `objective` is this, with one advantage per response of a padded batch."""
    plain = objective.penalty is None and not objective.correction and objective.log_ratio_cap is None
    whole = layout.counted.ndim == 2 and tuple(advantages.shape) == (layout.num_sequences,)
    return plain and whole and objective.ratio == "token" and isinstance(objective.surrogate, Clip)


def scan(logp: Tensor, old_logp: Tensor, counted: Tensor, low: Tensor, high: Tensor) -> tuple[Sums, Tensor] | None:
    """The sums over rows with intervals [`low`, `high`], `[S]`, and x where it is inside, 0 elsewhere; None on overflow."""
    slopes = low.new_empty(counted.shape)
    found = [
        _scan_rows(logp[b], old_logp[b], counted[b], low[b, None], high[b, None], slopes[b]) for b in blocks_of(counted)
    ]
    rows, parts = zip(*found, strict=True)
    clipped, lengths, inside, above = (torch.cat(column) for column in zip(*rows, strict=True))
    total, squares, kl = (sum(getattr(part, name) for part in parts) for name in ("total", "squares", "divergence"))
    least, top = min(part.least for part in parts), max(part.top for part in parts)
    if not math.isfinite(total + squares + kl + clipped.sum().item()) or abs(top) > _LARGEST:
        return None
    shift = math.exp(-top)
    ratios = (int(lengths.sum()), total, least, top, total * shift, squares * shift**2)
    tokens = TokenSums(low.new_tensor(kl), low.new_tensor(any(part.moved for part in parts)))
    rows = (column.to(low.dtype) for column in (clipped, lengths, inside, above))
    return Sums(*rows, RatioSums(*map(low.new_tensor, ratios)), tokens), slopes


class _Part(NamedTuple):
    total: float
    squares: float
    divergence: float
    least: float
    top: float
    moved: bool


def _scan_rows(
    new: Tensor, old: Tensor, counted: Tensor, low: Tensor, high: Tensor, slopes: Tensor
) -> tuple[tuple[Tensor, ...], _Part]:
    """The sums of some rows; `slopes` is filled."""
    bits, d, clipped = BITS[slopes.dtype], torch.empty_like(slopes), torch.empty_like(slopes)
    keep = counted.view(torch.int8).to(bits)
    subtract(new, old, d).view(bits).mul_(keep)
    ratio = torch.exp(d, out=slopes)
    torch.minimum(torch.maximum(ratio, low, out=clipped), high, out=clipped)
    inside = (clipped == ratio).bitwise_and_(counted)
    above = (ratio > high).bitwise_and_(counted) if high.isfinite().all() else inside[:, :0]
    clipped.view(bits).mul_(keep)
    ratio.view(bits).mul_(keep)
    rows = clipped.sum(1), keep.sum(1, dtype=bits), inside.sum(1), above.sum(1)
    total, squares = ratio.sum().item(), ratio.view(-1).dot(ratio.view(-1)).item()
    ratio.view(bits).mul_(keep.copy_(inside.view(torch.int8)))
    kl = sum_of_divergence(d, clipped)
    return rows, _Part(total, squares, kl, *_ends(d, counted), kl != 0 or bool(d.any()))


def _ends(d: Tensor, counted: Tensor) -> tuple[float, float]:
    """The least and the greatest counted d: those of all, unless they may be the 0 of uncounted tokens."""
    least, top = (end.item() for end in d.aminmax())
    if least < 0 < top:
        return least, top
    infinite = d.new_tensor(math.inf)
    return torch.where(counted, d, infinite).amin().item(), torch.where(counted, d, -infinite).amax().item()


def finish(
    objective: Objective, sums: Sums, advantages: Array, groups: Any, normalizer: Any
) -> tuple[PolicyLoss, Array]:
    """The loss, and d loss / d log π_θ over x for a token inside its interval, `[S]`; arrays of any framework."""
    layout, dtype = Responses(sums.lengths), sums.lengths.dtype
    units = unit_advantages(objective, layout, advantages, dtype)
    weights = token_weights(objective.aggregation, layout, groups, normalizer, dtype)
    scale = -divide(weights.omega * units, weights.count)
    xp, outside, zeros = layout.xp, sums.lengths - sums.inside, layout.xp.zeros_like(units)
    low = xp.where(units < 0, outside - sums.above, zeros)
    high, dual = xp.where(units > 0, outside, zeros), xp.where(units < 0, sums.above, zeros)
    metrics = metrics_of(sums.lengths, Clipped(xp.sum(low), xp.sum(high), xp.sum(dual)), sums.ratios, sums.tokens)
    return PolicyLoss(xp.sum(scale * sums.clipped), metrics), scale
