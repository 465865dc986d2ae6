"""b̂, σ̂, φ̂, ω̂ from responses whose policy has not changed, with standard errors that trust responses, not tokens.

Tokens of a response may be correlated, so every error is that of a sum over independent responses
(the sandwich form): (m_i - b)² has the expectation ω² + κ/T_i, κ = σ²τ, and is fitted by weighted least
squares. A correlation or a response-level spread is only believed when it is three standard errors from none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..tensors import NumPyArray
from .model import Mismatch

BELIEVED = 3.0
FEWEST = 8
# In units of the mean square of a token: what is less is rounding.
_LEAST = 1e-18
# A log-ratio below this is the rounding of float32, and a hundredth of the paper's clip width at most.
NEGLIGIBLE = 3e-6


@dataclass(frozen=True)
class Measured:
    """A number with its standard error."""

    value: float
    error: float

    @property
    def z(self) -> float:
        """The distance from 0 in standard errors."""
        return self.distance(0.0)

    def distance(self, other: float) -> float:
        """The distance from `other` in standard errors; infinite where there is no error, 0 where they are equal."""
        gap = abs(self.value - other)
        return gap / self.error if self.error > 0 else (math.inf if gap else 0.0)


@dataclass(frozen=True)
class Estimate:
    """A mismatch as it was measured.

    `inflation` is κ̂/σ̂², 1 for independent tokens; `slope` that of log sd(m) over log T, -1/2 for independent
    tokens, None where the lengths hardly differ.
    """

    mismatch: Mismatch
    bias: Measured
    std: Measured
    inflation: Measured
    slope: Measured | None
    responses: int
    tokens: int

    @property
    def exact(self) -> bool:
        """Whether every log-ratio is exactly 0."""
        return self.mismatch.std == 0 and self.mismatch.bias == 0

    @property
    def systematic(self) -> bool:
        """Whether the bias is significantly beyond three times the -σ²/2 that sampling implies, or above 0."""
        if abs(self.bias.value) < NEGLIGIBLE:
            return False
        limit = 3 * self.mismatch.implied_bias
        beyond = self.bias.value < limit and self.bias.distance(limit) > BELIEVED
        return beyond or (self.bias.value > -self.mismatch.implied_bias and self.bias.z > BELIEVED)


def estimate(lengths: NumPyArray, means: NumPyArray, squares: NumPyArray) -> Estimate | None:
    """The mismatch behind responses of T_i tokens with (1/T) Σ d = `means` and (1/T) Σ d² = `squares`.

    None with fewer than `FEWEST` responses: nothing could be said of the spread between them.
    """
    if len(lengths) < FEWEST:
        return None
    length = np.asarray(lengths, dtype=np.float64)
    unit = math.sqrt(float(np.average(squares, weights=length)))
    if unit == 0:
        return _exact(length)
    mean, square = means / unit, squares / unit**2
    bias = _weighted_mean(mean, length)
    floor, kappa = _spread_of_means(length, (mean - bias.value) ** 2)
    bias = _weighted_mean(mean, 1 / np.maximum(floor.value + kappa.value / length, _LEAST))
    total = _weighted_mean(square - 2 * bias.value * mean + bias.value**2, length)
    between = floor.value if floor.z > BELIEVED else 0.0
    variance = max(total.value - between, 0.0)
    std = math.sqrt(variance)
    # Few squares that happen to be alike hide how far their mean is off: normal means have at least √(2/n).
    error = max(kappa.error / max(variance, _LEAST), math.sqrt(2 / len(length)))
    inflation = Measured(kappa.value / variance, error) if variance > _LEAST else Measured(1.0, 0.0)
    spread = Measured(unit * std, unit * total.error / (2 * std) if std else 0.0)
    bias = Measured(unit * bias.value, unit * bias.error)
    mismatch = Mismatch(spread.value, bias.value, _correlation(inflation), unit * math.sqrt(between))
    slope = _slope(length, (means - bias.value) ** 2)
    return Estimate(mismatch, bias, spread, inflation, slope, len(length), int(length.sum()))


def _exact(length: NumPyArray) -> Estimate:
    nothing = Measured(0.0, 0.0)
    return Estimate(Mismatch(0.0), nothing, nothing, Measured(1.0, 0.0), None, len(length), int(length.sum()))


def _weighted_mean(values: NumPyArray, weights: NumPyArray) -> Measured:
    mean = float(np.average(values, weights=weights))
    share = weights / weights.sum()
    return Measured(mean, float(np.sqrt(np.sum((share * (values - mean)) ** 2))))


def _spread_of_means(length: NumPyArray, squares: NumPyArray) -> tuple[Measured, Measured]:
    """ω² and κ in E (m_i - b)² = ω² + κ/T_i; lengths that hardly differ cannot tell them apart, and ω² is 0 then."""
    inverse = 1 / length
    alone = _kappa(inverse, squares)
    if np.std(np.log(length)) < 0.2:
        return Measured(0.0, 0.0), alone
    floor, kappa = Measured(0.0, 0.0), alone
    for _ in range(8):
        weights = 1 / np.maximum(floor.value + kappa.value * inverse, _LEAST) ** 2
        floor, kappa = _least_squares(inverse, squares, weights)
        if floor.value <= 0:
            return Measured(0.0, floor.error), alone
        if kappa.value <= 0:
            kappa = Measured(0.0, kappa.error)
            break
    return (floor, kappa) if floor.z > BELIEVED else (floor, alone)


def _kappa(inverse: NumPyArray, squares: NumPyArray) -> Measured:
    """κ alone: the mean of T_i (m_i - b)²."""
    scaled = squares / inverse
    return Measured(float(np.mean(scaled)), float(np.std(scaled) / math.sqrt(len(scaled))))


def _least_squares(inverse: NumPyArray, squares: NumPyArray, weights: NumPyArray) -> tuple[Measured, Measured]:
    """Intercept and slope of `squares` over `inverse`, with sandwich errors; weights are scaled, or they overflow."""
    root = np.sqrt(weights / weights.max())
    design = np.stack([np.ones_like(inverse), inverse], axis=1) * root[:, None]
    scale = np.linalg.norm(design, axis=0)
    bread = np.linalg.pinv((design / scale).T @ (design / scale))
    found = bread @ ((design / scale).T @ (squares * root))
    residual = squares * root - design / scale @ found
    meat = (design / scale * residual[:, None]).T @ (design / scale * residual[:, None])
    errors = np.sqrt(np.maximum(np.diag(bread @ meat @ bread), 0)) / scale
    floor, kappa = found / scale
    return Measured(float(floor), float(errors[0])), Measured(float(kappa), float(errors[1]))


def _correlation(inflation: Measured) -> float:
    """φ with (1+φ)/(1-φ) = τ where τ is believed to differ from 1."""
    if inflation.distance(1.0) < BELIEVED or inflation.value <= 0:
        return 0.0
    return (inflation.value - 1) / (inflation.value + 1)


def _slope(length: NumPyArray, squares: NumPyArray) -> Measured | None:
    """Of log sd(m) over log T by least squares on the logarithms of single squares."""
    chosen = squares > 0
    x, y = np.log(length[chosen]), np.log(squares[chosen]) / 2
    if len(x) < FEWEST or np.std(x) < 0.2:
        return None
    x, y = x - x.mean(), y - y.mean()
    weight = float(x @ x)
    slope = float(x @ y) / weight
    residual = y - slope * x
    return Measured(slope, float(np.sqrt(np.sum((x * residual) ** 2))) / weight)
