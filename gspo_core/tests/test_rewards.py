"""Rewards before they become advantages: numbers against scalar arithmetic, invariances, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mpf

import gspo_core as gspo
from gspo_core import (
    RunningMoments,
    clip_rewards,
    informative_groups,
    normalize_rewards,
    soft_overlong_penalty,
    token_kl_rewards,
)

from . import exact
from .exact import assert_close

DTYPES = ("float32", "float64")
SWITCHES = [(True, True), (True, False), (False, True), (False, False)]
GROUPS = np.asarray([4, -1, 4, 4, -1, 7])
REWARDS = np.asarray([0.5, 2.0, -1.25, 0.125, 2.5, 3.0])


def _truth(rewards: np.ndarray, over: list[Any], shift: bool, scale: bool, ddof: float, eps: float) -> list[mpf]:
    """(r - mean) / (std + eps) with the statistics of `over`, by the two switches; no std from too few."""
    mean, below = exact.average(over), exact.divisor(over, ddof, eps, "std")
    return [(number - mean * shift) / (below if scale else 1) for number in exact.exact(rewards)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shift", "scale"), SWITCHES)
@pytest.mark.parametrize("ddof", [0, 1])
def test_over_the_batch(xp: Any, dtype: str, shift: bool, scale: bool, ddof: int) -> None:
    rewards = REWARDS.astype(dtype)
    found = normalize_rewards(xp(rewards), shift=shift, scale=scale, ddof=ddof)
    assert_close(xp.numpy(found), _truth(rewards, exact.exact(rewards), shift, scale, ddof, 1e-6), 4.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shift", "scale"), SWITCHES)
def test_over_the_group(xp: Any, dtype: str, shift: bool, scale: bool) -> None:
    rewards = REWARDS.astype(dtype)
    found = xp.numpy(normalize_rewards(xp(rewards), method="group", groups=xp(GROUPS), shift=shift, scale=scale))
    for group in set(GROUPS):
        members = rewards[group == GROUPS]
        truth = _truth(members, exact.exact(members), shift, scale, 1, 1e-6)
        assert_close(found[group == GROUPS], truth, [max(1.0, abs(float(value))) * 8 for value in truth])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shift", "scale"), SWITCHES)
def test_over_the_stream(xp: Any, dtype: str, shift: bool, scale: bool) -> None:
    batches = [REWARDS[:1], REWARDS[1:4], REWARDS[4:]]
    running = RunningMoments()
    for batch in batches:
        running = running.update(xp(batch.astype(dtype)))
    found = normalize_rewards(
        xp(batches[-1].astype(dtype)), method="running", running=running, shift=shift, scale=scale
    )
    truth = _truth(batches[-1], exact.exact(REWARDS), shift, scale, 1, 1e-6)
    assert_close(xp.numpy(found), truth, 4.0)


def test_no_method_changes_nothing(xp: Any) -> None:
    np.testing.assert_array_equal(xp.numpy(normalize_rewards(xp(REWARDS), method=None)), REWARDS)


@given(rewards=st.lists(st.integers(-64, 64), min_size=3, max_size=12), cuts=st.lists(st.integers(1, 11), max_size=3))
@settings(max_examples=40, deadline=None)
def test_another_split_of_the_stream_gives_the_same_moments(rewards: list[int], cuts: list[int]) -> None:
    numbers = np.asarray(rewards) / 16
    split = RunningMoments()
    for part in np.split(numbers, sorted({cut for cut in cuts if cut < len(numbers)})):
        split = split.update(part)
    whole = RunningMoments().update(numbers)
    assert int(split.count) == int(whole.count)
    np.testing.assert_allclose(split.mean, whole.mean, atol=1e-13)
    np.testing.assert_allclose(split.m2, whole.m2, atol=1e-11)


def test_moments_of_a_stream_far_from_zero_do_not_cancel() -> None:
    """Hunts E[x²] - E[x]² in the merge."""
    stream = 1e6 + np.asarray([0.0, 1.0, 2.0, 3.0])
    running = RunningMoments().update(stream[:2]).update(stream[2:])
    np.testing.assert_allclose(running.m2, 5.0, rtol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_rewards_shift_to_exactly_zero(xp: Any, dtype: str) -> None:
    rewards = xp(np.full(7, 0.1, dtype))
    for options in ({}, {"method": "group", "groups": xp(np.zeros(7, int))}):
        assert not xp.numpy(normalize_rewards(rewards, **options)).any()


def test_clip_with_a_bound_of_zero_is_a_clip(xp: Any) -> None:
    """Hunts `if high:`, which takes the bound 0 for none (GSPO-REWARD-1)."""
    assert xp.numpy(clip_rewards(xp(np.asarray([-2.0, 0.5, 3.0])), -1.0, 0.0)).tolist() == [-1.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_kl_in_the_reward(xp: Any, dtype: str) -> None:
    """The reward stands on the last *counted* token, wherever the mask ends; an empty response drops it."""
    mask = np.asarray([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=bool)
    rng = np.random.default_rng(0)
    logp, ref = (np.where(mask, rng.integers(-64, 0, mask.shape) / 16, np.nan).astype(dtype) for _ in range(2))
    rewards = np.asarray([1.0, -0.5, 9.0], dtype)
    found = xp.numpy(token_kl_rewards(xp(rewards), xp(logp), xp(ref), xp(mask), coefficient=0.25))
    truth = np.where(mask, -0.25 * (logp - ref), 0)
    truth[0, 2] += 1.0
    truth[1, 3] -= 0.5
    np.testing.assert_array_equal(found, truth)
    offsets = xp(np.asarray([0, 4, 8, 12]))
    flat = [xp(array.reshape(-1)) for array in (logp, ref)]
    packed = gspo.Packed(offsets, mask=xp(mask.reshape(-1)))
    np.testing.assert_array_equal(
        xp.numpy(token_kl_rewards(xp(rewards), *flat, packed, coefficient=0.25)), truth.reshape(-1)
    )


@pytest.mark.parametrize("dtype", ["int64", "float32", "float64"])
def test_the_overlong_penalty_has_two_corners(xp: Any, dtype: str) -> None:
    lengths = xp(np.asarray([0, 80, 81, 90, 100, 101, 10_000]).astype(dtype))
    found = xp.numpy(soft_overlong_penalty(lengths, 100, 20))
    np.testing.assert_allclose(found, [0, 0, -0.05, -0.5, -1, -1, -1], rtol=1e-6)


def test_groups_that_say_something(xp: Any) -> None:
    """Equal fractions are equal, a group of one says nothing, and bounds on the mean are strict."""
    rewards = np.concatenate([np.full(7, 0.1, "float32"), [0.0, 1.0, 1.0, 1.0, 0.9, 1.0]]).astype("float32")
    groups = np.asarray([3] * 7 + [-2, -2, 5, 5, 8, 8])
    order = np.random.default_rng(0).permutation(groups.size)
    found = xp.numpy(informative_groups(xp(rewards[order]), xp(groups[order])))
    assert found.dtype == bool
    assert found.tolist() == np.isin(groups, [-2, 8])[order].tolist()
    bounded = xp.numpy(informative_groups(xp(rewards), xp(groups), low=0.5, high=0.99))
    assert bounded.tolist() == (groups == 8).tolist()
    assert not xp.numpy(informative_groups(xp(rewards), xp(groups), high=0.5)).any()


def test_a_group_whose_share_of_ones_is_the_bound_is_dropped(xp: Any) -> None:
    """2 of 12 is not below 2/12 and 5 of 12 not above 5/12, whatever the mean is rounded to."""
    for wins in (2, 4, 5):
        rewards, groups = xp((np.arange(12) < wins).astype("float32")), xp(np.zeros(12, int))
        for bounds in ({"low": wins / 12}, {"high": wins / 12}):
            assert not xp.numpy(informative_groups(rewards, groups, **bounds)).any(), wins


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r, g: normalize_rewards(r, method="median"), ValueError, "method: expected one of"),
        (
            lambda r, g: normalize_rewards(r, method="group"),
            ValueError,
            "groups: expected with method='group', got None",
        ),
        (lambda r, g: normalize_rewards(r, groups=g), ValueError, "groups: expected None with method='batch'"),
        (lambda r, g: normalize_rewards(r, method="running"), ValueError, "running: expected with method"),
        (lambda r, g: normalize_rewards(r, method="running", running=RunningMoments()), ValueError, "update first"),
        (lambda r, g: normalize_rewards(r, method="running", running=3), TypeError, "running: expected a Run"),
        (lambda r, g: normalize_rewards(r, ddof=-1), ValueError, "ddof: expected a number >= 0"),
        (lambda r, g: clip_rewards(r, 1.0, 0.0), ValueError, "high"),
        (lambda r, g: soft_overlong_penalty(g, 10, 0), ValueError, "cache: expected a number > 0"),
        (lambda r, g: soft_overlong_penalty(g, 10, 20), ValueError, "max_length: expected a number >= 20"),
        (
            lambda r, g: soft_overlong_penalty(np.asarray([3, -1, -2]), 10, 4),
            ValueError,
            r"lengths: expected numbers >= 0, got 2 below, the first at index \(1,\)",
        ),
        (lambda r, g: informative_groups(r, g[:1]), ValueError, r"groups: expected shape \(2,\)"),
        (lambda r, g: token_kl_rewards(r, r, r, g, coefficient=0.1), ValueError, r"mask: expected shape \[B, T\]"),
        (
            lambda r, g: token_kl_rewards(r, r[:, None], r[:, None], r[:, None] * 0 + 1, coefficient=-0.1),
            ValueError,
            "coefficient: expected a number >= 0",
        ),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(np.asarray([1.0, 0.0]), np.asarray([0, 1]))


def test_a_stream_too_short_for_a_std_is_not_divided() -> None:
    one = RunningMoments().update(np.asarray([3.0]))
    assert normalize_rewards(np.asarray([3.0]), method="running", running=one, shift=False).tolist() == [3.0]
    two = one.update(np.asarray([5.0]))
    for ddof, std in ((0.0, 1.0), (1.0, 2**0.5), (1.5, 2.0), (2.0, 1.0)):
        found = normalize_rewards(np.asarray([5.0]), method="running", running=two, ddof=ddof, eps=0.0)
        np.testing.assert_allclose(found, [1.0 / std])


def test_the_reward_of_an_empty_response_may_be_anything() -> None:
    tokens, mask = np.full((2, 2), -1.0), np.asarray([[True, True], [False, False]])
    for nothing in (np.nan, np.inf):
        found = token_kl_rewards(np.asarray([0.5, nothing]), tokens, tokens, mask, coefficient=0.1)
        assert found.tolist() == [[0.0, 0.5], [0.0, 0.0]]
    with pytest.raises(ValueError, match=r"^rewards: expected finite numbers at counted positions, got 1 NaN or inf"):
        token_kl_rewards(np.asarray([np.nan, 0.5]), tokens, tokens, mask, coefficient=0.1)
    with pytest.raises(ValueError, match=r"^rewards: expected shape \(2,\) \(one reward per sequence\), got \(3,\)$"):
        token_kl_rewards(np.ones(3), tokens, tokens, mask, coefficient=0.1)


def test_the_widest_of_rewards_and_log_probabilities_computes() -> None:
    for wide in ("rewards", "logp", "ref_logp", ""):
        arrays = {"rewards": np.ones(1), "logp": np.ones((1, 3)), "ref_logp": np.ones((1, 3))}
        given = {name: array if name == wide else array.astype("float32") for name, array in arrays.items()}
        found = token_kl_rewards(sequences=np.ones((1, 3), bool), coefficient=0.5, **given)
        assert found.dtype == ("float64" if wide else "float32")


def test_statistics_that_the_method_does_not_read_are_refused() -> None:
    rewards, ids, running = np.ones(2), np.zeros(2, int), RunningMoments().update(np.ones(2))
    for arguments, error, message in (
        ({"groups": ids}, ValueError, "groups: expected None with method='batch', got ndarray"),
        ({"running": running}, ValueError, "running: expected None with method='batch', got RunningMoments"),
        ({"method": "group"}, ValueError, "groups: expected with method='group', got None"),
        ({"method": "running"}, ValueError, "running: expected with method='running', got None"),
        ({"method": "running", "running": 3.0}, TypeError, "running: expected a RunningMoments, got float"),
    ):
        with pytest.raises(error, match=f"^{message}$"):
            normalize_rewards(rewards, **arguments)


def test_the_overlong_penalty_of_one_response_and_of_none() -> None:
    assert soft_overlong_penalty(np.asarray([9]), 10, 2).tolist() == [-0.5]
    for lengths in (np.zeros(0, int), np.ones((1, 1), int)):
        with pytest.raises(ValueError, match=r"^lengths: expected shape \[n\] with at least one response, got \("):
            soft_overlong_penalty(lengths, 10, 2)


def test_running_moments_go_on_from_three_numbers(xp: Any) -> None:
    """What a checkpoint holds is enough, in any framework."""
    first, then = xp(np.asarray([1.0, 0.0, 0.5])), xp(np.asarray([0.25, 1.0]))
    running = RunningMoments().update(first)
    restored = RunningMoments(int(running.count), float(running.mean), float(running.m2))
    for before, after in ((running, restored), (running.update(then), restored.update(then))):
        expected, found = (normalize_rewards(then, method="running", running=one) for one in (before, after))
        np.testing.assert_allclose(xp.numpy(found), xp.numpy(expected), rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": -3}, "count: expected a number >= 0, got -3"),
        ({"count": float("nan")}, "count: expected a finite number, got nan"),
        ({"count": True}, "count: expected a number, got bool"),
        ({"mean": np.ones(2)}, r"mean: expected shape \(\) \(one number\), got \(2,\)"),
        ({"mean": np.asarray(np.nan)}, "mean: expected finite numbers, got 1 NaN or inf"),
        ({"m2": -1.0}, "m2: expected a number >= 0, got -1.0"),
        ({"m2": np.asarray(-1.0)}, "m2: expected numbers >= 0, got 1 below"),
        ({"m2": np.asarray(np.inf)}, "m2: expected finite numbers, got 1 NaN or inf"),
    ],
)
def test_what_are_no_moments_is_refused(changes: dict[str, Any], message: str) -> None:
    """Hunts rewards that are returned undivided, or as NaN, by moments that no rewards have."""
    rewards = np.asarray([1.0, 2.0])
    running = RunningMoments().update(rewards)._replace(**changes)
    for function in (running.update, lambda given: normalize_rewards(given, method="running", running=running)):
        with pytest.raises((TypeError, ValueError), match=f"^{message}"):
            function(rewards)


def test_no_coefficient_no_kl() -> None:
    """Hunts 0 times a KL that overflowed."""
    tokens = np.asarray([[-200.0, -1.0]], "float32"), np.asarray([[0.0, -1.0]], "float32"), np.ones((1, 2), bool)
    found = token_kl_rewards(np.ones(1, "float32"), *tokens, coefficient=0, estimator="k3")
    assert found.tolist() == [[0.0, 1.0]]
