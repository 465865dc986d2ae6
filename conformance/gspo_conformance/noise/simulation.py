"""The model held against simulation: spread and clip fraction for noise of four shapes, all of the same b and σ.

Every response is drawn token by token with NumPy's frozen `RandomState` stream and gated as GSPO-SURR-2
says. `independent` noise is Gaussian; `correlated` a first-order autoregression; with `bursts` a tenth of
the tokens carries nine tenths of the variance; `student` is Student's t with three degrees of freedom, which
has no fourth moment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from gspo_core import Clip

from ..tensors import NumPyArray
from .model import Mismatch, clip_fraction, required_clip

PAPER = Clip(3e-4, 4e-4)
LENGTHS = (16, 64, 512, 2048)
BASE = Mismatch(std=0.05, bias=-2e-4)
CORRELATION = 0.5
TAIL = 0.01
_COUNT = 4096


class Comparison(NamedTuple):
    """One shape of noise at one length: what the model says, what was drawn, and two standard errors of the latter.

    `tail` is the clip fraction at the range that `required_clip` gives for `TAIL`: far out, where shapes differ most.
    """

    shape: str
    length: int
    spread: float
    predicted: float
    simulated: float
    error: float
    tail: float
    tail_error: float


def _gaussian(stream: np.random.RandomState, count: int, length: int) -> NumPyArray:
    return stream.standard_normal((count, length))


def _correlated(stream: np.random.RandomState, count: int, length: int) -> NumPyArray:
    """x_t = φ x_{t-1} + √(1-φ²) e_t, stationary from the first token."""
    fresh = stream.standard_normal((length, count))
    fresh[1:] *= math.sqrt(1 - CORRELATION**2)
    for t in range(1, length):
        fresh[t] += CORRELATION * fresh[t - 1]
    return fresh.T


def _bursts(stream: np.random.RandomState, count: int, length: int) -> NumPyArray:
    """A normal of variance 9.1 at a tenth of the tokens, of variance 0.1 at the others."""
    loud = stream.random_sample((count, length)) < 0.1
    return stream.standard_normal((count, length)) * np.sqrt(np.where(loud, 9.1, 0.1))


def _student(stream: np.random.RandomState, count: int, length: int) -> NumPyArray:
    return stream.standard_t(3, size=(count, length)) / math.sqrt(3)


SHAPES: dict[str, Callable[[np.random.RandomState, int, int], NumPyArray]] = {
    "independent": _gaussian,
    "correlated": _correlated,
    "bursts": _bursts,
    "student": _student,
}


def mismatch_of(shape: str) -> Mismatch:
    """The model's parameters for a shape: only the correlation differs."""
    return replace(BASE, correlation=CORRELATION) if shape == "correlated" else BASE


def simulate(shape: str, length: int, count: int = _COUNT, seed: int = 0) -> NumPyArray:
    """The log-ratios of `count` responses of `length` tokens, in float64."""
    stream = np.random.RandomState(seed + length)
    rows = max(1, (1 << 20) // length)
    parts = [_means(shape, stream, min(rows, count - begin), length) for begin in range(0, count, rows)]
    return BASE.bias + BASE.std * np.concatenate(parts)


def _means(shape: str, stream: np.random.RandomState, count: int, length: int) -> NumPyArray:
    return np.mean(SHAPES[shape](stream, count, length), axis=1)


def compare(shape: str, length: int, clip: Clip = PAPER) -> Comparison:
    """Model and simulation; every response is gated with A > 0 and with A < 0, at the range `clip` and far out."""
    log_ratio, model = simulate(shape, length), mismatch_of(shape)
    share, error = _clipped(log_ratio, clip)
    tail, tail_error = _clipped(log_ratio, required_clip(model, length, TAIL))
    spread = float(np.std(log_ratio) / model.log_ratio_std(length))
    return Comparison(shape, length, spread, clip_fraction(model, clip, length), share, error, tail, tail_error)


def _clipped(log_ratio: NumPyArray, clip: Clip) -> tuple[float, float]:
    """The clip fraction where each response is taken with either sign, and its standard error."""
    ratio = np.exp(log_ratio)
    outside = float(np.mean((ratio > 1 + clip.high) | (ratio < 1 - clip.low)))
    return outside / 2, math.sqrt(outside * (1 - outside) / log_ratio.size) / 2


def comparisons() -> list[Comparison]:
    """Every shape at every length."""
    return [compare(shape, length) for shape in SHAPES for length in LENGTHS]
