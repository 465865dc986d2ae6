"""Advantages once more, from the rewards and groups of each rollout; and, where they differ, the setting that gives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..judge import UNIT_ROUNDOFF
from ..mutants.registry import Mutant, mutants
from ..mutants.whole import Reference
from ..target import Case
from ..tensors import NumPyArray
from ..trainers.dialect import Finding
from ..words import plural
from .claim import Claim
from .differences import Difference, Ledger
from .shaped import LINE, OTHERWISE, shaped
from .shards import Broken
from .trace import Part, Step, Tokens

# More than this is lost by no variance that is worth the name.
MOST_COARSE = 1e-3
DEFAULTS: dict[str, Any] = {"center": "mean", "scale": "std", "ddof": 1, "eps": 1e-6, "eps_placement": "std"}
_GRID: dict[str, tuple[Any, ...]] = {
    "ddof": (0, 1),
    "scale": ("std", "none", "batch_std", "leave_one_out_std"),
    "center": ("mean", "none", "leave_one_out"),
    "eps": (1e-6, 0.0, 1e-8, 1e-5, 1e-4, 1e-3),
    "eps_placement": ("std", "variance"),
}
_MUTANTS = (
    "advantage.ddof",
    "advantage.batch-statistics",
    "advantage.strided-groups",
    "advantage.uneven-groups-merged",
    "advantage.contiguous-groups",
    "advantage.whitened-again",
    "advantage.wrong-axis",
    "advantage.eps-floor",
    "advantage.phantom",
    "advantage.singleton-raw",
    "distribution.local-statistics",
)


@dataclass(frozen=True)
class Handed:
    """The advantages that one call of the loss was given, `[S]`, and the group, reward and length of each response."""

    step: int
    rank: int
    microbatch: int
    stored: str
    keys: list[tuple[int, float]]
    advantages: NumPyArray
    lengths: NumPyArray


@dataclass
class Rollout:
    """The rewards, groups and advantages of the responses of one rollout, gathered from ranks and micro-batches; `handed` to which loss."""

    name: str
    step: int
    rewards: list[NumPyArray] = field(default_factory=list)
    groups: list[NumPyArray] = field(default_factory=list)
    advantages: list[NumPyArray] = field(default_factory=list)
    lengths: list[NumPyArray] = field(default_factory=list)
    seen: set[tuple[Any, ...]] = field(default_factory=set)
    handed: list[Handed] = field(default_factory=list)
    # The unit roundoff of what advantages were recorded in.
    stored: float = 0.0
    whole: bool = False

    def arrays(self) -> dict[str, NumPyArray]:
        """`rewards`, `groups`, `advantages` and `lengths`, `[n]`; a length is 0 where no tokens were recorded."""
        return {
            "rewards": np.concatenate(self.rewards).astype(np.float64),
            "groups": np.concatenate(self.groups),
            "advantages": np.concatenate(self.advantages).astype(np.float64),
            "lengths": np.concatenate(self.lengths),
        }


class Rollouts:
    """Gathers rollouts while the steps go by. A record of the whole rollout wins over what its micro-batches saw."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, int], Rollout] = {}

    def add(self, step: Step, ledger: Ledger) -> None:
        """What a step adds."""
        for part in (*step.rollouts, *step.parts):
            if not {"rewards", "groups", "advantages"} <= part.names:
                continue
            try:
                tokens = part.tokens
            except Broken as error:
                ledger.miss(str(error))
            else:
                if tokens.number:
                    self._add(part, tokens, part.kind == "rollout")

    def _add(self, part: Part, tokens: Tokens, whole: bool) -> None:
        key = ("step", part.step) if part.rollout is None else ("rollout", part.rollout)
        rollout = self.found.setdefault(key, Rollout(f"{key[0]} {key[1]}", part.step))
        if not whole:
            rollout.handed.append(_handed(part, tokens))
        if rollout.whole and not whole:
            return
        if whole and not rollout.whole:
            rollout.rewards, rollout.groups, rollout.advantages, rollout.lengths, rollout.whole = [], [], [], [], True
        rollout.stored = max(rollout.stored, UNIT_ROUNDOFF[part.stored.get("advantages", "float32")])
        arrays = self._responses(tokens, None if whole else rollout.seen)
        for name in ("rewards", "groups", "advantages", "lengths"):
            getattr(rollout, name).append(arrays[name])

    def _responses(self, tokens: Tokens, seen: set[tuple[Any, ...]] | None) -> dict[str, NumPyArray]:
        """Its responses; those that an earlier epoch of the rollout showed already are left out."""
        advantages, rewards, groups = tokens.advantages, tokens.rewards, tokens.groups
        assert advantages is not None
        assert rewards is not None
        assert groups is not None
        if len(advantages) != tokens.number:
            advantages = tokens.means(advantages)
        arrays = {"rewards": rewards, "groups": groups, "advantages": advantages, "lengths": tokens.lengths}
        if seen is None or tokens.old_logp is None:
            return arrays
        sums = tokens.sums(tokens.old_logp).tolist()
        keys = list(zip(groups.tolist(), tokens.lengths.tolist(), sums, strict=True))
        new = np.array([key not in seen for key in keys], bool)
        seen.update(keys)
        return {name: values[new] for name, values in arrays.items()}


def _handed(part: Part, tokens: Tokens) -> Handed:
    """What a call was given; NaN where the tokens of a response do not all have one advantage, or there are none."""
    given = np.asarray(tokens.advantages, np.float64)
    if len(given) != tokens.number:
        means = np.where(tokens.lengths > 0, tokens.means(given), np.nan)
        apart = tokens.sums(np.abs(given - tokens.spread(means)) > 1e-6 * (1 + np.abs(given)))
        given = np.where(apart > 0, np.nan, means)
    assert tokens.groups is not None
    assert tokens.rewards is not None
    keys = list(zip(tokens.groups.tolist(), tokens.rewards.astype(np.float32).tolist(), strict=True))
    stored = part.stored.get("advantages", "float32")
    return Handed(part.step, part.rank, part.microbatch, stored, keys, given, tokens.lengths)


def audit_advantages(rollouts: Rollouts, claim: Claim, group_size: int | None, ledger: Ledger) -> list[Rollout]:
    """Compares every rollout; returns those that differ."""
    bad = []
    settings = DEFAULTS | dict(claim.advantages or {})
    if claim.advantages is None and rollouts.found:
        guess = infer(list(rollouts.found.values()), claim.precision)
        if guess is None:
            ledger.miss("advantages: how they are made was not recorded, and no known way gives them")
            return []
        settings = guess
        ledger.miss(f"advantages: how they are made was not recorded; they are those of {described(guess)}")
    if not rollouts.found:
        ledger.miss("advantages: rewards and groups not recorded")
    for rollout in rollouts.found.values():
        arrays = _once(rollout.arrays(), group_size)
        complete = _complete(arrays["groups"], group_size)
        if not complete.all():
            ledger.miss(f"advantages: groups of fewer than {group_size} responses recorded")
        if complete.any() and settings["scale"] != "batch_std":
            arrays = {name: values[complete] for name, values in arrays.items()}
        elif not complete.all():
            continue
        if _uncertain(rollout, arrays, settings, claim, group_size):
            ledger.miss(
                "advantages: groups may be spread over steps; neither group_size nor whole rollouts were recorded"
            )
        elif _differs(rollout, arrays, settings, claim, ledger):
            bad.append(rollout)
    return bad


def _uncertain(
    rollout: Rollout,
    arrays: Mapping[str, NumPyArray],
    settings: Mapping[str, Any],
    claim: Claim,
    group_size: int | None,
) -> bool:
    """Whether members of its groups may be missing: nobody says how many there are, and no known way gives the advantages."""
    if rollout.whole or group_size is not None or fits([rollout], settings, claim.precision):
        return False
    return not any(fits([rollout], found, claim.precision, mutant) for _, found, mutant in candidates(settings))


def small_groups(rollouts: Iterable[Rollout], group_size: int | None) -> Iterator[Finding]:
    """Groups that all have one size in whole rollouts, and a smaller one than is claimed."""
    whole = [rollout for rollout in rollouts if rollout.whole]
    sizes = {int(n) for one in whole for n in np.unique(one.arrays()["groups"], return_counts=True)[1]}
    if group_size is not None and len(sizes) == 1 and (size := sizes.pop()) < group_size:
        told = f"every group has {plural(size, 'response')} since {whole[0].name}, where {group_size} are claimed"
        costs = "advantages are relative to fewer responses, or to others than those of one prompt"
        yield Finding("group-size", "error", "groups", told, "GSPO-ADV-1", costs)


def _once(arrays: dict[str, NumPyArray], group_size: int | None) -> dict[str, NumPyArray]:
    """Without what comes after the last of a group: its responses again, from later epochs, where `old_logp` does not tell them."""
    if group_size is None:
        return arrays
    groups = arrays["groups"]
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.append(True, groups[order][1:] != groups[order][:-1])) if len(groups) else order
    ranks = np.arange(len(groups)) - np.repeat(starts, np.diff(np.append(starts, len(groups))))
    first = np.zeros(len(groups), bool)
    first[order[ranks < group_size]] = True
    return {name: values[first] for name, values in arrays.items()}


def _complete(groups: NumPyArray, group_size: int | None) -> NumPyArray:
    if group_size is None:
        return np.ones(len(groups), bool)
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return counts[inverse] >= group_size


def _differs(
    rollout: Rollout, arrays: Mapping[str, NumPyArray], settings: Mapping[str, Any], claim: Claim, ledger: Ledger
) -> bool:
    valid = np.isfinite(arrays["rewards"])
    want, grown = shaped(arrays["advantages"], advantages(arrays, settings), claim.shapes)
    tolerance = grown * tolerances(arrays, want, claim.precision) + rollout.stored * np.abs(want)
    errors = np.where(valid, np.abs(arrays["advantages"] - want) - tolerance, -np.inf)
    worst = int(np.argmax(errors))
    if LINE in claim.shapes:
        ledger.miss("advantages: the mean and the spread of what normalises them once more")
    if OTHERWISE in claim.shapes and errors[worst] > 0:
        ledger.miss("advantages: the settings make them of more than rewards and groups")
        return False
    got, expected, allowed = (float(values[worst]) for values in (arrays["advantages"], want, tolerance))
    return ledger.compare(Difference("advantages", rollout.step, got, expected, allowed))


def advantages(
    arrays: Mapping[str, NumPyArray], settings: Mapping[str, Any], mutant: Mutant | None = None
) -> NumPyArray:
    """`group_advantages` of finite rewards, right or as a mutant has them; 0 where the reward is not a number."""
    valid = np.isfinite(arrays["rewards"])
    inputs = {"rewards": arrays["rewards"][valid], "groups": arrays["groups"][valid]}
    kind = Reference if mutant is None else mutant.kind
    case = Case("group_advantages", dict(settings), inputs, dtype="float64", outputs=("advantages",))
    found = np.zeros(len(valid))
    found[valid] = kind(case).answer()["advantages"]
    return found


def tolerances(arrays: Mapping[str, NumPyArray], want: NumPyArray, precision: float) -> NumPyArray:
    """How far the arithmetic of the run may be off: the cancellation in r - mean, over the spread, and some of that in E[r²] - E[r]²."""
    rewards = np.where(np.isfinite(arrays["rewards"]), arrays["rewards"], 0.0)
    found = np.empty(len(rewards))
    for key in np.unique(arrays["groups"]):
        at = arrays["groups"] == key
        spread = rewards[at].std() or 1.0
        largest, centred = np.abs(rewards[at]).max(), np.abs(rewards[at] - rewards[at].mean())
        # The spread of the others alone, where it is what divides.
        own = np.minimum(
            spread, np.divide(centred, np.abs(want[at]), out=np.full(len(centred), spread), where=want[at] != 0)
        )
        squared = precision * (largest / np.maximum(own, precision)) ** 2
        found[at] = 16 * precision * (1.0 + largest / min(spread, 1.0)) + np.minimum(2 * squared, MOST_COARSE)
    return found * (1.0 + np.abs(want))


def candidates(claimed: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], Mutant | None]]:
    """Other ways to make advantages: one setting changed, a mutant, two settings changed."""
    base = DEFAULTS | dict(claimed)
    single = [(name, value) for name, values in _GRID.items() for value in values if value != base[name]]
    for name, value in single:
        yield f"{name} {value} where {base[name]} is claimed", base | {name: value}, None
    known = {mutant.name: mutant for mutant in mutants()}
    for name in _MUTANTS:
        yield name, base, known[name]
    for i, (name, value) in enumerate(single):
        for other, second in single[i + 1 :]:
            if other != name:
                told = f"{name} {value} and {other} {second} where {base[name]} and {base[other]} are claimed"
                yield told, base | {name: value, other: second}, None


def fits(rollouts: list[Rollout], settings: Mapping[str, Any], precision: float, mutant: Mutant | None = None) -> bool:
    """Whether every advantage of these rollouts is what that way gives."""
    for rollout in rollouts:
        arrays = rollout.arrays()
        with np.errstate(all="ignore"):
            try:
                want = advantages(arrays, settings, mutant)
            except (ValueError, IndexError):
                return False
            errors = np.abs(arrays["advantages"] - want)
        known = np.isfinite(arrays["rewards"])
        if not (errors <= tolerances(arrays, want, precision))[known].all():
            return False
    return True


def local(rollouts: list[Rollout], settings: Mapping[str, Any], precision: float) -> bool:
    """Whether every advantage is that of its rank's or micro-batch's responses alone, of which there are several."""
    if not any(len(rollout.rewards) > 1 for rollout in rollouts):
        return False
    parts = [
        replace(rollout, rewards=[rewards], groups=[groups], advantages=[advantages], lengths=[lengths])
        for rollout in rollouts
        for rewards, groups, advantages, lengths in zip(
            rollout.rewards, rollout.groups, rollout.advantages, rollout.lengths, strict=True
        )
    ]
    return fits(parts, DEFAULTS | dict(settings), precision)


def infer(rollouts: list[Rollout], precision: float) -> dict[str, Any] | None:
    """The settings that give the advantages of a run that does not say."""
    few = rollouts[:4]
    if fits(few, DEFAULTS, precision):
        return dict(DEFAULTS)
    return next((found for _, found, mutant in candidates({}) if mutant is None and fits(few, found, precision)), None)


def described(settings: Mapping[str, Any]) -> str:
    """`center mean, scale std, ddof 1, eps 1e-06`."""
    return ", ".join(f"{name} {settings[name]}" for name in ("center", "scale", "ddof", "eps"))
