"""A step in parts: runs of consecutive counted tokens, and the coefficients d loss / d log π that the core gives them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from gspo_core import Objective, Packed
from gspo_core.aggregation import Weights
from gspo_core.arrays import times
from gspo_core.correction import Correction, correction_weights
from gspo_core.gradient import step_gradient
from gspo_core.step import Step
from gspo_core.surrogate import Gmpo, Reinforce


def depends_on_token_alone(objective: Objective) -> bool:
    """Whether each token's coefficient is known from its own log-probability, and so as soon as its chunk is."""
    surrogate, penalty = objective.surrogate, objective.penalty
    ungated = isinstance(surrogate, Reinforce) and surrogate.gate is None
    own_ratio = ungated or (objective.ratio == "token" and not isinstance(surrogate, Gmpo))
    own_weight = all(item.numerator == "old" or item.level == "token" for item in objective.correction)
    return own_ratio and own_weight and (penalty is None or penalty.importance != "sequence")


def one_scalar_per_sequence(objective: Objective, token_advantages: bool) -> bool:
    """Whether the tokens of a response share one coefficient: then their gradients add up before it is known."""
    if objective.penalty is not None or objective.ratio == "token" or token_advantages:
        return False
    return objective.per_sequence or all(item.level != "token" for item in objective.correction)


class Parts:
    """The counted tokens of a step, in order; sequence i owns those from `bounds[i]` to `bounds[i + 1]`.

    The step may be prepared with any log π_θ: nothing that is read from it depends on it.
    """

    def __init__(self, step: Step, positions: Tensor, behavior_logp: Tensor | None) -> None:
        self._step, layout = step, step.layout
        self._positions = positions
        self.bounds = _bounds(step.weights.lengths)
        per_token = layout.spread(step.advantages) if step.objective.per_sequence else step.advantages
        behavior = None if behavior_logp is None else behavior_logp.detach().to(step.logp.dtype)
        known = [item for item in step.objective.correction if item.numerator == "old"]
        self._current = tuple(item for item in step.objective.correction if item.numerator == "current")
        self._known = None if not known else self._take(_weights(tuple(known), step, step.logp, behavior, per_token))
        self._advantages = self._take(per_token)
        self._old, self._ref = self._take(step.old_logp), self._take(step.ref_logp)
        self._behavior = self._take(behavior)

    @property
    def longest(self) -> int:
        """The counted tokens of the longest response."""
        return max(stop - start for start, stop in pairwise(self.bounds))

    def coefficients(self, tokens: slice, logp: Tensor) -> Tensor:
        """d loss / d log π of a run of tokens; exact where the run holds all that their coefficients depend on."""
        return step_gradient(self._part(tokens, logp))

    def segments(self, tokens: slice) -> list[int]:
        """The bounds of the sequences, or pieces of sequences, in a run of tokens, counted from its start."""
        first, last = self._sequences(tokens)
        inside = (min(max(bound, tokens.start), tokens.stop) for bound in self.bounds[first : last + 1])
        return [bound - tokens.start for bound in inside]

    def runs(self, limit: int) -> Iterator[slice]:
        """Whole sequences, as many together as hold `limit` tokens; a longer one stands alone."""
        start = 0
        for bound, following in zip(self.bounds[1:], [*self.bounds[2:], None], strict=True):
            if bound > start and (following is None or following - start > limit):
                yield slice(start, bound)
                start = bound

    def never_moves(self, tokens: slice) -> bool:
        """Whether advantages of 0 say beforehand that nothing flows back."""
        return self._step.objective.penalty is None and bool((self._advantages[tokens] == 0).all())

    def moving(self, tokens: slice, coefficients: Tensor) -> Iterator[slice]:
        """Runs of adjacent sequences in which some coefficient is not 0; the others need no backward products."""
        segments = self.segments(tokens)
        before = torch.nn.functional.pad((coefficients != 0).cumsum(0), (1, 0))
        counts = before[segments].tolist()
        start = None
        for first, last, low, high in zip(segments[:-1], segments[1:], counts[:-1], counts[1:], strict=True):
            if high > low and start is None:
                start = first
            if high == low and last > first and start is not None:
                yield slice(start, first)
                start = None
        if start is not None:
            yield slice(start, segments[-1])

    def _sequences(self, tokens: slice) -> tuple[int, int]:
        return bisect_right(self.bounds, tokens.start) - 1, bisect_left(self.bounds, tokens.stop)

    def _part(self, tokens: slice, logp: Tensor) -> Step:
        step, (first, last) = self._step, self._sequences(tokens)
        offsets = torch.tensor(self.segments(tokens), device=logp.device)
        layout = Packed(offsets, max_length=tokens.stop - tokens.start).bind((tokens.stop - tokens.start,), "tokens")
        cut = {name: None if values is None else values[tokens] for name, values in self._arrays().items()}
        part = step.replace(
            layout=layout,
            logp=logp.to(step.logp.dtype),
            old_logp=cut["old"],
            ref_logp=cut["ref"],
            advantages=step.advantages[first:last] if step.objective.per_sequence else cut["advantages"],
            weights=_of(step.weights, first, last),
            penalty_weights=_of(step.penalty_weights, first, last),
        )
        return part.replace(effective=self._effective(part, cut))

    def _effective(self, part: Step, cut: dict[str, Tensor | None]) -> Tensor:
        weights = cut["known"]
        if self._current:
            moving = _weights(self._current, part, part.logp, cut["behavior"], cut["advantages"])
            weights = moving if weights is None else times(weights, moving)
        if weights is None:
            return part.advantages
        return times(part.advantages, part.layout.mean_tokens(weights) if part.objective.per_sequence else weights)

    def _arrays(self) -> dict[str, Tensor | None]:
        return {
            "old": self._old,
            "ref": self._ref,
            "behavior": self._behavior,
            "advantages": self._advantages,
            "known": self._known,
        }

    def _take(self, values: Tensor | None) -> Tensor | None:
        return None if values is None else values.reshape(-1)[self._positions]


def _weights(
    corrections: tuple[Correction, ...], step: Step, logp: Tensor, behavior: Tensor | None, advantages: Tensor | None
) -> Tensor:
    return correction_weights(corrections, step.layout, logp, step.old_logp, behavior, advantages)


def _of(weights: Weights, first: int, last: int) -> Weights:
    return Weights(weights.omega[first:last], weights.count, weights.lengths[first:last])


def _bounds(lengths: Tensor) -> list[int]:
    """How many counted tokens precede each sequence, and how many there are."""
    return [0, *lengths.to(torch.int64).cumsum(0).tolist()]
