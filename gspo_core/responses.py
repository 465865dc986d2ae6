"""Steps whose responses need no tokens: T_i and Σ_t d_{i,t} alone give the loss and its gradient.

A sequence-level ratio makes every token of a response weigh the same, so that a step over `[S]`
entries, each standing for T_i tokens, *is* the step over the tokens. Whoever can sum tokens faster
than array functions do (a fused kernel, a native backend) sums, builds the step here, and lays the
gradient back on the tokens.
"""

from __future__ import annotations

from typing import Any

from .aggregation import token_weights
from .arrays import Array
from .objective import SEQUENCE_RATIOS, Objective
from .sequences import Layout
from .step import Step, unit_advantages
from .surrogate import Clip, Sapo, Unclipped


class Responses(Layout):
    """One value per response, held at each of its T_i tokens; `lengths` `[S]`, as floats."""

    def __init__(self, lengths: Array) -> None:
        self.counted = lengths > 0
        self.context = None
        self.num_sequences = lengths.shape[0]
        self._lengths = lengths

    def sum_tokens(self, values: Array) -> Array:
        """T_i v_i."""
        return self.clean(values) * self._lengths

    def mean_tokens(self, values: Array) -> Array:
        """v_i, which is 0 for an empty response."""
        return values

    def total(self, values: Array) -> Array:
        """Σ_i T_i v_i."""
        return self.xp.sum(self.sum_tokens(values))

    def count(self, flags: Array, dtype: Any) -> Array:
        """Σ T_i over the responses with a flag."""
        return self.xp.astype(self.xp.sum(self.backend.select(self._lengths, flags)), dtype)

    def spread(self, per_sequence: Array) -> Array:
        """v_i: the tokens of a response are one entry here."""
        return per_sequence


def needs_no_tokens(objective: Objective, advantages: Array, num_sequences: int) -> bool:
    """Whether T_i and Σ_t d_{i,t} determine the loss and, at every token of a response alike, its gradient.

    GSPO-token does where advantages do not vary within a response (GSPO-GRAD-4).
    """
    return (
        objective.ratio in (*SEQUENCE_RATIOS, "gspo_token")
        and isinstance(objective.surrogate, (Clip, Unclipped, Sapo))
        and objective.penalty is None
        and not objective.correction
        and tuple(advantages.shape) == (num_sequences,)
    )


def response_step(
    objective: Objective,
    *,
    log_ratio: Array,
    lengths: Array,
    advantages: Array,
    groups: Array | None = None,
    normalizer: Any = None,
) -> Step:
    """The step of `objective` over responses with Σ_t d_{i,t} = `log_ratio`, 0 without a token, and T_i = `lengths`, both `[S]`.

    `step_gradient` of it is d loss / d log π_θ at each token of the response. Its token metrics
    are not those of the tokens: pass `TokenSums` to `step_loss`.
    """
    layout = Responses(lengths)
    if objective.ratio == "gspo_token":
        objective = objective.replace(ratio="sequence")
    mean = log_ratio / layout.divisors(lengths.dtype)
    units = unit_advantages(objective, layout, advantages, lengths.dtype)
    weights = token_weights(objective.aggregation, layout, groups, normalizer, lengths.dtype)
    return Step(
        objective=objective,
        layout=layout,
        logp=mean,
        old_logp=layout.xp.zeros_like(mean),
        ref_logp=None,
        advantages=units,
        effective=units,
        weights=weights,
        penalty_weights=weights,
    )
