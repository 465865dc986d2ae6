"""Wrong clipping: which units are held, at which bound, and what is left of their value and gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import tape
from ..registry import mutant
from ..surrogates import Fields, Outside
from ..tape import stop, where
from ..whole import Reference


@mutant(
    "clip.two-sided",
    "GSPO-SURR-2",
    effect="a good response that became less likely, and a bad one that became likelier, are no longer corrected",
    seen=("PrimeIntellect-ai/prime-rl#1123",),
)
class TwoSided(Reference):
    """Held outside the range on both sides, whatever the sign of A: corrections are lost.

    The range read as "discard what has moved", without the minimum.
    """

    def outside(self, x: Any, advantages: Any, clip: Fields) -> Outside:
        found, (low, high) = super().outside(x, advantages, clip), self.bounds(clip)
        moved = stop(advantages) != 0
        return Outside(moved & self.beyond(x, low), moved & self.beyond(high, x), found.dual & (x <= high))


@mutant(
    "clip.two-sided-mask",
    "GSPO-SURR-1",
    effect="as holding both sides, and the loss forgets what it dropped",
    seen=("PrimeIntellect-ai/prime-rl#1123",),
)
class TwoSidedMask(TwoSided):
    """Units outside the range dropped on both sides: neither value nor gradient.

    `loss * (ratio > low) * (ratio < high)`.
    """

    def held(self, open_: Any, ratio: Any, outside: Outside, clip: Fields) -> Any:
        return where(open_, ratio, 0.0)


@mutant("clip.mask", "GSPO-SURR-1", effect="the gradient is right; the reported loss jumps whenever a unit is clipped")
class Mask(Reference):
    """A clipped unit has value 0 where eq. 5 gives it the bound: the gradient is right, the loss is not.

    The gate multiplied onto the unclipped surrogate.
    """

    def held(self, open_: Any, ratio: Any, outside: Outside, clip: Fields) -> Any:
        return where(open_, ratio, 0.0)


@mutant(
    "clip.max-for-min",
    "GSPO-SURR-1",
    effect="the optimistic bound: steps that already went too far are rewarded further",
)
class MaxForMin(Reference):
    """The maximum of the clipped and the unclipped term: the optimistic bound.

    A loss is to be minimised, so its two terms take a maximum; the sign was already in the terms.
    """

    def outside(self, x: Any, advantages: Any, clip: Fields) -> Outside:
        return super().outside(x, -stop(advantages), clip)


@mutant(
    "clip.max-for-min-negative",
    "GSPO-SURR-2",
    effect="bad responses that became likelier are left alone, and those already suppressed are suppressed further",
    seen=("erfanzar/EasyDeL@154ff837",),
)
class InvertedNegative(Reference):
    """The maximum instead of the minimum where A < 0: the clip is inverted for bad responses.

    Ratios are clipped and compared before the multiplication by A.
    """

    def outside(self, x: Any, advantages: Any, clip: Fields) -> Outside:
        found, (_, high) = super().outside(x, advantages, clip), self.bounds(clip)
        above = (stop(advantages) < 0) & self.beyond(high, x)
        return Outside(np.zeros_like(found.low), found.high | above, found.dual & ~above)


@mutant("clip.range-swapped", "GSPO-SURR-3", effect="the two widths of the paper's range change places")
class Swapped(Reference):
    """The left and the right width of the range change places.

    `clip(x, 1 - high, 1 + low)`.
    """

    def bounds(self, clip: Fields) -> tuple[Any, Any]:
        return super().bounds({**clip, "low": clip["high"], "high": clip["low"]})


@mutant("clip.symmetric", "GSPO-SURR-3", effect="good responses are clipped earlier than they should be")
class Symmetric(Reference):
    """The left width on both sides: the right one is never read.

    A trainer with one `epsilon`; the other option falls back to it in silence.
    """

    def bounds(self, clip: Fields) -> tuple[Any, Any]:
        return super().bounds({**clip, "high": clip["low"]})


@mutant("clip.symmetric-right", "GSPO-SURR-3", effect="bad responses are clipped later than they should be")
class SymmetricRight(Reference):
    """The right width on both sides: the left one is never read.

    The one option of the trainer is set to the wider of the paper's two numbers.
    """

    def bounds(self, clip: Fields) -> tuple[Any, Any]:
        return super().bounds({**clip, "low": clip["high"]})


@mutant(
    "clip.low-added",
    "GSPO-SURR-3",
    effect="bad responses are held from the first step on: they train nothing",
)
class LowAdded(Reference):
    """The lower bound at 1 + low: the range begins above 1.

    `clamp(x, 1 + low, 1 + high)`, with a low that another trainer keeps negative.
    """

    def bounds(self, clip: Fields) -> tuple[Any, Any]:
        return 1 + clip["low"], 1 + clip["high"]


@mutant(
    "clip.default-range",
    "GSPO-SURR-3",
    effect="at 0.2 the clip of a sequence ratio never fires: GSPO without its clip",
    seen=("verl-project/verl#2775", "areal-project/AReaL#501"),
)
class DefaultRange(Reference):
    """The trainer's default range of 0.2 on both sides in place of the one asked for: nothing is clipped.

    The range of a token-level method inherited, or an option that is read under another name.
    """

    def bounds(self, clip: Fields) -> tuple[Any, Any]:
        return super().bounds({**clip, "low": 0.2, "high": 0.2})


@mutant(
    "clip.log-space",
    "GSPO-SURR-3",
    effect="invisible at 3e-4; a range of 0.3/0.4 becomes 0.74 to 1.49",
    seen=("arXiv:2507.20673",),
)
class LogSpace(Reference):
    """The range applied to the log-ratio: e^-low to e^high instead of 1 - low to 1 + high.

    GMPO's convention, carried over.
    """

    def bounds(self, clip: Fields) -> tuple[Any, Any]:
        return np.exp(-clip["low"]), np.exp(clip["high"])


@mutant(
    "clip.per-token",
    "GSPO-SURR-1",
    effect="tokens of one response are kept or dropped one by one, GRPO's noise is back",
)
class PerToken(Reference):
    """Clip decisions by the ratio of each token while the value is that of the sequence: tokens are clipped one by one.

    The mask of a token-level loss kept when the ratio was replaced.
    """

    def gate(self, log_ratio: Any, advantages: Any, clip: Fields) -> Outside:
        sequence = self.objective["ratio"] in ("sequence", "gspo_token")
        return super().gate(self.log_ratio() if sequence else log_ratio, advantages, clip)


@mutant(
    "clip.before-min",
    "GSPO-SURR-1",
    effect="no unit outside the range has a gradient any more, whatever its sign",
    seen=("PrimeIntellect-ai/prime-rl#1123",),
)
class BeforeMin(Reference):
    """The ratio clipped first, the minimum taken of equal terms: clip(x) A on both sides.

    The clipped ratio stored under the name of the ratio.
    """

    def clip_value(self, log_ratio: Any, advantages: Any, clip: Fields) -> Any:
        held = tape.clip(self.ratio(log_ratio), *self.bounds(clip))
        return where(stop(advantages) != 0, held, 0.0) * advantages


@mutant(
    "clip.loss-bounded",
    "GSPO-SURR-1",
    effect="the one wrong answer in a large group has |A| above 3, and never learns",
    seen=("alibaba/ChatLearn@b7af31a9",),
)
class LossBounded(Reference):
    """The loss of a response held at 3: where -J is larger there is no gradient.

    `clamp(max=3)` on the loss for stability, with the bound of a dual clip and without its ratio.
    """

    def clip_value(self, log_ratio: Any, advantages: Any, clip: Fields) -> Any:
        found = super().clip_value(log_ratio, advantages, clip)
        return where(stop(found) >= -3.0, found, -3.0)


@mutant("clip.branch-bounded", "GSPO-SURR-1", effect="the best of many responses trains no further than A = 3")
class BranchBounded(Reference):
    """The clipped term held within ±3: a good response with A > 3 has its bound, and no gradient.

    `min(x A, clamp(clip(x) A, -3, 3))`: a guard that the minimum lets through on one side alone.
    """

    def clip_value(self, log_ratio: Any, advantages: Any, clip: Fields) -> Any:
        found = super().clip_value(log_ratio, advantages, clip)
        if clip["dual"] is not None:
            return found
        low, high = self.bounds(clip)
        x = self.ratio(where(stop(advantages) != 0, log_ratio, 0.0))
        bad = tape.minimum(x * advantages, np.maximum(np.clip(stop(x), low, high) * stop(advantages), -3.0))
        return where(stop(advantages) < -3.0, bad, where(stop(found) > 3.0, 3.0, found))


@mutant("clip.none", "GSPO-SURR-1", effect="no trust region at all: the second mini-batch may go anywhere")
class NoClip(Reference):
    """No clipping: x A.

    The clip switched off by a range that is never applied.
    """

    def clip_value(self, log_ratio: Any, advantages: Any, clip: Fields) -> Any:
        return self.unclipped_value(log_ratio, advantages, clip)


@mutant("clip.no-lower", "GSPO-SURR-2", effect="bad responses are suppressed without limit")
class NoLower(Reference):
    """No lower bound: A < 0 is never clipped.

    `clamp(max=1 + high)` alone.
    """

    def outside(self, x: Any, advantages: Any, clip: Fields) -> Outside:
        found = super().outside(x, advantages, clip)
        return found._replace(low=np.zeros_like(found.low))


@mutant("clip.no-upper", "GSPO-SURR-2", effect="good responses are reinforced without limit")
class NoUpper(Reference):
    """No upper bound: A > 0 is never clipped.

    `clamp(min=1 - low)` alone.
    """

    def outside(self, x: Any, advantages: Any, clip: Fields) -> Outside:
        found = super().outside(x, advantages, clip)
        return found._replace(high=np.zeros_like(found.high))


@mutant(
    "clip.absolute-bounds",
    "GSPO-SURR-3",
    effect="an on-policy ratio of 1 is already far outside: good responses never learn",
)
class AbsoluteBounds(Reference):
    """The range read as absolute bounds: clip(x, low, high) instead of clip(x, 1 - low, 1 + high).

    CISPO's convention in one trainer, applied to the ratio of GSPO.
    """

    def bounds(self, clip: Fields) -> tuple[Any, Any]:
        return clip["low"], clip["high"]


@mutant(
    "clip.open-boundary",
    "GSPO-SURR-4",
    effect="a ratio exactly at a bound loses its gradient; rare, but frameworks then disagree",
)
class OpenBoundary(Reference):
    """A ratio exactly at a bound counts as outside: no gradient there.

    `>=` for `>`, or the derivative that a framework happens to give to min and clip at a tie.
    """

    def beyond(self, smaller: Any, larger: Any) -> Any:
        return smaller <= larger


@mutant("clip.half-at-boundary", "GSPO-SURR-4", effect="half the gradient exactly at a bound")
class HalfBoundary(Reference):
    """A ratio exactly at a bound has half its gradient: the derivative of a minimum at a tie, split evenly.

    What `jnp.minimum` and `lax.clamp` do by themselves.
    """

    def clip_value(self, log_ratio: Any, advantages: Any, clip: Fields) -> Any:
        found, x = super().clip_value(log_ratio, advantages, clip), self.ratio(stop(log_ratio))
        low, high = self.bounds(clip)
        tie = where((x == low) & (stop(advantages) < 0) | (x == high) & (stop(advantages) > 0), 0.5, 1.0)
        return found * tie + stop(found) * (1 - tie)


@mutant(
    "clip.dual-leak",
    "GSPO-SURR-5",
    effect="with the paper's range every bad response whose ratio exceeds 1.0006 loses its gradient",
)
class DualLeak(Reference):
    """A dual bound of 1 + 2 low that nobody asked for: bad responses that became likelier lose their gradient.

    The dual clip is on by default, and its constant is derived from the range.
    """

    def outside(self, x: Any, advantages: Any, clip: Fields) -> Outside:
        return super().outside(x, advantages, self._dual(clip))

    def held(self, open_: Any, ratio: Any, outside: Outside, clip: Fields) -> Any:
        return super().held(open_, ratio, outside, self._dual(clip))

    def _dual(self, clip: Fields) -> Fields:
        return {**clip, "dual": 1 + 2 * clip["low"] if clip["dual"] is None else clip["dual"]}


@mutant(
    "clip.dual-three",
    "GSPO-SURR-5",
    effect="bad responses beyond a ratio of 3 lose their gradient",
    seen=("hiyouga/EasyR1@b44b311",),
)
class DualThree(DualLeak):
    """A dual bound of 3 that nobody asked for: bad responses beyond it lose their gradient.

    The default of a token-level trainer.
    """

    def _dual(self, clip: Fields) -> Fields:
        return {**clip, "dual": 3.0 if clip["dual"] is None else clip["dual"]}


@mutant(
    "clip.dual-ignored", "GSPO-SURR-5", effect="the bound that was asked for does nothing", seen=("THUDM/slime#2247",)
)
class DualIgnored(Reference):
    """The dual bound not applied: A < 0 has no limit above.

    The option is parsed and not forwarded to the loss.
    """

    def outside(self, x: Any, advantages: Any, clip: Fields) -> Outside:
        return super().outside(x, advantages, {**clip, "dual": None})


@mutant("loss.sign", "GSPO-SURR-1", effect="the policy is trained to fail")
class Sign(Reference):
    """The objective where its negative is due: gradient descent goes the wrong way.

    The minus lost between a maximised objective and a minimised loss.
    """

    def policy_term(self) -> Any:
        return -super().policy_term()
