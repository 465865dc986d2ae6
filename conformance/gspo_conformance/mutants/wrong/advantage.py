"""Wrong advantages per response: which rewards are compared, and what the difference is divided by."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...tensors import NumPyArray
from ..advantages import Settings
from ..registry import mutant
from ..whole import Reference


@mutant("advantage.ddof", "GSPO-ADV-2", effect="every advantage off by sqrt((G-1)/G): 0.71 at G = 2, 0.94 at G = 8")
class Ddof(Reference):
    """The other standard deviation: population for sample, sample for population."""

    def freedom(self, ddof: float) -> float:
        return 0 if ddof else 1


@mutant("advantage.eps-in-root", "GSPO-ADV-2", effect="groups with little spread are damped far more")
class EpsInRoot(Reference):
    """eps added to the variance where it belongs to the standard deviation, or the other way round."""

    def divided(self, values: NumPyArray, spread: Any, eps: float, placement: str) -> NumPyArray:
        return super().divided(values, spread, eps, "variance" if placement == "std" else "std")


@mutant(
    "advantage.eps-floor",
    "GSPO-ADV-2",
    effect="no damping until the spread falls below eps",
    seen=("verl-project/verl#6348",),
)
class EpsFloor(Reference):
    """max(std, eps) where std + eps is due: eps is a floor."""

    def divided(self, values: NumPyArray, spread: Any, eps: float, placement: str) -> NumPyArray:
        return super().divided(values, np.maximum(spread, eps), 0.0, "std")


@mutant("advantage.eps-ignored", "GSPO-ADV-2", effect="groups that hardly differ get full-size advantages")
class EpsIgnored(Reference):
    """No eps at all: rewards that hardly differ are blown up."""

    def divided(self, values: NumPyArray, spread: Any, eps: float, placement: str) -> NumPyArray:
        return super().divided(values, spread, 0.0, placement)


@mutant(
    "advantage.fixed-eps",
    "GSPO-ADV-2",
    effect="advantages smaller by 2 in 10,000 at std 0.5, more where the spread is small",
)
class FixedEps(Reference):
    """eps 1e-4, whatever was asked for."""

    def divided(self, values: NumPyArray, spread: Any, eps: float, placement: str) -> NumPyArray:
        return super().divided(values, spread, 1e-4, placement)


@mutant(
    "advantage.phantom",
    "GSPO-ADV-3",
    effect="a group in which nothing was learnt trains at up to full strength, in a random direction",
    seen=("verl-project/verl#4598", "verl-project/verl#4597"),
)
class Phantom(Reference):
    """Rounding errors divided by rounding errors: equal rewards get advantages that are not 0.

    Seven rewards of 0.1 in float32 have a mean that is not 0.1. Only `max == min` tells.
    """

    wide = False

    def flat(self, rewards: NumPyArray) -> bool:
        return len(rewards) == 1

    def mean(self, values: NumPyArray) -> Any:
        total = values.dtype.type(0)
        for value in values:
            total = total + value
        return total / values.dtype.type(len(values))


@mutant(
    "advantage.singleton-raw",
    "GSPO-ADV-4",
    effect="a lone response trains on its raw reward, without a baseline",
    seen=("verl-project/verl#6478",),
)
class SingletonRaw(Reference):
    """The raw reward for a group of one: no baseline.

    mean := 0 and std := 1 where there is one member.
    """

    def group(self, rewards: NumPyArray, batch: NumPyArray, settings: Settings) -> NumPyArray:
        return rewards if len(rewards) == 1 else super().group(rewards, batch, settings)


@mutant(
    "advantage.singleton-nan",
    "GSPO-ADV-4",
    effect="one lone response turns the whole step into NaN",
    seen=("OpenRLHF/OpenRLHF#1250",),
)
class SingletonNan(Reference):
    """0/0 for a group of one: NaN.

    A sample standard deviation of one number, or a mean of no others.
    """

    def group(self, rewards: NumPyArray, batch: NumPyArray, settings: Settings) -> NumPyArray:
        return rewards * np.nan if len(rewards) == 1 else super().group(rewards, batch, settings)


@mutant(
    "advantage.batch-statistics",
    "GSPO-ADV-1",
    effect="easy prompts are rewarded and hard ones punished, whatever the response",
)
class BatchStatistics(Reference):
    """Statistics of the batch instead of the group: easy prompts are rewarded as such."""

    def partition(self, groups: NumPyArray) -> list[NumPyArray]:
        return [np.arange(len(groups))]


@mutant("advantage.strided-groups", "GSPO-ADV-5", effect="responses are compared with those of other prompts")
class StridedGroups(Reference):
    """Groups read from position, as equal blocks: ids in another order are mixed up.

    `rewards.view(-1, G)`.
    """

    def partition(self, groups: NumPyArray) -> list[NumPyArray]:
        return np.array_split(np.arange(len(groups)), len(np.unique(groups)))


@mutant(
    "advantage.uneven-groups-merged",
    "GSPO-ADV-5",
    effect="one filtered response, and every prompt of the batch is compared with every other",
    seen=("THUDM/slime#1414", "THUDM/slime#1655", "THUDM/slime#2062"),
)
class UnevenMerged(Reference):
    """Groups of unequal size taken as one group: all prompts are compared with each other.

    A reshape that fails falls back to the whole batch.
    """

    def partition(self, groups: NumPyArray) -> list[NumPyArray]:
        found = super().partition(groups)
        return found if len({len(members) for members in found}) == 1 else [np.arange(len(groups))]


@mutant(
    "advantage.contiguous-groups", "GSPO-ADV-5", effect="a group that is spread over the batch is compared in pieces"
)
class Contiguous(Reference):
    """A group ends where the id changes: the same id further down is another group."""

    def partition(self, groups: NumPyArray) -> list[NumPyArray]:
        return np.split(np.arange(len(groups)), np.flatnonzero(np.diff(groups)) + 1)


@mutant(
    "advantage.one-pass-variance", "GSPO-NUM-4", effect="rewards far from 0 give a variance that is noise, or negative"
)
class OnePass(Reference):
    """The variance as E[x²] - E[x]² in the dtype of the rewards: it cancels away from 0."""

    wide = False

    def std(self, values: NumPyArray, ddof: float) -> Any:
        if len(values) <= ddof:
            return np.nan
        mean, square = values.mean(), (values * values).mean()
        variance = (square - mean * mean) * values.dtype.type(len(values) / (len(values) - ddof))
        return np.sqrt(np.maximum(variance, values.dtype.type(0)))


@mutant(
    "advantage.whitened-again",
    "GSPO-ADV-1",
    effect="the advantages of a group no longer sum to 0",
    seen=("alibaba/ROLL@370cb24c", "THUDM/slime#2235"),
)
class WhitenedAgain(Reference):
    """Whitened over the batch after the group statistics: a group no longer sums to 0.

    `whiten_advantages` left on.
    """

    def after(self, advantages: NumPyArray) -> NumPyArray:
        if len(advantages) < 2 or self.case.operation not in ("group_advantages", "pipeline"):
            return advantages
        return (advantages - advantages.mean()) / np.sqrt(advantages.var(ddof=1) + 1e-8)


@mutant(
    "advantage.invalid-in-statistics",
    "GSPO-ADV-5",
    effect="a response that could not be scored shifts all others",
    seen=("OpenRLHF/OpenRLHF#1239", "verl-project/verl#6362"),
)
class InvalidCounts(Reference):
    """Members that do not count in the mean and the standard deviation all the same."""

    def advantages_of(self, arrays: dict[str, Any], settings: Settings) -> NumPyArray:
        found = super().advantages_of({name: value for name, value in arrays.items() if name != "valid"}, settings)
        return np.where(self.valid(arrays), found, 0.0)


@mutant(
    "advantage.invalid-trains",
    "GSPO-ADV-5",
    effect="responses that were thrown out train",
    seen=("verl-project/verl#6362",),
)
class InvalidTrains(Reference):
    """Members that do not count get an advantage from the statistics of those that do."""

    def advantages_of(self, arrays: dict[str, Any], settings: Settings) -> NumPyArray:
        found, valid = super().advantages_of(arrays, settings), self.valid(arrays)
        rewards = self.number(arrays["rewards"])
        for members in self.partition(np.asarray(arrays["groups"])):
            kept, others = members[valid[members]], members[~valid[members]]
            if len(kept) > 1 and settings["scale"] == "std" and not self.flat(rewards[kept]):
                spread = self.std(rewards[kept], settings["ddof"])
                found[others] = self.divided(rewards[others] - rewards[kept].mean(), spread, settings["eps"], "std")
        return found


@mutant(
    "advantage.wrong-axis",
    "GSPO-ADV-5",
    effect="each response is compared with the one at its place in other groups",
    seen=("OpenRLHF/OpenRLHF#1250",),
)
class WrongAxis(Reference):
    """Statistics over responses at the same place of different groups: the wrong axis of the [P, G] matrix."""

    def partition(self, groups: NumPyArray) -> list[NumPyArray]:
        found = super().partition(groups)
        places = range(max(len(members) for members in found))
        return [np.array([members[i] for members in found if i < len(members)]) for i in places]


@mutant(
    "advantage.no-baseline",
    "GSPO-ADV-1",
    effect="every rewarded response is reinforced, also the worst of its group",
    seen=("alibaba/ROLL@cec5234a",),
)
class NoBaseline(Reference):
    """Rewards divided but not centred: no baseline.

    `reinforce` for `grpo`: the option is a name, the baseline is not in it.
    """

    def group(self, rewards: NumPyArray, batch: NumPyArray, settings: Settings) -> NumPyArray:
        return super().group(rewards, batch, settings | {"center": "none"})


@mutant("advantage.centred-anyway", "GSPO-ADV-7", effect="an option does nothing")
class CentredAnyway(Reference):
    """The mean subtracted where the objective says none."""

    def group(self, rewards: NumPyArray, batch: NumPyArray, settings: Settings) -> NumPyArray:
        centre = "mean" if settings["center"] == "none" else settings["center"]
        return super().group(rewards, batch, settings | {"center": centre})


@mutant("advantage.no-std", "GSPO-ADV-1", effect="the step depends on the scale of the reward")
class NoStd(Reference):
    """Rewards centred but not divided: the step depends on the scale of the reward."""

    def group(self, rewards: NumPyArray, batch: NumPyArray, settings: Settings) -> NumPyArray:
        scale = "none" if settings["scale"] == "std" else settings["scale"]
        return super().group(rewards, batch, settings | {"scale": scale})


@mutant(
    "advantage.std-anyway", "GSPO-ADV-7", effect="Dr. GRPO's correction is not there", seen=("verl-project/verl#7893",)
)
class StdAnyway(Reference):
    """Divided by the standard deviation where the objective says not to: the option is not forwarded."""

    def group(self, rewards: NumPyArray, batch: NumPyArray, settings: Settings) -> NumPyArray:
        scale = "std" if settings["scale"] == "none" else settings["scale"]
        return super().group(rewards, batch, settings | {"scale": scale})


@mutant("advantage.batch-std", "GSPO-ADV-1", effect="prompts with little spread get small advantages")
class BatchStd(Reference):
    """The standard deviation of the batch for that of the group."""

    def group(self, rewards: NumPyArray, batch: NumPyArray, settings: Settings) -> NumPyArray:
        scale = "batch_std" if settings["scale"] == "std" else settings["scale"]
        return super().group(rewards, batch, settings | {"scale": scale})


@mutant("advantage.group-std", "GSPO-ADV-13", effect="the option for the batch does nothing")
class GroupStd(Reference):
    """The standard deviation of the group where that of the batch is asked for."""

    def group(self, rewards: NumPyArray, batch: NumPyArray, settings: Settings) -> NumPyArray:
        scale = "std" if settings["scale"] == "batch_std" else settings["scale"]
        return super().group(rewards, batch, settings | {"scale": scale})


@mutant(
    "advantage.self-in-baseline",
    "GSPO-ADV-6",
    effect="advantages smaller by (n-1)/n, biased in small groups",
    seen=("OpenRLHF/OpenRLHF#843",),
)
class SelfInBaseline(Reference):
    """The mean over all members where the mean of the others is asked for: the response is in its own baseline."""

    def group(self, rewards: NumPyArray, batch: NumPyArray, settings: Settings) -> NumPyArray:
        centre = "mean" if settings["center"] == "leave_one_out" else settings["center"]
        return super().group(rewards, batch, settings | {"center": centre})


@mutant("advantage.leave-one-out", "GSPO-ADV-1", effect="the only winner of a group gets less than its losers")
class LeaveOneOut(Reference):
    """Mean and standard deviation of the other members: a lone winner counts for less than its losers.

    The default of one trainer.
    """

    def group(self, rewards: NumPyArray, batch: NumPyArray, settings: Settings) -> NumPyArray:
        if (settings["center"], settings["scale"]) != ("mean", "std"):
            return super().group(rewards, batch, settings)
        return super().group(rewards, batch, settings | {"center": "leave_one_out", "scale": "leave_one_out_std"})


@mutant("advantage.std-with-self", "GSPO-ADV-6", effect="the divisor contains what it should leave out")
class StdWithSelf(Reference):
    """The standard deviation of all members where that of the others is asked for."""

    def group(self, rewards: NumPyArray, batch: NumPyArray, settings: Settings) -> NumPyArray:
        scale = "std" if settings["scale"] == "leave_one_out_std" else settings["scale"]
        return super().group(rewards, batch, settings | {"scale": scale})


@mutant("advantage.clip-ignored", "GSPO-ADV-12", effect="the bound that was asked for does nothing")
class ClipIgnored(Reference):
    """Advantages not clipped."""

    def held_advantages(self, advantages: NumPyArray, bound: float) -> NumPyArray:
        return advantages


@mutant("advantage.clip-upper-only", "GSPO-ADV-12", effect="bad responses keep advantages of any size")
class ClipUpperOnly(Reference):
    """Advantages clipped above and not below."""

    def held_advantages(self, advantages: NumPyArray, bound: float) -> NumPyArray:
        return np.minimum(advantages, bound)


@mutant("advantage.clip-default", "GSPO-ADV-12", effect="advantages are cut that should pass")
class ClipDefault(Reference):
    """Advantages clipped to ±2 whatever bound was asked for.

    A default that the option does not reach.
    """

    def held_advantages(self, advantages: NumPyArray, bound: float) -> NumPyArray:
        return np.clip(advantages, -2.0, 2.0)
