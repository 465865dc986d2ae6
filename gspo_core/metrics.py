"""What a step reports beside its loss. Every metric has a clause; none carries a gradient.

Clip fractions are token-weighted and gate-based (GSPO-METRIC-1); ratio statistics are over the units
of the ratio: counted tokens, or non-empty responses where the ratio is one scalar per response.
"""

from __future__ import annotations

from .arrays import Array, namespace_of
from .objective import SEQUENCE_RATIOS
from .step import Step, at_tokens
from .surrogate import Clipped, Gmpo


def step_metrics(step: Step, log_ratio: Array, kl: Array | None) -> dict[str, Array]:
    """The metrics of the design, as a flat dict of scalars."""
    xp, layout = step.xp, step.layout
    log_ratio, token = step.stop(log_ratio), step.stop(step.logp) - step.old_logp
    num_tokens = xp.sum(step.weights.lengths)
    metrics = _clip_fractions(step, log_ratio, num_tokens) | _ratio_statistics(step, log_ratio)
    divergence = xp.sum(layout.sum_tokens(xp.expm1(token) - token))
    zero = xp.zeros_like(num_tokens)
    return metrics | {
        "approx_kl": divergence / xp.where(num_tokens > 0, num_tokens, xp.ones_like(num_tokens)),
        "kl_penalty": zero if kl is None else step.stop(kl),
        "num_sequences": zero + layout.num_sequences,
        "num_tokens": num_tokens,
        "ratio_is_one": xp.astype(xp.all(layout.sum_tokens(xp.abs(xp.sign(token))) == 0), num_tokens.dtype),
    }


def _clip_fractions(step: Step, log_ratio: Array, num_tokens: Array) -> dict[str, Array]:
    xp = step.xp
    total = xp.where(num_tokens > 0, num_tokens, xp.ones_like(num_tokens))
    low, high, dual = (_count(step, cause) / total for cause in _clipped(step, log_ratio))
    return {
        "clip_fraction": low + high + dual,
        "clip_fraction_low": low,
        "clip_fraction_high": high,
        "clip_fraction_dual": dual,
    }


def _clipped(step: Step, log_ratio: Array) -> Clipped:
    """Per token, or per response where the surrogate is per response."""
    surrogate = step.objective.surrogate
    if isinstance(surrogate, Gmpo):
        clipped = surrogate.clipped_tokens(log_ratio, step.layout.spread(step.advantages))
        return clipped._replace(dual=clipped.low & clipped.high)
    unit = log_ratio if step.objective.per_sequence else at_tokens(step, log_ratio)
    return surrogate.clipped(step.xp.exp(unit), step.advantages)


def _count(step: Step, clipped: Array) -> Array:
    """How many counted tokens are clipped; a clipped response counts with all of its tokens."""
    xp, lengths = step.xp, step.weights.lengths
    counted = xp.astype(clipped, lengths.dtype)
    per_response = step.objective.per_sequence and not isinstance(step.objective.surrogate, Gmpo)
    return xp.sum(counted * lengths) if per_response else xp.sum(step.layout.sum_tokens(counted))


def _ratio_statistics(step: Step, log_ratio: Array) -> dict[str, Array]:
    """Mean, minimum, maximum and effective sample size (Σx)²/Σx² over the units; 1, 1, 1 and 0 without any."""
    xp = step.xp
    unit, present = _units(step, log_ratio)
    ratio = xp.exp(unit)
    ones, zeros = xp.ones_like(ratio), xp.zeros_like(ratio)
    count = xp.sum(xp.where(present, ones, zeros))
    some, safe = count > 0, xp.where(count > 0, count, xp.ones_like(count))
    infinite = xp.full_like(ratio, float("inf"))
    top = xp.max(xp.where(present, unit, -infinite))
    scaled = xp.where(present, xp.exp(xp.where(present, unit - xp.where(some, top, 0.0), zeros)), zeros)
    return {
        "ratio_mean": xp.where(some, xp.sum(xp.where(present, ratio, zeros)) / safe, 1.0),
        "ratio_min": xp.where(some, xp.min(xp.where(present, ratio, infinite)), 1.0),
        "ratio_max": xp.where(some, xp.max(xp.where(present, ratio, -infinite)), 1.0),
        "effective_sample_size": _effective(scaled),
    }


def _effective(scaled: Array) -> Array:
    xp = namespace_of(scaled)
    squares = xp.sum(scaled * scaled)
    return xp.sum(scaled) ** 2 / xp.where(squares > 0, squares, xp.ones_like(squares))


def _units(step: Step, log_ratio: Array) -> tuple[Array, Array]:
    """The units' log-ratios and which of them exist."""
    ratio, layout = step.objective.ratio, step.layout
    if ratio == "token" and 0 not in layout.token_shape:
        return log_ratio, layout.counted
    if ratio in SEQUENCE_RATIOS:
        return log_ratio, step.weights.lengths > 0
    return layout.mean_tokens(log_ratio), step.weights.lengths > 0
