"""Wrong advantages per token: returns, GAE, whitening, REINFORCE++."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...tensors import NumPyArray
from ..registry import mutant
from ..sequences import Sequences
from ..whole import Reference


def _whole_path(sequences: Sequences, i: int) -> NumPyArray:
    start, end = sequences.spans[i]
    return np.arange(start, end)


@mutant(
    "returns.through-gaps",
    "GSPO-ADV-9",
    effect="what a tool printed is taken for a transition: values at tokens nobody sampled enter the advantages",
    seen=("radixark/miles#1827",),
)
class ThroughGaps(Reference):
    """Time passes through uncounted tokens too: tool output discounts, and its values count."""

    def path(self, sequences: Sequences, i: int) -> NumPyArray:
        counted = sequences.tokens(i)
        return np.arange(counted[0], counted[-1] + 1) if counted.size else counted


@mutant("returns.padding-included", "GSPO-ADV-8", effect="what stands in the padding is rewarded")
class PaddingIncluded(Reference):
    """Rewards and values of every position of the row: the padding is part of the return."""

    def path(self, sequences: Sequences, i: int) -> NumPyArray:
        return _whole_path(sequences, i)


@mutant(
    "returns.cut-at-gaps",
    "GSPO-ADV-8",
    effect="tokens before a tool call get no share of the reward",
    seen=("verl-project/verl#7278", "verl-project/verl#7300"),
)
class CutAtGaps(Reference):
    """The return starts anew at every gap: what was sampled before a tool call sees no reward behind it.

    The running sum multiplied by the mask.
    """

    def discounts(self, sequences: Sequences, at: NumPyArray, gamma: float) -> NumPyArray:
        return np.where(np.append(np.diff(at), 1) == 1, super().discounts(sequences, at, gamma), 0.0)


@mutant("returns.bounded", "GSPO-ADV-8", effect="what comes after ten units of reward is not seen from the start")
class Bounded(Reference):
    """Returns held within ±10."""

    def returns(self, sequences: Sequences, rewards: NumPyArray, gamma: float) -> NumPyArray:
        return np.clip(super().returns(sequences, rewards, gamma), -10.0, 10.0)


@mutant("returns.discounted-gaps", "GSPO-ADV-8", effect="a long tool output makes an early action worthless")
class DiscountedGaps(Reference):
    """The discount counts positions, not counted tokens: every token of a gap discounts."""

    def discounts(self, sequences: Sequences, at: NumPyArray, gamma: float) -> NumPyArray:
        return super().discounts(sequences, at, gamma) ** np.append(np.diff(at), 1)


@mutant("returns.forward", "GSPO-ADV-8", effect="tokens are credited with what happened before them")
class Forward(Reference):
    """Accumulated from the front: each token gets the past instead of the future."""

    def recursion(self, terms: NumPyArray, factors: NumPyArray) -> NumPyArray:
        return super().recursion(terms[::-1], factors[::-1])[::-1]


@mutant("returns.undiscounted", "GSPO-ADV-8", effect="the discount that was asked for does nothing")
class Undiscounted(Reference):
    """gamma ignored: 1."""

    def discounts(self, sequences: Sequences, at: NumPyArray, gamma: float) -> NumPyArray:
        return super().discounts(sequences, at, 1.0)


@mutant("gae.lambda-ignored", "GSPO-ADV-9", effect="the trade of bias for variance that was asked for is not made")
class LambdaIgnored(Reference):
    """lambda ignored: 1, which is the return minus the value."""

    def decay(self, lam: float) -> float:
        return 1.0


@mutant("gae.bootstrap-ignored", "GSPO-ADV-9", effect="a truncated response is treated as a finished one")
class BootstrapIgnored(Reference):
    """0 for the value behind the last token: truncation is taken for an end."""

    def bootstrap(self, end: Any) -> Any:
        return 0.0


@mutant("gae.value-targets-without-values", "GSPO-ADV-9", effect="the critic is trained towards advantages")
class TargetsWithoutValues(Reference):
    """Returns that are the advantages: V not added back."""

    def value_target(self, advantages: NumPyArray, values: NumPyArray) -> NumPyArray:
        return advantages


@mutant("whiten.padding-included", "GSPO-ADV-10", effect="advantages depend on how much padding a batch has")
class WhitenPadding(Reference):
    """Mean and variance over every position, padding included."""

    def whitened(self, values: NumPyArray, counted: NumPyArray, ddof: float, eps: float, *, center: bool) -> NumPyArray:
        found = super().whitened(values, np.ones_like(counted), ddof, eps, center=center)
        return np.where(counted, found, 0.0)


@mutant(
    "whiten.padded-mean",
    "GSPO-ADV-10",
    effect="the batch mean drifts with the padding",
    seen=("NovaSky-AI/SkyRL#1305",),
)
class PaddedMean(Reference):
    """The mean over every position, the variance over counted ones: the result is not centred."""

    def whitened(self, values: NumPyArray, counted: NumPyArray, ddof: float, eps: float, *, center: bool) -> NumPyArray:
        entries, mean = values[counted], np.where(counted, values, 0.0).mean()
        if len(entries) < 2 or self.flat(entries):
            return super().whitened(values, counted, ddof, eps, center=center)
        spread = self.std(entries, self.freedom(ddof))
        return np.where(counted, (values - mean) / np.sqrt(spread * spread + eps) + (0.0 if center else mean), 0.0)


@mutant("whiten.centred-anyway", "GSPO-ADV-10", effect="an option does nothing")
class WhitenCentred(Reference):
    """Centred where the caller says not to."""

    def whitened(self, values: NumPyArray, counted: NumPyArray, ddof: float, eps: float, *, center: bool) -> NumPyArray:
        return super().whitened(values, counted, ddof, eps, center=True)


@mutant("whiten.mean-not-restored", "GSPO-ADV-10", effect="values keep a mean that the scale of others decided")
class MeanNotRestored(Reference):
    """Without centring the values are divided as they are: the mean is scaled where it should be kept."""

    def whitened(self, values: NumPyArray, counted: NumPyArray, ddof: float, eps: float, *, center: bool) -> NumPyArray:
        found = super().whitened(values, counted, ddof, eps, center=center)
        entries = values[counted]
        if center or len(entries) < 2 or self.flat(entries):
            return found
        spread = self.std(entries, self.freedom(ddof))
        return np.where(counted, values / np.sqrt(spread * spread + eps), 0.0)


@mutant("whiten.by-sequence", "GSPO-ADV-10", effect="every response has as much good as bad in it")
class WhitenBySequence(Reference):
    """Whitened within each response instead of over the batch: responses are no longer compared."""

    def whiten(self) -> dict[str, Any]:
        arrays = self.arrays()
        if "mask" in arrays or "offsets" in arrays:
            self.rows = self.layout(arrays)
        return super().whiten()

    def reinforce_pp_advantages(self) -> dict[str, Any]:
        self.rows = self.layout(self.arrays())
        return super().reinforce_pp_advantages()

    def whitened(self, values: NumPyArray, counted: NumPyArray, ddof: float, eps: float, *, center: bool) -> NumPyArray:
        found = np.zeros_like(values)
        spans = self.rows.spans if hasattr(self, "rows") else [(0, len(values))]
        for start, end in spans:
            part = super().whitened(values[start:end], counted[start:end], ddof, eps, center=center)
            found[start:end] = part
        return found


@mutant("whiten.eps-outside-root", "GSPO-ADV-10", effect="small spreads are damped differently")
class EpsOutsideRoot(Reference):
    """eps added to the standard deviation instead of the variance."""

    def whitened(self, values: NumPyArray, counted: NumPyArray, ddof: float, eps: float, *, center: bool) -> NumPyArray:
        entries = values[counted]
        if len(entries) < 2 or self.flat(entries):
            return super().whitened(values, counted, ddof, eps, center=center)
        mean, spread = self.mean(entries), self.std(entries, self.freedom(ddof))
        return np.where(counted, (values - mean) / (spread + eps) + (0.0 if center else mean), 0.0)


@mutant("reinforce-pp.no-baseline", "GSPO-ADV-11", effect="the variant with a baseline has none")
class NoBaseline(Reference):
    """The group baseline not subtracted: plain REINFORCE++."""

    def less_baseline(self, sequences: Sequences, rewards: NumPyArray, groups: NumPyArray) -> NumPyArray:
        return rewards


@mutant(
    "reinforce-pp.not-whitened",
    "GSPO-ADV-11",
    effect="the step depends on the scale of the reward",
    seen=("OpenRLHF/OpenRLHF#924",),
)
class NotWhitened(Reference):
    """Returns that are not whitened."""

    def reinforce_pp_advantages(self) -> dict[str, Any]:
        self.plain = True
        return super().reinforce_pp_advantages()

    def whitened(self, values: NumPyArray, counted: NumPyArray, ddof: float, eps: float, *, center: bool) -> NumPyArray:
        if hasattr(self, "plain"):
            return np.where(counted, values, 0.0)
        return super().whitened(values, counted, ddof, eps, center=center)


@mutant(
    "reinforce-pp.baseline-on-every-token", "GSPO-ADV-11", effect="long responses lose the baseline many times over"
)
class BaselineEverywhere(Reference):
    """The baseline subtracted from the reward of every token, not of the last: long responses lose it many times."""

    def less_baseline(self, sequences: Sequences, rewards: NumPyArray, groups: NumPyArray) -> NumPyArray:
        totals = sequences.sum(rewards)
        for members in self.partition(groups):
            for i in members:
                rewards[sequences.tokens(i)] -= self.mean(totals[members])
        return rewards


@mutant("whiten.one-entry-nan", "GSPO-ADV-10", effect="a batch with one trained token turns the step into NaN")
class OneEntryNan(Reference):
    """The sample variance of one entry: 0/0."""

    def whitened(self, values: NumPyArray, counted: NumPyArray, ddof: float, eps: float, *, center: bool) -> NumPyArray:
        found = super().whitened(values, counted, ddof, eps, center=center)
        return np.where(counted, np.nan, found) if counted.sum() == 1 else found


@mutant(
    "whiten.bounded",
    "GSPO-ADV-10",
    effect="the rare outcome that should teach most is cut down, and the batch is not centred",
)
class WhitenBounded(Reference):
    """Whitened values held within ±3 though nobody asked for it."""

    def whitened(self, values: NumPyArray, counted: NumPyArray, ddof: float, eps: float, *, center: bool) -> NumPyArray:
        found = super().whitened(values, counted, ddof, eps, center=center)
        return np.clip(found, -3.0, 3.0) if center else found


@mutant("whiten.equal-uncentred-zero", "GSPO-ADV-10", effect="values that all agree are lost")
class EqualUncentredZero(Reference):
    """0 for equal entries without centring: their mean is not kept."""

    def whitened(self, values: NumPyArray, counted: NumPyArray, ddof: float, eps: float, *, center: bool) -> NumPyArray:
        equal = bool(counted.any()) and self.flat(values[counted])
        return super().whitened(values, counted, ddof, eps, center=center or equal)


@mutant("reinforce-pp.empty-left-out", "GSPO-ADV-11", effect="filtered responses raise the baseline of the others")
class EmptyLeftOut(Reference):
    """The group baseline over responses with a counted token: an empty one is no member."""

    def less_baseline(self, sequences: Sequences, rewards: NumPyArray, groups: NumPyArray) -> NumPyArray:
        totals = sequences.sum(rewards)
        for members in self.partition(groups):
            filled = members[sequences.lengths[members] > 0]
            for i in filled:
                rewards[sequences.tokens(i)[-1:]] -= self.mean(totals[filled])
        return rewards


@mutant(
    "returns.multiplied",
    "GSPO-NUM-5",
    effect="one NaN that a critic or a reward model left in the padding makes every advantage of the batch NaN",
)
class Multiplied(Reference):
    """The mask multiplied onto rewards, and onto what is whitened: 0 times NaN is NaN."""

    def returns(self, sequences: Sequences, rewards: NumPyArray, gamma: float) -> NumPyArray:
        found = super().returns(sequences, rewards, gamma)
        for start, end in sequences.spans:
            found[start:end] += 0.0 * (rewards * sequences.counted)[start:end].sum()
        return found

    def whitened(self, values: NumPyArray, counted: NumPyArray, ddof: float, eps: float, *, center: bool) -> NumPyArray:
        found = super().whitened(values, counted, ddof, eps, center=center)
        return found + 0.0 * (values * counted).sum()
