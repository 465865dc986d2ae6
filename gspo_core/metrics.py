"""What a step reports beside its loss. Every metric has a clause; none carries a gradient.

Clip fractions are token-weighted and gate-based (GSPO-METRIC-1); ratio statistics are over the units
of the ratio: counted tokens, or non-empty responses where the ratio is one scalar per response.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .arrays import Array, namespace_of
from .backend import backend_of
from .objective import SEQUENCE_RATIOS
from .step import Step, at_tokens
from .surrogate import Clipped, Gmpo

# Finite in every dtype that is computed in.
_LOWEST = -3e38


class TokenSums(NamedTuple):
    """What the metrics of the token log-ratio d are made of: Σ (e^d - 1 - d), and how many d are not 0 (or whether one is)."""

    divergence: Array
    moved: Array


def token_sums(step: Step, logp: Array) -> TokenSums:
    """The sums over the counted tokens of a step; `logp` is the step's, detached."""
    token = logp - step.old_logp
    return TokenSums(step.layout.total(divergence(token)), step.layout.count(token != 0, token.dtype))


def divergence(log_ratio: Array) -> Array:
    """e^d - 1 - d >= 0, the estimate of a token's KL to the old policy (GSPO-METRIC-3)."""
    return backend_of(log_ratio).exp_remainder(log_ratio)


def step_metrics(
    step: Step,
    log_ratio: Array,
    kl: Array | None,
    tokens: TokenSums | None = None,
    clipped: Clipped | None = None,
) -> dict[str, Array]:
    """The metrics of the design, as a flat dict of scalars.

    `tokens` where the step does not hold every token; `clipped` where it is known already.
    """
    logp, log_ratio, kl = step.stop(step.logp), step.stop(log_ratio), None if kl is None else step.stop(kl)
    known = (*(tokens or ()), *(clipped or ()), *step.weights)
    with step.layout.backend.apart(logp, log_ratio, kl, step.old_logp, step.advantages, *known):
        causes = _counts(step, clipped or _clipped(step, log_ratio))
        ratios = ratio_sums(step, log_ratio)
        return metrics_of(step.weights.lengths, causes, ratios, tokens or token_sums(step, logp), kl)


def metrics_of(
    lengths: Array, clipped: Clipped, ratios: RatioSums, tokens: TokenSums, kl: Array | None = None
) -> dict[str, Array]:
    """The metrics from what they are made of: T `[S]`, how many tokens are clipped by which cause, and sums."""
    xp, num_tokens = namespace_of(lengths), namespace_of(lengths).sum(lengths)
    total, zero = backend_of(lengths).held(num_tokens, 1.0), xp.zeros_like(num_tokens)
    low, high, dual = (count / total for count in clipped)
    return {
        "clip_fraction": (clipped.low + clipped.high + clipped.dual) / total,
        "clip_fraction_low": low,
        "clip_fraction_high": high,
        "clip_fraction_dual": dual,
        **ratio_statistics(ratios),
        "approx_kl": tokens.divergence / total,
        "kl_penalty": zero if kl is None else kl,
        "num_sequences": zero + lengths.shape[0],
        "num_tokens": num_tokens,
        "ratio_is_one": xp.astype(tokens.moved == 0, num_tokens.dtype),
    }


def _clipped(step: Step, log_ratio: Array) -> Clipped:
    """Per token, or per response where the surrogate is per response."""
    surrogate = step.objective.surrogate
    if isinstance(surrogate, Gmpo):
        clipped = surrogate.clipped_tokens(log_ratio, step.layout.spread(step.advantages))
        return Clipped(clipped.low, clipped.high, clipped.low & clipped.high)
    unit = log_ratio if step.objective.per_sequence else at_tokens(step, log_ratio)
    return surrogate.clipped(step.xp.exp(unit), step.advantages)


def _counts(step: Step, clipped: Clipped) -> Clipped:
    """How many counted tokens are clipped by each cause; a clipped response counts with all of its tokens."""
    lengths = step.weights.lengths
    if step.objective.per_sequence and not isinstance(step.objective.surrogate, Gmpo):
        xp = step.xp
        low, high, dual = xp.sum(xp.astype(xp.stack(clipped), lengths.dtype) * lengths[None, :], axis=1)
        return Clipped(low, high, dual)
    return Clipped(*(step.layout.count(cause, lengths.dtype) for cause in clipped))


class RatioSums(NamedTuple):
    """What the ratio statistics of a set of units are made of; sets merge, which their statistics do not.

    `count` n; `total` Σx; `low` and `top`, the extreme log-ratios (∞ and -∞ without units); `scaled`
    Σ x/max x and `squares` Σ (x/max x)², which do not overflow.
    """

    count: Array
    total: Array
    low: Array
    top: Array
    scaled: Array
    squares: Array


def ratio_sums(step: Step, log_ratio: Array) -> RatioSums:
    """The sums over the units of a step, wherever along the sequence they are held."""
    xp, backend = step.xp, step.layout.backend
    unit, present, ranks = _units(step, log_ratio)
    absent = xp.full_like(unit, -float("inf"))
    held = xp.where(present, unit, absent)
    ends = xp.stack([xp.max(held), xp.max(xp.where(present, -unit, absent))])
    top, low = backend.all_reduce_max(ends, ranks)
    # e^{-inf} is 0: absent units add nothing, whatever they hold.
    ratio, scaled = xp.exp(held), xp.exp(held - backend.held(top, _LOWEST))
    parts = [xp.astype(present, unit.dtype), ratio, scaled, scaled * scaled]
    whole = step.objective.ratio != "token"
    sums = xp.sum(xp.stack(parts), axis=1) if whole else xp.stack([xp.sum(part) for part in parts])
    count, total, scaled, squares = backend.all_reduce_sum(sums, ranks)
    return RatioSums(count, total, -low, top, scaled, squares)


def ratio_statistics(sums: RatioSums) -> dict[str, Array]:
    """Mean, minimum, maximum and effective sample size (Σx)²/Σx² over the units; 1, 1, 1 and 0 without any."""
    xp = namespace_of(sums.count)
    some, ones, held = sums.count > 0, xp.ones_like(sums.count), backend_of(sums.count).held
    # The greatest x/max x is 1, and so is its square.
    squares = held(sums.squares, 1.0)
    return {
        "ratio_mean": xp.where(some, sums.total / held(sums.count, 1.0), ones),
        "ratio_min": xp.where(some, xp.exp(sums.low), ones),
        "ratio_max": xp.where(some, xp.exp(sums.top), ones),
        "effective_sample_size": xp.minimum(sums.scaled * (sums.scaled / squares), sums.count),
    }


def _units(step: Step, log_ratio: Array) -> tuple[Array, Array, Any]:
    """The units' log-ratios, which of them exist, and the ranks that they are split over."""
    ratio, layout, xp = step.objective.ratio, step.layout, step.xp
    if ratio != "token":
        unit = log_ratio if ratio in SEQUENCE_RATIOS else layout.mean_tokens(log_ratio)
        return unit, step.weights.lengths > 0, None
    if 0 in layout.token_shape:
        nothing = xp.zeros_like(step.weights.lengths)
        return nothing, nothing > 0, layout.context
    return log_ratio, layout.counted, layout.context
