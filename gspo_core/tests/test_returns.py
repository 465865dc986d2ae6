"""Returns, GAE, whitening, REINFORCE++: invariances first, then numbers against scalar loops, then bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gspo_core as gspo
from gspo_core import clip_advantages, gae_advantages, reinforce_pp_advantages, reinforce_returns, whiten

from . import exact
from .exact import assert_close

DTYPES = ("float32", "float64")
MASK = np.asarray([[1, 1, 0, 1, 1], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=bool)


def _tokens(seed: int, dtype: str = "float64", garbage: float = np.nan) -> np.ndarray:
    return np.where(MASK, np.random.default_rng(seed).normal(size=MASK.shape), garbage).astype(dtype)


def _packed(xp: Any) -> gspo.Packed:
    return gspo.Packed(xp(np.arange(0, MASK.size + 1, MASK.shape[1])), mask=xp(MASK.reshape(-1)))


def _flat(rows: list[list[Any]]) -> list[Any]:
    return [value for row in rows for value in row]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_returns_are_sums_over_the_counted_tokens_that_follow(xp: Any, dtype: str, gamma: float) -> None:
    rewards = _tokens(0, dtype)
    found = reinforce_returns(xp(rewards), gspo.Padded(xp(MASK)), gamma=gamma)
    truth = exact.discounted(rewards, MASK, gamma)
    assert_close(xp.numpy(found).reshape(-1), _flat(truth), 5.0)
    assert not xp.numpy(found)[~MASK].any()
    packed = reinforce_returns(xp(rewards.reshape(-1)), _packed(xp), gamma=gamma)
    assert_close(xp.numpy(packed), _flat(truth), 5.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.95), (1.0, 0.0), (0.0, 0.5)])
def test_gae_skips_uncounted_tokens(xp: Any, dtype: str, gamma: float, lam: float) -> None:
    """Hunts the value of a masked token as the next value, and a discount that advances on it (GSPO-ADV-9)."""
    rewards, values, end = _tokens(1, dtype), _tokens(2, dtype), np.asarray([0.5, -1.0, 0.25, 3.0], dtype)
    found = gae_advantages(xp(rewards), xp(values), xp(MASK), gamma=gamma, lam=lam, bootstrap=xp(end))
    truth = exact.gae(rewards, values, MASK, gamma, lam, end)
    assert_close(xp.numpy(found.advantages).reshape(-1), _flat(truth), 10.0)
    np.testing.assert_allclose(
        xp.numpy(found.returns)[MASK], (xp.numpy(found.advantages) + values)[MASK], rtol=1e-5, atol=1e-6
    )
    assert not xp.numpy(found.returns)[~MASK].any()
    flat = [xp(array.reshape(-1)) for array in (rewards, values)]
    packed = gae_advantages(*flat, _packed(xp), gamma=gamma, lam=lam, bootstrap=xp(end))
    assert_close(xp.numpy(packed.advantages), _flat(truth), 10.0)


@given(seed=st.integers(0, 2**16), gamma=st.sampled_from([1.0, 0.9]))
@settings(max_examples=25, deadline=None)
def test_gae_with_lambda_one_is_the_return_less_the_value(seed: int, gamma: float) -> None:
    rewards, values = _tokens(seed), _tokens(seed + 1)
    found = gae_advantages(rewards, values, MASK, gamma=gamma, lam=1.0)
    np.testing.assert_allclose(found.returns, reinforce_returns(rewards, MASK, gamma=gamma), atol=1e-12)


@given(seed=st.integers(0, 2**16), inserted=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_an_inserted_uncounted_token_changes_nothing(seed: int, inserted: int) -> None:
    def widened(array: np.ndarray, filler: Any) -> np.ndarray:
        return np.insert(array, inserted, filler, axis=1)

    rewards, values = _tokens(seed), _tokens(seed + 1)
    wide = gae_advantages(
        widened(rewards, 1e9), widened(values, -1e9), widened(MASK, False), gamma=0.9, lam=0.8
    ).advantages
    np.testing.assert_allclose(
        np.delete(wide, inserted, axis=1),
        gae_advantages(rewards, values, MASK, gamma=0.9, lam=0.8).advantages,
        atol=1e-13,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"center": False}, {"ddof": 0}, {"eps": 0.5}])
def test_whitening(xp: Any, dtype: str, options: dict[str, Any]) -> None:
    values = _tokens(3, dtype)
    found = xp.numpy(whiten(xp(values), gspo.Padded(xp(MASK)), **options))
    truth = exact.whitened(exact.exact(values[MASK]), **options)
    assert_close(found[MASK], truth, 2.0)
    assert not found[~MASK].any()
    alone = xp.numpy(whiten(xp(values[MASK]), **options))
    assert_close(alone, truth, 2.0)


def test_whitening_of_equal_entries_and_of_one(xp: Any) -> None:
    """Hunts the phantom of equal float32 fractions, and the NaN of a sample variance over one."""
    equal = xp(np.full(7, 0.1, "float32"))
    assert not xp.numpy(whiten(equal)).any()
    np.testing.assert_array_equal(xp.numpy(whiten(equal, center=False)), np.full(7, 0.1, "float32"))
    one = xp(np.asarray([3.0]))
    assert xp.numpy(whiten(one)).tolist() == [0.0]
    assert xp.numpy(whiten(one, center=False)).tolist() == [3.0]


def test_nothing_counted_gives_zeros(xp: Any) -> None:
    garbage, nothing = xp(np.full((2, 3), np.nan)), gspo.Padded(xp(np.zeros((2, 3), bool)))
    for found in (
        whiten(garbage, nothing),
        reinforce_returns(garbage, nothing),
        *gae_advantages(garbage, garbage, nothing),
    ):
        assert not xp.numpy(found).any()


def test_a_long_response_in_logarithmic_depth() -> None:
    """Hunts a loop over tokens in Python: 100,000 of them, against the closed form of a geometric sum."""
    size, gamma = 100_000, 0.999
    found = reinforce_returns(np.ones((1, size)), np.ones((1, size), bool), gamma=gamma)
    truth = (1 - gamma ** np.arange(size, 0, -1.0)) / (1 - gamma)
    np.testing.assert_allclose(found[0], truth, rtol=1e-9)


def test_gradients_do_not_flow_through_advantages() -> None:
    import torch

    values = torch.ones(1, 3, dtype=torch.float64, requires_grad=True)
    found = gae_advantages(torch.ones(1, 3, dtype=torch.float64), values, torch.ones(1, 3, dtype=torch.bool))
    assert not found.advantages.requires_grad
    assert not whiten(values).requires_grad
    assert not clip_advantages(values, 0.3).requires_grad


def test_reinforce_pp_is_the_whitened_return_to_go(xp: Any) -> None:
    mask = np.asarray([[1, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=bool)
    rewards = np.where(mask, np.random.default_rng(0).normal(size=mask.shape), np.nan)
    found = xp.numpy(reinforce_pp_advantages(xp(rewards), gspo.Padded(xp(mask)), gamma=0.9))
    truth = exact.whitened(
        [v for row, m in zip(exact.discounted(rewards, mask, 0.9), mask) for v, c in zip(row, m) if c]
    )
    assert_close(found[mask], truth, 2.0)
    assert not found[~mask].any()
    offsets = np.asarray([0, 4, 8, 12])
    packed = gspo.Packed(xp(offsets), mask=xp(mask.reshape(-1)))
    flat = xp.numpy(reinforce_pp_advantages(xp(rewards.reshape(-1)), packed, gamma=0.9))
    np.testing.assert_allclose(flat, found.reshape(-1), rtol=1e-13)


def test_reinforce_pp_with_a_baseline(xp: Any) -> None:
    """A shift of every reward of one group changes nothing, and equal groups give exactly zero."""
    mask = np.ones((6, 3), dtype=bool)
    mask[2, 1:] = False
    groups, rewards = np.asarray([0, 1, 0, 1, 2, 2]), np.zeros((6, 3), "float32")
    scores = np.asarray([1.0, 0, 0, 0.5, 0.1, 0.1], "float32")
    rewards[np.arange(6), mask.sum(1) - 1] = scores
    found = xp.numpy(reinforce_pp_advantages(xp(rewards), xp(mask), groups=xp(groups)))
    centred = [1 / 2, -1 / 4, -1 / 2, 1 / 4, 0, 0]
    tokens = [value for value, length in zip(centred, mask.sum(1), strict=True) for _ in range(length)]
    np.testing.assert_allclose(found[mask], np.asarray(exact.whitened(exact.exact(tokens)), float), atol=1e-6)
    packed = gspo.Packed(xp(np.arange(0, 19, 3)), mask=xp(mask.reshape(-1)))
    flat = xp.numpy(reinforce_pp_advantages(xp(rewards.reshape(-1)), packed, groups=xp(groups)))
    np.testing.assert_allclose(flat, found.reshape(-1), atol=1e-6)
    lifted = rewards.copy()
    lifted[[0, 2], mask.sum(1)[[0, 2]] - 1] += 8
    moved = xp.numpy(reinforce_pp_advantages(xp(lifted), xp(mask), groups=xp(groups)))
    np.testing.assert_allclose(moved, found, atol=1e-6)
    equal = np.where(np.arange(3) == 2, np.float32(0.1), np.float32(0)) * np.ones((6, 1), "float32")
    assert not xp.numpy(reinforce_pp_advantages(xp(equal), xp(np.ones((6, 3), bool)), groups=xp(groups))).any()


def test_clip_advantages(xp: Any) -> None:
    found = clip_advantages(xp(np.asarray([-5.0, -1, 0, 2, 2.5])), 2)
    np.testing.assert_array_equal(xp.numpy(found), [-2, -1, 0, 2, 2])
    mask = np.asarray([[True, False]])
    tokens = clip_advantages(xp(np.asarray([[9.0, np.nan]])), 2.0, gspo.Padded(xp(mask)))
    np.testing.assert_array_equal(xp.numpy(tokens), [[2, 0]])


def test_two_entries_are_enough_to_whiten() -> None:
    np.testing.assert_allclose(whiten(np.asarray([1.0, 3.0])), np.asarray([-1.0, 1.0]) / 2**0.5)
    np.testing.assert_allclose(whiten(np.asarray([1.0, 3.0]), ddof=0), [-1.0, 1.0])


def test_the_widest_of_rewards_values_and_bootstrap_computes() -> None:
    for wide in ("rewards", "values", "bootstrap", ""):
        arrays = {"rewards": np.ones((1, 3)), "values": np.ones((1, 3)), "bootstrap": np.ones(1)}
        given = {name: array if name == wide else array.astype("float32") for name, array in arrays.items()}
        found = gae_advantages(sequences=np.ones((1, 3), bool), **given)
        assert {found.advantages.dtype, found.returns.dtype} == {np.dtype("float64" if wide else "float32")}


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r, m: reinforce_returns(r[0], m), ValueError, "rewards"),
        (lambda r, m: reinforce_returns(r, m, gamma=1.5), ValueError, "gamma: expected a number <= 1, got 1.5"),
        (lambda r, m: reinforce_returns(r, m, gamma=-0.1), ValueError, "gamma: expected a number >= 0"),
        (lambda r, m: gae_advantages(r, r[:, :2], m), ValueError, r"values: expected shape \(1, 3\).*got \(1, 2\)"),
        (lambda r, m: gae_advantages(r, r, m, bootstrap=r), ValueError, r"bootstrap: expected shape \(1,\)"),
        (lambda r, m: gae_advantages(r, r, m, lam="1"), TypeError, "lam: expected a number, got str"),
        (lambda r, m: gae_advantages(r, r + np.nan, m), ValueError, "values: .*NaN or inf"),
        (lambda r, m: whiten(r.astype(int)), TypeError, "values: expected a real floating-point dtype"),
        (lambda r, m: whiten(r[:, :0]), ValueError, "values: expected at least one entry"),
        (lambda r, m: whiten(r, eps=-1.0), ValueError, "eps: expected a number >= 0"),
        (lambda r, m: clip_advantages(r, 0), ValueError, "bound: expected a number > 0, got 0"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(np.ones((1, 3)), np.ones((1, 3), bool))
