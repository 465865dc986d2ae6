"""Surrogates at single tokens, in host memory: one pass over blocks of tokens that stay in the cache.

J = A v(x), and dJ/d log π_θ = A g(x), with one v and one g for each sign of A: of its tokens a response needs Σ_t v_t
alone, or Σ_t A_t v_t. For PPO's clip v = clip(x, interval), and g = x wherever the clip leaves x alone; for CISPO g =
clip(x, interval) and v = g log π_θ, as for REINFORCE, whose g is 1 inside. GMPO's v is clip(log x, interval), of which
J = A e^{mean v} and g is 1 inside. Where something overflows a sum is NaN or wrong; then nothing is found here, and
the caller goes the long way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gspo_core import Cispo, Clip, Gmpo, Objective, PolicyLoss, Reinforce, Sapo, Vespo
from gspo_core.aggregation import divide, token_weights
from gspo_core.arrays import Array, times
from gspo_core.metrics import RatioSums, TokenSums, metrics_of
from gspo_core.responses import Responses
from gspo_core.step import unit_advantages
from gspo_core.surrogate import Clipped

from .backend import BITS, keep_bits, numpy
from .tokens import Block, LogRatioSums, blocks_of, joined, lengths_of, subtract, sum_of_divergence

# Squares of ratios up to e^40 and down to e^-40 stay in the range of float32.
_LARGEST = 40.0


class Terms(NamedTuple):
    """What a scan reads, and computes with in the dtype of `advantages`, `[S]` or of tokens.

    `weights` of the tokens of a block, a correction's, multiply v and g. Where a response has one ratio, `units` are their
    logarithms and `responses` the sums that these are made of.
    """

    objective: Objective
    layout: Any
    logp: Tensor
    old_logp: Tensor
    advantages: Tensor
    weights: Callable[[Block], Tensor] | None = None
    responses: LogRatioSums | None = None
    units: Tensor | None = None

    @property
    def by_response(self) -> bool:
        """Whether a response has one advantage."""
        return tuple(self.advantages.shape) == (self.layout.num_sequences,)


class Sums(NamedTuple):
    """Per response Σ_t v_t and T; of all tokens, what metrics need."""

    values: Array
    lengths: Array
    clipped: Clipped
    ratios: RatioSums
    tokens: TokenSums


def covers(objective: Objective, layout: Any, advantages: Any) -> bool:
    """Whether `objective` is this, under any ratio, with advantages that it takes."""
    shape, by_token = tuple(advantages.shape), objective.allows_token_advantages
    fits = shape == (layout.num_sequences,) or (by_token and shape == layout.token_shape)
    takes = by_token or objective.ratio == "token"
    return objective.penalty is None and takes and fits


def scan(terms: Terms) -> tuple[Sums, Tensor] | None:
    """The sums over tokens, and g of every token; None on overflow."""
    like, cap = terms.advantages, terms.objective.log_ratio_cap
    bounds = _bounds(terms.objective.surrogate, like) if terms.by_response else None
    slopes, blocks = like.new_empty(terms.layout.counted.shape), blocks_of(terms.layout)
    found = [_scan_tokens(_at(terms, block, bounds), slopes[block.tokens]) for block in blocks]
    values, lengths, parts = (list(column) for column in zip(*found, strict=True))
    values, lengths = joined(blocks, values, terms.layout), lengths_of(terms.layout, lengths, like.dtype)
    least, top = min(part.least for part in parts), max(part.top for part in parts)
    total, squares, kl, moved, *clipped = (sum(column) for column in list(zip(*parts, strict=True))[2:])
    within = -_LARGEST <= top <= (_LARGEST if cap is None else min(cap, _LARGEST))
    if not within or not math.isfinite(total + squares + kl + values.sum().item()):
        return None
    shift = math.exp(-top)
    numbers = (
        lengths.sum(dtype=torch.float64).item(),
        total,
        least,
        top,
        total * shift,
        squares * shift**2,
        kl,
        moved,
        *clipped,
    )
    numbers = [like.new_tensor(number) for number in numbers]
    ratios, tokens = RatioSums(*numbers[:6]), TokenSums(*numbers[6:8])
    if terms.responses is not None:
        if not math.isfinite(terms.responses.tokens.divergence):
            return None
        ratios, tokens = _ratios_of(terms.units, lengths > 0), terms.responses.tokens
    return Sums(values, lengths, Clipped(*numbers[8:]), ratios, tokens), slopes


def _ratios_of(units: Any, present: Tensor) -> RatioSums:
    """The sums over the ratios of responses that are not empty."""
    held = units[present]
    scaled = (held - held.max()).exp()
    return RatioSums(
        present.sum().to(held.dtype), held.exp().sum(), held.min(), held.max(), scaled.sum(), scaled.square().sum()
    )


class _Bounds(NamedTuple):
    """The closed interval of what is not held, τ or λ, and k: one number, or one for each advantage."""

    low: Tensor
    high: Tensor
    tau: Tensor
    power: Tensor


class _Tokens(NamedTuple):
    surrogate: Any
    block: Block
    counted: Tensor
    keep: Tensor
    logp: Tensor
    log_ratio: Tensor
    advantages: Tensor
    bounds: _Bounds
    weight: Tensor | None


def _at(terms: Terms, block: Block, bounds: _Bounds | None) -> _Tokens:
    """What is read of a block; 0 at uncounted tokens, but for log π_θ and, beside it, weights."""
    b, dtype = block.tokens, terms.advantages.dtype
    counted, weight = terms.layout.counted[b], None if terms.weights is None else terms.weights(block)
    keep = keep_bits(counted, dtype)
    d = torch.empty(counted.shape, dtype=dtype, device=counted.device)
    if terms.units is None:
        subtract(terms.logp[b], terms.old_logp[b], d)
    else:
        d.copy_(block.spread(terms.units))
    d.view(keep.dtype).mul_(keep)
    if bounds is not None:
        advantages = block.spread(terms.advantages)
        bounds = _Bounds(*(block.spread(value) if value.ndim else value for value in bounds))
    else:
        advantages = torch.empty_like(d).copy_(terms.advantages[b])
        advantages.view(keep.dtype).mul_(keep)
        bounds = _bounds(terms.objective.surrogate, advantages)
        weight = advantages if weight is None else advantages * weight
    return _Tokens(terms.objective.surrogate, block, counted, keep, terms.logp[b], d, advantages, bounds, weight)


def _bounds(surrogate: Any, advantages: Tensor) -> _Bounds:
    """Any numbers where A is 0, which J and its slope are then too."""
    gate, free = surrogate.gate if isinstance(surrogate, Reinforce) else surrogate, math.inf
    low, high, tau, power = (0.0, 0.0), (free, free), (1.0, 1.0), (1.0, 1.0)
    if isinstance(gate, Clip):
        low, high = (1 - gate.low, 0.0), (free if gate.dual is None else gate.dual, 1 + gate.high)
    elif isinstance(gate, Cispo):
        low, high = (0.0 if gate.low is None else 1 - gate.low,) * 2, (1 + gate.high,) * 2
    elif isinstance(gate, Gmpo):
        low, high = (-gate.low, -free), (free, gate.high)
    elif isinstance(gate, Sapo):
        tau = gate.tau_neg, gate.tau_pos
    elif isinstance(gate, Vespo):
        tau, power = (gate.lam_neg, gate.lam_pos), (gate.k_neg, gate.k_pos)
    return _Bounds(*(_by_sign(advantages, *pair) for pair in (low, high, tau, power)))


def _by_sign(advantages: Tensor, negative: float, positive: float) -> Tensor:
    """One number where A < 0 and another elsewhere, selected by their bits: infinities are some."""
    numbers = advantages.new_tensor([negative, positive])
    if negative == positive:
        return numbers[0]
    one, other = numbers.view(BITS[numbers.dtype])
    flags = torch.from_numpy(numpy.less(advantages.numpy(), 0)).view(torch.int8).to(one.dtype)
    return flags.mul_(one - other).add_(other).view(numbers.dtype)


def _count(here: _Tokens, unit: Tensor, clipped: Tensor) -> tuple[Tensor, Any]:
    """Where a counted token is not held, and how many others are, by which cause; NumPy compares in a sixth of the time."""
    surrogate, counted = here.surrogate, here.counted.numpy()
    gate = surrogate.gate if isinstance(surrogate, Reinforce) else surrogate
    if not isinstance(gate, (Clip, Cispo, Gmpo)):
        return here.counted, (0, 0, 0)
    units, advantages = unit.numpy(), here.advantages.numpy()
    inside = numpy.equal(clipped.numpy(), units)
    inside &= counted
    held = inside ^ counted
    held &= advantages != 0
    above = numpy.greater(units, here.bounds.high.numpy())
    above &= held
    outside, high = numpy.count_nonzero(held), numpy.count_nonzero(above)
    dual = numpy.count_nonzero(above & (advantages < 0)) if isinstance(gate, Clip) and gate.dual is not None else 0
    return torch.from_numpy(inside), (outside - high, high - dual, dual)


def _apply(here: _Tokens, inside: Tensor, clipped: Tensor, ratio: Tensor) -> None:
    """Turns clip(x, interval) into v, which may be anything at uncounted tokens, and x, 0 there, into g."""
    surrogate, bits = here.surrogate, here.keep.dtype
    if isinstance(surrogate, Cispo):
        ratio.copy_(clipped).view(bits).mul_(here.keep)
        clipped.mul_(here.logp)
    elif isinstance(surrogate, Reinforce):
        clipped.copy_(ratio.copy_(inside.view(torch.int8))).mul_(here.logp)
    elif isinstance(surrogate, Gmpo):
        ratio.copy_(inside.view(torch.int8))
    elif isinstance(surrogate, Sapo):
        # v = (4/τ) p and g = 4 p (1 - p) x, where p = σ(τ (x - 1)).
        tau = here.bounds.tau
        clipped.sub_(1).mul_(tau)
        ratio.mul_(torch.sigmoid(-clipped)).mul_(clipped.sigmoid_()).mul_(4)
        clipped.mul_(4 / tau)
    elif isinstance(surrogate, Vespo):
        # g = x^k e^{λ(1 - x)} and v = g log π_θ.
        clipped.sub_(1).mul_(-here.bounds.tau).add_(here.log_ratio * here.bounds.power)
        ratio.copy_(clipped.exp_()).view(bits).mul_(here.keep)
        clipped.mul_(here.logp)
    else:
        ratio.view(bits).mul_(keep_bits(inside, ratio.dtype))


class _Part(NamedTuple):
    least: float
    top: float
    total: float
    squares: float
    divergence: float
    moved: bool
    low: int
    high: int
    dual: int


def _scan_tokens(here: _Tokens, slopes: Tensor) -> tuple[Tensor, Tensor, _Part]:
    """Σ_t v_t and T of some tokens, and what adds up over all; `slopes` is filled."""
    d, clipped, bits = here.log_ratio, torch.empty_like(slopes), here.keep.dtype
    ratio = torch.exp(d, out=slopes)
    unit = d if isinstance(here.surrogate, Gmpo) else ratio
    torch.minimum(torch.maximum(unit, here.bounds.low, out=clipped), here.bounds.high, out=clipped)
    inside, causes = _count(here, unit, clipped)
    ratio.view(bits).mul_(here.keep)
    total, squares = ratio.sum().item(), ratio.view(-1).dot(ratio.view(-1)).item()
    _apply(here, inside, clipped, ratio)
    if here.weight is not None:
        clipped.mul_(here.weight)
        ratio.mul_(here.weight)
    clipped.view(bits).mul_(here.keep)
    values, lengths = here.block.sums(clipped), here.block.lengths(here.keep)
    kl = sum_of_divergence(d, clipped)
    return values, lengths, _Part(*_ends(here, clipped), total, squares, kl, kl != 0 or bool(d.any()), *causes)


def _ends(here: _Tokens, scratch: Tensor) -> list[float]:
    """The least and the greatest counted d: those of all, unless they may be the 0 of uncounted tokens, which give way."""
    d, bits = here.log_ratio, here.keep.dtype
    ends = [end.item() for end in d.aminmax()]
    if ends[0] < 0 < ends[1]:
        return ends
    absent, held = 1 - here.keep, scratch.view(bits)
    least, top = d.new_tensor([math.inf, -math.inf]).view(bits)
    ends[0] = torch.mul(absent, least, out=held).bitwise_or_(d.view(bits)).view(d.dtype).amin().item()
    ends[1] = torch.mul(absent, top, out=held).bitwise_or_(d.view(bits)).view(d.dtype).amax().item()
    return ends


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
    metrics = metrics_of(sums.lengths, sums.clipped, sums.ratios, sums.tokens)
    return PolicyLoss(layout.xp.sum(scale * values), metrics), scale
