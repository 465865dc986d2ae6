"""Responses and ratios that recorded gradients have and the record has not: which responses teach nothing, and what the ratios of a loss were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations

import numpy as np

from gspo_core.surrogate import Clip

from ..tensors import NumPyArray
from ..words import plural
from .exact import NotComputable
from .recomputed import Recomputed
from .trace import Tokens
from .variants import Explanation, Right

SAME, CLEAR, AGREE, ALIKE = 1e-4, 1e-3, 1e-3, 1e-5
MOST_SILENT, FEWEST = 10, 3


def by_lost_responses(few: Sequence[Recomputed], right: Right) -> Iterator[Explanation]:
    """Losses without responses whose gradients are 0: which of these are lost, and which the range holds, the losses tell."""
    with suppress(NotComputable, ValueError):
        lost = [_lost(one, right) for one in few]
        if lost and None not in lost:
            number = sum(one.part.tokens.number for one in few)
            told = (
                f"the losses and gradients are those without {plural(sum(filter(None, lost)), 'response')} of {number}"
            )
            yield Explanation("dropped-response", "GSPO-AGG-2", told, "what these responses teach is lost")


def _lost(one: Recomputed, right: Right) -> int | None:
    """How many responses are not in a loss, at least one; None where that does not give it."""
    got, advantages = _gradient_and_advantages(one)
    tokens, due = one.part.tokens, one.truth.gradient(one.normalizer)
    silent, held = (tokens.sums(np.abs(values)) == 0 for values in (got, due))
    if not _parallel(got, due * tokens.spread(~silent)):
        return None
    sure, perhaps = silent & ~held, np.flatnonzero(silent & held & (advantages != 0))
    rest = np.where(sure, 0.0, advantages)
    left = _loss(one, tokens, rest)
    shares = [left - _loss(one, tokens, np.where(np.arange(tokens.number) == at, 0.0, rest)) for at in perhaps]
    for number in range(not sure.any(), min(len(perhaps), MOST_SILENT) + 1):
        for some in combinations(shares, number):
            if right(one, left - sum(some)):
                return int(sure.sum()) + number
    return None


def by_ratios(few: Sequence[Recomputed]) -> Iterator[Explanation]:
    """Ratios, read off the gradients, that are not those of the recorded log-probabilities and give the losses."""
    with suppress(NotComputable, ValueError, FloatingPointError):
        found = [_ratios(one) for one in few]
        known = [factor for _, _, factor in found if factor is not None]
        alike = AGREE if len(known) >= FEWEST else ALIKE
        if len(known) < 2 or min(known) <= 0 or max(known) > (1 + alike) * min(known):
            return
        used, recorded = (np.concatenate(values) for values in list(zip(*found, strict=True))[:2])
        used = used * float(np.median(known))
        if used.size and np.abs(used - recorded).max() > CLEAR * np.abs(recorded - 1).max(initial=CLEAR):
            told = f"the losses and gradients are those of ratios from {used.min():.4g} to {used.max():.4g}, where "
            told += f"the recorded log-probabilities give {recorded.min():.4g} to {recorded.max():.4g}"
            costs = "the loss was given another old_logp, or another logp, than the trace has"
            yield Explanation("unrecorded-ratio", "GSPO-DATA-5", told, costs)


def _ratios(one: Recomputed) -> tuple[NumPyArray, NumPyArray, float | None]:
    """The ratios that are not held, up to one factor, those that were recorded, and that factor as the loss has it.

    With all ratios 1 every term is its advantage: a loss is that of advantages times ratios, and of those times a bound.
    """
    clip, tokens = one.objective.surrogate, one.part.tokens
    if not isinstance(clip, Clip) or one.objective.correction or tokens.logp is None or tokens.old_logp is None:
        raise NotComputable("no clipped surrogate")
    got, advantages = _gradient_and_advantages(one)
    by_token = one.objective.ratio == "token"
    advantages = tokens.spread(advantages) if by_token else advantages
    at_1, d = replace(tokens, logp=tokens.old_logp), np.asarray(tokens.logp, np.float64) - tokens.old_logp
    found, alive = _read_off(one, got, one.anew(one.objective, at_1).gradient(one.normalizer))
    held, bounds = alive & (found == 0), np.where(advantages > 0, 1 + clip.high, 1 - clip.low)
    moving = _loss(one, at_1, np.where(held, 0.0, advantages * found))
    rest = (one.part.loss or 0.0) - _loss(one, at_1, np.where(held, advantages * bounds, 0.0))
    large = abs(moving) > 0.05 * one.truth.scale / (one.normalizer or one.truth.count or 1.0)
    recorded, usable = np.exp(d if by_token else tokens.means(d)), alive & ~held
    return found[usable], recorded[usable], rest / moving if large else None


def _read_off(one: Recomputed, got: NumPyArray, slope: NumPyArray) -> tuple[NumPyArray, NumPyArray]:
    """What the gradient of each token or response is of that of a ratio of 1, and whether there is one."""
    by_token, tokens = one.objective.ratio == "token", one.part.tokens
    along, across = (got * slope, slope**2) if by_token else (tokens.sums(got * slope), tokens.sums(slope**2))
    found = np.divide(along, across, out=np.ones(len(across)), where=across > 0)
    if not _parallel(got, (found if by_token else tokens.spread(found)) * slope) or (found < 0).any():
        raise NotComputable("gradients that no ratios give")
    return found, across > 0


def _loss(one: Recomputed, tokens: Tokens, advantages: NumPyArray) -> float:
    return one.anew(one.objective, replace(tokens, advantages=advantages)).loss(one.normalizer)


def _gradient_and_advantages(one: Recomputed) -> tuple[NumPyArray, NumPyArray]:
    tokens = one.part.tokens
    if tokens.gradient is None or tokens.advantages is None or one.objective.penalty is not None:
        raise NotComputable("gradients or advantages not recorded, or a penalty")
    advantages = np.asarray(tokens.advantages, np.float64)
    if len(advantages) != tokens.number:
        advantages = tokens.means(advantages)
    return np.asarray(tokens.gradient, np.float64), advantages


def _parallel(got: NumPyArray, want: NumPyArray) -> bool:
    """Whether one is a positive multiple of the other."""
    factor = float(got @ want / max(want @ want, 1e-300))
    return factor > 0 and bool(np.abs(got - factor * want).max() <= SAME * np.abs(got).max())
