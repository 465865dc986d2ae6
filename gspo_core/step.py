"""What one call works on: validated, detached and cleaned arrays, and the log-ratio of each unit.

Below this edge nothing checks shapes: every token array has the shape of `logp`, holds 0 at
uncounted positions, and is float32 or float64.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .aggregation import Weights, check_groups, token_weights
from .arrays import Array, Namespace, compute_dtype, times
from .correction import correction_weights
from .objective import SEQUENCE_RATIOS, Objective
from .ratio import gspo_token_log_ratio
from .sequences import Layout, Sequences, bind_sequences
from .surrogate import Gmpo, StopGradient
from .validation import check_array, check_finite, check_floating, check_kind, check_same_namespace, check_shape


@dataclass(frozen=True, eq=False)
class Step:
    """The arguments of a loss, ready to compute with.

    `advantages` and `effective` have one value per unit of the surrogate; `effective` includes the
    correction: J is homogeneous in A, so w · J(x, A) = J(x, w A), and a weight of 0 is exact.
    """

    objective: Objective
    layout: Layout
    logp: Array
    old_logp: Array
    ref_logp: Array | None
    advantages: Array
    effective: Array
    weights: Weights
    penalty_weights: Weights

    @property
    def xp(self) -> Namespace:
        """The namespace of the arrays."""
        return self.layout.xp

    def replace(self, **changes: Any) -> Step:
        """The same step but for these."""
        return dataclasses.replace(self, **changes)

    @property
    def stop(self) -> StopGradient:
        """sg[·]."""
        return self.layout.backend.stop_gradient


def prepare(
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
) -> Step:
    """Checks every argument, detaches all but `logp` (GSPO-DATA-6), cleans and widens."""
    tokens = {"logp": logp, "old_logp": old_logp, "ref_logp": ref_logp, "behavior_logp": behavior_logp}
    layout = bind(objective, sequences, advantages, groups, **tokens)
    dtype, stop = compute_dtype(logp, old_logp), layout.backend.stop_gradient
    live = _token_array(layout, "logp", logp, dtype)
    constants = {name: None if values is None else stop(values) for name, values in tokens.items() if name != "logp"}
    still, advantages = stop(live), stop(advantages)
    with layout.backend.apart(still, *constants.values(), advantages, layout.counted, groups, normalizer):
        clean = {name: _token_array(layout, name, values, dtype) for name, values in constants.items()}
        units = unit_advantages(objective, layout, advantages, dtype)
        weights = token_weights(objective.aggregation, layout, groups, normalizer, dtype)
        return Step(
            objective=objective,
            layout=layout,
            logp=live,
            old_logp=clean["old_logp"],
            ref_logp=clean["ref_logp"],
            advantages=units,
            effective=_corrected(objective, layout, {**clean, "logp": still}, units),
            weights=weights,
            penalty_weights=penalty_weights(objective, layout, groups, dtype, weights),
        )


def bind(objective: Objective, sequences: Sequences | Array, advantages: Array, groups: Any, **tokens: Any) -> Layout:
    """The layout of the token arrays, after every check that reads no values of theirs."""
    check_kind("objective", objective, Objective)
    xp = check_array("logp", tokens["logp"])
    layout = bind_sequences(sequences, tuple(tokens["logp"].shape))
    check_same_namespace(xp, **tokens, sequences=layout.counted, advantages=advantages, groups=groups)
    _check_needed(objective, tokens["ref_logp"], tokens["behavior_logp"])
    for name, values in tokens.items():
        if values is not None or name == "old_logp":
            check_floating(name, values)
            check_shape(name, values, layout.token_shape, "like logp")
    check_groups(groups, layout)
    check_floating("advantages", advantages)
    return layout


def unit_log_ratio(step: Step) -> Array:
    """ℓ, the log-ratio of each unit, differentiable in `logp`; held at the cap where there is one."""
    layout, ratio = step.layout, step.objective.ratio
    log_ratio = step.logp - step.old_logp
    if ratio == "sequence":
        unit = layout.mean_tokens(log_ratio)
    elif ratio == "product":
        unit = layout.sum_tokens(log_ratio)
    elif ratio == "gspo_token":
        unit = layout.clean(gspo_token_log_ratio(layout, step.logp, step.old_logp))
    else:
        unit = log_ratio
    cap = step.objective.log_ratio_cap
    return unit if cap is None else step.xp.where(unit > cap, cap, unit)


def below_cap(step: Step) -> Array:
    """Where a unit's log-ratio, not held, is at most the cap, of which there is one."""
    uncapped = step.replace(objective=step.objective.replace(log_ratio_cap=None))
    return ~(unit_log_ratio(uncapped) > step.objective.log_ratio_cap)


def surrogate_log_ratio(step: Step, log_ratio: Array) -> Array:
    """The ℓ that the surrogate sees: the mean of clipped tokens for GMPO, the unit's own otherwise."""
    surrogate = step.objective.surrogate
    if not isinstance(surrogate, Gmpo):
        return log_ratio
    return step.layout.mean_tokens(surrogate.clip_tokens(log_ratio, step.layout.spread(step.advantages)))


def at_tokens(step: Step, log_ratio: Array) -> Array:
    """A unit's log-ratio at every token, for surrogates that work per token."""
    return step.layout.spread(log_ratio) if step.objective.ratio in SEQUENCE_RATIOS else log_ratio


def _check_needed(objective: Objective, ref_logp: Array | None, behavior_logp: Array | None) -> None:
    if objective.penalty is not None and ref_logp is None:
        raise ValueError("ref_logp: expected an array, since the objective has a penalty, got None")
    if objective.correction and behavior_logp is None:
        raise ValueError("behavior_logp: expected an array, since the objective has a correction, got None")


def _token_array(layout: Layout, name: str, values: Array | None, dtype: Any) -> Array | None:
    """A token argument, finite where it counts, in `dtype`, 0 at uncounted positions."""
    if values is None:
        return None
    check_finite(name, values, layout.counted)
    return layout.clean(layout.xp.astype(values, dtype, copy=False))


def unit_advantages(objective: Objective, layout: Layout, advantages: Array, dtype: Any) -> Array:
    """Â as constants, one per unit of the surrogate; where they may vary by token, GSPO-ADV-14 says."""
    values = layout.xp.astype(layout.backend.stop_gradient(advantages), dtype)
    if tuple(advantages.shape) == (layout.num_sequences,):
        check_finite("advantages", advantages)
        return values if objective.per_sequence else layout.clean(layout.spread(values))
    expected = f"({layout.num_sequences},) (one per sequence)"
    if not objective.allows_token_advantages:
        per_token = " (GSPO with one per token is Objective.gspo_token)" if objective.ratio == "sequence" else ""
        raise ValueError(
            f"advantages: expected shape {expected}, since {objective.ratio} ratio and "
            f"{type(objective.surrogate).__name__} have one value per response{per_token}, got {tuple(advantages.shape)}"
        )
    if tuple(advantages.shape) != layout.token_shape:
        raise ValueError(
            f"advantages: expected shape {expected} or {layout.token_shape} (per token), got {tuple(advantages.shape)}"
        )
    check_finite("advantages", advantages, layout.counted)
    return layout.clean(values)


def _corrected(objective: Objective, layout: Layout, clean: dict[str, Any], units: Array) -> Array:
    if not objective.correction:
        return units
    per_token = layout.spread(units) if objective.per_sequence else units
    weights = correction_weights(
        objective.correction, layout, clean["logp"], clean["old_logp"], clean["behavior_logp"], per_token
    )
    return times(units, layout.mean_tokens(weights) if objective.per_sequence else weights)


def penalty_weights(objective: Objective, layout: Layout, groups: Array | None, dtype: Any, own: Weights) -> Weights:
    """ω and M of the penalty: its own where it has an aggregation of its own, without the caller's normaliser (GSPO-KL-6)."""
    penalty = objective.penalty
    if penalty is None or penalty.aggregation in (None, objective.aggregation):
        return own
    return token_weights(penalty.aggregation, layout, groups, None, dtype)
