"""Surrogates of single tokens, in host memory: one pass over rows that stay in the cache.

J = A v(x), and dJ/d log π_θ = A g(x), with one v and one g for each response: of its tokens a response needs Σ_t v_t
alone. For PPO's clip v = clip(x, interval), and g = x wherever the clip leaves x alone; for CISPO g = clip(x, interval)
and v = g log π_θ. Where something overflows a sum is NaN or wrong; then nothing is found here, and
the caller goes the long way.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gspo_core import Cispo, Clip, Objective, PolicyLoss, Sapo, Unclipped
from gspo_core.aggregation import divide, token_weights
from gspo_core.arrays import Array, namespace_of
from gspo_core.metrics import RatioSums, TokenSums, metrics_of
from gspo_core.responses import Responses
from gspo_core.step import unit_advantages
from gspo_core.surrogate import Clipped

from .backend import BITS
from .tokens import blocks_of, subtract, sum_of_divergence

# Squares of ratios up to e^40 and down to e^-40 stay in the range of float32.
_LARGEST = 40.0


class _Rows(NamedTuple):
    surrogate: Any
    logp: Tensor
    old_logp: Tensor
    counted: Tensor
    advantages: Tensor
    weight: Tensor | None
    low: Tensor
    high: Tensor


class Sums(NamedTuple):
    """Per response Σ_t v_t, T, how many x_t are in the interval and above it; of all tokens, what metrics need."""

    values: Array
    lengths: Array
    inside: Array
    above: Array
    ratios: RatioSums
    tokens: TokenSums


def covers(objective: Objective, layout: Any, advantages: Any) -> bool:
    """Whether `objective` is this, with one advantage per response of a padded batch."""
    plain = objective.penalty is None and objective.log_ratio_cap is None
    whole = layout.counted.ndim == 2 and tuple(advantages.shape) == (layout.num_sequences,)
    return plain and whole and objective.ratio == "token" and type(objective.surrogate) in _APPLY


def scan(
    surrogate: Any, logp: Tensor, old_logp: Tensor, counted: Tensor, advantages: Tensor, weights: Tensor | None
) -> tuple[Sums, Tensor] | None:
    """The sums over rows with `advantages` `[S]`, in whose dtype it computes, and g of every token; None on overflow.

    `weights` of tokens or of responses, those of a correction, multiply v and g.
    """
    low, high = _interval(surrogate, advantages)
    slopes = low.new_empty(counted.shape)
    found = []
    for b in blocks_of(counted):
        weight = None if weights is None else weights[b].view(len(advantages[b]), -1)
        rows = _Rows(
            surrogate, logp[b], old_logp[b], counted[b], advantages[b, None], weight, low[b, None], high[b, None]
        )
        found.append(_scan_rows(rows, slopes[b]))
    sums, parts = zip(*found, strict=True)
    values, lengths, inside, above = (torch.cat(column) for column in zip(*sums, strict=True))
    total, squares, kl = (sum(getattr(part, name) for part in parts) for name in ("total", "squares", "divergence"))
    least, top = min(part.least for part in parts), max(part.top for part in parts)
    if not math.isfinite(total + squares + kl + values.sum().item()) or abs(top) > _LARGEST:
        return None
    shift = math.exp(-top)
    ratios = (int(lengths.sum()), total, least, top, total * shift, squares * shift**2)
    tokens = TokenSums(low.new_tensor(kl), low.new_tensor(any(part.moved for part in parts)))
    sums = (column.to(low.dtype) for column in (values, lengths, inside, above))
    return Sums(*sums, RatioSums(*map(low.new_tensor, ratios)), tokens), slopes


def _interval(surrogate: Any, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """The ratios that are not held, for each response."""
    if isinstance(surrogate, Clip):
        return surrogate.interval(advantages)
    low, high = 0.0, math.inf
    if isinstance(surrogate, Cispo):
        low, high = 0.0 if surrogate.low is None else 1 - surrogate.low, 1 + surrogate.high
    return torch.full_like(advantages, low), torch.full_like(advantages, high)


# Each turns `clipped`, clip(x, interval), into v and `ratio`, 0 at uncounted tokens, into g; v may be anything there.


def _held(rows: _Rows, inside: Tensor, keep: Tensor, clipped: Tensor, ratio: Tensor) -> None:  # noqa: ARG001
    """v = clip(x), g = x inside the interval."""
    ratio.view(keep.dtype).mul_(inside.view(torch.int8).to(keep.dtype))


def _weighted(rows: _Rows, inside: Tensor, keep: Tensor, clipped: Tensor, ratio: Tensor) -> None:  # noqa: ARG001
    """g = clip(x), v = g log π_θ."""
    ratio.copy_(clipped).view(keep.dtype).mul_(keep)
    clipped.mul_(rows.logp)


def _soft(rows: _Rows, inside: Tensor, keep: Tensor, clipped: Tensor, ratio: Tensor) -> None:  # noqa: ARG001
    """v = (4/τ) p, g = 4 p (1 - p) x, p = σ(τ (x - 1))."""
    tau = torch.where(
        rows.advantages > 0, rows.surrogate.tau_pos, torch.full_like(rows.advantages, rows.surrogate.tau_neg)
    )
    clipped.sub_(1).mul_(tau)
    ratio.mul_(torch.sigmoid(-clipped)).mul_(clipped.sigmoid_()).mul_(4)
    clipped.mul_(4 / tau)


_APPLY: dict[type, Any] = {Clip: _held, Unclipped: _held, Cispo: _weighted, Sapo: _soft}


class _Part(NamedTuple):
    total: float
    squares: float
    divergence: float
    least: float
    top: float
    moved: bool


def _scan_rows(rows: _Rows, slopes: Tensor) -> tuple[tuple[Tensor, ...], _Part]:
    """The sums of some rows; `slopes` is filled."""
    bits, d, clipped = BITS[slopes.dtype], torch.empty_like(slopes), torch.empty_like(slopes)
    keep = rows.counted.view(torch.int8).to(bits)
    subtract(rows.logp, rows.old_logp, d).view(bits).mul_(keep)
    ratio = torch.exp(d, out=slopes)
    torch.minimum(torch.maximum(ratio, rows.low, out=clipped), rows.high, out=clipped)
    inside = (clipped == ratio).bitwise_and_(rows.counted)
    above = (ratio > rows.high).bitwise_and_(rows.counted) if rows.high.isfinite().all() else inside[:, :0]
    ratio.view(bits).mul_(keep)
    total, squares = ratio.sum().item(), ratio.view(-1).dot(ratio.view(-1)).item()
    _APPLY[type(rows.surrogate)](rows, inside, keep, clipped, ratio)
    if rows.weight is not None:
        clipped.mul_(rows.weight)
        ratio.mul_(rows.weight)
    clipped.view(bits).mul_(keep)
    sums = clipped.sum(1), keep.sum(1, dtype=bits), inside.sum(1), above.sum(1)
    kl = sum_of_divergence(d, clipped)
    return sums, _Part(total, squares, kl, *_ends(d, rows.counted), kl != 0 or bool(d.any()))


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
    """The loss, and d loss / d log π_θ over g of a token, `[S]`; arrays of any framework."""
    layout, dtype = Responses(sums.lengths), sums.lengths.dtype
    units = unit_advantages(objective, layout, advantages, dtype)
    weights = token_weights(objective.aggregation, layout, groups, normalizer, dtype)
    scale = -divide(weights.omega * units, weights.count)
    causes = Clipped(*map(layout.xp.sum, _causes(objective, sums, units)))
    metrics = metrics_of(sums.lengths, causes, sums.ratios, sums.tokens)
    return PolicyLoss(layout.xp.sum(scale * sums.values), metrics), scale


def _causes(objective: Objective, sums: Sums, units: Array) -> Clipped:
    """How many tokens of each response are held, by which cause."""
    xp, outside, zeros = namespace_of(units), sums.lengths - sums.inside, units * 0
    if isinstance(objective.surrogate, Cispo):
        below = zeros if objective.surrogate.low is None else outside - sums.above
        return Clipped(xp.where(units != 0, below, zeros), xp.where(units != 0, outside - below, zeros), zeros)
    low = xp.where(units < 0, outside - sums.above, zeros)
    return Clipped(low, xp.where(units > 0, outside, zeros), xp.where(units < 0, sums.above, zeros))
