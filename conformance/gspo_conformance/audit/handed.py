"""Advantages that the loss was handed, held against those of the rollout that its responses are of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..judge import UNIT_ROUNDOFF
from ..tensors import NumPyArray
from .advantages import Rollout
from .differences import Difference, Ledger
from .rearranged import COST, Pair, of_pairs
from .variants import Explanation


@dataclass(frozen=True)
class Misplaced:
    """A rollout whose losses saw other advantages: these, those of the rollout's responses with the same reward and group, and rounding."""

    rollout: Rollout
    pair: Pair


def audit_handed(rollouts: Sequence[Rollout], precision: float, ledger: Ledger) -> list[Misplaced]:
    """Compares what was recorded of whole rollouts with what their losses were given; enters and returns what differs."""
    found = []
    for rollout in rollouts:
        if rollout.whole and rollout.handed:
            pair, worst = _compared(rollout, precision)
            if worst is not None:
                ledger.compare(worst)
                found.append(Misplaced(rollout, pair))
    return found


def _compared(rollout: Rollout, precision: float) -> tuple[Pair, Difference | None]:
    due = _due(rollout)
    pairs, worst = [], None
    for one in rollout.handed:
        want = np.array([_nearest(due.get(key), got) for key, got in zip(one.keys, one.advantages, strict=True)])
        known = np.isfinite(want) & np.isfinite(one.advantages)
        got, want, lengths = one.advantages[known], want[known], one.lengths[known]
        allowed = 16 * max(precision, UNIT_ROUNDOFF[one.stored]) * (1 + np.abs(want))
        pairs.append((got, want, allowed, lengths))
        if (np.abs(got - want) > allowed).any():
            at = int(np.argmax(np.abs(got - want) - allowed))
            numbers = float(got[at]), float(want[at]), float(allowed[at])
            here = Difference("advantages", one.step, *numbers, one.rank, one.microbatch)
            worst = here if worst is None or here.step < worst.step else worst
    return Pair(*(np.concatenate(values) for values in zip(*pairs, strict=True))), worst


def _due(rollout: Rollout) -> dict[tuple[int, float], NumPyArray]:
    """The advantages of the responses of each group and reward: one number, where nothing else is in them."""
    arrays = rollout.arrays()
    keys = zip(arrays["groups"].tolist(), arrays["rewards"].astype(np.float32).tolist(), strict=True)
    found: dict[tuple[int, float], list[float]] = {}
    for key, advantage in zip(keys, arrays["advantages"].tolist(), strict=True):
        found.setdefault(key, []).append(advantage)
    return {key: np.array(values) for key, values in found.items()}


def _nearest(values: NumPyArray | None, got: float) -> float:
    return float("nan") if values is None else float(values[np.argmin(np.abs(values - got))])


def explain_handed(misplaced: Sequence[Misplaced], rollouts: Sequence[Rollout]) -> list[Explanation]:
    """Those of the rollout before, or the right ones on other responses, held inside bounds or multiplied."""
    return [*_of_rollout_before(misplaced, rollouts), *of_pairs([one.pair for one in misplaced])][:1]


def _of_rollout_before(misplaced: Sequence[Misplaced], rollouts: Sequence[Rollout]) -> Iterator[Explanation]:
    before = {id(after): one for one, after in pairwise(rollouts)}
    if all(id(one.rollout) in before and _same(one.pair, before[id(one.rollout)]) for one in misplaced):
        told = "the loss was given the advantages of the rollout before"
        yield Explanation("advantage.batch", "GSPO-ADV-1", told, COST)


def _same(pair: Pair, other: Rollout) -> bool:
    """Whether they are the advantages of a rollout, as often as there are epochs."""
    wanted = np.sort(np.concatenate(other.advantages).astype(np.float64))
    epochs, rest = divmod(len(pair.got), len(wanted) or 1)
    return bool(epochs and not rest and (np.abs(np.sort(pair.got)[::epochs] - wanted) <= pair.allowed.max()).all())
