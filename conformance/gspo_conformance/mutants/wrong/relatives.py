"""Wrong relatives of GSPO: REINFORCE, CISPO, GMPO, SAPO and VESPO, each with one slip."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...tensors import NumPyArray
from .. import tape
from ..registry import mutant
from ..surrogates import Fields, Outside
from ..tape import stop, where
from ..whole import Reference


@mutant("reinforce.gate-ignored", "GSPO-SURR-7", effect="stale tokens train at full weight")
class GateIgnored(Reference):
    """REINFORCE without its gate: tokens outside the range keep their gradient."""

    def reinforce_value(self, log_ratio: Any, advantages: Any, fields: Fields) -> Any:
        return super().reinforce_value(log_ratio, advantages, {**fields, "gate": None})


@mutant(
    "reinforce.ratio-weighted",
    "GSPO-SURR-7",
    effect="the importance weight is applied twice, once here and once in the correction",
)
class RatioWeighted(Reference):
    """REINFORCE multiplied by the ratio: policy gradient with an importance weight nobody asked for."""

    def reinforce_value(self, log_ratio: Any, advantages: Any, fields: Fields) -> Any:
        return super().reinforce_value(log_ratio, stop(self.ratio(log_ratio)) * advantages, fields)


@mutant("cispo.absolute-bound", "GSPO-SURR-8", effect="the cap is lower by 1 than asked for")
class CispoAbsolute(Reference):
    """CISPO's upper bound read as absolute: clip(x, ., high) instead of clip(x, ., 1 + high).

    Two conventions for one number are in use; one trainer reads it this way by design.
    """

    def weight_bounds(self, fields: Fields) -> tuple[Any, Any]:
        return super().weight_bounds(fields)[0], fields["high"]


@mutant("cispo.lower-bound", "GSPO-SURR-8", effect="tokens that became unlikely keep a weight they should not have")
class CispoLower(Reference):
    """CISPO with a lower bound of 0.8 where the objective has none: weights below it are raised."""

    def weight_bounds(self, fields: Fields) -> tuple[Any, Any]:
        low, high = super().weight_bounds(fields)
        return 0.8 if low is None else low, high


@mutant(
    "cispo.attached-weight",
    "GSPO-GRAD-5",
    effect="the gradient has a second term, log π times the derivative of the weight",
)
class CispoAttached(Reference):
    """CISPO's weight not detached: the gradient flows through the weight too.

    The `detach()` forgotten.
    """

    def cispo_value(self, log_ratio: Any, advantages: Any, fields: Fields) -> Any:
        return self.weighted(tape.clip(self.ratio(log_ratio), *self.weight_bounds(fields)), advantages)


@mutant("cispo.gated", "GSPO-SURR-8", effect="CISPO loses what sets it apart: clipped tokens have no gradient again")
class CispoGated(Reference):
    """CISPO's tokens beyond the bound dropped instead of held at it: PPO's gate is back."""

    def cispo_value(self, log_ratio: Any, advantages: Any, fields: Fields) -> Any:
        x, (low, high) = self.ratio(stop(log_ratio)), self.weight_bounds(fields)
        inside = (x <= high) & (x >= (0 if low is None else low))
        return self.weighted(where(inside, x, 0.0), advantages)


@mutant(
    "gmpo.clip-after-mean",
    "GSPO-SURR-9",
    effect="single tokens are never held; the clip acts on the response, as in GSPO",
)
class GmpoAfterMean(Reference):
    """GMPO's bounds applied to the mean log-ratio: the clip is per response, not per token."""

    def gmpo_value(self, log_ratio: Any, advantages: Any, fields: Fields) -> Any:
        mean = self.sequences.spread(self.mean_tokens(log_ratio))
        outside = self.held_tokens(stop(mean), advantages, fields)
        held = where(outside.low, -fields["low"], where(outside.high, fields["high"], mean))
        return self.ratio(held) * advantages


@mutant("gmpo.two-sided", "GSPO-SURR-9", effect="corrections of single tokens are lost")
class GmpoTwoSided(Reference):
    """GMPO's tokens held at both bounds, whatever the sign of A."""

    def held_tokens(self, log_ratio: NumPyArray, advantages: Any, fields: Fields) -> Outside:
        moved = stop(advantages) != 0
        low, high = moved & (log_ratio < -fields["low"]), moved & (log_ratio > fields["high"])
        return Outside(low, high, np.zeros_like(low))


@mutant("gmpo.ratio-space", "GSPO-SURR-9", effect="a range of 0.4 becomes 0.6 to 1.4 where 0.67 to 1.49 is meant")
class GmpoRatioSpace(Reference):
    """GMPO's bounds as 1 - low and 1 + high of the ratio: PPO's convention instead of log space."""

    def held_tokens(self, log_ratio: NumPyArray, advantages: Any, fields: Fields) -> Outside:
        return super().held_tokens(log_ratio, advantages, self._in_ratio_space(fields))

    def gmpo_value(self, log_ratio: Any, advantages: Any, fields: Fields) -> Any:
        return super().gmpo_value(log_ratio, advantages, self._in_ratio_space(fields))

    def _in_ratio_space(self, fields: Fields) -> Fields:
        if fields.get("moved"):
            return fields
        return {**fields, "low": -np.log(1 - fields["low"]), "high": np.log(1 + fields["high"]), "moved": True}


@mutant("gmpo.dropped-tokens", "GSPO-SURR-9", effect="the mean shrinks towards 1 with every token that is held")
class GmpoDropped(Reference):
    """GMPO's held tokens set to log-ratio 0 instead of their bound: they vanish from the mean."""

    def gmpo_value(self, log_ratio: Any, advantages: Any, fields: Fields) -> Any:
        outside = self.held_tokens(stop(log_ratio), advantages, fields)
        return self.ratio(self.sequences.spread(self.mean_tokens(where(outside.any, 0.0, log_ratio)))) * advantages


@mutant("sapo.one-temperature", "GSPO-SURR-10", effect="bad responses decay as slowly as good ones")
class SapoOneTemperature(Reference):
    """SAPO with the temperature of A > 0 for both signs."""

    def temperature(self, advantages: Any, fields: Fields) -> NumPyArray:
        return np.full_like(stop(advantages), fields["tau_pos"])


@mutant("sapo.temperatures-swapped", "GSPO-SURR-10", effect="good responses decay faster than bad ones")
class SapoSwapped(Reference):
    """SAPO's temperatures change places."""

    def temperature(self, advantages: Any, fields: Fields) -> NumPyArray:
        return super().temperature(-stop(advantages), fields)


@mutant("sapo.unscaled", "GSPO-SURR-10", effect="the gradient is τ/4 of what it should be, on-policy too")
class SapoUnscaled(Reference):
    """SAPO without the factor 4/τ: the gate is no longer 1 on-policy."""

    def sapo_value(self, log_ratio: Any, advantages: Any, fields: Fields) -> Any:
        return super().sapo_value(log_ratio, advantages, fields) * self.temperature(advantages, fields) / 4


@mutant(
    "sapo.without-advantage",
    "GSPO-SURR-10",
    effect="good and bad responses are treated alike",
    seen=("arXiv:2511.20347",),
)
class SapoNoAdvantage(Reference):
    """SAPO's gate without the factor A: good and bad responses alike.

    One display of the paper prints it so.
    """

    def sapo_value(self, log_ratio: Any, advantages: Any, fields: Fields) -> Any:
        tau = self.temperature(advantages, fields)
        moves = (stop(advantages) != 0) & (stop(log_ratio) <= 30.0)
        ratio = self.ratio(where(moves, log_ratio, 0.0))
        return where(stop(advantages) != 0, 4 / tau / (1 + tape.exp((ratio - 1) * -tau)), 0.0)


@mutant(
    "sapo.times-ratio", "GSPO-SURR-10", effect="far from the old policy the gate no longer bounds what a token weighs"
)
class SapoTimesRatio(Reference):
    """SAPO's gate multiplied by the ratio: the soft gate taken for a weight of x A."""

    def gated(self, value: Any) -> Any:
        """The gate times A."""
        return value

    def sapo_value(self, log_ratio: Any, advantages: Any, fields: Fields) -> Any:
        moves = (stop(advantages) != 0) & (stop(log_ratio) <= 30.0)
        return self.gated(super().sapo_value(log_ratio, advantages, fields)) * self.ratio(where(moves, log_ratio, 0.0))


@mutant(
    "sapo.detached-gate",
    "GSPO-SURR-10",
    effect="tokens beyond the gate's flank are pushed on where their gradient should decay",
)
class SapoDetachedGate(SapoTimesRatio):
    """SAPO's gate detached and multiplied by the ratio: as CISPO does with its weight."""

    def gated(self, value: Any) -> Any:
        return stop(value)


@mutant(
    "vespo.normalised", "GSPO-SURR-11", effect="the kernel hardly acts: the normalised ratio never leaves its flat top"
)
class VespoNormalised(Reference):
    """VESPO's kernel on the length-normalised ratio instead of the product."""

    def product_unit(self) -> Any:
        kind = self.objective.get("surrogate", {}).get("kind")
        return self.sequence_unit() if kind == "vespo" else super().product_unit()


@mutant("vespo.signs-swapped", "GSPO-SURR-11", effect="good responses get the shape meant for bad ones")
class VespoSwapped(Reference):
    """VESPO's shapes for the two signs of A change places."""

    def shape(self, advantages: Any, fields: Fields) -> tuple[NumPyArray, NumPyArray]:
        return super().shape(-stop(advantages) - 1e-30, fields)


@mutant(
    "vespo.attached-kernel",
    "GSPO-GRAD-5",
    effect="the gradient has a second term, log π times the derivative of the kernel",
)
class VespoAttached(Reference):
    """VESPO's kernel not detached: the gradient flows through it too."""

    def vespo_value(self, log_ratio: Any, advantages: Any, fields: Fields) -> Any:
        return self.weighted(self.kernel(log_ratio, advantages, fields), advantages)


@mutant("vespo.no-decay", "GSPO-SURR-11", effect="the weight grows without limit where the kernel should damp it")
class VespoNoDecay(Reference):
    """VESPO without e^{λ(1-x)}: x^k alone, which does not damp."""

    def shape(self, advantages: Any, fields: Fields) -> tuple[NumPyArray, NumPyArray]:
        k, lam = super().shape(advantages, fields)
        return k, lam * 0


@mutant("ratio.cap-silences-weights", "GSPO-RATIO-6", effect="what CISPO is for, a gradient for every token, is undone")
class CapSilencesWeights(Reference):
    """No gradient beyond the cap for surrogates that weight the log-probability: the weight was to stop, not the token."""

    def weighted(self, weight: Any, advantages: Any) -> Any:
        found, cap = super().weighted(weight, advantages), self.objective["log_ratio_cap"]
        if cap is None:
            return found
        return where(self.clean(stop(self.unit(self.objective["ratio"]))) > cap, stop(found), found)


@mutant(
    "ratio.cap-open", "GSPO-RATIO-6", effect="a log-ratio of exactly the cap has no gradient; frameworks disagree there"
)
class CapOpen(Reference):
    """A cap that holds what is exactly at it: no gradient there."""

    def capped(self, log_ratio: Any) -> Any:
        cap = self.objective["log_ratio_cap"]
        return log_ratio if cap is None else where(stop(log_ratio) < cap, log_ratio, cap)


@mutant("gmpo.cap-after-clip", "GSPO-RATIO-6", effect="the cap does nothing where GMPO's own bound is met")
class GmpoCapAfterClip(Reference):
    """GMPO's bounds on the log-ratios before the cap: beyond both, its own bound counts, not the tighter cap."""

    def held_tokens(self, log_ratio: NumPyArray, advantages: Any, fields: Fields) -> Outside:
        return super().held_tokens(self.clean(stop(self.log_ratio())), advantages, fields)


@mutant("ratio.product-clamped", "GSPO-RATIO-6", effect="long responses that left the old policy all weigh the same")
class ProductClamped(Reference):
    """The log of the product held within ±10 though nobody asked for it."""

    def product_unit(self) -> Any:
        total = super().product_unit()
        return where(np.abs(stop(total)) <= 10.0, total, 10.0 * np.sign(stop(total)))
