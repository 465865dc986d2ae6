"""Reductions per sequence: exact lengths, accuracy at length, isolation, legal odd shapes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gspo_core as gspo

from .batches import EAGER


def test_zero_length_and_length_one_segments_and_a_tail(xp: Any) -> None:
    """Hunts boundary detection that merges length-1 segments, and a tail taken for a sequence (P3, P4)."""
    d = np.asarray([0.5, -1.0, 2.0, 4.0, 99.0])
    sequences = gspo.Packed(xp([0, 0, 1, 1, 2, 4, 4]))
    found = gspo.sequence_log_ratio(xp(d), xp(np.zeros(5)), sequences)
    np.testing.assert_array_equal(xp.numpy(found), [0.0, 0.5, 0.0, -1.0, 3.0, 0.0])
    token = gspo.token_log_ratio(xp(d), xp(np.zeros(5)), sequences)
    np.testing.assert_array_equal(xp.numpy(token), [0.5, -1.0, 2.0, 4.0, 0.0])


@pytest.mark.parametrize("length", [1, 512, 32768])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_the_mean_of_float32_log_ratios_is_accurate_at_any_length(xp: Any, length: int, layout: str) -> None:
    """16 units of roundoff of mean |d| (64 past 4096): sum(new) - sum(old) misses this by far (N3, N4)."""
    rng = np.random.default_rng(length)
    old = rng.normal(-2, 1, length).astype(np.float32)
    new = (old - 0.0015 + 0.02 * rng.normal(size=length)).astype(np.float32)
    d = new.astype(np.float64) - old
    truth, scale = math.fsum(d) / length, np.abs(d).mean()
    if layout == "padded":
        found = gspo.sequence_log_ratio(xp(new[None]), xp(old[None]), xp(np.ones((1, length), bool)))
    else:
        found = gspo.sequence_log_ratio(xp(new), xp(old), gspo.Packed(xp([0, length])))
    units = abs(float(found[0]) - truth) / (2**-24 * scale)
    assert units < (16 if length <= 4096 else 64)


def test_an_infinite_token_stays_in_its_segment(xp: Any) -> None:
    """Hunts differences of cumulative sums and one-hot products, which spoil every other segment."""
    new = xp(np.asarray([0.0, np.inf, 1.0, 2.0]))
    with gspo.value_checks(False):
        found = xp.numpy(gspo.sequence_log_ratio(new, xp(np.zeros(4)), gspo.Packed(xp([0, 2, 4]))))
    assert np.isinf(found[0])
    assert found[1] == 1.5


def test_a_mask_of_numbers_is_a_mask(xp: Any) -> None:
    logp, old = xp(np.asarray([[1.0, 2.0]])), xp(np.zeros((1, 2)))
    for dtype in ("bool", "int64", "float64"):
        found = gspo.sequence_log_ratio(logp, old, xp(np.asarray([[1, 0]], dtype)))
        assert float(found[0]) == 1.0


def test_a_batch_of_width_zero_is_legal(xp: Any) -> None:
    empty = xp(np.zeros((2, 0)))
    for objective in (gspo.Objective.gspo(), gspo.Objective.grpo(), gspo.Objective.gspo_token()):
        out = gspo.policy_loss(
            objective, logp=empty, old_logp=empty, advantages=xp([1.0, 2.0]), sequences=xp(np.zeros((2, 0), bool))
        )
        assert float(out.loss) == 0.0


@EAGER
def test_advantages_of_a_batch_of_width_zero_are_of_width_zero(xp: Any) -> None:
    empty = xp(np.zeros((2, 0)))
    for found in (
        gspo.whiten(empty, gspo.Padded(xp(np.zeros((2, 0), bool)))),
        gspo.reinforce_returns(empty, xp(np.zeros((2, 0), bool))),
        gspo.reinforce_pp_advantages(empty, xp(np.zeros((2, 0), bool)), groups=xp(np.asarray([0, 0]))),
        *gspo.gae_advantages(empty, empty, xp(np.zeros((2, 0), bool))),
    ):
        assert xp.numpy(found).shape == (2, 0)
