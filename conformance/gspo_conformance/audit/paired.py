"""Losses with two numbers other than the claim's, which are found together: both widths of a range, both bounds of a correction's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from gspo_core import Aggregation, Correction, Objective
from gspo_core.surrogate import Clip

from ..tensors import NumPyArray
from .exact import NotComputable
from .fitted import roots
from .neighbours import LEVELS
from .recomputed import Recomputed
from .variants import Explanation, Right

MOST_TOKENS, FEWEST, SHORT, SEEDS, STEPS = 4_000, 3, 2, 3, 8
DIGITS = (1, 2, 3, 4, 5)
RATIOS, MEANS = ("token", "sequence"), ("token_mean", "sequence_mean_token_mean")
_WIDTHS = np.geomspace(1e-4, 1.0, 17)
_LOWS, _HIGHS = 1 - np.geomspace(1e-3, 0.9, 12), 1 + np.geomspace(1e-3, 9.0, 12)


@dataclass(frozen=True)
class Pair:
    """Two numbers of an objective, each of which moves other tokens than the other; what is claimed, grids, and words with places for them."""

    told: str
    clause: str
    claimed: tuple[float, float]
    lows: NumPyArray
    highs: NumPyArray
    changed: Callable[[float, float], Objective]

    def losses(self, few: Sequence[Recomputed], low: float, high: float) -> NumPyArray:
        """Of every micro-batch with these two."""
        return np.array([one.anew(self.changed(low, high), one.part.tokens).loss(one.normalizer) for one in few])


def by_pairs(few: Sequence[Recomputed], right: Right) -> Iterator[Explanation]:
    """The claim with two other numbers, of which every loss is the recorded one."""
    if len(few) < FEWEST or sum(one.part.tokens.count for one in few) > MOST_TOKENS:
        return
    for pair in _pairs(few[0].objective):
        with suppress(NotComputable, ValueError, np.linalg.LinAlgError):
            numbers = _numbers(pair, few, right)
            if numbers is not None:
                axes = pair.changed(*numbers)
                yield Explanation(
                    "objective", pair.clause, f"it is the loss with {pair.told.format(*numbers)}", axes=axes
                )
                return


def _numbers(pair: Pair, few: Sequence[Recomputed], right: Right) -> tuple[float, float] | None:
    """The shortest two that give every recorded loss, from where a grid comes nearest to them."""

    def given(low: float, high: float) -> bool:
        losses = pair.losses(few, low, high)
        return all(right(one, float(loss)) for one, loss in zip(few, losses, strict=True))

    digits = DIGITS[: None if len(few) > FEWEST else SHORT]
    for start in _starts(pair, few):
        with suppress(ValueError):
            for ends in _polished(pair, few, _refined(pair, few, start)):
                short = (tuple(float(f"{end:.{places}g}") for end in ends) for places in digits)
                # A number that moves no loss is as claimed.
                found = next((one for low, high in short for one in _kept(pair, low, high) if given(*one)), None)
                if found is not None:
                    return found
    return None


def _polished(pair: Pair, few: Sequence[Recomputed], ends: tuple[float, float]) -> Iterator[tuple[float, float]]:
    """These two, and with one of them another where it moves few losses, so that no slope led to it."""
    yield ends
    off = [abs(loss - (one.part.loss or 0.0)) for one, loss in zip(few, pair.losses(few, *ends), strict=True)]
    worst = few[int(np.argmax(off))]

    def residual(low: float, high: float) -> float:
        return float(pair.losses([worst], low, high)[0]) - (worst.part.loss or 0.0)

    for low in roots(lambda low: residual(low, ends[1]), np.sort(pair.lows)):
        yield low, ends[1]
    for high in roots(lambda high: residual(ends[0], high), np.sort(pair.highs)):
        yield ends[0], high


def _kept(pair: Pair, low: float, high: float) -> tuple[tuple[float, float], ...]:
    return (pair.claimed, (pair.claimed[0], high), (low, pair.claimed[1]), (low, high))


def _starts(pair: Pair, few: Sequence[Recomputed]) -> list[tuple[float, float]]:
    """The places of the grid whose losses are nearest. What one number does goes on beside what the other does."""
    due = np.array([one.part.loss or 0.0 for one in few])
    at_low, at_high = float(pair.lows[-1]), float(pair.highs[-1])
    base = pair.losses(few, at_low, at_high)
    lows = np.array([pair.losses(few, float(low), at_high) - base for low in pair.lows])
    highs = np.array([pair.losses(few, at_low, float(high)) - base for high in pair.highs])
    off = np.abs(base + lows[:, None] + highs[None] - due).sum(axis=2)
    best = np.argsort(off, axis=None)[:SEEDS]
    return [(float(pair.lows[at // len(pair.highs)]), float(pair.highs[at % len(pair.highs)])) for at in best]


def _refined(pair: Pair, few: Sequence[Recomputed], start: tuple[float, float]) -> tuple[float, float]:
    """Gauss and Newton: between the ratios of responses a loss is a straight line in each number."""
    due, at = np.array([one.part.loss or 0.0 for one in few]), np.array(start)
    for _ in range(STEPS):
        here = pair.losses(few, *at)
        moves = [1e-3 * min(abs(at[0] - 1.0) or 1.0, abs(at[0])), 1e-3 * min(abs(at[1] - 1.0) or 1.0, abs(at[1]))]
        slopes = [
            (pair.losses(few, *(at + move * unit)) - here) / move for move, unit in zip(moves, np.eye(2), strict=True)
        ]
        step = np.linalg.lstsq(np.array(slopes).T, due - here, rcond=None)[0]
        moved = np.clip(at + step, at / 4, 4 * at)
        if np.abs(moved - at).max() <= 1e-9 * np.abs(at).max():
            break
        at = moved
    return float(at[0]), float(at[1])


def _pairs(objective: Objective) -> Iterator[Pair]:
    """Both bounds of the claimed correction; both widths, under the claim and under what differs in ratio, mean or both."""
    yield from _bounds(objective)
    if not isinstance(objective.surrogate, Clip):
        return
    yield _widths(objective, "the range")
    for ratio, mode in product(RATIOS, MEANS):
        aggregation = objective.aggregation if mode == objective.aggregation.mode else Aggregation(mode)
        with suppress(ValueError):
            other = objective.replace(ratio=ratio, aggregation=aggregation)
            if other != objective:
                yield _widths(other, f"the {ratio} ratio, the aggregation {mode} and the range")


def _widths(objective: Objective, words: str) -> Pair:
    clip: Any = objective.surrogate
    told = f"{words} ε_low = {{:g}}, ε_high = {{:g}} where {clip.low:g} and {clip.high:g} are claimed"

    def changed(low: float, high: float) -> Objective:
        return objective.replace(surrogate=replace(clip, low=low, high=high))

    return Pair(told, "GSPO-SURR-2", (clip.low, clip.high), _WIDTHS, _WIDTHS, changed)


def _bounds(objective: Objective) -> Iterator[Pair]:
    """Of the one correction of a claim, or of one that it does not have."""
    own = list(objective.correction)
    if len(own) > 1 or any(one.action != "clamp" for one in own):
        return
    for one in own or [Correction(level, low=0.5, high=2.0) for level in LEVELS]:
        claimed = (one.low or 0.0, 2.0 if one.high is None else one.high)
        words = "its correction" if own else f"a correction for the sampler, of the level {one.level},"

        def changed(low: float, high: float, one: Correction = one) -> Objective:
            return objective.replace(correction=(replace(one, low=low, high=high),))

        yield Pair(f"{words} held between {{:g}} and {{:g}}", "GSPO-CORR-2", claimed, _LOWS, _HIGHS, changed)
