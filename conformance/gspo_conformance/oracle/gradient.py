"""The gradient d L / d logp in closed form, token by token (GSPO-GRAD-1 to -5)."""

from functools import partial

from mpmath import fsum, mpf

from . import scales
from .exact import each
from .layout import PerToken
from .loss import Response, penalty_scale_terms, penalty_weighting, surrogate_weighting
from .penalty import response_slopes
from .problem import Problem
from .surrogate import PER_TOKEN_SURROGATES, unit_slope

Slopes = tuple[list[mpf], list[mpf]]


def gradient(problem: Problem, found: list[Response]) -> tuple[PerToken, PerToken]:
    """-(omega_i / M) g_{i,t} + beta (omega'_i / M') h_{i,t}, and its scale."""
    weighting = surrogate_weighting(problem)
    values, sizes = [], []
    for index, response in enumerate(found):
        share = weighting.share(index)
        slopes, slope_scales = response_gradient(problem, index, response)
        values.append([-share * slope for slope in slopes])
        sizes.append([abs(share) * scale for scale in slope_scales])
    if problem.objective["penalty"] is None:
        return values, sizes
    extra, extra_sizes = _penalty_gradient(problem)
    return _added(values, extra), _added(sizes, extra_sizes)


def _added(left: PerToken, right: PerToken) -> PerToken:
    rows = zip(left, right, strict=True)
    return [[a + b for a, b in zip(first, second, strict=True)] for first, second in rows]


def response_gradient(problem: Problem, index: int, response: Response) -> Slopes:
    """g_{i,t}: d (sum_u rho_u J_u) / dlogp_t of one response, and its scale."""
    kind, ratio = problem.objective["surrogate"]["kind"], problem.objective["ratio"]
    if kind == "gmpo":
        return _gmpo_gradient(response)
    slopes, slope_scales = _unit_slopes(problem, response)
    products = _weighted(response, slopes, slope_scales)
    if kind in PER_TOKEN_SURROGATES or ratio in ("token", "gspo_token"):
        return products
    reach = mpf(1) if ratio == "product" or not slopes else 1 / mpf(len(slopes))
    total, scale = (reach * fsum(terms) for terms in products)
    return [total] * len(slopes), [scale] * len(slopes)


def _unit_slopes(problem: Problem, response: Response) -> Slopes:
    """dJ/dl (or dJ/dlogp) of every token; a log-ratio held by the cap has none (GSPO-RATIO-6)."""
    surrogate = problem.objective["surrogate"]
    moves = [ratio.passes or surrogate["kind"] in PER_TOKEN_SURROGATES for ratio in response.ratios]
    slopes = each(partial(unit_slope, surrogate), response.ratios, response.advantages)
    sizes = scales.response_slope_scales(surrogate, response.ratios, response.advantages, response.advantage_scales)
    return _where(moves, slopes), _where(moves, sizes)


def _where(keep: list[bool], values: list[mpf]) -> list[mpf]:
    """v where kept, exactly 0 elsewhere (GSPO-GRAD-2)."""
    return [value if kept else mpf(0) for kept, value in zip(keep, values, strict=True)]


def _weighted(response: Response, slopes: list[mpf], slope_scales: list[mpf]) -> Slopes:
    """rho_t g_t and its scale."""
    terms = list(zip(slopes, slope_scales, response.weights, response.weight_scales, strict=True))
    return [slope * weight for slope, _, weight, _ in terms], [scales.product_scale(*term) for term in terms]


def _gmpo_gradient(response: Response) -> Slopes:
    """mean(rho) J at a token inside its bound, 0 at a clipped one: J / T at each of T tokens (GSPO-SURR-9)."""
    length = len(response.values)
    totals, sizes = _weighted(response, response.values, response.value_scales)
    free = [ratio.passes and not closed for ratio, closed in zip(response.ratios, response.decisions, strict=True)]
    slope, scale = (fsum(terms) / length if length else mpf(0) for terms in (totals, sizes))
    return _where(free, [slope] * length), _where(free, [scale] * length)


def _penalty_gradient(problem: Problem) -> tuple[PerToken, PerToken]:
    """beta (omega'_i / M') h_{i,t} and its scale (GSPO-KL-1 to -6)."""
    penalty, weighting = problem.objective["penalty"], penalty_weighting(problem)
    rows = zip(problem.logp, problem.ref_logp or [], problem.old_logp, strict=True)
    slopes = [response_slopes(penalty, *row) for row in rows]
    slope_scales = penalty_scale_terms(problem)[1]
    factors = [penalty["coefficient"] * weighting.share(index) for index in range(len(slopes))]
    values = [[factor * slope for slope in row] for factor, row in zip(factors, slopes, strict=True)]
    sizes = [[abs(factor) * scale for scale in row] for factor, row in zip(factors, slope_scales, strict=True)]
    return values, sizes
