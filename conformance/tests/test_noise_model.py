"""The noise model: closed forms against simulation, limits, inverses, rounding, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gspo_core as gspo
from gspo_conformance.noise import (
    Mismatch,
    clip_fraction,
    clip_probabilities,
    effective_share,
    length_outside,
    mean_ratio,
    quantisation_std,
    required_clip,
    stored_dtype,
)
from gspo_conformance.noise.simulation import LENGTHS, PAPER, SHAPES, compare, mismatch_of, simulate
from gspo_conformance.spec_numbers import round_to

WIDE = gspo.Clip(0.2, 0.27)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", LENGTHS[:3])
def test_spread_and_clip_fraction_are_what_simulation_finds(shape: str, length: int) -> None:
    found = compare(shape, length)
    heavy = 0.006 if shape in ("bursts", "student") else 0.0
    assert found.spread == pytest.approx(1, abs=0.04)
    assert found.simulated == pytest.approx(found.predicted, abs=3 * found.error + heavy)
    assert found.tail == pytest.approx(0.01, abs=3 * found.tail_error + heavy)


def test_without_the_correlation_the_prediction_would_be_wrong() -> None:
    found = compare("correlated", 512)
    independent = clip_fraction(Mismatch(0.05, -2e-4), PAPER, 512)
    assert found.simulated - independent > 5 * found.error


def test_the_clip_fraction_is_the_metric_of_the_core() -> None:
    length, count = 256, 4096
    logp = simulate("independent", length, count)[:, None]
    signs = np.resize([1.0, -1.0], count)
    loss = gspo.gspo_loss(logp, np.zeros_like(logp), signs, np.ones_like(logp, dtype=bool))
    expected = clip_fraction(mismatch_of("independent"), PAPER, length)
    assert float(loss.metrics["clip_fraction"]) == pytest.approx(expected, abs=0.025)
    assert float(loss.metrics["ratio_mean"]) == pytest.approx(mean_ratio(Mismatch(0.05, -2e-4), length), abs=2e-4)
    share = float(loss.metrics["effective_sample_size"]) / count
    assert share == pytest.approx(effective_share(Mismatch(0.05, -2e-4), length), abs=2e-6)


def test_the_sample_size_of_the_product_of_ratios() -> None:
    drawn = 8 * simulate("independent", 64, 4096)
    ratio = np.exp(8 * drawn - np.mean(8 * drawn))
    share = float(np.sum(ratio) ** 2 / np.sum(ratio**2) / ratio.size)
    assert effective_share(Mismatch(0.05), 64, "product") == pytest.approx(math.exp(-0.16))
    assert share == pytest.approx(math.exp(-0.16), abs=0.02)


def test_response_level_spread_does_not_fall_with_length() -> None:
    mixed = Mismatch(0.05, between=1e-3)
    assert mixed.log_ratio_std(10**12) == pytest.approx(1e-3)
    assert mixed.log_ratio_std(2500) == pytest.approx(math.hypot(1e-3, 1e-3))
    assert mixed.log_ratio_std(2500, "product") == pytest.approx(2.5 * math.sqrt(2))
    assert mixed.log_ratio_std(2500, "token") == pytest.approx(math.hypot(0.05, 1e-3))


def test_a_single_token_has_no_neighbours_and_a_long_response_the_limit() -> None:
    correlated = Mismatch(0.05, correlation=0.5)
    assert correlated.inflation(1) == pytest.approx(1)
    assert correlated.inflation(2) == pytest.approx(1.5)
    assert correlated.inflation(10**9) == pytest.approx(3)
    assert Mismatch(0.05, correlation=-0.5).inflation(10**9) == pytest.approx(1 / 3)


def test_without_noise_the_gate_is_a_step_that_is_open_at_the_bound() -> None:
    inside = clip_probabilities(Mismatch(0.0), PAPER, [1, 1000])
    assert not np.any(inside.low)
    assert not np.any(inside.high)
    assert clip_probabilities(Mismatch(0.0, -0.0015), PAPER, 10).low == 1
    assert clip_probabilities(Mismatch(0.0, math.log1p(4e-4)), PAPER, 10).high == 0


def test_tails_far_out_keep_their_digits() -> None:
    high = clip_probabilities(Mismatch(0.01), gspo.Clip(0.2, math.expm1(0.1)), 1).high
    assert float(high) == pytest.approx(7.61985302416e-24, rel=1e-9)


def test_half_of_all_responses_are_outside_up_to_a_length() -> None:
    length = length_outside(Mismatch(0.05), PAPER)
    tails = clip_probabilities(Mismatch(0.05), PAPER, length)
    assert float(tails.low + tails.high) == pytest.approx(0.5, abs=1e-6)
    assert length_outside(Mismatch(0.05, -0.0015), PAPER) == math.inf
    assert length_outside(Mismatch(0.05), WIDE) == 0


def test_the_required_range_clips_as_much_as_was_asked_and_nothing_narrower_does() -> None:
    lengths, noise = [64, 300, 4096], Mismatch(0.05, -1e-3, correlation=0.3)
    clip = required_clip(noise, lengths, 0.02)
    tails = clip_probabilities(noise, clip, lengths)
    assert np.mean(tails.low) == pytest.approx(0.02, rel=1e-6)
    assert np.mean(tails.high) == pytest.approx(0.02, rel=1e-6)
    assert required_clip(Mismatch(0.0, -0.01), 10).low == pytest.approx(-math.expm1(-0.01), rel=1e-6)
    with pytest.raises(ValueError, match=r"share: expected a number between 0 and 0\.5, got 0\.5"):
        required_clip(noise, lengths, 0.5)


def test_weights_are_by_token_for_the_metric_of_the_specification() -> None:
    noise, lengths = Mismatch(0.05), np.array([10, 100_000])
    plain, weighted = clip_fraction(noise, PAPER, lengths), clip_fraction(noise, PAPER, lengths, weights=lengths)
    assert plain > 0.25 > 0.05 > weighted


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_adds_the_spread_that_is_predicted(dtype: str) -> None:
    stream = np.random.RandomState(0)
    old = -stream.gamma(0.25, 1.0, size=200_000)
    new = old + 0.02 * stream.standard_normal(old.size)
    error = round_to(new, dtype) - round_to(old, dtype) - (new - old)
    assert np.std(error) == pytest.approx(quantisation_std(dtype, old), rel=0.05)
    assert np.std(error) == pytest.approx(quantisation_std(dtype), rel=0.08)


def test_bits_betray_the_dtype() -> None:
    values = -np.random.RandomState(1).gamma(0.25, 1.0, size=500)
    for dtype in ("bfloat16", "float16"):
        assert stored_dtype(round_to(values, dtype).astype(np.float32)) == dtype
    assert stored_dtype(values.astype(np.float32)) is None
    assert stored_dtype(np.zeros(500)) is None
    assert stored_dtype(np.array([np.nan, -np.inf, -1.0, -0.5])) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"std": -1.0}, "std: expected a finite number of at least 0, got -1.0"),
        ({"std": math.nan}, "std: expected a finite number of at least 0, got nan"),
        ({"std": 0.1, "bias": math.inf}, "bias: expected a finite number, got inf"),
        ({"std": 0.1, "correlation": 1.0}, "correlation: expected a number between -1 and 1, got 1.0"),
    ],
)
def test_bad_parameters_are_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mismatch(**arguments)
