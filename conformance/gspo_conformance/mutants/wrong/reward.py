"""Wrong rewards: clip, normalisation, KL per token, length, dynamic sampling."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...tensors import NumPyArray
from ..advantages import Settings
from ..registry import mutant
from ..sequences import Sequences
from ..whole import Reference


@mutant(
    "reward.clip-symmetric", "GSPO-REWARD-1", effect="rewards below the low bound survive, or those above it do not"
)
class ClipSymmetric(Reference):
    """Rewards clipped to ±high: the lower bound is never read."""

    def held_rewards(self, rewards: NumPyArray, low: float, high: float) -> NumPyArray:
        return np.clip(rewards, -abs(high), abs(high))


@mutant("reward.zero-bound-off", "GSPO-REWARD-1", effect="a reward bounded at 0 is not bounded")
class ZeroBoundOff(Reference):
    """A bound of 0 taken for "off".

    `if reward_clip:`.
    """

    def held_rewards(self, rewards: NumPyArray, low: float, high: float) -> NumPyArray:
        return np.clip(rewards, low or -np.inf, high or np.inf)


@mutant("reward.clip-ignored", "GSPO-REWARD-1", effect="one outlier decides the statistics of its group")
class ClipIgnored(Reference):
    """Rewards not clipped."""

    def held_rewards(self, rewards: NumPyArray, low: float, high: float) -> NumPyArray:
        return rewards


@mutant(
    "reward.bounds-around-zero", "GSPO-REWARD-1", effect="a floor above 0 is no floor, a ceiling below 0 no ceiling"
)
class BoundsAroundZero(Reference):
    """Bounds taken to have 0 between them: a lower one above 0 and an upper one below it are 0."""

    def held_rewards(self, rewards: NumPyArray, low: float, high: float) -> NumPyArray:
        return np.clip(rewards, min(low, 0.0), max(high, 0.0))


@mutant("reward.singleton-raw", "GSPO-REWARD-2", effect="a prompt with one response trains on its raw reward")
class SingletonRaw(Reference):
    """The reward of a group of one as it is where its mean, itself, is to be subtracted."""

    def normalized(self, rewards: NumPyArray, population: NumPyArray, settings: Settings) -> NumPyArray:
        alone = settings["method"] == "group" and len(rewards) == 1
        return rewards if alone else super().normalized(rewards, population, settings)


@mutant("reward.equal-batch-zero", "GSPO-REWARD-3", effect="a batch that is all right or all wrong teaches nothing")
class EqualBatchZero(Reference):
    """0 for a batch of equal rewards though the running mean is subtracted: how it differs from the past is lost."""

    def normalized(self, rewards: NumPyArray, population: NumPyArray, settings: Settings) -> NumPyArray:
        if settings["shift"] and self.flat(rewards):
            return np.zeros_like(rewards)
        return super().normalized(rewards, population, settings)


@mutant("reward.scale-centres", "GSPO-REWARD-2", effect="the option to divide alone also subtracts")
class ScaleCentres(Reference):
    """Scaling alone is not possible: the full z-score is taken."""

    def switches(self, settings: Settings) -> Settings:
        return settings | {"shift": settings["shift"] or settings["scale"]}


@mutant("reward.scale-about-zero", "GSPO-REWARD-2", effect="rewards far from 0 are divided by their size")
class ScaleAboutZero(Reference):
    """Scaling alone by the root of the mean square: nothing is subtracted, not even in the standard deviation."""

    def normalized(self, rewards: NumPyArray, population: NumPyArray, settings: Settings) -> NumPyArray:
        freedom = len(population) - self.freedom(settings["ddof"])
        if settings["shift"] or not settings["scale"] or freedom <= 0:
            return super().normalized(rewards, population, settings)
        return self.divided(rewards, np.sqrt((population * population).sum() / freedom), settings["eps"], "std")


@mutant("reward.shift-scales", "GSPO-REWARD-2", effect="the option to subtract alone also divides")
class ShiftScales(Reference):
    """Shifting alone is not possible: the full z-score is taken."""

    def switches(self, settings: Settings) -> Settings:
        return settings | {"scale": settings["shift"] or settings["scale"]}


@mutant("reward.batch-for-group", "GSPO-REWARD-2", effect="prompts are compared with each other")
class BatchForGroup(Reference):
    """Statistics of the batch where those of the group are asked for."""

    def sources(self, arrays: dict[str, Any], method: str) -> list[NumPyArray]:
        return super().sources(arrays, "batch")


@mutant(
    "reward.running-without-batch",
    "GSPO-REWARD-3",
    effect="the first batch is normalised by nothing, every other by the past alone",
)
class RunningWithoutBatch(Reference):
    """Running statistics merged after they are used: the current batch is not in them."""

    def population(self, rewards: NumPyArray, arrays: dict[str, Any]) -> NumPyArray:
        return self.number(arrays["history"]) if "history" in arrays else super().population(rewards, arrays)


@mutant("reward.running-forgets", "GSPO-REWARD-3", effect="running statistics are those of the batch")
class RunningForgets(Reference):
    """Running statistics reset at every batch: nothing is running."""

    def population(self, rewards: NumPyArray, arrays: dict[str, Any]) -> NumPyArray:
        return rewards


@mutant("reward.running-averaged", "GSPO-REWARD-3", effect="the differences between batches are left out of the spread")
class RunningAveraged(Reference):
    """Means and variances of batches averaged by size: the distance between the batches is left out."""

    def normalized(self, rewards: NumPyArray, population: NumPyArray, settings: Settings) -> NumPyArray:
        arrays = self.arrays()
        if "history" not in arrays:
            return super().normalized(rewards, population, settings)
        sizes = [int(size) for size in arrays["history_sizes"]] + [len(rewards)]
        batches = np.split(population, np.cumsum(sizes)[:-1])
        squares = sum(((batch - batch.mean()) ** 2).sum() for batch in batches)
        freedom = len(population) - self.freedom(settings["ddof"])
        shifted = rewards - self.mean(population) if settings["shift"] else rewards
        return (
            self.divided(shifted, np.sqrt(squares / freedom), settings["eps"], "std") if settings["scale"] else shifted
        )


@mutant("reward.kl-added", "GSPO-REWARD-4", effect="the policy is paid for leaving the reference")
class KlAdded(Reference):
    """The KL added to the reward instead of subtracted."""

    def less_penalty(self, rewards: NumPyArray, penalty: NumPyArray) -> NumPyArray:
        return rewards + penalty


@mutant("reward.kl-dropped", "GSPO-REWARD-4", effect="no penalty at all")
class KlDropped(Reference):
    """No KL in the reward."""

    def less_penalty(self, rewards: NumPyArray, penalty: NumPyArray) -> NumPyArray:
        return rewards


@mutant(
    "reward.kl-k3",
    "GSPO-REWARD-4",
    effect="in the reward k3 is biased: the gradient is that of another divergence",
    seen=("arXiv:2506.09477",),
)
class KlK3(Reference):
    """k3 in the reward whatever was asked for: right as a loss, biased as a reward."""

    def reward_estimator(self, estimator: str) -> str:
        return "k3"


@mutant("reward.at-first-token", "GSPO-REWARD-4", effect="with a discount or a critic the credit goes to the wrong end")
class AtFirstToken(Reference):
    """The reward on the first counted token instead of the last."""

    def last(self, sequences: Sequences, i: int) -> NumPyArray:
        return sequences.tokens(i)[:1]


@mutant("reward.at-row-end", "GSPO-REWARD-4", effect="short responses never see their reward")
class AtRowEnd(Reference):
    """The reward at the last position of the row: lost where that is padding."""

    def last(self, sequences: Sequences, i: int) -> NumPyArray:
        start, end = sequences.spans[i]
        return np.arange(max(end - 1, start), end)


@mutant("reward.at-token-before-end", "GSPO-REWARD-4", effect="a neighbour is paid for a response that said nothing")
class AtTokenBeforeEnd(Reference):
    """The reward at the last token before the end of the response in the row, whosever that is.

    The place is found from cumulative lengths, less one.
    """

    def last(self, sequences: Sequences, i: int) -> NumPyArray:
        return np.flatnonzero(sequences.counted[: sequences.spans[i][1]])[-1:]


@mutant("reward.on-every-token", "GSPO-REWARD-4", effect="long responses are rewarded by their length")
class OnEveryToken(Reference):
    """The reward on every counted token: long responses collect it many times."""

    def last(self, sequences: Sequences, i: int) -> NumPyArray:
        return sequences.tokens(i)


@mutant("overlong.step", "GSPO-REWARD-5", effect="no warning before the cliff")
class OverlongStep(Reference):
    """-1 beyond the maximum and 0 before: no ramp."""

    def overlong(self, lengths: NumPyArray, longest: float, cache: float) -> NumPyArray:
        return np.where(lengths > longest, -1.0, 0.0)


@mutant("overlong.unbounded", "GSPO-REWARD-5", effect="very long responses are punished without limit")
class OverlongUnbounded(Reference):
    """The ramp not stopped at -1."""

    def overlong(self, lengths: NumPyArray, longest: float, cache: float) -> NumPyArray:
        return np.minimum((longest - cache - lengths) / cache, 0.0)


@mutant("overlong.sign", "GSPO-REWARD-5", effect="length is rewarded")
class OverlongSign(Reference):
    """The penalty with the wrong sign: length is rewarded."""

    def overlong(self, lengths: NumPyArray, longest: float, cache: float) -> NumPyArray:
        return -super().overlong(lengths, longest, cache)


@mutant("overlong.from-maximum", "GSPO-REWARD-5", effect="the ramp begins where it should end")
class OverlongFromMaximum(Reference):
    """The ramp from L to L + C instead of from L - C to L."""

    def overlong(self, lengths: NumPyArray, longest: float, cache: float) -> NumPyArray:
        return super().overlong(lengths, longest + cache, cache)


@mutant("sampling.keeps-all", "GSPO-REWARD-6", effect="groups without a signal dilute the step")
class KeepsAll(Reference):
    """Every group kept: the filter does nothing."""

    def informs(self, rewards: NumPyArray, low: float | None, high: float | None) -> bool:
        return True


@mutant("sampling.inverted", "GSPO-REWARD-6", effect="exactly the wrong groups train")
class Inverted(Reference):
    """The mask of what to drop returned as the mask of what to keep."""

    def informs(self, rewards: NumPyArray, low: float | None, high: float | None) -> bool:
        return not super().informs(rewards, low, high)


@mutant("sampling.bounds-inclusive", "GSPO-REWARD-6", effect="groups at a bound stay in")
class BoundsInclusive(Reference):
    """Bounds that include their ends."""

    def inside(self, reward: Any, low: float | None, high: float | None) -> bool:
        return (low is None or reward >= low) and (high is None or reward <= high)


@mutant("sampling.bounds-ignored", "GSPO-REWARD-6", effect="an option does nothing")
class BoundsIgnored(Reference):
    """Groups of equals dropped, bounds never read."""

    def inside(self, reward: Any, low: float | None, high: float | None) -> bool:
        return True


@mutant(
    "sampling.by-mean",
    "GSPO-REWARD-6",
    effect="groups that are equal at any value but 0 and 1 stay in",
    seen=("areal-project/AReaL#786",),
)
class ByMean(Reference):
    """Groups dropped whose mean is 0 or 1: equal rewards in between stay.

    Written for binary rewards.
    """

    def informs(self, rewards: NumPyArray, low: float | None, high: float | None) -> bool:
        return self.inside(self.mean(rewards), 0 if low is None else low, 1 if high is None else high)


@mutant(
    "sampling.std-threshold",
    "GSPO-REWARD-6",
    effect="rounding decides, or small differences are thrown away",
    seen=("radixark/miles#701",),
)
class StdThreshold(Reference):
    """Groups dropped whose standard deviation is below 0.01: small differences are thrown away."""

    def informs(self, rewards: NumPyArray, low: float | None, high: float | None) -> bool:
        return super().informs(rewards, low, high) and bool(rewards.std() > 0.01)


@mutant("sampling.singleton-kept", "GSPO-REWARD-6", effect="a response without comparison stays in")
class SingletonKept(Reference):
    """A group of one kept: a single response always passes."""

    def informs(self, rewards: NumPyArray, low: float | None, high: float | None) -> bool:
        return len(rewards) == 1 or super().informs(rewards, low, high)


@mutant("sampling.never-empty", "GSPO-REWARD-6", effect="a batch without a signal is trained on as if it had one")
class NeverEmpty(Reference):
    """Every group kept where none is informative: the filter gives up just where it is needed.

    `if not keep.any(): keep[:] = True`, since the step wants a batch.
    """

    def informative_groups(self) -> dict[str, Any]:
        keep = super().informative_groups()["keep"]
        return {"keep": keep if keep.any() else np.ones_like(keep)}


@mutant(
    "sampling.row-by-row",
    "GSPO-REWARD-6",
    effect="the responses at the bounds go, the others stay: groups are torn apart",
)
class RowByRow(Reference):
    """Responses dropped by their own reward: groups are torn apart."""

    def informative_groups(self) -> dict[str, Any]:
        keep, rewards = super().informative_groups()["keep"], self.number(self.arrays()["rewards"])
        low, high = self.case.parameters.get("low"), self.case.parameters.get("high")
        return {"keep": keep & [self.inside(reward, low, high) for reward in rewards]}


@mutant("sampling.bounds-alone", "GSPO-REWARD-6", effect="groups of equals inside the bounds stay in and train nothing")
class BoundsAlone(Reference):
    """Bounds in the place of the test for equals: groups of equals inside them stay."""

    def informs(self, rewards: NumPyArray, low: float | None, high: float | None) -> bool:
        if low is None and high is None:
            return super().informs(rewards, low, high)
        return self.inside(self.mean(rewards), low, high)


@mutant("sampling.pass-rate", "GSPO-REWARD-6", effect="with shaped rewards other groups train than were asked for")
class PassRate(Reference):
    """The share of rewards above 0 held against the bounds, where their mean is meant: the two agree for rewards of 0 and 1."""

    def informs(self, rewards: NumPyArray, low: float | None, high: float | None) -> bool:
        passed = self.mean((rewards > 0).astype(rewards.dtype))
        return not self.flat(rewards) and self.inside(passed, low, high)


@mutant("reward.normalised-anyway", "GSPO-REWARD-2", effect="rewards that should be left alone are not")
class NormalisedAnyway(Reference):
    """Rewards normalised although both switches are off, or no method is chosen.

    Truthiness of an option that was given as False or None.
    """

    def switches(self, settings: Settings) -> Settings:
        if settings["method"] is not None and (settings["shift"] or settings["scale"]):
            return settings
        return settings | {"method": settings["method"] or "batch", "shift": True, "scale": True}
