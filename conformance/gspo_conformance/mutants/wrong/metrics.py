"""Wrong metrics: the loss is right, and what is read off the dashboard is not."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...tensors import NumPyArray
from ..registry import mutant
from ..surrogates import Outside
from ..tape import exp, stop
from ..whole import Reference


@mutant("metrics.clip-two-sided", "GSPO-METRIC-1", effect="about twice the fraction, most of it not clipped at all")
class ClipTwoSided(Reference):
    """Every unit outside the range counted as clipped, whatever the sign of A."""

    def clipped(self) -> Outside:
        found, surrogate = super().clipped(), self.objective["surrogate"]
        if surrogate["kind"] != "clip":
            return found
        x, (low, high) = self.ratio(stop(self.unit_log_ratio())), self.bounds(surrogate)
        moved = self.advantages != 0
        return Outside(moved & (x < low), moved & (x > high), found.dual & (x <= high))


@mutant(
    "metrics.clip-by-response",
    "GSPO-METRIC-1",
    effect="a long clipped response counts as much as a short one",
    seen=("huggingface/trl#6380",),
)
class ClipByResponse(Reference):
    """The clip fraction as a mean over responses of their own fractions: long ones count no more than short ones."""

    def share(self, tokens: NumPyArray) -> Any:
        return self.mean_tokens(tokens.astype(float)).sum() / self.sequences.number


@mutant("metrics.clip-zero", "GSPO-METRIC-1", effect="a run that is clipped everywhere looks healthy")
class ClipZero(Reference):
    """A clip fraction that is always 0.

    Measured on a ratio that was clipped already.
    """

    def clipped(self) -> Outside:
        found = super().clipped()
        none = np.zeros_like(found.low)
        return Outside(none, none, none)


@mutant("metrics.clip-zero-advantage", "GSPO-METRIC-1", effect="groups without a signal look clipped")
class ClipZeroAdvantage(Reference):
    """Units with A = 0 counted as clipped where their ratio is out of range."""

    def clipped(self) -> Outside:
        found, surrogate = super().clipped(), self.objective["surrogate"]
        if surrogate["kind"] != "clip":
            return found
        x, (low, high) = self.ratio(stop(self.unit_log_ratio())), self.bounds(surrogate)
        zero = self.advantages == 0
        return Outside(found.low | zero & (x < low), found.high | zero & (x > high), found.dual)


@mutant("metrics.clip-sides-swapped", "GSPO-METRIC-1", effect="the wrong bound is widened")
class SidesSwapped(Reference):
    """The fractions clipped below and above change names."""

    def clipped(self) -> Outside:
        found = super().clipped()
        return Outside(found.high, found.low, found.dual)


@mutant("metrics.clip-dual-missing", "GSPO-METRIC-1", effect="what the dual bound drops is not seen")
class DualMissing(Reference):
    """Units at the dual bound not counted as clipped."""

    def clipped(self) -> Outside:
        found = super().clipped()
        return found._replace(dual=np.zeros_like(found.dual))


@mutant(
    "metrics.clip-over-padding",
    "GSPO-METRIC-1",
    effect="the fraction shrinks with the padding, or exceeds 1",
    seen=("alibaba/ROLL#444",),
)
class ClipOverPadding(Reference):
    """The clip fraction over every position of the batch, padding included."""

    def share(self, tokens: NumPyArray) -> Any:
        return self.sum_tokens(tokens.astype(float)).sum() / max(self.sequences.counted.size, 1)


@mutant(
    "metrics.ratio-with-padding",
    "GSPO-METRIC-2",
    effect="the smallest ratio is always 1 or 0, the mean is pulled there",
)
class RatioWithPadding(Reference):
    """Ratio statistics over every position, padding included, where the ratio is 1."""

    def units(self) -> NumPyArray:
        found = super().units()
        return np.append(found, np.ones(np.count_nonzero(~self.sequences.counted)))


@mutant(
    "metrics.ratio-from-one",
    "GSPO-METRIC-2",
    effect="a policy that moved to one side alone is logged as one that also stood still",
)
class RatioFromOne(Reference):
    """The search for the smallest and the largest ratio begun at 1: a smallest above 1, or a largest below it, is never seen."""

    def metric_ratio_min(self) -> Any:
        return min(super().metric_ratio_min(), 1.0)

    def metric_ratio_max(self) -> Any:
        return max(super().metric_ratio_max(), 1.0)


@mutant("metrics.ratio-of-tokens", "GSPO-METRIC-2", effect="the spread of tokens is taken for that of responses")
class RatioOfTokens(Reference):
    """Ratio statistics over tokens although the ratio is that of the response."""

    def units(self) -> NumPyArray:
        return exp(self.moved())


@mutant("metrics.ratio-mean-of-logs", "GSPO-METRIC-2", effect="the logged mean ratio is below the true one")
class RatioMeanOfLogs(Reference):
    """e to the mean log-ratio instead of the mean ratio."""

    def metric_ratio_mean(self) -> Any:
        units = self.units()
        return np.exp(np.log(units).mean()) if units.size else 1.0


@mutant("metrics.ratio-without-gate", "GSPO-METRIC-2", effect="how far the policy has moved is not seen")
class RatioWithoutGate(Reference):
    """A mean ratio of 1 for REINFORCE without a gate: what the loss has no use for is not computed."""

    def metric_ratio_mean(self) -> Any:
        surrogate = self.objective["surrogate"]
        ungated = surrogate["kind"] == "reinforce" and surrogate["gate"] is None
        return 1.0 if ungated else super().metric_ratio_mean()


@mutant("metrics.ratio-by-length", "GSPO-METRIC-2", effect="long responses dominate the logged ratio")
class RatioByLength(Reference):
    """The mean ratio weighted by length: taken over tokens after the ratio was laid on them."""

    def metric_ratio_mean(self) -> Any:
        found = self.ratio(stop(self.unit_log_ratio()))[self.sequences.counted]
        return found.mean() if found.size else 1.0


@mutant("metrics.kl-k1", "GSPO-METRIC-3", effect="the logged divergence can be negative")
class KlK1(Reference):
    """-d averaged instead of e^d - 1 - d: it can be negative."""

    def metric_approx_kl(self) -> Any:
        moved = self.moved()
        return -moved.mean() if moved.size else 0.0


@mutant(
    "metrics.kl-minus-ratio",
    "GSPO-METRIC-3",
    effect="-1 on-policy, where 0 is due",
    seen=("OpenRLHF/OpenRLHF@feeb0283",),
)
class KlMinusRatio(Reference):
    """Minus the ratio instead of minus its logarithm: -1 on-policy."""

    def metric_approx_kl(self) -> Any:
        moved = self.moved()
        return -exp(moved).mean() if moved.size else 0.0


@mutant("metrics.kl-half-square", "GSPO-METRIC-3", effect="right near 1, too small where the policy has moved")
class KlHalfSquare(Reference):
    """d²/2 averaged instead of e^d - 1 - d."""

    def metric_approx_kl(self) -> Any:
        moved = self.moved()
        return (moved * moved / 2).mean() if moved.size else 0.0


@mutant("metrics.kl-reversed", "GSPO-METRIC-3", effect="the other divergence is logged")
class KlReversed(Reference):
    """e^{-d} - 1 + d: the divergence the other way round."""

    def metric_approx_kl(self) -> Any:
        moved = self.moved()
        return (np.expm1(-moved) + moved).mean() if moved.size else 0.0


@mutant("metrics.kl-by-response", "GSPO-METRIC-3", effect="short responses dominate the logged divergence")
class KlByResponse(Reference):
    """The divergence as a mean over responses of their means: short ones count as much as long ones."""

    def metric_approx_kl(self) -> Any:
        moved = stop(self.new) - self.old_logp
        return self.mean_tokens(np.expm1(moved) - moved).sum() / self.sequences.number


@mutant("metrics.sample-size-share", "GSPO-METRIC-4", effect="a share is read as a number")
class SampleShare(Reference):
    """The effective sample size divided by the number of units."""

    def metric_effective_sample_size(self) -> Any:
        return super().metric_effective_sample_size() / max(self.units().size, 1)


@mutant("metrics.sample-size-inverse", "GSPO-METRIC-4", effect="a collapse looks like a recovery")
class SampleInverse(Reference):
    """Σx² / (Σx)²: the effective sample size upside down."""

    def metric_effective_sample_size(self) -> Any:
        return 1 / (super().metric_effective_sample_size() or 1.0)


@mutant(
    "metrics.penalty-with-coefficient", "GSPO-METRIC-5", effect="runs with different coefficients cannot be compared"
)
class PenaltyWithCoefficient(Reference):
    """The KL penalty logged after its coefficient."""

    def metric_kl_penalty(self) -> Any:
        penalty = self.objective["penalty"]
        return super().metric_kl_penalty() * (1.0 if penalty is None else penalty["coefficient"])


@mutant("metrics.tokens-padded", "GSPO-METRIC-6", effect="throughput and normalisers are too large by the padding")
class TokensPadded(Reference):
    """Every position counted in the number of tokens."""

    def metric_num_tokens(self) -> Any:
        return float(self.sequences.counted.size)


@mutant("metrics.sequences-non-empty", "GSPO-METRIC-6", effect="filtered responses disappear from the count")
class SequencesNonEmpty(Reference):
    """Only responses with a counted token in the number of sequences."""

    def metric_num_sequences(self) -> Any:
        return float(np.count_nonzero(self.lengths()))


@mutant(
    "metrics.ratio-is-one-approximately",
    "GSPO-METRIC-7",
    effect="the check that old and new are scored alike passes when they are not",
)
class RatioIsOneApproximately(Reference):
    """ "Exactly one" within a tolerance of 1e-3: rescoring noise passes for on-policy."""

    def metric_ratio_is_one(self) -> Any:
        return float(np.all(np.abs(self.moved()) < 1e-3))


@mutant(
    "metrics.ratio-is-one-by-response", "GSPO-METRIC-7", effect="moves that cancel within a response pass for on-policy"
)
class RatioIsOneByResponse(Reference):
    """ "Exactly one" asked of responses: moves that cancel within one pass for on-policy."""

    def metric_ratio_is_one(self) -> Any:
        return float(not np.any(stop(self.sequence_log_ratio())))


@mutant("metrics.clip-without-clip", "GSPO-METRIC-1", effect="an objective that never clips looks clipped")
class ClipWithoutClip(Reference):
    """Units more than 0.2 from 1 counted as clipped although the surrogate clips nothing.

    The metric of a token-level trainer, independent of its loss.
    """

    def clipped(self) -> Outside:
        found = super().clipped()
        if self.objective["surrogate"]["kind"] not in ("unclipped", "sapo", "vespo"):
            return found
        x, moved = self.ratio(stop(self.unit_log_ratio())), self.advantages != 0
        return found._replace(low=moved & (x < 0.8), high=moved & (x > 1.2))


@mutant("metrics.penalty-without-penalty", "GSPO-METRIC-5", effect="a penalty is watched that does not exist")
class PenaltyWithoutPenalty(Reference):
    """A KL penalty reported where the objective has none: the divergence from the old policy under its name."""

    def metric_kl_penalty(self) -> Any:
        return self.metric_approx_kl() if self.objective["penalty"] is None else super().metric_kl_penalty()


@mutant("metrics.approx-kl-capped", "GSPO-METRIC-3", effect="the divergence looks bounded where it is not")
class ApproxKlCapped(Reference):
    """approx_kl of capped log-ratios: what the cap hides from the loss is hidden from the log too."""

    def metric_approx_kl(self) -> Any:
        cap, moved = self.objective["log_ratio_cap"], self.moved()
        moved = moved if cap is None else np.minimum(moved, cap)
        return (np.expm1(moved) - moved).mean() if moved.size else 0.0
