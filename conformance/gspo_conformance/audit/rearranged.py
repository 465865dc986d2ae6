"""Advantages that are the right ones and not where they belong, held inside bounds, rounded, multiplied, or divided by a length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np

from ..judge import UNIT_ROUNDOFF
from ..spec_numbers import round_to
from ..tensors import NumPyArray
from .advantages import DEFAULTS, Rollout, advantages, fits, tolerances
from .differences import TELLING
from .shaped import NO_LINE, line
from .variants import Explanation

MOST_ANCHORS = 32
COST = "responses are rewarded for what others did"
_NOTHING: Mapping[str, Any] = {}


class Pair(NamedTuple):
    """Recorded advantages, the right ones, how far rounding goes, and the lengths of their responses, 0 where these are not known."""

    got: NumPyArray
    want: NumPyArray
    allowed: NumPyArray
    lengths: NumPyArray


def rearranged(rollouts: Sequence[Rollout], claimed: Mapping[str, Any], precision: float) -> Iterator[Explanation]:
    """What was done to the right advantages of every one of these rollouts."""
    ways = (_over_batch, _of_right_ones, _another_eps, _in_blocks, _normalised_again, _of_others, _in_other_groups)
    found = (list(way(rollouts, claimed, precision)) for way in ways)
    yield from next((one for one in found if one), [])


def _of_right_ones(rollouts: Sequence[Rollout], claimed: Mapping[str, Any], precision: float) -> Iterator[Explanation]:
    """The right advantages in another order, inside bounds or multiplied."""
    yield from of_pairs([_pair(one, claimed, precision) for one in rollouts])


def _over_batch(rollouts: Sequence[Rollout], claimed: Mapping[str, Any], precision: float) -> Iterator[Explanation]:
    """Centred by group, and scaled by the spread of that over the rollout, as REINFORCE++ with a baseline has it."""
    centred = [_pair(one, {**claimed, "scale": "none"}, precision) for one in rollouts]
    for ddof, eps in product((1, 0), (1e-6, 1e-8, 1e-5, 1e-4, 0.0)):
        spreads = [one.want.std(ddof=ddof) + eps if len(one.want) > ddof else 1.0 for one in centred]
        if all(
            spread and _equal(one.got, one.want / spread, one.allowed / min(spread, 1.0))
            for one, spread in zip(centred, spreads, strict=True)
        ):
            told = f"they are r minus the mean of its group, over the standard deviation of that in the whole rollout (ddof {ddof})"
            yield Explanation("advantage.scale", "GSPO-ADV-1", told)
            return


def _another_eps(rollouts: Sequence[Rollout], claimed: Mapping[str, Any], precision: float) -> Iterator[Explanation]:
    """Divided by a standard deviation and a number, which is found: what the largest advantage says of it."""
    settings = DEFAULTS | dict(claimed)
    if settings["scale"] not in ("std", "batch_std") or settings["eps_placement"] != "std" or not rollouts:
        return
    centred = _pair(rollouts[0], {**claimed, "scale": "none"}, precision)
    whole = _pair(rollouts[0], {**claimed, "eps": 0.0}, precision)
    at = int(np.argmax(np.abs(centred.got))) if len(centred.got) else 0
    if not len(centred.got) or not centred.got[at] * whole.want[at]:
        return
    eps = float(centred.want[at] / centred.got[at] - centred.want[at] / whole.want[at])
    for number in (float(f"{eps:.{digits}g}") for digits in range(1, 6)):
        if number > 0 and fits(list(rollouts), {**settings, "eps": number}, precision):
            yield Explanation(
                "advantage.eps", "GSPO-ADV-2", f"they are those of eps {number:g} where {settings['eps']:g} is claimed"
            )
            return


def _in_blocks(rollouts: Sequence[Rollout], claimed: Mapping[str, Any], precision: float) -> Iterator[Explanation]:
    """Right in groups of another size: so many responses in a row."""
    number = min((len(one.arrays()["rewards"]) for one in rollouts), default=0)
    for size in (size for size in range(2, number + 1) if number % size == 0):
        moved = {"groups": lambda groups, size=size: np.arange(len(groups)) // size}
        pairs = [_pair(one, claimed, precision, moved) for one in rollouts]
        if all(_equal(pair.got, pair.want, pair.allowed) for pair in pairs):
            told = f"they are right in groups of {size} responses in a row, which are not the recorded groups"
            yield Explanation("advantage.order", "GSPO-ADV-1", told, COST)
            return


def _normalised_again(
    rollouts: Sequence[Rollout], claimed: Mapping[str, Any], precision: float
) -> Iterator[Explanation]:
    """On a rising line over what is right, or right before it is divided, or over the rewards: normalised over what is no group."""
    for words, settings in _BEFORE.items():
        pairs = [_pair(one, {**claimed, **settings}, precision) for one in rollouts]
        lines = [line(pair.got, pair.want, np.ones(len(pair.got), bool)) for pair in pairs]
        if any(found == NO_LINE for found in lines):
            continue
        made = (slope * pair.want + offset for pair, (slope, offset) in zip(pairs, lines, strict=True))
        if all(
            _equal(pair.got, values, max(slope, 1.0) * pair.allowed)
            for pair, values, (slope, _) in zip(pairs, made, lines, strict=True)
        ):
            slope, offset = lines[0]
            less = f"{'plus' if offset > 0 else 'less'} {abs(offset):.3g}"
            told = f"they are {words}, normalised over the batch: {slope:.4g} times that {less} in {rollouts[0].name}"
            yield Explanation("advantage.whitened", "GSPO-ADV-10", told, "what is one prompt's alone is shared by all")
            return


_BEFORE: dict[str, Mapping[str, Any]] = {
    "the right advantages": {},
    "r minus the mean of its group": {"scale": "none"},
    "the rewards": {"center": "none", "scale": "none"},
}


def _of_others(rollouts: Sequence[Rollout], claimed: Mapping[str, Any], precision: float) -> Iterator[Explanation]:
    """Made of the rewards, or in the groups, of other responses."""
    for what, (words, moved) in product(("rewards", "groups"), _MOVED):
        pairs = [_pair(one, claimed, precision, {what: moved}) for one in rollouts]
        if all(_equal(pair.got, pair.want, pair.allowed) for pair in pairs):
            told = f"they are made of the {what} of other responses: {words}"
            yield Explanation("advantage.order", "GSPO-ADV-1", told, COST)
            return


def _in_other_groups(
    rollouts: Sequence[Rollout], claimed: Mapping[str, Any], precision: float
) -> Iterator[Explanation]:
    """Right in groups that are not the recorded ones."""
    found = [_together(one, DEFAULTS | dict(claimed), precision) for one in rollouts]
    if found and all(found):
        members = ", ".join(map(str, found[0][:8]))
        told = f"they are right in other groups than the recorded ones: responses {members} of {rollouts[0].name} are one group (counted from 0)"
        yield Explanation("advantage.order", "GSPO-ADV-1", told, COST)


def _together(one: Rollout, settings: Mapping[str, Any], precision: float) -> list[int]:
    """Responses of several recorded groups whose advantages are those of one group: r = m + s A with one m and s. Empty where there are none."""
    arrays = one.arrays()
    r, a, (_, sizes) = arrays["rewards"], arrays["advantages"], np.unique(arrays["groups"], return_counts=True)
    for i, j in combinations(np.flatnonzero(a)[:MOST_ANCHORS], 2):
        s = (r[i] - r[j]) / (a[i] - a[j]) if a[i] != a[j] else 0.0
        near = np.flatnonzero(np.abs(r - r[i] - s * (a - a[i])) <= 1e-4 * s)
        # Two responses lie on a line whatever was done to them.
        if s > 0 and len(near) > 2 and len(near) in sizes and len(np.unique(arrays["groups"][near])) > 1:
            group = {"rewards": r[near], "groups": np.zeros(len(near), np.int64)}
            want = advantages(group, settings)
            if (np.abs(a[near] - want) <= tolerances(group, want, precision)).all():
                return near.tolist()
    return []


_MOVED = (
    ("one place further", lambda values: np.roll(values, 1)),
    ("one place back", lambda values: np.roll(values, -1)),
    ("in reverse order", lambda values: values[::-1]),
)


def of_pairs(pairs: Sequence[Pair]) -> Iterator[Explanation]:
    """What makes the recorded advantages of the right ones, in every pair."""
    for name, told, made in (
        *_orders(pairs),
        *_rounded(pairs),
        *_bounds(pairs),
        *_factors(pairs),
        *_lengths(pairs),
    ):
        if all(_equal(pair.got, made(pair), pair.allowed) for pair in pairs):
            yield Explanation(name, "GSPO-ADV-1", told, COST if name == "advantage.order" else "")
            return


def _pair(one: Rollout, claimed: Mapping[str, Any], precision: float, moved: Mapping[str, Any] = _NOTHING) -> Pair:
    """With some arrays `moved` before advantages are made of them; only where the reward is a number."""
    arrays = one.arrays()
    arrays |= {name: change(arrays[name]) for name, change in moved.items()}
    want = advantages(arrays, DEFAULTS | dict(claimed))
    known = np.isfinite(arrays["rewards"]) & np.isfinite(arrays["advantages"])
    allowed = tolerances(arrays, want, precision)
    return Pair(*(values[known] for values in (arrays["advantages"], want, allowed, arrays["lengths"])))


def _equal(got: NumPyArray, want: NumPyArray, allowed: NumPyArray) -> bool:
    return got.shape == want.shape and bool((np.abs(got - want) <= allowed.max(initial=0.0)).all())


Way = tuple[str, str, Callable[[Pair], NumPyArray]]


def _orders(pairs: Sequence[Pair]) -> Iterator[Way]:
    begin = "they are the right advantages, on other responses"
    yield "advantage.order", f"{begin}: in reverse order", lambda pair: pair.want[::-1]
    for places in (1, -1):
        told = f"{begin}: one place {'further' if places > 0 else 'back'}"
        yield "advantage.order", told, lambda pair, places=places: np.roll(pair.want, places)
    if all(len(one.got) == len(one.want) and _equal(np.sort(one.got), np.sort(one.want), one.allowed) for one in pairs):
        yield "advantage.order", f"{begin}: in another order than rewards and groups", lambda pair: pair.got


def _rounded(pairs: Sequence[Pair]) -> Iterator[Way]:
    for name in ("bfloat16", "float16"):
        kept = [np.array_equal(one.got, np.asarray(round_to(one.got, name), np.float64)) for one in pairs]
        near = [
            (np.abs(one.got - one.want) <= 1.01 * UNIT_ROUNDOFF[name] * np.abs(one.want) + one.allowed).all()
            for one in pairs
        ]
        if all(kept) and all(near):
            yield "low-precision", f"they are the right advantages, rounded to {name}", lambda pair: pair.got


def _bounds(pairs: Sequence[Pair]) -> Iterator[Way]:
    bound = max((float(np.abs(one.got).max(initial=0.0)) for one in pairs), default=0.0)
    if bound > 0:
        yield "advantage.clamped", f"they are clamped to ±{bound:.6g}", lambda pair: np.clip(pair.want, -bound, bound)


def _factors(pairs: Sequence[Pair]) -> Iterator[Way]:
    square = sum(float(one.want @ one.want) for one in pairs)
    factor = sum(float(one.got @ one.want) for one in pairs) / square if square else 0.0
    if factor:
        yield "advantage.factor", f"they are {factor:.6g} times what is claimed", lambda pair: factor * pair.want


def _lengths(pairs: Sequence[Pair]) -> Iterator[Way]:
    """Divided by a power of the length, or discounted by it: a line through the logarithms of what they are of the right ones."""
    lengths, shares = (np.concatenate(values) for values in zip(*map(_shares, pairs), strict=True))
    if len(np.unique(lengths)) < 3 or (shares <= 0).any() or any((one.lengths == 0).any() for one in pairs):
        return
    begin = "they are the right advantages"
    power, _ = np.polyfit(np.log(lengths), np.log(shares), 1)
    rate, at_0 = np.polyfit(lengths, np.log(shares), 1)
    power, base, first = round(-power, 4), float(f"{np.exp(rate):.5g}"), round(-at_0 / rate) if rate else 0
    over = f"{begin} over |y|^{power:g} of their response".replace("^1 ", " ")
    yield "advantage.length", over, lambda pair: pair.want / pair.lengths**power
    exponent = f"(|y| - {first})" if first else "|y|"
    yield (
        "advantage.length",
        f"{begin} times {base:g}^{exponent}",
        lambda pair: pair.want * base ** (pair.lengths - first),
    )


def _shares(one: Pair) -> tuple[NumPyArray, NumPyArray]:
    """The lengths of responses with an advantage, and which share of it was recorded."""
    alive = (np.abs(one.want) > TELLING * one.allowed) & (one.lengths > 0)
    return one.lengths[alive], one.got[alive] / one.want[alive]
