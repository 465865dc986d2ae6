"""d loss / d log π_θ in closed form, for every objective: gradients for NumPy, and a check on every autodiff."""

from __future__ import annotations

from typing import Any

from .aggregation import divide
from .arrays import Array, times
from .objective import Objective
from .penalty import penalty_slope
from .sequences import Sequences
from .step import Step, at_tokens, below_cap, prepare, surrogate_log_ratio, unit_log_ratio
from .surrogate import Cispo, Gmpo, Reinforce, Vespo


def policy_gradient(
    objective: Objective,
    *,
    logp: Array,
    old_logp: Array,
    advantages: Array,
    sequences: Sequences | Array,
    ref_logp: Array | None = None,
    behavior_logp: Array | None = None,
    groups: Array | None = None,
    normalizer: Any = None,
) -> Array:
    """∂L/∂log π_θ(y_{i,t}); for GSPO -(1/G) (s_i A_i / |y_i|) gate(s_i, A_i). Clauses GSPO-GRAD-1 to GSPO-GRAD-5.

    Arguments as in `policy_loss`. Returns the shape of `logp`; exactly 0 at uncounted tokens, in
    clipped responses and where A = 0.

    >>> import numpy as np
    >>> logp = np.asarray([[-1.0, -2.0], [-1.5, 0.0]])
    >>> mask, advantages = np.asarray([[True, True], [True, False]]), np.asarray([1.0, -1.0])
    >>> policy_gradient(Objective.gspo(), logp=logp, old_logp=logp, advantages=advantages, sequences=mask)
    array([[-0.25, -0.25],
           [ 0.5 ,  0.  ]])
    """
    step = prepare(
        objective,
        logp=logp,
        old_logp=old_logp,
        advantages=advantages,
        sequences=sequences,
        ref_logp=ref_logp,
        behavior_logp=behavior_logp,
        groups=groups,
        normalizer=normalizer,
    )
    return step_gradient(step)


def step_gradient(step: Step) -> Array:
    """The gradient of a prepared step: -(ω_i/M) dJ/d log π_θ + β (ω_i/M) dKL/d log π_θ."""
    layout, penalty = step.layout, step.objective.penalty
    gradient = _share(step) * _coefficients(step)
    if penalty is not None and penalty.coefficient:
        slope = penalty_slope(penalty, layout, step.logp, step.old_logp, step.ref_logp)
        share = layout.spread(divide(step.penalty_weights.omega, step.penalty_weights.count))
        gradient = gradient + penalty.coefficient * share * slope
    return layout.clean(gradient)


def unit_gradient(step: Step, slope: Array) -> Array:
    """The gradient of a step without penalty from dJ/dℓ of each unit."""
    return step.layout.clean(_share(step) * _at_tokens(step, slope))


def _share(step: Step) -> Array:
    return step.layout.spread(-divide(step.weights.omega, step.weights.count))


def _coefficients(step: Step) -> Array:
    """Σ_t dJ_t / d log π_θ(y_u) within the response of u, in the shape of the tokens."""
    surrogate, layout = step.objective.surrogate, step.layout
    log_ratio = unit_log_ratio(step)
    if isinstance(surrogate, (Reinforce, Cispo, Vespo)):
        weight = surrogate.weight(at_tokens(step, log_ratio), step.advantages)
        return times(step.effective, weight)
    slope = surrogate.slope(surrogate_log_ratio(step, log_ratio), step.effective)
    if isinstance(surrogate, Gmpo):
        return layout.xp.where(_unclipped_tokens(step, log_ratio), layout.spread(slope), 0.0)
    return _at_tokens(step, slope)


def _at_tokens(step: Step, slope: Array) -> Array:
    """From a unit's slope to that of each of its tokens' log-probabilities."""
    layout = step.layout
    if step.objective.log_ratio_cap is not None:
        slope = layout.xp.where(below_cap(step), slope, 0.0)
    if step.objective.ratio == "product":
        return layout.spread(slope * step.weights.lengths)
    return layout.spread(slope) if step.objective.per_sequence else slope


def _unclipped_tokens(step: Step, log_ratio: Array) -> Array:
    surrogate = step.objective.surrogate
    assert isinstance(surrogate, Gmpo)
    clipped = surrogate.clipped_tokens(log_ratio, step.layout.spread(step.advantages))
    unclipped = ~(clipped.low | clipped.high)
    return unclipped if step.objective.log_ratio_cap is None else unclipped & below_cap(step)
