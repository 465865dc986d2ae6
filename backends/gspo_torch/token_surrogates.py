"""Surrogates of single tokens, in host memory: one pass over blocks of tokens that stay in the cache.

J = A v(x), and dJ/d log π_θ = A g(x), with one v and one g for each response: of its tokens a response needs Σ_t v_t
alone. For PPO's clip v = clip(x, interval), and g = x wherever the clip leaves x alone; for CISPO g = clip(x, interval)
and v = g log π_θ, as for REINFORCE, whose g is 1 inside. GMPO's v is clip(log x, interval), of which
J = A e^{mean v} and g is 1 inside. Where something overflows a sum is NaN or wrong; then nothing is found here, and
the caller goes the long way.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gspo_core import Cispo, Clip, Gmpo, Objective, PolicyLoss, Reinforce, Sapo, Unclipped
from gspo_core.aggregation import divide, token_weights
from gspo_core.arrays import Array, namespace_of, times
from gspo_core.metrics import RatioSums, TokenSums, metrics_of
from gspo_core.responses import Responses
from gspo_core.step import unit_advantages
from gspo_core.surrogate import Clipped

from .backend import BITS, numpy
from .tokens import Block, blocks_of, subtract, sum_of_divergence

# Squares of ratios up to e^40 and down to e^-40 stay in the range of float32.
_LARGEST = 40.0


class _Bounds(NamedTuple):
    """The closed interval of what is not held, and τ: one number, or one for each response."""

    low: Tensor
    high: Tensor
    tau: Tensor


class _Tokens(NamedTuple):
    surrogate: Any
    block: Block
    logp: Tensor
    old_logp: Tensor
    counted: Tensor
    bounds: _Bounds
    weight: Tensor | None


class Sums(NamedTuple):
    """Per response Σ_t v_t, T, how many x_t are in the interval and above it; of all tokens, what metrics need."""

    values: Array
    lengths: Array
    inside: Array
    above: Array
    ratios: RatioSums
    tokens: TokenSums


def covers(objective: Objective, layout: Any, advantages: Any) -> bool:
    """Whether `objective` is this, with one advantage per response."""
    whole = tuple(advantages.shape) == (layout.num_sequences,)
    return objective.penalty is None and whole and objective.ratio == "token" and type(objective.surrogate) in _APPLY


def scan(
    objective: Objective, logp: Tensor, old_logp: Tensor, layout: Any, advantages: Tensor, weights: Tensor | None
) -> tuple[Sums, Tensor] | None:
    """The sums over tokens with `advantages` `[S]`, in whose dtype it computes, and g of every token; None on overflow.

    `weights` of tokens, those of a correction, multiply v and g.
    """
    surrogate, bounds = objective.surrogate, _bounds(objective.surrogate, advantages)
    slopes = advantages.new_empty(layout.counted.shape)
    sums, parts = advantages.new_zeros(4, layout.num_sequences, dtype=torch.float64), []
    for block in blocks_of(layout):
        b = block.tokens
        here = _Bounds(*(block.spread(value) if value.ndim else value for value in bounds))
        weight = None if weights is None else weights[b]
        tokens = _Tokens(surrogate, block, logp[b], old_logp[b], layout.counted[b], here, weight)
        found, part = _scan_tokens(tokens, slopes[b])
        for whole, some in zip(sums, found, strict=True):
            whole[block.responses] += some
        parts.append(part)
    total, squares, kl = (sum(getattr(part, name) for part in parts) for name in ("total", "squares", "divergence"))
    least, top = min(part.least for part in parts), max(part.top for part in parts)
    cap = _LARGEST if objective.log_ratio_cap is None else min(objective.log_ratio_cap, _LARGEST)
    if not math.isfinite(total + squares + kl + sums[0].sum().item()) or not -_LARGEST <= top <= cap:
        return None
    shift = math.exp(-top)
    ratios = (int(sums[1].sum()), total, least, top, total * shift, squares * shift**2)
    like = advantages.new_tensor
    tokens = TokenSums(like(kl), like(any(part.moved for part in parts)))
    return Sums(*sums.to(advantages.dtype), RatioSums(*map(like, ratios)), tokens), slopes


def _bounds(surrogate: Any, advantages: Tensor) -> _Bounds:
    gate, numbers = surrogate.gate if isinstance(surrogate, Reinforce) else surrogate, advantages.new_tensor
    if isinstance(gate, Clip):
        return _Bounds(*gate.interval(advantages), numbers(1.0))
    if isinstance(gate, Cispo):
        return _Bounds(*numbers([0.0 if gate.low is None else 1 - gate.low, 1 + gate.high, 1.0]))
    if isinstance(gate, Gmpo):
        low, high, free = numbers([-gate.low, gate.high, math.inf])
        return _Bounds(torch.where(advantages < 0, low, -free), torch.where(advantages > 0, high, free), numbers(1.0))
    low, high, one = numbers([0.0, math.inf, 1.0])
    if isinstance(gate, Sapo):
        return _Bounds(low, high, torch.where(advantages > 0, gate.tau_pos, torch.full_like(advantages, gate.tau_neg)))
    return _Bounds(low, high, one)


def _has_both_sides(surrogate: Any) -> bool:
    """Whether what is held in a response may be so above and below."""
    gate = surrogate.gate if isinstance(surrogate, Reinforce) else surrogate
    return (isinstance(gate, Cispo) and gate.low is not None) or (isinstance(gate, Clip) and gate.dual is not None)


# Each turns `clipped`, clip(x, interval), into v and `ratio`, 0 at uncounted tokens, into g; v may be anything there.


def _held(here: _Tokens, inside: Tensor, keep: Tensor, clipped: Tensor, ratio: Tensor) -> None:  # noqa: ARG001
    """v = clip(x), g = x inside the interval."""
    ratio.view(keep.dtype).mul_(inside.view(torch.int8).to(keep.dtype))


def _gated(here: _Tokens, inside: Tensor, keep: Tensor, clipped: Tensor, ratio: Tensor) -> None:  # noqa: ARG001
    """g = 1 inside the interval, v = g log π_θ."""
    clipped.copy_(ratio.copy_(inside.view(torch.int8))).mul_(here.logp)


def _averaged(here: _Tokens, inside: Tensor, keep: Tensor, clipped: Tensor, ratio: Tensor) -> None:  # noqa: ARG001
    """v = clip(log x), g = 1 inside the interval."""
    ratio.copy_(inside.view(torch.int8))


def _weighted(here: _Tokens, inside: Tensor, keep: Tensor, clipped: Tensor, ratio: Tensor) -> None:  # noqa: ARG001
    """g = clip(x), v = g log π_θ."""
    ratio.copy_(clipped).view(keep.dtype).mul_(keep)
    clipped.mul_(here.logp)


def _soft(here: _Tokens, inside: Tensor, keep: Tensor, clipped: Tensor, ratio: Tensor) -> None:  # noqa: ARG001
    """v = (4/τ) p, g = 4 p (1 - p) x, p = σ(τ (x - 1))."""
    tau = here.bounds.tau
    clipped.sub_(1).mul_(tau)
    ratio.mul_(torch.sigmoid(-clipped)).mul_(clipped.sigmoid_()).mul_(4)
    clipped.mul_(4 / tau)


_APPLY: dict[type, Any] = {
    Clip: _held,
    Unclipped: _held,
    Cispo: _weighted,
    Sapo: _soft,
    Reinforce: _gated,
    Gmpo: _averaged,
}


class _Part(NamedTuple):
    total: float
    squares: float
    divergence: float
    least: float
    top: float
    moved: bool


def _scan_tokens(here: _Tokens, slopes: Tensor) -> tuple[tuple[Tensor, ...], _Part]:
    """The sums of some tokens; `slopes` is filled."""
    bits, d, clipped = BITS[slopes.dtype], torch.empty_like(slopes), torch.empty_like(slopes)
    keep = here.counted.view(torch.int8).to(bits)
    subtract(here.logp, here.old_logp, d).view(bits).mul_(keep)
    ratio = torch.exp(d, out=slopes)
    unit = d if isinstance(here.surrogate, Gmpo) else ratio
    torch.minimum(torch.maximum(unit, here.bounds.low, out=clipped), here.bounds.high, out=clipped)
    inside = _compare(numpy.equal, clipped, unit, here.counted)
    above = _compare(numpy.greater, unit, here.bounds.high, here.counted) if _has_both_sides(here.surrogate) else None
    ratio.view(bits).mul_(keep)
    total, squares = ratio.sum().item(), ratio.view(-1).dot(ratio.view(-1)).item()
    _APPLY[type(here.surrogate)](here, inside, keep, clipped, ratio)
    if here.weight is not None:
        clipped.mul_(here.weight)
        ratio.mul_(here.weight)
    clipped.view(bits).mul_(keep)
    counts = (0.0 if flags is None else here.block.counts(flags) for flags in (here.counted, inside, above))
    sums = here.block.sums(clipped), *counts
    kl = sum_of_divergence(d, clipped)
    return sums, _Part(total, squares, kl, *_ends(d, here.counted), kl != 0 or bool(d.any()))


def _compare(function: Any, left: Tensor, right: Tensor, counted: Tensor) -> Tensor:
    """Where it holds among the counted tokens; NumPy compares in a sixth of the time."""
    return torch.from_numpy(function(left.numpy(), right.numpy())).bitwise_and_(counted)


def _ends(d: Tensor, counted: Tensor) -> tuple[float, float]:
    """The least and the greatest counted d: those of all, unless they may be the 0 of uncounted tokens."""
    least, top = (end.item() for end in d.aminmax())
    if least < 0 < top:
        return least, top
    infinite = d.new_tensor(math.inf)
    return torch.where(counted, d, infinite).amin().item(), torch.where(counted, d, -infinite).amax().item()


def finish(
    objective: Objective, sums: Sums, advantages: Array, groups: Any, normalizer: Any, weight: Any
) -> tuple[PolicyLoss, Array]:
    """The loss, and d loss / d log π_θ over g of a token, `[S]`; arrays of any framework.

    `weight` is the correction's of each response, or None.
    """
    layout, dtype = Responses(sums.lengths), sums.lengths.dtype
    units = unit_advantages(objective, layout, advantages, dtype)
    weights = token_weights(objective.aggregation, layout, groups, normalizer, dtype)
    effective, values = units if weight is None else times(units, weight), sums.values
    if isinstance(objective.surrogate, Gmpo):
        effective, values = effective * layout.xp.exp(divide(values, sums.lengths)), sums.lengths
    scale = -divide(weights.omega * effective, weights.count)
    causes = Clipped(*map(layout.xp.sum, _causes(objective.surrogate, sums, units)))
    metrics = metrics_of(sums.lengths, causes, sums.ratios, sums.tokens)
    return PolicyLoss(layout.xp.sum(scale * values), metrics), scale


def _causes(surrogate: Any, sums: Sums, units: Array) -> Clipped:
    """How many tokens of each response are held, by which cause."""
    xp, outside, zeros = namespace_of(units), sums.lengths - sums.inside, units * 0
    if isinstance(surrogate, Cispo):
        below = zeros if surrogate.low is None else outside - sums.above
        return Clipped(xp.where(units != 0, below, zeros), xp.where(units != 0, outside - below, zeros), zeros)
    low = xp.where(units < 0, outside - sums.above, zeros)
    return Clipped(low, xp.where(units > 0, outside, zeros), xp.where(units < 0, sums.above, zeros))
