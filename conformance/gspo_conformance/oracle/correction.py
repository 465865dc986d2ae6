"""Correction for tokens that another policy sampled: weights on the surrogate, always behind a stop-gradient."""

from typing import Any

from mpmath import exp, fsum, mpf

from .ratio import mean, token_log_ratios

Correction = dict[str, Any]


def raw_weights(correction: Correction, numerator: list[mpf], behavior: list[mpf]) -> list[tuple[mpf, mpf]]:
    """w_t = exp(e_t), exp(sum e) or exp(mean e), e = log_num - behavior, each with the spread of its logarithm (GSPO-CORR-1, -7)."""
    logs = token_log_ratios(numerator, behavior)
    sizes = [abs(log) for log in logs]
    level = correction["level"]
    if level == "token":
        return [(exp(log), size) for log, size in zip(logs, sizes, strict=True)]
    reduce = {"sequence": fsum, "geometric": mean}[level]
    return [(exp(reduce(logs)), reduce(sizes))] * len(logs)


def inside(correction: Correction, weight: mpf) -> bool:
    """low <= w <= high, a missing bound never binds (GSPO-CORR-2)."""
    low, high = correction["low"], correction["high"]
    return (low is None or weight >= low) and (high is None or weight <= high)


def applied(correction: Correction, weight: mpf, spread: mpf) -> tuple[mpf, mpf]:
    """clamp: clip(w, low, high); mask: w inside else 0; reject: 1 inside else 0; with its scale (GSPO-CORR-2, -3)."""
    action = correction["action"]
    if inside(correction, weight):
        return (mpf(1), mpf(0)) if action == "reject" else (weight, weight * (1 + spread))
    if action != "clamp":
        return mpf(0), mpf(0)
    low, high = correction["low"], correction["high"]
    bound = low if low is not None and weight < low else high
    return bound, abs(bound)


def binds(correction: Correction, advantage: mpf) -> bool:
    """Whether a correction looks at a token of this advantage: not where A >= 0 if negative_only (GSPO-CORR-6)."""
    return advantage < 0 or not correction["negative_only"]


def response_corrections(
    corrections: list[Correction],
    frozen: list[mpf],
    old_logp: list[mpf],
    behavior: list[mpf] | None,
    advantages: list[mpf],
) -> list[tuple[mpf, mpf]]:
    """The product of all weights at every counted token, and its scale; log_num = old_logp or sg[logp] (GSPO-CORR-4, -5)."""
    product = [(mpf(1), mpf(0))] * len(frozen)
    for correction in corrections:
        numerator = old_logp if correction["numerator"] == "old" else frozen
        factors = [
            applied(correction, *raw) if binds(correction, advantage) else (mpf(1), mpf(0))
            for raw, advantage in zip(raw_weights(correction, numerator, behavior or []), advantages, strict=True)
        ]
        product = [_times(left, right) for left, right in zip(product, factors, strict=True)]
    return product


def _times(left: tuple[mpf, mpf], right: tuple[mpf, mpf]) -> tuple[mpf, mpf]:
    """(v, e) (w, f) = (v w, |v| f + |w| e)."""
    return left[0] * right[0], abs(left[0]) * right[1] + abs(right[0]) * left[1]
