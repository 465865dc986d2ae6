"""Losses with one number other than the claim's, which is found: the width of a range, a bound, a power of the length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from gspo_core import Correction, Objective

from ..mutants.tape import stop
from ..tensors import NumPyArray
from .exact import NotComputable
from .recomputed import Recomputed
from .trace import Tokens
from .variants import Explanation, Right

MOST_TOKENS = 20_000
HALVINGS, DIGITS = 40, (1, 2, 3, 4, 5, 9)
# Two losses have one number in common by chance, if not a short one.
FEWEST, SHORT = 3, 2
NEAR, MOST_WEIGHTS = 10.0, 400
_WIDTHS = np.geomspace(1e-6, 1.0, 25)
_BOUNDS = np.geomspace(1e-3, 50.0, 48)
_CAPS = 1 + np.geomspace(1e-3, 9.0, 25)
_POWERS = np.linspace(-2.0, 2.0, 17)
_DISCOUNTS = 1 - np.geomspace(1e-5, 0.9, 24)
# Whose clause has the constants of a surrogate.
_CLAUSES = {"clip": 5, "cispo": 8, "gmpo": 9, "sapo": 10, "vespo": 11}
_REWARDED = "the policy is rewarded for something else than the trace says"


@dataclass(frozen=True)
class Family:
    """A number that may be another one. `told` has a place for it, `changed` what a micro-batch is then: its objective and tokens; where
    the loss `jumps`, it does so at numbers of the grid and nowhere else.
    """

    name: str
    clause: str
    told: str
    grid: NumPyArray
    changed: Callable[[Recomputed, float], tuple[Objective, Tokens]]
    effect: str = ""
    jumps: bool = False

    def loss(self, one: Recomputed, number: float) -> float:
        """The loss of a micro-batch with that number."""
        return one.anew(*self.changed(one, number)).loss(one.normalizer)

    def explained(self, one: Recomputed, number: float) -> Explanation:
        """With the number."""
        objective, tokens = self.changed(one, number)
        axes = objective if tokens is one.part.tokens else None
        return Explanation(self.name, self.clause, self.told.format(number).replace("^1 ", " "), self.effect, axes)


def by_numbers(few: Sequence[Recomputed], right: Right) -> Iterator[Explanation]:
    """The claim with another number somewhere, of which every loss is the recorded one."""
    if len(few) < 2 or any(one.part.tokens.count > MOST_TOKENS for one in few):
        return
    for family in _families(few[0].objective, few):
        with suppress(NotComputable, ValueError):
            number = _number(family, few, right)
            if number is not None:
                yield family.explained(few[0], number)
                return


def _number(family: Family, few: Sequence[Recomputed], right: Right) -> float | None:
    """The shortest number that gives every recorded loss."""

    def given(number: float) -> bool:
        with suppress(ValueError):  # no such bound
            return all(right(one, family.loss(one, number)) for one in few)
        return False

    if family.jumps:
        found = filter(given, map(float, family.grid))
    else:
        # One loss may not move with the number, and all together may move back.
        small = _small(few)
        found = chain.from_iterable(
            roots(partial(_off, family, ones), family.grid) for ones in (small, small[:1], small[1:2])
        )
    digits = DIGITS if len(few) >= FEWEST else range(1, SHORT + 1)
    shortened = (float(f"{number:.{places}g}") for number in found for places in digits)
    return next(filter(given, shortened), None)


def _small(few: Sequence[Recomputed]) -> list[Recomputed]:
    """As many as are cheap to compute often; one at least."""
    ones = sorted(few, key=lambda one: one.part.tokens.count)
    total = np.cumsum([one.part.tokens.count for one in ones])
    return ones[: max(1, int((total <= MOST_TOKENS).sum()))]


def _off(family: Family, ones: Sequence[Recomputed], number: float) -> float:
    """By how much all losses together are off with that number."""
    return sum(family.loss(one, number) - (one.part.loss or 0.0) for one in ones)


def roots(off: Callable[[float], float], grid: NumPyArray) -> Iterator[float]:
    """Where a function changes its sign: from both sides, as it may jump there."""
    values = [off(float(x)) for x in grid]
    for low, high, one, other in zip(grid[:-1], grid[1:], values[:-1], values[1:], strict=True):
        if not np.isfinite(one + other) or (one > 0) == (other > 0):
            continue
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if (off(float(middle)) > 0) == (one > 0) else (low, middle)
        yield from (float(low), float(high))


def _families(objective: Objective, few: Sequence[Recomputed]) -> Iterator[Family]:
    yield from _ranges(objective)
    yield from _constants(objective)
    yield from _caps(objective, few)
    yield from _clamps(objective)
    yield from _advantages()


def _ranges(objective: Objective) -> Iterator[Family]:
    """Another width above, below, or on both sides, alike or in proportion."""
    clip: Any = objective.surrogate
    if objective.to_dict()["surrogate"]["kind"] != "clip":
        return
    sides: tuple[tuple[str, Callable[[float], dict[str, float]]], ...] = (
        (f"ε_high = {{:.4g}} where {clip.high:g} is claimed", lambda width: {"high": width}),
        (f"ε_low = {{:.4g}} where {clip.low:g} is claimed", lambda width: {"low": width}),
        ("ε = {:.4g} on both sides", lambda width: {"low": width, "high": width}),
        (
            f"ε_high = {{:.4g}} where {clip.high:g} is claimed, ε_low in proportion",
            lambda width: {"low": width * clip.low / (clip.high or 1.0), "high": width},
        ),
    )
    for told, ends in sides:

        def changed(
            one: Recomputed, width: float, ends: Callable[[float], dict[str, float]] = ends
        ) -> tuple[Objective, Tokens]:
            return one.objective.replace(surrogate=replace(clip, **ends(width))), one.part.tokens

        yield Family("objective", "GSPO-SURR-2", f"it is the loss with the range {told}", _WIDTHS, changed)


def _constants(objective: Objective) -> Iterator[Family]:
    """Another constant of the surrogate, the widths of a clip left out; a dual clip that is not claimed."""
    clip, kind = vars(objective)["surrogate"], objective.to_dict()["surrogate"]["kind"]
    constants = {name: value for name, value in vars(clip).items() if isinstance(value, float | int | None)}
    names = ["dual"] if kind == "clip" else [name for name, value in constants.items() if value]
    for name in names:
        claimed = constants[name]

        def changed(one: Recomputed, number: float, name: str = name) -> tuple[Objective, Tokens]:
            surrogate: Any = one.objective.surrogate
            return one.objective.replace(surrogate=replace(surrogate, **{name: number})), one.part.tokens

        grid = (1 + clip.high) * _CAPS if claimed is None else claimed * np.geomspace(1 / NEAR, NEAR, 41)
        words = "none is claimed" if claimed is None else f"{claimed:g} is claimed"
        told = f"it is the loss with {name} = {{:.4g}} where {words}"
        yield Family("objective", f"GSPO-SURR-{_CLAUSES[kind]}", told, grid, changed)


def _caps(objective: Objective, few: Sequence[Recomputed]) -> Iterator[Family]:
    """Another bound of a correction, or one of weights that are not claimed."""
    for level in ("token", "geometric", "sequence") if not objective.correction else ():

        def weighted(one: Recomputed, bound: float, level: str = level) -> tuple[Objective, Tokens]:
            return one.objective.replace(correction=(Correction(level, high=bound),)), one.part.tokens

        told = f"it is the loss with a correction for the sampler, of the level {level}, bounded above by {{:.5g}}"
        yield Family("objective", "GSPO-CORR-2", told, _CAPS, weighted)
    for at, correction in enumerate(objective.correction):
        yield from _bands(at, correction, few)
        for name, claimed in (("high", correction.high), ("low", correction.low)):
            if claimed is None:
                continue

            def changed(one: Recomputed, bound: float, at: int = at, name: str = name) -> tuple[Objective, Tokens]:
                every = list(one.objective.correction)
                every[at] = replace(every[at], **{name: bound})
                return one.objective.replace(correction=tuple(every)), one.part.tokens

            side = "above" if name == "high" else "below"
            told = f"it is the loss with its correction bounded {side} by {{:.5g}} where {claimed:g} is claimed"
            jumps = correction.action != "clamp"
            grid = _weights(few, correction, claimed) if jumps else claimed * np.geomspace(1 / NEAR, NEAR, 41)
            yield Family("objective", "GSPO-CORR-2", told, grid, changed, jumps=jumps)


def _bands(at: int, claimed: Correction, few: Sequence[Recomputed]) -> Iterator[Family]:
    """Weights that are set to 0 outside a band with the claimed upper bound, where they are to be held at it."""
    if claimed.action != "clamp" or claimed.high is None:
        return

    def changed(one: Recomputed, bound: float) -> tuple[Objective, Tokens]:
        every = list(one.objective.correction)
        every[at] = replace(every[at], action="mask", low=bound)
        return one.objective.replace(correction=tuple(every)), one.part.tokens

    told = f"it is the loss with weights set to 0 below {{:.5g}} and above {claimed.high:g}, where they are to be held"
    weights = _weights(few, claimed, 1.0)
    yield Family("objective", "GSPO-CORR-2", told, weights[weights < claimed.high], changed, jumps=True)


def _weights(few: Sequence[Recomputed], correction: Correction, claimed: float) -> NumPyArray:
    """The weights of tokens that are near the claimed bound."""
    found = []
    for one in few:
        reference = one.truth.reference
        weights = reference.raw_weight(reference.mismatch(vars(correction)), correction.level)
        found.append(np.asarray(stop(weights), np.float64)[reference.sequences.counted])
    every = np.unique(np.concatenate(found))
    near = every[(every > claimed / NEAR) & (every < claimed * NEAR)]
    return near[np.argsort(np.abs(np.log(near / claimed)))][:MOST_WEIGHTS]


def _clamps(objective: Objective) -> Iterator[Family]:
    """Log-ratios of tokens that are held inside bounds before anything is made of them."""
    if objective.penalty is not None:
        return
    for told, below in (("±{:.4g}", -1.0), ("{:.4g}", -np.inf)):

        def changed(one: Recomputed, bound: float, below: float = below) -> tuple[Objective, Tokens]:
            tokens = one.part.tokens
            if tokens.logp is None or tokens.old_logp is None:
                raise NotComputable("logp, old_logp not recorded")
            old = np.asarray(tokens.old_logp, np.float64)
            return one.objective, replace(tokens, logp=old + np.clip(tokens.logp - old, below * bound, bound))

        words = (
            f"the log-ratio of every token is clamped to {told}"
            if below > -np.inf
            else f"the log-ratio of every token is held at {told}"
        )
        yield Family("ratio-clamped", "GSPO-RATIO-1", words, _BOUNDS, changed, "tokens beyond the bound train nothing")


def _advantages() -> Iterator[Family]:
    """Recorded advantages that are made smaller, or held, on their way into the loss."""
    made: tuple[tuple[str, str, NumPyArray, Callable[[NumPyArray, NumPyArray, float], NumPyArray]], ...] = (
        (
            "advantage.clamped",
            "the recorded advantages, clamped to ±{:.4g}",
            _BOUNDS,
            lambda a, _, bound: np.clip(a, -bound, bound),
        ),
        (
            "advantage.length",
            "the recorded advantages over |y|^{:.4g} of their response",
            _POWERS,
            lambda a, n, power: a / np.maximum(n, 1) ** power,
        ),
        ("advantage.length", "the recorded advantages times {:.4g}^|y|", _DISCOUNTS, lambda a, n, base: a * base**n),
        (
            "advantage.length",
            "the recorded advantages times {:.4g}^(|y| - 1)",
            _DISCOUNTS,
            lambda a, n, base: a * base ** (n - 1),
        ),
    )
    for name, told, grid, change in made:

        def changed(one: Recomputed, number: float, change: Any = change) -> tuple[Objective, Tokens]:
            tokens = one.part.tokens
            if tokens.advantages is None:
                raise NotComputable("advantages not recorded")
            whole = len(tokens.advantages) == tokens.number
            lengths = tokens.lengths if whole else tokens.spread(tokens.lengths)
            return one.objective, replace(
                tokens, advantages=change(np.asarray(tokens.advantages, np.float64), lengths, number)
            )

        yield Family(name, "GSPO-ADV-1", f"the loss is that of {told}", grid, changed, _REWARDED)
