"""A run taken apart: mismatch where the policy cannot have changed, and by mini-batch what was clipped and what mismatch explains."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..audit.trace import Trace
from ..tensors import NumPyArray
from .estimate import BELIEVED, Estimate, estimate
from .model import Mismatch, Tails, clip_probabilities
from .responses import Gate, Reading, Responses, read_responses

# A mean square of log-ratios beyond this is no ratio of probabilities: sentinels such as -1e9, or an overflow.
_IMPOSSIBLE = 1e8


@dataclass(frozen=True)
class Minibatch:
    """One mini-batch over all rollouts: clip fractions seen and predicted from mismatch alone, mean and spread of log s.

    `error` is the standard error of seen - predicted were there nothing but mismatch: that of the estimate, and of so few responses.
    """

    index: int
    responses: int
    observed: float | None
    predicted: float | None
    error: float | None
    mean: float
    std: float
    outside: float
    unmoved: bool

    @property
    def explained(self) -> float | None:
        """The share of what was clipped that mismatch alone explains; None without a prediction or a clip."""
        if self.predicted is None or not self.observed:
            return None
        return min(1.0, self.predicted / self.observed)

    @property
    def beyond(self) -> bool:
        """Whether significantly more was clipped than mismatch alone explains."""
        if self.observed is None or self.predicted is None or self.error is None:
            return False
        return self.observed - self.predicted > BELIEVED * self.error


@dataclass(frozen=True, eq=False)
class Analysis:
    """What a trace says about noise. `first` is measured in the first mini-batch, `engine` between rollout engine and trainer."""

    reading: Reading

    @property
    def rows(self) -> Responses:
        """One row per response and optimiser step."""
        return self.reading.responses

    @property
    def gate(self) -> Gate | None:
        """The ratio and its range."""
        return self.reading.gate

    @property
    def response_gate(self) -> Gate | None:
        """The same where all tokens of a response have one ratio; None where each has its own."""
        return None if self.gate is None or self.gate.ratio == "token" else self.gate

    @cached_property
    def finite(self) -> Responses:
        """The rows whose log-ratios are numbers, of a size that log-probabilities can have."""
        rows = self.rows
        return rows.where(np.isfinite(rows.mean) & (rows.square < _IMPOSSIBLE))

    @cached_property
    def first(self) -> Estimate | None:
        """From d = logp - old_logp in the first mini-batch, where it should be 0."""
        rows = self.finite.of_minibatch(0)
        return estimate(rows.length, rows.mean, rows.square)

    @cached_property
    def engine(self) -> Estimate | None:
        """From old_logp - behavior_logp: the trainer at the old policy against the rollout engine."""
        rows = self.finite
        rows = rows.where(np.isfinite(rows.engine_mean) & (rows.engine_square < _IMPOSSIBLE))
        return estimate(rows.length, rows.engine_mean, rows.engine_square)

    @property
    def borrowed(self) -> bool:
        """Whether old_logp is, bit for bit, what the rollout engine said."""
        return self.engine is not None and self.engine.exact

    def predicted(self, rows: Responses, of: Estimate | None = None) -> float | None:
        """The clip fraction that mismatch alone gives at the lengths and signs of these rows, by tokens."""
        if of is not None and self.gate is not None and self.gate.ratio == "token":
            return None  # only the first mini-batch says how heavy the tails of single tokens are
        of = of or self.first
        if of is None or self.gate is None or not np.any(rows.positive + rows.negative):
            return None
        return float(np.average(self._closed(rows, of.mismatch), weights=rows.length))

    def _closed(self, rows: Responses, mismatch: Mismatch) -> NumPyArray:
        """The expected share of each response's tokens whose gate closes."""
        tails = self._tails(rows, mismatch)
        return (tails.high * rows.positive + tails.low * rows.negative) / rows.length

    def _tails(self, rows: Responses, mismatch: Mismatch) -> Tails:
        """What the gate closes of negative and of positive responses, by their lengths.

        Where tokens are clipped it is what was clipped of the first mini-batch: single tokens have heavy tails, and no
        mean over a response makes them normal.
        """
        assert self.gate is not None
        if self.gate.ratio == "token":
            first = self.finite.of_minibatch(0)
            return Tails(_rate(first.low, first.negative), _rate(first.high, first.positive))
        lengths, which = np.unique(rows.length, return_inverse=True)
        tails = clip_probabilities(mismatch, self.gate.clip, lengths, self.gate.ratio)
        return Tails(tails.low[which], tails.high[which])

    def error(self, rows: Responses) -> float | None:
        """The standard error of what is clipped around what is predicted, if mismatch alone acts; None without a prediction."""
        if self.predicted(rows) is None or self.first is None:
            return None
        of, weights = self.first, rows.length / rows.length.sum()
        share = self._closed(rows, of.mismatch)
        variance = float(np.sum(weights**2 * share * (1 - share)))
        for name, measured in (("bias", of.bias), ("std", of.std)):
            ends = (
                measured.value + measured.error,
                max(measured.value - measured.error, 0.0 if name == "std" else -math.inf),
            )
            up, down = (self._closed(rows, replace(of.mismatch, **{name: end})) for end in ends)
            variance += float(np.sum(weights * (up - down)) / 2) ** 2
        return math.sqrt(variance)

    def by_sign(self, rows: Responses, of: Estimate) -> tuple[float, float] | None:
        """The predicted clip fractions of the tokens with A < 0 and with A > 0."""
        if self.gate is None or not np.any(rows.positive + rows.negative):
            return None
        tails = self._tails(rows, of.mismatch)
        low, high = _rate(tails.low * rows.negative, rows.negative), _rate(tails.high * rows.positive, rows.positive)
        return float(low), float(high)

    @cached_property
    def minibatches(self) -> list[Minibatch]:
        """Every mini-batch that the run numbered."""
        return [self._minibatch(index) for index in self.finite.minibatches]

    def _minibatch(self, index: int) -> Minibatch:
        rows = self.finite.of_minibatch(index)
        return Minibatch(
            index,
            rows.number,
            _finite(rows.clip_fraction),
            self.predicted(rows),
            self.error(rows),
            float(np.mean(rows.mean)),
            float(np.std(rows.mean)),
            self._outside(rows),
            self._unmoved(index),
        )

    def _unmoved(self, index: int) -> bool:
        """Whether s is exactly 1 throughout, though an advantage before it in the rollout was not 0."""
        rows, every = self.finite.of_minibatch(index), self.finite
        pushed = every.where(every.advantage != 0)
        rollouts, first = np.unique(pushed.rollout, return_index=True)
        starts = dict(zip(rollouts.tolist(), pushed.step[first].tolist(), strict=True))
        later = any(
            step > starts.get(rollout, step) for rollout, step in set(zip(rows.rollout, rows.step, strict=True))
        )
        return bool(np.all(rows.zeros == rows.length)) and (not index or later)

    def _outside(self, rows: Responses) -> float:
        """The share of responses with s outside the range, whatever the sign of A; NaN without a range over responses."""
        gate = self.response_gate
        if gate is None:
            return math.nan
        (below, above), log_ratio = gate.bounds, gate.of_responses(rows)
        return float(np.mean((log_ratio < below) | (log_ratio > above)))

    def record(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "responses": self.rows.number,
            "first_minibatch": _estimate(self.first),
            "rollout_engine": _estimate(self.engine),
            "minibatches": [
                {
                    "index": one.index,
                    "responses": one.responses,
                    "clip_fraction": one.observed,
                    "predicted": one.predicted,
                    "error": one.error,
                    "log_ratio_mean": one.mean,
                    "log_ratio_std": one.std,
                }
                for one in self.minibatches
            ],
        }


def analyse(trace: Trace, gate: Gate | None = None) -> Analysis:
    """Reads a trace once; `gate` instead of that of the objective which the run claims."""
    return Analysis(read_responses(trace, gate))


def _rate(closed: NumPyArray, tokens: NumPyArray) -> NumPyArray:
    """Σ closed / Σ tokens, 0 without any."""
    total = np.sum(tokens)
    return np.sum(closed) / total if total else np.zeros(())


def _estimate(found: Estimate | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "std": found.std.value,
        "std_error": found.std.error,
        "bias": found.bias.value,
        "bias_error": found.bias.error,
        "inflation": found.inflation.value,
        "inflation_error": found.inflation.error,
        "between": found.mismatch.between,
        "responses": found.responses,
        "tokens": found.tokens,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
