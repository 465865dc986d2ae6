"""log s ~ N(b, ω² + σ² τ(T)/T): the log-ratio of a response of T tokens whose policy has not changed.

Per token d_t = b + ω z + σ x_t: a bias b, one standard normal z per response, and noise x_t of variance 1
with autocorrelation φ^k. The mean over T tokens is normal, exactly for Gaussian noise and nearly so for
any noise of finite variance; `simulation` measures how nearly. τ(T) = 1 for independent tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gspo_core import Clip

from ..tensors import NumPyArray

RATIOS = ("sequence", "gspo_token", "token", "product")
_LONGEST = 1 << 40
# e to this is still a float64.
_LARGEST = 700.0


@dataclass(frozen=True)
class Mismatch:
    """Noise of the token log-ratio: spread σ, bias b, autocorrelation φ of neighbours, spread ω between responses.

    >>> Mismatch(0.05).log_ratio_std(2500).item()
    0.001
    >>> round(Mismatch(0.05).implied_bias, 5)
    -0.00125
    """

    std: float
    bias: float = 0.0
    correlation: float = 0.0
    between: float = 0.0

    def __post_init__(self) -> None:
        _check("std", self.std, 0.0)
        _check("between", self.between, 0.0)
        _check("bias", self.bias)
        if not -1 < self.correlation < 1:
            raise ValueError(f"correlation: expected a number between -1 and 1, got {self.correlation!r}")

    @property
    def implied_bias(self) -> float:
        """-σ²/2: E[d] where the old policy sampled the tokens and d is Gaussian, because then E[e^d] = 1."""
        return -(self.std**2) / 2

    def inflation(self, lengths: Any) -> NumPyArray:
        """τ(T) = (1+φ)/(1-φ) - 2φ(1-φ^T)/(T(1-φ)²): T·Var(mean of x) over T autocorrelated tokens."""
        length, phi = np.asarray(lengths, dtype=np.float64), self.correlation
        return (1 + phi) / (1 - phi) - 2 * phi * (1 - phi ** np.round(length)) / (length * (1 - phi) ** 2)

    def log_ratio_std(self, lengths: Any, ratio: str = "sequence") -> NumPyArray:
        """The standard deviation of log s; of one token's d, or of the sum over tokens, for the other ratios."""
        length = np.asarray(lengths, dtype=np.float64)
        if ratio == "token":
            return np.full_like(length, math.hypot(self.std, self.between))
        std = np.sqrt(self.between**2 + self.std**2 * self.inflation(length) / length)
        return std * length if ratio == "product" else std

    def log_ratio_mean(self, lengths: Any, ratio: str = "sequence") -> NumPyArray:
        """The mean of log s: b, and bT where the ratio is the product over tokens."""
        length = np.asarray(lengths, dtype=np.float64)
        return self.bias * (length if ratio == "product" else np.ones_like(length))


class Tails(NamedTuple):
    """P(s < 1-ε_low) and P(s > 1+ε_high): the clip fraction of negative and of positive responses."""

    low: NumPyArray
    high: NumPyArray


def clip_probabilities(mismatch: Mismatch, clip: Clip, lengths: Any, ratio: str = "sequence") -> Tails:
    """Φ((log(1-ε_low) - b)/sd) and Φ((b - log(1+ε_high))/sd), elementwise over `lengths`.

    >>> tails = clip_probabilities(Mismatch(0.05, -0.0015), Clip(3e-4, 4e-4), 4096)
    >>> round(tails.low.item(), 3), round(tails.high.item(), 4)
    (0.938, 0.0075)
    """
    std, mean = mismatch.log_ratio_std(lengths, ratio), mismatch.log_ratio_mean(lengths, ratio)
    below, above = math.log1p(-clip.low) if clip.low < 1 else -math.inf, math.log1p(clip.high)
    return Tails(_below((below - mean), std), _below((mean - above), std))


def _below(distance: NumPyArray, std: NumPyArray) -> NumPyArray:
    """Φ(distance/std); a step where there is no spread, open at the bound as the gate is."""
    z = np.divide(distance, std, out=np.where(distance > 0, np.inf, -np.inf), where=std > 0)
    return normal_cdf(z)


def normal_cdf(z: Any) -> NumPyArray:
    """Φ(z), to the last digits in both tails."""
    return np.vectorize(lambda value: math.erfc(-value / math.sqrt(2)) / 2, otypes=[float])(z)


def clip_fraction(
    mismatch: Mismatch,
    clip: Clip,
    lengths: Any,
    *,
    positive: float = 0.5,
    ratio: str = "sequence",
    weights: Any = None,
) -> float:
    """The expected clip fraction over responses of these lengths, a share `positive` of them with A > 0.

    `weights` are the lengths for the token-weighted fraction of GSPO-METRIC-1; responses weigh the same without.
    """
    tails = clip_probabilities(mismatch, clip, lengths, ratio)
    return float(np.average(positive * tails.high + (1 - positive) * tails.low, weights=weights))


def mean_ratio(mismatch: Mismatch, lengths: Any, ratio: str = "sequence") -> float:
    """E[s] = e^{b + v/2}, v = Var(log s), over responses of these lengths."""
    half = mismatch.log_ratio_std(lengths, ratio) ** 2 / 2
    return float(np.mean(np.exp(mismatch.log_ratio_mean(lengths, ratio) + half)))


def effective_share(mismatch: Mismatch, lengths: Any, ratio: str = "sequence") -> float:
    """(E s)²/E[s²] = e^{-v} at one length: the effective sample size of GSPO-METRIC-4 as a share of the responses."""
    variance, mean = mismatch.log_ratio_std(lengths, ratio) ** 2, mismatch.log_ratio_mean(lengths, ratio)
    first, second = mean + variance / 2, 2 * mean + 2 * variance
    top = max(float(np.max(first)), float(np.max(second)) / 2)
    return float(np.mean(np.exp(first - top)) ** 2 / np.mean(np.exp(second - 2 * top)))


def length_outside(mismatch: Mismatch, clip: Clip, share: float = 0.5) -> float:
    """The number of tokens from which on less than `share` of all responses lie outside the range; inf if never, 0 if always.

    >>> round(length_outside(Mismatch(0.05), Clip(3e-4, 4e-4)))
    9372
    """
    long, short = _outside(mismatch, clip, _LONGEST), _outside(mismatch, clip, 1)
    if long >= share or short < share:
        return math.inf if long >= share else 0.0
    low, high = 1.0, float(_LONGEST)
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _outside(mismatch, clip, middle) >= share else (low, middle)
    return high


def _outside(mismatch: Mismatch, clip: Clip, length: float) -> float:
    tails = clip_probabilities(mismatch, clip, length)
    return float(tails.low + tails.high)


def required_clip(mismatch: Mismatch, lengths: Any, share: float = 0.01, ratio: str = "sequence") -> Clip:
    """The narrowest range that clips at most `share` of the positive and of the negative responses by noise alone.

    >>> clip = required_clip(Mismatch(0.05), 2500, share=0.01)
    >>> round(clip.low, 6), round(clip.high, 6)
    (0.002324, 0.002329)
    """
    if not 0 < share < 0.5:
        raise ValueError(f"share: expected a number between 0 and 0.5, got {share!r}")
    distinct, counts = np.unique(np.asarray(lengths, dtype=np.float64), return_counts=True)
    std, mean = mismatch.log_ratio_std(distinct, ratio), mismatch.log_ratio_mean(distinct, ratio)
    low, high = (_quantile(sign * mean, std, counts / counts.sum(), share) for sign in (-1, 1))
    return Clip(low=-math.expm1(-low), high=math.expm1(min(high, _LARGEST)))


def _quantile(mean: NumPyArray, std: NumPyArray, weights: NumPyArray, share: float) -> float:
    """The smallest x >= 0 that a mixture of N(mean, std²) exceeds with a probability of at most `share`."""
    low, high = 0.0, float(np.max(np.abs(mean) + 40 * std)) + 1e-12
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if float(weights @ _below(mean - middle, std)) > share else (low, middle)
    return high


def lengths_of(values: Sequence[float]) -> NumPyArray:
    """Response lengths as an array: at least one, each a whole number of tokens of at least 1."""
    lengths = np.asarray(values, dtype=np.float64)
    if lengths.size == 0 or not np.all((lengths >= 1) & (lengths <= _LONGEST) & (lengths == np.floor(lengths))):
        raise ValueError(f"length: expected whole numbers from 1 to {_LONGEST:.0e}, got {list(values)[:5]}")
    return lengths


def _check(name: str, value: float, least: float = -math.inf) -> None:
    if not (math.isfinite(value) and value >= least):
        wanted = "a finite number" if least == -math.inf else f"a finite number of at least {least:g}"
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")
