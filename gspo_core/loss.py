"""The loss: rewards became advantages elsewhere; here log-ratio -> ratio -> surrogate -> correction -> aggregation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .aggregation import divide
from .arrays import Array, times
from .gradient import step_gradient, unit_gradient
from .metrics import TokenSums, step_metrics
from .objective import PAPER_CLIP, Objective
from .penalty import penalty_values
from .sequences import Sequences
from .step import Step, at_tokens, prepare, surrogate_log_ratio, unit_log_ratio
from .surrogate import Cispo, Clip, Reinforce, Vespo
from .validation import check_kind


class PolicyLoss(NamedTuple):
    """`loss`, a scalar to minimise, and `metrics`, a flat dict of scalars without gradient."""

    loss: Array
    metrics: dict[str, Array]


class PolicyLossSum(NamedTuple):
    """The unreduced form: `sum` and `count` add over the parts of a step; the loss is their quotient."""

    sum: Array
    count: Array
    metrics: dict[str, Array]


def policy_loss(
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
) -> PolicyLoss:
    """L = -(1/M) Σ_i ω_i Σ_t w_{i,t} J(x_{i,t}, A_{i,t}) + β · KL, for any `Objective`.

    Args:
        objective: the axes; `Objective.gspo()` is the paper.
        logp: log π_θ of the sampled tokens, `[B, T]` (padded) or `[N]` (packed); the only argument with a gradient.
        old_logp: log π_old, like `logp`.
        advantages: `[num_sequences]`, or like `logp` where the objective allows it.
        sequences: `Padded(mask)`, `Packed(offsets)`, or a `[B, T]` mask.
        ref_logp: log π_ref, like `logp`; read where the objective has a penalty.
        behavior_logp: log μ of the policy that sampled, like `logp`; read where the objective has a correction.
        groups: `[num_sequences]` integer ids, for `group_token_mean`; the call is one group where None.
        normalizer: replaces M, so that micro-batches and ranks add up to the loss of the whole step.

    Returns: `PolicyLoss(loss, metrics)`.

    >>> import numpy as np
    >>> logp, old = np.asarray([[-1.0, -2.0], [-1.5, 0.0]]), np.asarray([[-1.0, -2.0], [-1.0, 0.0]])
    >>> mask, advantages = np.asarray([[True, True], [True, False]]), np.asarray([1.0, -1.0])
    >>> out = policy_loss(Objective.gspo(), logp=logp, old_logp=old, advantages=advantages, sequences=mask)
    >>> round(float(out.loss), 6), round(float(out.metrics["clip_fraction"]), 4)
    (-0.00015, 0.3333)
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
    return step_loss(step)


def policy_loss_sum(
    objective: Objective,
    *,
    logp: Array,
    old_logp: Array,
    advantages: Array,
    sequences: Sequences | Array,
    ref_logp: Array | None = None,
    behavior_logp: Array | None = None,
    groups: Array | None = None,
) -> PolicyLossSum:
    """(Σ_i ω_i Σ_t l_{i,t}, M): the numerator of `policy_loss` and its normaliser, apart. Clause GSPO-AGG-8.

    Arguments as in `policy_loss`. Sums and counts of the parts of a step add, but for `token_sum`, whose M is 1 however
    many parts there are; no group may be split for `group_token_mean`, and a penalty must use the objective's own aggregation.
    """
    _check_sum(objective)
    step = prepare(
        objective,
        logp=logp,
        old_logp=old_logp,
        advantages=advantages,
        sequences=sequences,
        ref_logp=ref_logp,
        behavior_logp=behavior_logp,
        groups=groups,
    )
    log_ratio = unit_log_ratio(step)
    total, kl = -_surrogate_sum(step, log_ratio), _penalty_sum(step)
    if kl is not None:
        total = _penalised(step, total, kl)
        kl = divide(kl, step.weights.count)
    return PolicyLossSum(total, step.weights.count, step_metrics(step, log_ratio, kl))


def gspo_loss(
    logp: Array,
    old_logp: Array,
    advantages: Array,
    sequences: Sequences | Array,
    *,
    clip: Clip = PAPER_CLIP,
    normalizer: Any = None,
) -> PolicyLoss:
    """L = -(1/G) Σ_i min(s_i A_i, clip(s_i, 1-low, 1+high) A_i). Eq. 5; `Objective.gspo`.

    Args:
        logp: log π_θ of the sampled tokens, `[B, T]` (padded) or `[N]` (packed); the only argument with a gradient.
        old_logp: log π_old, of the policy before the first update, like `logp`.
        advantages: `[num_sequences]`.
        sequences: which tokens are those of responses: a `[B, T]` mask, `Padded(mask)` or `Packed(offsets)`.
        clip: ε_low and ε_high.
        normalizer: replaces G, so that micro-batches and ranks add up to the loss of the whole step.

    Returns: `PolicyLoss(loss, metrics)`.
    """
    return _preset(Objective.gspo, clip, logp, old_logp, advantages, sequences, normalizer)


def gspo_token_loss(
    logp: Array,
    old_logp: Array,
    advantages: Array,
    sequences: Sequences | Array,
    *,
    clip: Clip = PAPER_CLIP,
    normalizer: Any = None,
) -> PolicyLoss:
    """L = -(1/G) Σ_i (1/|y_i|) Σ_t min(s_{i,t} A_{i,t}, clip(s_{i,t}) A_{i,t}). Eq. 13; `Objective.gspo_token`.

    Arguments as in `gspo_loss`; `advantages` may also have the shape of `logp`.
    """
    return _preset(Objective.gspo_token, clip, logp, old_logp, advantages, sequences, normalizer)


def grpo_loss(
    logp: Array,
    old_logp: Array,
    advantages: Array,
    sequences: Sequences | Array,
    *,
    clip: Clip = Clip(0.2, 0.27),
    normalizer: Any = None,
) -> PolicyLoss:
    """L = -(1/G) Σ_i (1/|y_i|) Σ_t min(w_{i,t} A_{i,t}, clip(w_{i,t}) A_{i,t}). Eq. 2; `Objective.grpo`.

    Arguments as in `gspo_token_loss`.
    """
    return _preset(Objective.grpo, clip, logp, old_logp, advantages, sequences, normalizer)


def ppo_loss(
    logp: Array,
    old_logp: Array,
    advantages: Array,
    sequences: Sequences | Array,
    *,
    clip: Clip = Clip(0.2, 0.2),
    normalizer: Any = None,
) -> PolicyLoss:
    """GRPO's form with PPO's range; eq. 1 is one response. `Objective.ppo`.

    Arguments as in `gspo_token_loss`.
    """
    return _preset(Objective.ppo, clip, logp, old_logp, advantages, sequences, normalizer)


def _check_sum(objective: Objective) -> None:
    """One M for the loss and its penalty, which the tokens determine."""
    aggregation = check_kind("objective", objective, Objective).aggregation
    own = None if objective.penalty is None else objective.penalty.aggregation
    if own is not None and own != aggregation:
        raise ValueError(f"objective: expected one aggregation for loss and penalty, got {own!r} for the penalty")
    if aggregation.count == "given":
        raise ValueError("objective: expected an aggregation that counts 'all' or 'non_empty', got 'given'")


def _preset(
    preset: Callable[[Clip], Objective],
    clip: Clip,
    logp: Array,
    old_logp: Array,
    advantages: Array,
    sequences: Any,
    normalizer: Any,
) -> PolicyLoss:
    return policy_loss(
        preset(clip), logp=logp, old_logp=old_logp, advantages=advantages, sequences=sequences, normalizer=normalizer
    )


def step_loss(step: Step, tokens: TokenSums | None = None) -> PolicyLoss:
    """The loss and metrics of a prepared step, differentiable in its `logp`; `tokens` as in `step_metrics`."""
    log_ratio = unit_log_ratio(step)
    loss = -divide(_surrogate_sum(step, log_ratio), step.weights.count)
    kl = _penalty_sum(step)
    if kl is not None:
        kl = divide(kl, step.penalty_weights.count)
        loss = _penalised(step, loss, kl)
    return PolicyLoss(loss, step_metrics(step, log_ratio, kl, tokens))


def step_solution(step: Step, tokens: TokenSums | None = None) -> tuple[PolicyLoss, Array]:
    """The loss with its metrics, and the gradient, sharing what they share; without autodiff."""
    objective = step.objective
    if not isinstance(objective.surrogate, Clip) or objective.penalty is not None or objective.correction:
        return step_loss(step, tokens), step_gradient(step)
    log_ratio = unit_log_ratio(step)
    found = objective.surrogate.evaluate(log_ratio, step.advantages)
    loss = -divide(_unit_sum(step, found.value), step.weights.count)
    metrics = step_metrics(step, log_ratio, None, tokens, found.clipped)
    return PolicyLoss(loss, metrics), unit_gradient(step, found.slope)


def _surrogate_sum(step: Step, log_ratio: Array) -> Array:
    """Σ_i ω_i Σ_t w_{i,t} J_{i,t}, differentiable in `logp`."""
    surrogate = step.objective.surrogate
    if isinstance(surrogate, (Reinforce, Cispo, Vespo)):
        weight = surrogate.weight(step.stop(at_tokens(step, log_ratio)), step.advantages)
        return step.xp.sum(step.weights.omega * step.layout.sum_tokens(times(step.effective, weight) * step.logp))
    return _unit_sum(step, surrogate.value(surrogate_log_ratio(step, log_ratio), step.effective, step.stop))


def _unit_sum(step: Step, value: Array) -> Array:
    """Σ_i ω_i Σ_t J_{i,t} for one J per unit; a response's counts at each of its tokens."""
    weights = step.weights
    if step.objective.per_sequence:
        return step.xp.sum(weights.omega * weights.lengths * value)
    return step.xp.sum(weights.omega * step.layout.sum_tokens(value))


def _penalty_sum(step: Step) -> Array | None:
    penalty = step.objective.penalty
    if penalty is None:
        return None
    values = penalty_values(penalty, step.layout, step.logp, step.old_logp, step.ref_logp)
    return step.xp.sum(step.penalty_weights.omega * step.layout.sum_tokens(values))


def _penalised(step: Step, loss: Array, kl: Array) -> Array:
    """L + β KL, and L alone where β is 0, whatever overflowed in the KL."""
    penalty = step.objective.penalty
    return loss + penalty.coefficient * kl if penalty is not None and penalty.coefficient else loss
