"""The advantages that recorded gradients are those of, where nothing else explains a loss: of which response each is, and what it is to its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from ..tensors import NumPyArray
from .exact import NotComputable
from .recomputed import Recomputed
from .shards import Broken
from .trace import Trace
from .variants import Explanation

SAME, CLEAR, ALIKE = 1e-4, 0.02, 0.95
FEWEST = 6
_COST = "responses are rewarded for something else than the trace says"


@dataclass(frozen=True)
class Implied:
    """A micro-batch, the advantages of its gradient up to one factor, NaN where a gate hides them, and the recorded ones."""

    one: Recomputed
    found: NumPyArray
    recorded: NumPyArray

    @property
    def shares(self) -> NumPyArray:
        """What each is of the recorded one; NaN where that is 0."""
        with np.errstate(all="ignore"):
            return np.where(self.recorded, self.found / self.recorded, np.nan)


def by_gradients(trace: Trace, few: Sequence[Recomputed]) -> Iterator[Explanation]:
    """What advantages the gradients have, where one factor makes them those of the losses too."""
    with suppress(NotComputable, ValueError, Broken):
        known = _to_scale([_implied(one) for one in few])
        shares = np.concatenate([one.shares for one in known]) if known else np.zeros(0)
        shares = shares[np.isfinite(shares)]
        if len(shares) >= FEWEST and np.abs(shares - 1).max() > CLEAR:
            yield _explained(trace, known, shares)


def _implied(one: Recomputed) -> Implied:
    """Each response's gradient over that of an advantage of 1, or of -1 where that has none."""
    tokens, got = one.part.tokens, one.part.tokens.gradient
    recorded = tokens.advantages
    if got is None or recorded is None or len(recorded) != tokens.number or one.objective.penalty is not None:
        raise NotComputable("gradients or advantages of responses not recorded, or a penalty")
    got, found = np.asarray(got, np.float64), np.full(tokens.number, np.nan)
    gated = np.zeros(tokens.number, bool)
    for sign in (1.0, -1.0):
        unit = replace(tokens, advantages=np.full(tokens.number, sign))
        slope = sign * one.anew(one.objective, unit).gradient(one.normalizer)
        square = tokens.sums(slope * slope)
        with np.errstate(all="ignore"):
            advantages = tokens.sums(got * slope) / square
        fits = (square > 0) & (sign * advantages >= 0)
        found[fits] = advantages[fits]
        rest = tokens.sums(np.abs(got - tokens.spread(np.nan_to_num(advantages)) * slope) * tokens.spread(fits))
        if rest.max(initial=0.0) > SAME * np.abs(got).sum():
            raise NotComputable("gradients that no advantages give")
        gated |= square == 0
    found[gated & (found == 0)] = np.nan
    return Implied(one, found, np.asarray(recorded, np.float64))


def _to_scale(known: list[Implied]) -> list[Implied]:
    """With the one factor taken out that lies between every gradient and its loss; empty where there is no such factor."""
    factors = []
    for one in known:
        tokens = replace(one.one.part.tokens, advantages=np.nan_to_num(one.found))
        truth = one.one.anew(one.one.objective, tokens)
        # A gate hides the advantage of a response that is in the loss all the same.
        if np.isfinite(one.found).all() and abs(truth.numerator) > 0.05 * truth.scale and one.one.part.loss:
            factors.append(truth.loss(one.one.normalizer) / one.one.part.loss)
    if len(factors) < 2 or min(factors) <= 0 or max(factors) > (1 + 10 * SAME) * min(factors):
        return []
    return [replace(one, found=one.found / factors[0]) for one in known]


def _explained(trace: Trace, known: Sequence[Implied], shares: NumPyArray) -> Explanation:
    others = "responses are rewarded for what others did"
    if all(_of_rollout(trace, one) for one in known):
        told = f"the gradients are those of advantages that other responses of the rollout have: {_worst(known)}"
        return Explanation("advantage.order", "GSPO-ADV-1", told, others)
    if all(_of_rollout(trace, one, before=True) for one in known):
        told = f"the gradients are those of advantages that responses of the rollout before have: {_worst(known)}"
        return Explanation("advantage.batch", "GSPO-ADV-1", told, others)
    if (shares > 0).all():
        told = f"the gradients of responses are {shares.min():.3g} to {shares.max():.3g} times those that are due: "
        told += f"each has a weight of its own{_with_length(known)}, or a ratio that is not the recorded one"
        return Explanation("response-weights", "GSPO-AGG-2", told, "responses weigh otherwise than 1/G")
    told = f"the gradients are those of other advantages than the recorded ones: {_worst(known)}"
    return Explanation("advantage.unrecorded", "GSPO-ADV-1", told, _COST)


def _of_rollout(trace: Trace, one: Implied, *, before: bool = False) -> bool:
    """Whether every advantage is one that some response of the rollout, or of the one before, was recorded with."""
    part = one.one.part
    steps = [trace.step(index) for index in trace.indices if abs(index - part.step) <= 64]
    rollout = None if part.rollout is None else part.rollout - before
    mine = [step for step in steps if (step.index == part.step and not before) or step.rollout == rollout is not None]
    others = [other.tokens.advantages for step in mine for other in (*step.parts, *step.rollouts)]
    every = np.concatenate([values for values in others if values is not None] or [np.zeros(0)]).astype(np.float64)
    found = one.found[np.isfinite(one.found)]
    return bool(every.size and (np.abs(found[:, None] - every).min(axis=1) <= SAME * (1 + np.abs(found))).all())


def _worst(known: Sequence[Implied]) -> str:
    """The response whose advantage is furthest from the recorded one."""
    off = [np.nan_to_num(np.abs(one.found - one.recorded)) for one in known]
    which = int(np.argmax([values.max() for values in off]))
    one, at = known[which], int(np.argmax(off[which]))
    return f"{one.found[at]:.4g} where {one.recorded[at]:.4g} is recorded, at {one.one.part.place}, response {at} (counted from 0)"


def _with_length(known: Sequence[Implied]) -> str:
    """Whether the weights rise or fall with the length, in words."""
    shares = np.concatenate([one.shares for one in known])
    lengths = np.concatenate([one.one.part.tokens.lengths for one in known])[np.isfinite(shares)]
    shares = shares[np.isfinite(shares)]
    if len(np.unique(lengths)) < 3 or not np.ptp(shares):
        return ""
    likeness = float(np.corrcoef(lengths, shares)[0, 1])
    return f", the {'larger' if likeness > 0 else 'smaller'} the longer it is" if abs(likeness) > ALIKE else ""
