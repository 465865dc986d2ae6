"""The loss: L = -(1/M) sum_i omega_i sum_t rho_{i,t} J_{i,t} + beta (1/M') sum_i omega'_i sum_t KL_{i,t}."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from mpmath import mpf

from . import aggregation as _aggregation
from . import scales
from .correction import response_corrections
from .exact import each
from .layout import PerToken
from .penalty import response_penalties
from .problem import Problem
from .ratio import Ratio, ratios
from .surrogate import response_values, unit_decision


@dataclass(frozen=True)
class Weighting:
    """omega_i and M: how the terms of one aggregation add up."""

    omega: list[mpf]
    count: mpf

    def total(self, terms: PerToken) -> mpf:
        """sum_i omega_i sum_t v_{i,t}."""
        return _aggregation.weighted_sum(terms, self.omega)

    def mean(self, terms: PerToken) -> mpf:
        """(1/M) sum_i omega_i sum_t v_{i,t}, 0 if M = 0."""
        return _aggregation.ratio_or_zero(self.total(terms), self.count)

    def share(self, response: int) -> mpf:
        """omega_i / M, 0 if M = 0: what one term of a response weighs in the loss."""
        return _aggregation.ratio_or_zero(self.omega[response], self.count)


def surrogate_weighting(problem: Problem) -> Weighting:
    """omega, M of the objective (GSPO-AGG-1 to -8)."""
    return weighting(problem.objective["aggregation"], problem.layout.lengths, problem.groups, problem.normalizer)


def penalty_weighting(problem: Problem) -> Weighting:
    """omega', M' of the penalty: the objective's, or its own with its own M where it names another (GSPO-KL-6, GSPO-AGG-8)."""
    own = problem.objective["penalty"]["aggregation"]
    if own is None or own == problem.objective["aggregation"]:
        return surrogate_weighting(problem)
    return weighting(own, problem.layout.lengths, problem.groups, None)


def weighting(
    aggregation: dict[str, Any], lengths: list[int], groups: list[Any] | None, given: mpf | None
) -> Weighting:
    """omega, M of an aggregation."""
    omega = _aggregation.response_weights(aggregation, lengths, groups)
    return Weighting(omega, _aggregation.normalizer(aggregation, lengths, groups, given))


@dataclass(frozen=True)
class Response:
    """What one response brings, token by token: ratios, surrogate values and correction weights with their scales."""

    ratios: list[Ratio]
    advantages: list[mpf]
    advantage_scales: list[mpf]
    values: list[mpf]
    value_scales: list[mpf]
    weights: list[mpf]
    weight_scales: list[mpf]
    decisions: list[str | None]


def responses(problem: Problem) -> list[Response]:
    """Every response of the batch, evaluated at its log-probabilities."""
    return [_response(problem, index) for index in range(len(problem.logp))]


def _response(problem: Problem, index: int) -> Response:
    objective, surrogate = problem.objective, problem.objective["surrogate"]
    logp, old_logp, advantages = problem.logp[index], problem.old_logp[index], problem.advantages[index]
    found = ratios(objective, logp, logp, old_logp)
    corrections = _corrections(problem, index, logp)
    errors = problem.advantage_scales[index]
    return Response(
        ratios=found,
        advantages=advantages,
        values=response_values(surrogate, found, found, advantages, logp),
        advantage_scales=errors,
        value_scales=scales.response_value_scales(surrogate, found, advantages, errors, logp),
        weights=[weight for weight, _ in corrections],
        weight_scales=[scale for _, scale in corrections],
        decisions=each(partial(unit_decision, surrogate), found, advantages),
    )


def _corrections(problem: Problem, index: int, frozen: list[mpf]) -> list[tuple[mpf, mpf]]:
    behavior = problem.behavior_logp[index] if problem.behavior_logp is not None else None
    corrections = problem.objective["correction"]
    return response_corrections(corrections, frozen, problem.old_logp[index], behavior, problem.advantages[index])


def loss_at(problem: Problem, live: PerToken, frozen: PerToken) -> mpf:
    """L as a function of the log-probabilities that move and of those that stop-gradients hold (GSPO-GRAD-5)."""
    terms = [_surrogate_terms(problem, index, live[index], frozen[index]) for index in range(len(live))]
    loss = -surrogate_weighting(problem).mean(terms)
    penalty = problem.objective["penalty"]
    if penalty is None:
        return loss
    return loss + penalty["coefficient"] * penalty_weighting(problem).mean(penalty_terms(problem, live, frozen))


def _surrogate_terms(problem: Problem, index: int, live: list[mpf], frozen: list[mpf]) -> list[mpf]:
    """rho_t J_t at every counted token of one response (GSPO-CORR-4)."""
    objective, old_logp = problem.objective, problem.old_logp[index]
    moving = ratios(objective, live, frozen, old_logp)
    held = moving if live is frozen else ratios(objective, frozen, frozen, old_logp)
    values = response_values(objective["surrogate"], moving, held, problem.advantages[index], live)
    return [weight * value for (weight, _), value in zip(_corrections(problem, index, frozen), values, strict=True)]


def penalty_terms(problem: Problem, live: PerToken, frozen: PerToken) -> PerToken:
    """The weighted KL estimate at every counted token (GSPO-KL-6)."""
    rows = zip(live, frozen, problem.ref_logp or [], problem.old_logp, strict=True)
    return [response_penalties(problem.objective["penalty"], *row) for row in rows]


def surrogate_scale_terms(found: list[Response]) -> PerToken:
    """The scale of rho_t J_t at every counted token."""
    return [
        [
            scales.product_scale(*term)
            for term in zip(one.values, one.value_scales, one.weights, one.weight_scales, strict=True)
        ]
        for one in found
    ]


def penalty_scale_terms(problem: Problem) -> tuple[PerToken, PerToken]:
    """Scales of the weighted KL estimate and of its slope at every counted token."""
    rows = zip(problem.logp, problem.ref_logp or [], problem.old_logp, strict=True)
    pairs = [scales.response_penalty_scales(problem.objective["penalty"], *row) for row in rows]
    return [values for values, _ in pairs], [slopes for _, slopes in pairs]


def loss_scale(problem: Problem, found: list[Response]) -> mpf:
    """(1/M) sum omega (|terms| and what their ratios add) + beta times the same of the penalty."""
    scale = surrogate_weighting(problem).mean(surrogate_scale_terms(found))
    penalty = problem.objective["penalty"]
    if penalty is None:
        return scale
    return scale + abs(penalty["coefficient"]) * penalty_weighting(problem).mean(penalty_scale_terms(problem)[0])
