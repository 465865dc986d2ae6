"""What a mismatch alone will do at given lengths: clip fractions, and what to do about them, in plain words."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from gspo_core import Clip

from ..spec_numbers import PRECISIONS
from ..tensors import NumPyArray
from .model import Mismatch, Tails, clip_fraction, clip_probabilities, effective_share, length_outside, required_clip
from .precision import quantisation_std
from .words import number, percent, plain, span, thousands

QUIET, LOUD = 0.005, 0.05
RECOMPUTE = (
    "Recompute old_logp with the kernels, batch shapes and dtype that score logp: the first mini-batch then has "
    "s = 1 exactly (GSPO-DATA-5)."
)
CORRECT = (
    "Keep the rollout engine's log-probabilities out of the ratio: as behavior_logp of a correction they do not "
    "move the gate (GSPO-CORR-5)."
)


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def widen(clip: Clip, share: float) -> str:
    """The advice to take a wider range, and its price."""
    bounds = f"{number(clip.low)} / {number(clip.high)}"
    return f"Widen the range to {bounds}: noise then clips at most {percent(share)} of either sign, and the policy may move that far unclipped."


@dataclass(frozen=True)
class Row:
    """One length: the spread of log s, and the share of responses whose gate closes."""

    length: float
    std: float
    positive: float
    negative: float
    clipped: float


@dataclass(frozen=True)
class Forecast:
    """Mismatch, range and lengths, and what follows from them; `dtype` is what the log-probabilities are stored in.

    `distribution`: the lengths are those of a run's responses, and shares are of its tokens; otherwise each stands for itself.
    """

    mismatch: Mismatch
    clip: Clip
    lengths: NumPyArray
    dtype: str = "float32"
    positive: float = 0.5
    target: float = 0.01
    distribution: bool = False

    @cached_property
    def rounding(self) -> float:
        """σ_q: what storing log-probabilities of typical size in `dtype` adds to σ."""
        return quantisation_std(self.dtype) if self.dtype != "float32" else 0.0

    @cached_property
    def total(self) -> Mismatch:
        """The mismatch with the rounding: σ² + σ_q²."""
        return replace(self.mismatch, std=math.hypot(self.mismatch.std, self.rounding))

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The lengths that were asked for; the quantiles of a distribution."""
        shown = np.unique(self.lengths)
        if self.distribution and shown.size > 7:
            shown = np.unique(np.quantile(self.lengths, [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1], method="nearest"))
        return tuple(self._row(float(length)) for length in shown)

    def _row(self, length: float) -> Row:
        tails = self.tails(length)
        high, low = float(tails.high), float(tails.low)
        clipped = self.positive * high + (1 - self.positive) * low
        return Row(length, float(self.total.log_ratio_std(length)), high, low, clipped)

    def tails(self, lengths: Any) -> Tails:
        """P(clipped | A < 0) and P(clipped | A > 0)."""
        return clip_probabilities(self.total, self.clip, lengths)

    @cached_property
    def clip_fraction(self) -> float:
        """Over all lengths, weighted by tokens (GSPO-METRIC-1)."""
        return clip_fraction(self.total, self.clip, self.lengths, positive=self.positive, weights=self.lengths)

    @cached_property
    def half_outside(self) -> float:
        """The length up to which half of all responses lie outside the range."""
        return length_outside(self.total, self.clip)

    @cached_property
    def required(self) -> Clip:
        """The range that noise closes for at most `target` of the responses of either sign."""
        return required_clip(self.total, self.lengths, self.target)

    @cached_property
    def bounds_away(self) -> float:
        """The distance from b to the nearer bound of the range in standard deviations, at the shortest length; < 0 outside."""
        low, high = math.log1p(-min(self.clip.low, 1 - 1e-12)), math.log1p(self.clip.high)
        room = min(self.total.bias - low, high - self.total.bias)
        std = float(np.max(self.total.log_ratio_std(self.lengths)))
        return room / std if std else math.copysign(math.inf, room)

    @cached_property
    def systematic(self) -> bool:
        """Whether the bias is far more than noise of this spread explains where the old policy sampled the tokens."""
        return self.total.bias < 3 * self.total.implied_bias and self._biased

    @property
    def _biased(self) -> bool:
        return abs(self.total.bias) > 0.25 * (self.clip.low if self.total.bias < 0 else self.clip.high)

    @property
    def verdict(self) -> str:
        """One or two sentences: what clip fraction to expect without any learning."""
        clipped, low, high = self._shares()
        if self._worst < QUIET:
            return f"Mismatch alone clips {clipped}: what is clipped beyond that is change of the policy."
        told = f"Mismatch alone clips {clipped}: {low} of those with A < 0, {high} of those with A > 0."
        if self._worst < LOUD:
            return f"{told} Subtract it before you read a clip fraction."
        return f"{told} A clip fraction of this size says nothing about learning."

    @property
    def _worst(self) -> float:
        return self.clip_fraction if self.distribution else max(row.clipped for row in self.rows)

    def _shares(self) -> tuple[str, str, str]:
        """All, A < 0 and A > 0 in words: of a distribution its mean over tokens, of single lengths from least to most."""
        if self.distribution:
            tails = self.tails(self.lengths)
            low, high = (percent(float(np.average(part, weights=self.lengths))) for part in tails)
            return f"{percent(self.clip_fraction)} of the tokens", low, high
        clipped, low, high = (
            span([getattr(row, name) for row in self.rows]) for name in ("clipped", "negative", "positive")
        )
        return f"{clipped} of the responses", low, high

    @property
    def reasons(self) -> list[str]:
        """Why: bias, spread, rounding, the width of the range."""
        return [reason for reason in (self._bias(), self._spread(), self._rounding(), self._dead()) if reason]

    def _bias(self) -> str | None:
        if not self._biased:
            return None
        bias, implied = self.total.bias, number(self.total.implied_bias)
        side, width = ("ε_low", self.clip.low) if bias < 0 else ("ε_high", self.clip.high)
        size = f"is {number(abs(bias) / width)} times {side}" if width else f"is beyond the range, whose {side} is 0"
        told = f"The bias {size}, and no length averages it out."
        if self.systematic:
            return f"{told} Noise of this spread explains {implied} of it (-σ²/2): look for other weights, another temperature, or a truncated distribution."
        if bias < self.total.implied_bias / 3:
            return f"{told} It is of the size {implied} (-σ²/2) that tokens sampled from the old policy imply."
        return told

    def _spread(self) -> str | None:
        if not float(np.min(self.lengths)) <= self.half_outside < math.inf:
            return None
        return f"Half of all responses lie outside the range up to {thousands(self.half_outside)} tokens."

    def _rounding(self) -> str | None:
        if not self.rounding:
            return None
        told = f"Storing log-probabilities in {self.dtype} adds {number(self.rounding)} to the spread of a token (typical ones, -0.25 on average)"
        if max(self.clip.low, self.clip.high) > 2.0 ** (1 - PRECISIONS[self.dtype]):
            return f"{told}."
        return f"{told}; a ratio computed in {self.dtype} has no value in this range but 1."

    def _dead(self) -> str | None:
        if not 6 <= self.bounds_away < math.inf:
            return None
        near = number(min(self.clip.low, self.clip.high))
        return f"The nearer bound is {number(self.bounds_away)} standard deviations away: only a policy that changes by {near} per token, averaged over a response, reaches it. If a run never clips, this range is dead."

    @property
    def advice(self) -> list[str]:
        """What to do, the best first; nothing where mismatch does not matter."""
        if self._worst < QUIET:
            return []
        steps = [RECOMPUTE]
        if self.rounding > 0.1 * self.total.std:
            steps.append("Keep log-probabilities in float32 (GSPO-NUM-1).")
        if self.systematic:
            return steps
        steps.append(f"Or {_lower(widen(self.required, self.target))}")
        return [*steps, CORRECT] if self._biased else steps

    def record(self) -> dict[str, Any]:
        """Plain JSON values; an infinite length is null."""
        return {
            "version": 1,
            "mismatch": asdict(self.mismatch),
            "dtype": self.dtype,
            "rounding_std": self.rounding,
            "clip": {"low": self.clip.low, "high": self.clip.high},
            "positive": self.positive,
            "lengths": [asdict(row) for row in self.rows],
            "responses": int(self.lengths.size),
            "clip_fraction": self.clip_fraction,
            "half_outside_up_to": self.half_outside if math.isfinite(self.half_outside) else None,
            "required_clip": {"share": self.target, "low": self.required.low, "high": self.required.high},
            "effective_share": effective_share(self.total, self.lengths),
            "product_effective_share": effective_share(self.total, self.lengths, "product"),
            "verdict": plain(self.verdict),
            "reasons": [plain(reason) for reason in self.reasons],
            "advice": [plain(step) for step in self.advice],
        }
