"""Wrong corrections for the mismatch of sampler and trainer: level, cut, numerator, gradient, reach."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .. import tape
from ..registry import mutant
from ..surrogates import Fields
from ..tape import exp, stop, where
from ..whole import Reference


@mutant(
    "correction.clamp-drops",
    "GSPO-CORR-2",
    effect="tokens above the cap do not train at all",
    seen=("areal-project/AReaL#501", "areal-project/AReaL#930", "areal-project/AReaL#1088"),
)
class ClampDrops(Reference):
    """Weights above the cap set to 0 where they should be held at it: "caps" that drop."""

    def cut(self, weight: Any, fields: Fields) -> Any:
        return super().cut(weight, {**fields, "action": "mask"} if fields["action"] == "clamp" else fields)


@mutant("correction.mask-clamps", "GSPO-CORR-2", effect="tokens that should be dropped train at the cap")
class MaskClamps(Reference):
    """Weights outside the band held at its ends where they should be dropped."""

    def cut(self, weight: Any, fields: Fields) -> Any:
        return super().cut(weight, {**fields, "action": "clamp"} if fields["action"] == "mask" else fields)


@mutant(
    "correction.mask-unweighted",
    "GSPO-CORR-2",
    effect="what is kept is not corrected",
    seen=("verl-project/verl#3915",),
)
class MaskUnweighted(Reference):
    """Weights inside the band replaced by 1: what is kept is not corrected."""

    def cut(self, weight: Any, fields: Fields) -> Any:
        return super().cut(weight, {**fields, "action": "reject"} if fields["action"] == "mask" else fields)


@mutant(
    "correction.reject-weighted",
    "GSPO-CORR-3",
    effect="what is kept is weighted as well",
    seen=("verl-project/verl#3915",),
)
class RejectWeighted(Reference):
    """Rejection that also weights what it keeps."""

    def cut(self, weight: Any, fields: Fields) -> Any:
        return super().cut(weight, {**fields, "action": "mask"} if fields["action"] == "reject" else fields)


@mutant("correction.lower-bound-ignored", "GSPO-CORR-2", effect="tokens the sampler overestimated stay in")
class LowerIgnored(Reference):
    """The lower bound of the band never read."""

    def cut(self, weight: Any, fields: Fields) -> Any:
        return super().cut(weight, {**fields, "low": None})


@mutant("correction.upper-bound-ignored", "GSPO-CORR-2", effect="one token may weigh as much as all others")
class UpperIgnored(Reference):
    """The upper bound of the band never read: weights without a cap."""

    def cut(self, weight: Any, fields: Fields) -> Any:
        return super().cut(weight, {**fields, "high": None})


@mutant("correction.bounds-open", "GSPO-CORR-2", effect="on-policy tokens, of weight 1, are dropped by a bound of 1")
class BoundsOpen(Reference):
    """The band without its ends: < where <= belongs."""

    def cut(self, weight: Any, fields: Fields) -> Any:
        ends = [end for end in (fields["low"], fields["high"]) if end is not None]
        at_an_end = np.isin(stop(weight), ends)
        cut = super().cut(weight, fields)
        return cut if fields["action"] == "clamp" else where(at_an_end, 0.0, cut)


@mutant("correction.band-inverted", "GSPO-CORR-2", effect="a band of 0.5 to 1.2 drops 0.6 and keeps 1.8")
class BandInverted(Reference):
    """The band compared with 1/w: it is right only where its ends are reciprocal."""

    def cut(self, weight: Any, fields: Fields) -> Any:
        if fields["action"] == "clamp":
            return super().cut(weight, fields)
        low = None if fields["high"] is None else 1 / fields["high"]
        high = None if fields["low"] is None else 1 / fields["low"]
        return super().cut(weight, {**fields, "low": low, "high": high})


@mutant(
    "correction.product-for-geometric",
    "GSPO-CORR-7",
    effect="weights collapse or explode with the length: at 9,000 tokens 0.06 for 0.9999",
    seen=("NVIDIA-NeMo/RL#2269",),
)
class ProductForGeometric(Reference):
    """The product over the response where its geometric mean is asked for: it collapses with the length."""

    def raw_weight(self, mismatch: Any, level: str) -> Any:
        return super().raw_weight(mismatch, "sequence" if level == "geometric" else level)


@mutant(
    "correction.geometric-for-product",
    "GSPO-CORR-7",
    effect="the weight is all but 1: nothing is corrected",
    seen=("huggingface/trl#5814",),
)
class GeometricForProduct(Reference):
    """The geometric mean over the response where its product is asked for: it is all but 1."""

    def raw_weight(self, mismatch: Any, level: str) -> Any:
        return super().raw_weight(mismatch, "geometric" if level == "sequence" else level)


@mutant("correction.token-level", "GSPO-CORR-1", effect="tokens of one response get weights of their own")
class TokenLevel(Reference):
    """A weight for each token where one for the response is asked for."""

    def raw_weight(self, mismatch: Any, level: str) -> Any:
        return super().raw_weight(mismatch, "token")


@mutant(
    "correction.geometric-for-token", "GSPO-CORR-1", effect="single tokens that the sampler got wrong are not corrected"
)
class GeometricForToken(Reference):
    """One geometric mean for the response where a weight for each token is asked for."""

    def raw_weight(self, mismatch: Any, level: str) -> Any:
        return super().raw_weight(mismatch, "geometric" if level == "token" else level)


@mutant("correction.attached", "GSPO-CORR-4", effect="the gradient has a second term through the weight")
class Attached(Reference):
    """The weight not detached: with the current policy in its numerator a second gradient flows through it."""

    def mismatch(self, fields: Fields) -> Any:
        return self.new - self.behavior_logp if fields["numerator"] == "current" else super().mismatch(fields)


@mutant(
    "correction.current-for-old",
    "GSPO-CORR-5",
    effect="the step is counted twice, in the ratio and in the weight",
    seen=("THUDM/slime#179", "OpenRLHF/OpenRLHF#1098"),
)
class CurrentForOld(Reference):
    """The current policy in the numerator of the weight where the old one belongs."""

    def mismatch(self, fields: Fields) -> Any:
        return super().mismatch({**fields, "numerator": "current"})


@mutant("correction.old-for-current", "GSPO-CORR-5", effect="the weight misses the last steps")
class OldForCurrent(Reference):
    """The old policy in the numerator of the weight where the current one is asked for."""

    def mismatch(self, fields: Fields) -> Any:
        return super().mismatch({**fields, "numerator": "old"})


@mutant("correction.inverted", "GSPO-CORR-1", effect="the mismatch is doubled instead of removed")
class Inverted(Reference):
    """The sampler over the old policy: the weight upside down."""

    def mismatch(self, fields: Fields) -> Any:
        return -super().mismatch(fields)


@mutant(
    "correction.ignored",
    "GSPO-CORR-1",
    effect="the mismatch of sampler and trainer goes uncorrected",
    seen=("areal-project/AReaL#1088",),
)
class Ignored(Reference):
    """No weight although the objective has one.

    A new option whose default is off, under an old switch that only warns.
    """

    def effective(self) -> Any:
        return self.advantages


@mutant("correction.negative-only-ignored", "GSPO-CORR-6", effect="good responses are dropped with the bad ones")
class NegativeOnlyIgnored(Reference):
    """Responses with A > 0 masked as well, where only bad ones should be."""

    def correction(self, fields: Fields) -> Any:
        return super().correction({**fields, "negative_only": False})


@mutant("correction.positive-only", "GSPO-CORR-6", effect="exactly the wrong responses are dropped")
class PositiveOnly(Reference):
    """Responses with A > 0 masked instead of those with A < 0."""

    def correction(self, fields: Fields) -> Any:
        weight = super().correction({**fields, "negative_only": False})
        return where(self.advantages < 0, 1.0, weight) if fields["negative_only"] else weight


@mutant(
    "correction.replaces-old",
    "GSPO-CORR-5",
    effect="the clip range measures the distance to the sampler, and its noise clips the responses",
)
class ReplacesOld(Reference):
    """The sampler in place of the old policy in the ratio, and no weight: correction and trust region are one."""

    def read(self, arrays: dict[str, Any], parameters: Fields) -> None:
        super().read(arrays, parameters)
        if self.objective["correction"] and self.behavior_logp is not None:
            self.old_logp = self.behavior_logp

    def effective(self) -> Any:
        return self.advantages


@mutant("correction.on-ratio", "GSPO-CORR-5", effect="what is clipped depends on the sampler")
class OnRatio(Reference):
    """The weight multiplied into the ratio before the clip: decisions depend on the sampler."""

    def effective(self) -> Any:
        return self.advantages

    def capped(self, log_ratio: Any) -> Any:
        found = super().capped(log_ratio)
        if not self.objective.get("correction"):
            return found
        weights = np.maximum(stop(self.weights()), 1e-30)
        return found + np.log(self.clean(weights) + ~self.sequences.counted)


@mutant(
    "correction.shrinks-response",
    "GSPO-CORR-2",
    effect="the ratio averages what is left of a response, and its loss too",
    seen=("areal-project/AReaL#1572", "verl-project/verl#4852"),
)
class ShrinksResponse(Reference):
    """Tokens that the correction drops leave the mask: ratio, |y| and loss are those of the rest."""

    def read(self, arrays: dict[str, Any], parameters: Fields) -> None:
        super().read(arrays, parameters)
        if self.objective["correction"]:
            kept = self.sequences.counted & (np.asarray(stop(self.weights())) != 0)
            self.sequences = replace(self.sequences, counted=kept)
            self.advantages = self.clean(self.advantages)


@mutant("correction.normalised", "GSPO-CORR-1", effect="weights depend on the rest of the batch")
class Normalised(Reference):
    """Weights divided by their batch mean: a response's weight depends on the others."""

    def weights(self) -> Any:
        found = super().weights()
        mean = stop(found)[self.sequences.counted].mean() if self.sequences.counted.any() else 1.0
        return found / (mean or 1.0)


@mutant("correction.first-only", "GSPO-CORR-1", effect="of two corrections one is lost")
class FirstOnly(Reference):
    """Only the first of several corrections applied."""

    def choose(self, objective: dict[str, Any]) -> dict[str, Any]:
        objective = super().choose(objective)
        return objective | {"correction": objective.get("correction", [])[:1]}


@mutant(
    "correction.mean-weight",
    "GSPO-CORR-1",
    effect="a response is weighted by the arithmetic mean of its tokens' weights",
)
class MeanWeight(Reference):
    """The arithmetic mean of the token weights for the response, where product or geometric mean is asked for."""

    def raw_weight(self, mismatch: Any, level: str) -> Any:
        return (
            super().raw_weight(mismatch, level)
            if level == "token"
            else self.sequences.spread(self.mean_tokens(exp(mismatch)))
        )


@mutant(
    "correction.zero-times-overflow",
    "GSPO-SURR-12",
    effect="one response far from the sampler turns the step into NaN, though it has no advantage or was dropped",
)
class ZeroTimesOverflow(Reference):
    """A weight that overflows times an advantage, or another weight, of 0: NaN where exactly 0 is due."""

    wide = False

    def corrected(self, weights: Any) -> Any:
        return weights * self.advantages


@mutant("correction.negative-only-by-response", "GSPO-CORR-6", effect="bad tokens of a good response are not corrected")
class NegativeOnlyByResponse(Reference):
    """The sign of a response's first advantage for all of its tokens: advantages per token are read once."""

    def correction(self, fields: Fields) -> Any:
        weight = super().correction({**fields, "negative_only": False})
        firsts = [self.advantages[self.sequences.tokens(i)[:1]].sum() for i in range(self.sequences.number)]
        negative = self.sequences.spread(np.asarray(firsts)) < 0
        return where(negative, weight, 1.0) if fields["negative_only"] else weight


@mutant(
    "correction.capped", "GSPO-CORR-1", effect="tokens that the sampler hardly ever makes weigh less than they should"
)
class Capped(Reference):
    """The log-weights of tokens held within ±5, whatever bounds were asked for.

    A guard against overflow that is too narrow.
    """

    def mismatch(self, fields: Fields) -> Any:
        return tape.clip(super().mismatch(fields), -5.0, 5.0)
