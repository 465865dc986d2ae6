"""Metrics: what a training step reports about itself, one scalar each (GSPO-METRIC-1 to -7)."""

from mpmath import exp, fsum, mpf

from .aggregation import ratio_or_zero
from .loss import Response, penalty_scale_terms, penalty_terms, penalty_weighting
from .problem import Problem
from .ratio import Ratio, mean, metric_ratios, token_log_ratios
from .scales import Output, ratio_scale

_TIE = mpf("1e-4")


def metrics(problem: Problem, found: list[Response]) -> dict[str, Output]:
    """Every metric of the contract, with its scale."""
    units = metric_ratios(problem.objective, [response.ratios for response in found])
    lengths = problem.layout.lengths
    return {
        **_clip_fractions(found, sum(lengths)),
        **_ratio_statistics(units),
        "approx_kl": _approx_kl(problem),
        "effective_sample_size": _effective_sample_size(units),
        "kl_penalty": _kl_penalty(problem),
        "num_sequences": _owed(len(lengths)),
        "num_tokens": _owed(sum(lengths)),
        "ratio_is_one": _owed(int(problem.logp == problem.old_logp)),
    }


def _owed(number: int) -> Output:
    """A count or a decision: owed exactly, so its scale is 0 (GSPO-METRIC-6, GSPO-METRIC-7)."""
    return Output(mpf(number), mpf(0))


def _clip_fractions(found: list[Response], tokens: int) -> dict[str, Output]:
    """The share of counted tokens that fell to each bound; one division is rounded (GSPO-METRIC-1)."""
    decisions = [decision for response in found for decision in response.decisions]
    shares = {cause: ratio_or_zero(mpf(decisions.count(cause)), mpf(tokens)) for cause in ("low", "high", "dual")}
    named = {f"clip_fraction_{cause}": share for cause, share in shares.items()}
    named["clip_fraction"] = fsum(shares.values())
    return {name: Output(share, share) for name, share in named.items()}


def _ratio_statistics(units: list[Ratio]) -> dict[str, Output]:
    """Mean, smallest and largest ratio over the units of the ratio; 1 if there are none (GSPO-METRIC-2)."""
    if not units:
        return {f"ratio_{name}": Output(mpf(1), mpf(0)) for name in ("mean", "min", "max")}
    values = [unit.value for unit in units]
    average = Output(mean(values), mean([ratio_scale(unit) for unit in units]))
    return {"ratio_mean": average, "ratio_min": _extreme(units, min(values)), "ratio_max": _extreme(units, max(values))}


def _extreme(units: list[Ratio], value: mpf) -> Output:
    """The scale of a smallest or largest ratio is that of the least exact unit that rounding could put in its place."""
    near = [unit for unit in units if abs(unit.value - value) <= _TIE * value]
    return Output(value, max(ratio_scale(unit) for unit in near))


def _approx_kl(problem: Problem) -> Output:
    """The token mean of e^d - 1 - d; the scale is the size of its terms, e^d (1 + |d|) + 1 + |d| (GSPO-METRIC-3)."""
    rows = zip(problem.logp, problem.old_logp, strict=True)
    differences = [d for logp, old_logp in rows for d in token_log_ratios(logp, old_logp)]
    ratios = [exp(d) for d in differences]
    values = [ratio - 1 - d for ratio, d in zip(ratios, differences, strict=True)]
    return Output(
        mean(values), mean([(ratio + 1) * (1 + abs(d)) for ratio, d in zip(ratios, differences, strict=True)])
    )


def _effective_sample_size(units: list[Ratio]) -> Output:
    """(sum x)^2 / sum x^2, 0 of nothing; the relative errors of both sums add (GSPO-METRIC-4)."""
    if not units:
        return Output(mpf(0), mpf(0))
    total, squares = fsum(unit.value for unit in units), fsum(unit.value**2 for unit in units)
    total_scale = fsum(ratio_scale(unit) for unit in units)
    squares_scale = fsum(unit.value * ratio_scale(unit) for unit in units)
    size = total**2 / squares
    return Output(size, size * (1 + 2 * total_scale / total + 2 * squares_scale / squares))


def _kl_penalty(problem: Problem) -> Output:
    """The aggregated penalty before its coefficient, 0 without one (GSPO-METRIC-5)."""
    if problem.objective["penalty"] is None:
        return Output(mpf(0), mpf(0))
    weighting = penalty_weighting(problem)
    terms = penalty_terms(problem, problem.logp, problem.logp)
    return Output(weighting.mean(terms), weighting.mean(penalty_scale_terms(problem)[0]))
