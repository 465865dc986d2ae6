"""Group advantages: what must not matter, then numbers, then the bugs that real trainers had."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gspo_core as gspo
from gspo_core import group_advantages, leave_one_out_advantages

from . import exact
from .exact import assert_close

DTYPES = ("float32", "float64")
OPTIONS = [
    {},
    {"ddof": 0},
    {"eps": 0.25},
    {"eps": 0.25, "eps_placement": "variance"},
    {"eps": 0.0},
    {"scale": "none"},
    {"scale": "batch_std"},
    {"scale": "leave_one_out_std", "center": "leave_one_out"},
    {"center": "leave_one_out", "scale": "none"},
    {"center": "leave_one_out", "ddof": 0},
    {"center": "none"},
    {"center": "none", "scale": "none"},
]
GROUPS = np.asarray([5, -3, 5, 9, -3, 5, 7, -3, -3, 9, 5, 0])


def _ids(options: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in options.items()) or "default"


def _rewards(dtype: str, seed: int = 0, offset: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=GROUPS.size) + offset).astype(dtype)


def _scale(truth: list[Any], groups: np.ndarray) -> np.ndarray:
    """The largest advantage of each response's group: rounding moves all of them alike."""
    sizes = np.asarray([abs(float(value)) for value in truth])
    return np.asarray([sizes[groups == group].max() for group in groups])


# Invariances


@pytest.mark.parametrize("options", OPTIONS, ids=_ids)
def test_permuting_responses_permutes_advantages(xp: Any, options: dict[str, Any]) -> None:
    rewards, order = _rewards("float64"), np.random.default_rng(1).permutation(GROUPS.size)
    plain = xp.numpy(group_advantages(xp(rewards), xp(GROUPS), **options))
    permuted = xp.numpy(group_advantages(xp(rewards[order]), xp(GROUPS[order]), **options))
    np.testing.assert_allclose(permuted, plain[order], rtol=1e-13)


@pytest.mark.parametrize("labels", [[-1, 0, 3, 2, 8], [8, 3, 0, -1, 2], [-(2**40), 2**40, 7, 6, 5]])
def test_labels_of_groups_do_not_matter(xp: Any, labels: list[int]) -> None:
    renamed = np.asarray(labels)[np.unique(GROUPS, return_inverse=True)[1]]
    plain = xp.numpy(group_advantages(xp(_rewards("float64")), xp(GROUPS)))
    np.testing.assert_array_equal(xp.numpy(group_advantages(xp(_rewards("float64")), xp(renamed))), plain)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
def test_integer_dtypes_of_ids_do_not_matter(xp: Any, dtype: str) -> None:
    groups = np.asarray([2, 0, 2, 0, 0])
    rewards = np.asarray([1.0, 2, 4, 8, 16])
    plain = xp.numpy(group_advantages(xp(rewards), xp(groups)))
    np.testing.assert_array_equal(xp.numpy(group_advantages(xp(rewards), xp(groups, dtype))), plain)


def test_other_groups_do_not_matter(xp: Any) -> None:
    rewards = _rewards("float64")
    together = xp.numpy(group_advantages(xp(rewards), xp(GROUPS)))
    for group in np.unique(GROUPS):
        members = np.where(group == GROUPS)[0]
        alone = xp.numpy(group_advantages(xp(rewards[members]), xp(GROUPS[members])))
        np.testing.assert_array_equal(alone, together[members])


@given(
    rewards=st.lists(st.integers(-1000, 1000), min_size=1, max_size=40),
    shift=st.integers(-(10**6), 10**6),
    exponent=st.integers(-8, 8),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_shift_and_scale_of_rewards(rewards: list[int], shift: int, exponent: int, seed: int) -> None:
    values = np.asarray(rewards, dtype="float64")
    groups = np.random.default_rng(seed).integers(-2, 3, size=values.size)
    plain = group_advantages(values, groups, eps=0.0)
    moved = group_advantages((values + shift) * 2.0**exponent, groups, eps=0.0)
    np.testing.assert_allclose(moved, plain, rtol=1e-9, atol=1e-9)
    centred = leave_one_out_advantages((values + shift) * 2.0**exponent, groups) / 2.0**exponent
    np.testing.assert_allclose(centred, leave_one_out_advantages(values, groups), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", OPTIONS, ids=_ids)
def test_invalid_members_do_not_matter(xp: Any, options: dict[str, Any]) -> None:
    """Hunts statistics over filtered responses: NaN, inf or a huge reward there changes nothing."""
    valid = np.asarray([1, 1, 0, 1, 0, 1, 0, 1, 1, 0, 1, 1], dtype=bool)
    rewards = _rewards("float64")
    without = xp.numpy(group_advantages(xp(rewards[valid]), xp(GROUPS[valid]), **options))
    for garbage in (np.nan, np.inf, -1e300):
        spoiled = np.where(valid, rewards, garbage)
        found = xp.numpy(group_advantages(xp(spoiled), xp(GROUPS), valid=xp(valid), **options))
        np.testing.assert_allclose(found[valid], without, rtol=1e-13)
        assert not found[~valid].any()


def test_one_bad_group_does_not_spoil_another(xp: Any) -> None:
    rewards = np.asarray([1.0, np.nan, 0.0, 2.0, 4.0, np.inf])
    with gspo.value_checks(False), np.errstate(all="ignore"):
        found = xp.numpy(group_advantages(xp(rewards), xp(np.asarray([0, 1, 1, 0, 0, 2]))))
    np.testing.assert_array_equal(found[[0, 3, 4]], group_advantages(rewards[[0, 3, 4]], np.zeros(3, int)))


def test_gathered_micro_batches_give_the_advantages_of_the_step(xp: Any) -> None:
    """GSPO-DIST-4, and what goes wrong otherwise: a group cut in two has two other means."""
    rewards, first, second = _rewards("float64"), np.arange(5), np.arange(5, 12)
    whole = xp.numpy(group_advantages(xp(rewards), xp(GROUPS)))
    gathered = np.concatenate([second, first])
    found = xp.numpy(group_advantages(xp(rewards[gathered]), xp(GROUPS[gathered])))
    np.testing.assert_allclose(found[: second.size], whole[second], rtol=1e-13)
    cut = xp.numpy(group_advantages(xp(rewards[first]), xp(GROUPS[first])))
    assert abs(cut - whole[first]).max() > 0.1


# Numbers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=_ids)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_numbers(xp: Any, dtype: str, options: dict[str, Any], offset: float) -> None:
    rewards = _rewards(dtype, 3, offset)
    truth = exact.advantages(rewards, GROUPS, **options)
    found = xp.numpy(group_advantages(xp(rewards), xp(GROUPS), **options))
    assert found.dtype == dtype
    assert_close(found, truth, _scale(truth, GROUPS))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=_ids)
def test_binary_rewards(xp: Any, dtype: str, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(5)
    groups = rng.integers(-4, 4, size=60)
    rewards = (rng.random(60) < 0.3).astype(dtype)
    truth = exact.advantages(rewards, groups, **options)
    assert_close(xp.numpy(group_advantages(xp(rewards), xp(groups), **options)), truth, _scale(truth, groups))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 3, 64, 257])
def test_a_group_of_any_size(xp: Any, dtype: str, size: int) -> None:
    rewards = np.random.default_rng(size).random(size).astype(dtype)
    groups = np.full(size, -1)
    for options in ({}, {"center": "leave_one_out", "scale": "leave_one_out_std", "ddof": 0}):
        truth = exact.advantages(rewards, groups, **options)
        assert_close(xp.numpy(group_advantages(xp(rewards), xp(groups), **options)), truth, _scale(truth, groups))


@pytest.mark.parametrize("dtype", DTYPES)
def test_very_unequal_groups(xp: Any, dtype: str) -> None:
    """Hunts a [num_groups, largest group] table: half a batch in one group, the rest alone or in pairs."""
    rng = np.random.default_rng(0)
    groups = np.concatenate([np.zeros(400, int), np.arange(1, 301), np.arange(301, 351), np.arange(301, 351)])
    groups = rng.permutation(groups)
    rewards = rng.normal(size=groups.size).astype(dtype)
    truth = exact.advantages(rewards, groups)
    assert_close(xp.numpy(group_advantages(xp(rewards), xp(groups))), truth, _scale(truth, groups))


# Bugs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [o for o in OPTIONS if o.get("center") != "none"], ids=_ids)
def test_equal_fractions_give_exactly_zero(xp: Any, dtype: str, options: dict[str, Any]) -> None:
    """Hunts phantom advantages: in float32 the std of seven rewards of 0.1 is not 0 (GSPO-ADV-3)."""
    rewards = np.concatenate([np.full(7, 0.1), np.full(6, 0.3), np.full(11, 1 / 3), [0.1, 0.2]]).astype(dtype)
    groups = np.repeat([3, -8, 4, 0], [7, 6, 11, 2])
    found = xp.numpy(group_advantages(xp(rewards), xp(groups), **options))
    assert not found[:24].any()
    assert found[24:].all()


@pytest.mark.parametrize("options", [o for o in OPTIONS if o.get("center") != "none"], ids=_ids)
def test_a_group_of_one_gives_zero(xp: Any, options: dict[str, Any]) -> None:
    """Hunts the raw reward, and the NaN of a sample std over one (GSPO-ADV-4)."""
    found = xp.numpy(group_advantages(xp(np.asarray([0.7, 3.0])), xp(np.asarray([0, 1])), **options))
    np.testing.assert_array_equal(found, [0.0, 0.0])


def test_a_group_of_invalid_members_gives_zero(xp: Any) -> None:
    rewards, valid = np.asarray([np.nan, np.nan, 1.0, 0.0]), np.asarray([False, False, True, True])
    found = xp.numpy(group_advantages(xp(rewards), xp(np.asarray([0, 0, 1, 1])), valid=xp(valid)))
    np.testing.assert_allclose(found, [0, 0, 0.5**0.5, -(0.5**0.5)], atol=1e-5)


def test_sample_std_by_default(xp: Any) -> None:
    """Hunts a swapped ddof: two rewards 0 and 1 give ±0.707, not ±1 (GSPO-ADV-2)."""
    rewards, groups = xp(np.asarray([0.0, 1.0])), xp(np.asarray([4, 4]))
    assert abs(float(group_advantages(rewards, groups)[1]) - 0.5**0.5) < 1e-5
    assert abs(float(group_advantages(rewards, groups, ddof=0)[1]) - 1) < 1e-5


def test_eps_is_added_to_the_std(xp: Any) -> None:
    """Hunts eps under the root, and max(std, eps): std 1 with eps 1 halves, or gives 1/√2 where asked."""
    rewards, groups = xp(np.asarray([-1.0, 0.0, 1.0])), xp(np.asarray([4, 4, 4]))
    np.testing.assert_allclose(xp.numpy(group_advantages(rewards, groups, eps=1.0)), [-0.5, 0, 0.5])
    found = xp.numpy(group_advantages(rewards, groups, eps=1.0, eps_placement="variance"))
    np.testing.assert_allclose(found, [-(0.5**0.5), 0, 0.5**0.5])


@pytest.mark.parametrize("dtype", DTYPES)
def test_variance_is_two_pass(xp: Any, dtype: str) -> None:
    """Hunts E[x²] - E[x]²: rewards near 1000 that differ by 0.1, and near 1e6 by 1."""
    for rewards in (np.asarray([1000.0, 1000.1, 1000.2]), np.asarray([1e6, 1e6 + 1, 1e6 + 3])):
        given_rewards, groups = rewards.astype(dtype), np.zeros(3, int)
        truth = exact.advantages(given_rewards, groups)
        assert_close(xp.numpy(group_advantages(xp(given_rewards), xp(groups))), truth, _scale(truth, groups))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("magnitude", [1e-30, 1e-25, 1e25, 1e30])
def test_squares_of_rewards_stay_in_range(xp: Any, dtype: str, magnitude: float) -> None:
    """Hunts a float32 variance that over- or underflows: advantages do not depend on the unit of rewards."""
    rewards = (np.asarray([0.0, 1.0, 0.0, 0.5]) * magnitude).astype(dtype)
    groups = np.zeros(4, int)
    truth = exact.advantages(rewards, groups, eps=0.0)
    assert_close(xp.numpy(group_advantages(xp(rewards), xp(groups), eps=0.0)), truth, 2.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lone_winner(xp: Any, dtype: str) -> None:
    """The winner among G has (G-1)/√G whatever its reward; in RLOO all of it, the losers -1/(G-1)."""
    size = 16
    rewards, groups = np.zeros(size, dtype), np.full(size, 2)
    rewards[11] = 0.7
    found = xp.numpy(group_advantages(xp(rewards), xp(groups), eps=0.0))
    assert abs(found[11] - (size - 1) / size**0.5) < 1e-5
    out = xp.numpy(leave_one_out_advantages(xp(rewards), xp(groups)))
    np.testing.assert_allclose(out, np.where(rewards > 0, rewards, -0.7 / (size - 1)), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_spread_of_the_others_does_not_cancel(xp: Any, dtype: str) -> None:
    """Hunts Σd² - d²n/(n-1), and differences to a mean that one reward far from the others moves away from them."""
    groups = np.zeros(5, int)
    options: dict[str, Any] = {"center": "leave_one_out", "scale": "leave_one_out_std", "eps": 0.0}
    for far in (1000.0, -1000.0, 1e6):
        rewards = np.asarray([0.1001, 0.1, 0.1003, far, 0.1002]).astype(dtype)
        truth = exact.advantages(rewards, groups, **options)
        found = xp.numpy(group_advantages(xp(rewards), xp(groups), **options))
        assert_close(found, truth, [1.0, 1.0, 1.0, abs(float(truth[3])), 1.0])


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_the_std_of_the_others_is_taken_from_the_end_that_is_near_them(side: float) -> None:
    """In float32, from a distance of 2^20, a std of 1 has four digits."""
    rewards = (side * np.asarray([0.0, 2**20, 2**20 + 1, 2**20 + 3])).astype(np.float32)
    options: dict[str, Any] = {"center": "leave_one_out", "scale": "leave_one_out_std", "eps": 0.0}
    found = group_advantages(rewards, np.zeros(4, int), **options)
    expected = float(exact.advantages(rewards, np.zeros(4, int), **options)[0])
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


def test_others_that_agree_have_a_std_of_exactly_zero(xp: Any) -> None:
    """The winner among equals is divided by eps alone; with eps 0 it is not divided."""
    rewards, groups = xp(np.asarray([0.1, 0.1, 1.1, 0.1], "float32")), xp(np.zeros(4, int))
    for eps, expected in ((0.5, 2.0), (0.0, 1.0)):
        found = group_advantages(rewards, groups, center="leave_one_out", scale="leave_one_out_std", eps=eps)
        assert abs(float(found[2]) - expected) < 1e-6


def test_batch_std_is_over_the_batch(xp: Any) -> None:
    """Hunts the std of the centred rewards: here the spread between groups counts (GSPO-ADV-13)."""
    rewards, groups = np.asarray([0.0, 1.0, 10.0, 11.0]), np.asarray([0, 0, 1, 1])
    found = xp.numpy(group_advantages(xp(rewards), xp(groups), scale="batch_std", eps=0.0))
    np.testing.assert_allclose(found, np.asarray([-0.5, 0.5, -0.5, 0.5]) / rewards.std(ddof=1))


def test_too_few_for_a_std_are_not_divided(xp: Any) -> None:
    rewards, groups = xp(np.asarray([0.0, 1.0])), xp(np.asarray([0, 0]))
    np.testing.assert_array_equal(xp.numpy(group_advantages(rewards, groups, ddof=2)), [-0.5, 0.5])
    found = group_advantages(rewards, groups, center="leave_one_out", scale="leave_one_out_std")
    np.testing.assert_array_equal(xp.numpy(found), [-1.0, 1.0])


@pytest.mark.parametrize("name", ["torch-bfloat16", "torch-float16", "jax-bfloat16", "jax-float16"])
def test_half_precision_rewards_are_computed_in_float32(name: str) -> None:
    framework, dtype = name.split("-")
    if framework == "torch":
        import torch as library
    else:
        import jax.numpy as library
    rewards = library.asarray([0.1, 0.2, 0.4], dtype=getattr(library, dtype))
    wide = np.asarray([float(value) for value in rewards], "float32")
    found = group_advantages(rewards, library.asarray([0, 0, 0]))
    assert found.dtype == library.float32
    np.testing.assert_allclose(np.asarray(found), group_advantages(wide, np.zeros(3, int)), rtol=1e-6)


def test_advantages_carry_no_gradient() -> None:
    import torch

    rewards = torch.asarray([0.1, 0.5, 0.2], requires_grad=True)
    groups = torch.asarray([0, 0, 0])
    assert not group_advantages(rewards, groups).requires_grad


@pytest.mark.parametrize("options", OPTIONS, ids=_ids)
def test_under_jit(options: dict[str, Any]) -> None:
    import jax

    rewards, groups = _rewards("float64"), GROUPS
    traced = jax.jit(lambda r, g, v: group_advantages(r, g, valid=v, **options))
    valid = np.arange(GROUPS.size) != 4
    arrays = [jax.numpy.asarray(a) for a in (rewards, groups, valid)]
    np.testing.assert_allclose(traced(*arrays), group_advantages(rewards, groups, valid=valid, **options), rtol=1e-12)


def test_a_million_responses() -> None:
    """Hunts a loop over groups, or a table of groups times the largest group."""
    size = 10**6
    rng = np.random.default_rng(0)
    rewards = rng.random(size, dtype="float32")
    blocks = rng.permutation(size // 16)
    groups = np.repeat(blocks, 16)
    table = rewards.reshape(-1, 16).astype("float64")
    centred = table - table.mean(1, keepdims=True)
    truth = centred / (table.std(1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(group_advantages(rewards, groups).reshape(-1, 16), truth, atol=2e-6)
    skewed = np.where(np.arange(size) < size // 2, 0, np.arange(size))
    assert not group_advantages(rewards, skewed)[size // 2 :].any()


# Bad input


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rewards": np.ones((2, 2))}, ValueError, r"rewards: expected shape \[n\].*got \(2, 2\)"),
        ({"rewards": np.ones(0), "groups": np.ones(0, int)}, ValueError, r"rewards: .*at least one.*got \(0,\)"),
        ({"rewards": np.ones(3, int)}, TypeError, "rewards: expected a real floating-point dtype"),
        ({"rewards": [1.0, 2.0, 3.0]}, TypeError, "rewards: expected an array, got list"),
        ({"rewards": np.asarray([1.0, np.nan, 2])}, ValueError, r"rewards: .*1 NaN or inf.*index \(1,\)"),
        ({"groups": np.asarray([0, 0])}, ValueError, r"groups: expected shape \(3,\).*got \(2,\)"),
        ({"groups": np.asarray([0.0, 0, 1])}, TypeError, "groups: expected an integer dtype"),
        ({"groups": [0, 0, 1]}, TypeError, "groups: expected an array, got list"),
        ({"valid": np.asarray([1, 0])}, ValueError, r"valid: expected shape \(3,\)"),
        ({"valid": np.asarray([1, 0, 2])}, ValueError, "valid: expected only 0 and 1"),
        ({"center": "median"}, ValueError, "center: expected one of 'mean'"),
        ({"scale": "mad"}, ValueError, "scale: expected one of 'std'"),
        ({"eps_placement": "inside"}, ValueError, "eps_placement: expected one of"),
        ({"eps": -1e-6}, ValueError, "eps: expected a number >= 0"),
        ({"ddof": "1"}, TypeError, "ddof: expected a number, got str"),
    ],
)
def test_bad_input(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"rewards": np.ones(3), "groups": np.zeros(3, int)} | changes
    with pytest.raises(error, match=message):
        group_advantages(**arguments)


def test_arrays_of_two_frameworks_are_an_error() -> None:
    import torch

    with pytest.raises(TypeError, match="groups: expected an array of"):
        group_advantages(np.ones(2), torch.asarray([0, 0]))
