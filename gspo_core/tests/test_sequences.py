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


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: gspo.Padded([[1]]), TypeError, "mask: expected an array, got list"),
        (lambda: gspo.Padded(np.ones((2, 3, 1))), ValueError, r"mask: expected shape \[B, T\] with at least one sequence, got \(2, 3, 1\)"),
        (lambda: gspo.Padded(np.full((1, 2), 2)), ValueError, "mask: expected only 0 and 1, got 2 other values"),
        (lambda: gspo.Packed([0, 1]), TypeError, "offsets: expected an array, got list"),
        (lambda: gspo.Packed(np.zeros((2, 1), int)), ValueError, r"offsets: expected shape .*, got \(2, 1\)"),
        (lambda: gspo.Packed(np.asarray([0])), ValueError, r"offsets: expected shape .*, got \(1,\)"),
        (lambda: gspo.Packed(np.asarray([0, 1]), mask=[1]), TypeError, "mask: expected an array, got list"),
        (lambda: gspo.Packed(np.asarray([0, 1]), mask=np.ones((1, 1))), ValueError, r"mask: expected 1 dimension \[N\], got shape \(1, 1\)"),
        (lambda: gspo.Packed(np.asarray([0, 1]), mask=np.full(1, 0.5)), ValueError, "mask: expected only 0 and 1"),
        (lambda: gspo.Packed(np.asarray([0, 3, 3]), max_length=2), ValueError, "max_length: expected at least the longest segment, 3, got 2"),
        (lambda: gspo.Packed(np.asarray([0, 3, 3]), max_length=np.zeros(0)), TypeError, "max_length: expected an integer, got ndarray"),
        (lambda: gspo.Packed(np.asarray([2, 3])), ValueError, "offsets: expected the first to be 0, got 2"),
        (lambda: gspo.Packed(np.asarray([0, 3])).bind((2,), "values"), ValueError,
         "offsets: expected the last to be at most 2, the number of tokens in values, got 3"),
        (lambda: gspo.Packed(np.asarray([0, 1, 9])).bind((2,)), ValueError, "offsets: expected the last to be at most 2, .* logp, got 9"),
        (lambda: gspo.Packed(np.asarray([0, 3])).bind((3, 1), "values"), ValueError, r"values: expected 1 dimension \[N\] .* shape \(3, 1\)"),
        (lambda: gspo.Padded(np.ones((1, 2))).bind((2,), "values"), ValueError, r"values: expected 2 dimensions \[B, T\] .* shape \(2,\)"),
        (lambda: gspo.Padded(np.ones((1, 2))).bind((2, 1), "values"), ValueError, r"mask: expected shape \(2, 1\) like values, got \(1, 2\)"),
        (lambda: gspo.Packed(np.asarray([0, 3]), mask=np.ones(3)).bind((4,), "values"), ValueError,
         r"mask: expected shape \(4,\) \(like values\), got \(3,\)"),
    ],
)  # fmt: skip
def test_sequences_that_are_none(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        build()


def test_the_smallest_sequences_and_the_exact_bounds() -> None:
    assert gspo.Packed(np.asarray([0, 3, 3]), max_length=3).bind((3,)).num_sequences == 2
    assert gspo.Packed(np.asarray([0, 0])).bind((0,)).token_shape == (0,)
    assert gspo.Padded(np.ones((1, 0))).bind((1, 0)).num_sequences == 1
    layout = gspo.Packed(np.asarray([0, 2, 3]), mask=np.asarray([1, 0, 1, 1])).bind((4,))
    assert layout.counted.tolist() == [True, False, True, False]
    assert layout.lengths(np.float64).tolist() == [1.0, 1.0]
    assert layout.lengths(np.float32).dtype == np.float32
    assert layout.spread(np.asarray([5.0, 7.0])).tolist() == [5.0, 5.0, 7.0, 5.0], "a tail holds anything finite"
    assert layout.max_length == 2, "what a table of segments costs is their longest"
    assert gspo.Packed(np.asarray([0, 2, 3, 7])).bind((9,)).max_length == 4
    assert gspo.Packed(np.asarray([0, 2, 3, 7]), max_length=6).bind((9,)).max_length == 6
    assert gspo.Packed(np.asarray([0, 2, 3, 7]), max_length=60).bind((9,)).max_length == 9


def test_masks_become_booleans_and_narrow_offsets_wide() -> None:
    assert gspo.Padded(np.ones((1, 2))).mask.dtype == bool
    packed = gspo.Packed(np.asarray([0, 2], "int8"), mask=np.asarray([1, 0]))
    assert (packed.mask.dtype, packed.offsets.dtype) == (bool, np.int32)
    for wide in ("int32", "int64", "uint32"):
        assert gspo.Packed(np.asarray([0, 2], wide)).offsets.dtype == wide
    assert gspo.Packed(np.asarray([0, 2], "uint64")).offsets.dtype == "int64"
