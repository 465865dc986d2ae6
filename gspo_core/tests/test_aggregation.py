"""Every mode against scalar loops, every way to count, every kind of normaliser."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import gspo_core as gspo

from .batches import EAGER

LENGTHS, GROUPS = (3, 1, 0, 2, 0), (5, -1, 5, -1, 7)
MASK = np.arange(4)[None] < np.asarray(LENGTHS)[:, None]
MASK[0] = [True, False, True, True]
VALUES = np.where(MASK, np.random.default_rng(0).normal(size=MASK.shape), np.nan)
MODES = ("sequence_mean_token_mean", "sequence_mean_token_sum", "token_mean", "token_sum", "group_token_mean")


def _truth(mode: str, count: str, constant: float, groups: tuple[int, ...]) -> tuple[float, float]:
    """The numerator and the normaliser, from the table of the specification."""
    sums = [sum(VALUES[i, t] for t in range(4) if MASK[i, t]) for i in range(5)]
    present = [length for length in LENGTHS if length or count == "all"]
    if mode == "sequence_mean_token_mean":
        return sum(total / length for total, length in zip(sums, LENGTHS, strict=True) if length), len(present)
    if mode == "sequence_mean_token_sum":
        return sum(sums) / constant, len(present)
    if mode == "token_mean":
        return sum(sums), sum(LENGTHS)
    if mode == "token_sum":
        return sum(sums) / constant, 1
    numerator, groups_that_count = 0.0, 0
    for group in set(groups):
        members = [i for i in range(5) if groups[i] == group]
        tokens = sum(LENGTHS[i] for i in members)
        numerator += sum(sums[i] for i in members) / tokens if tokens else 0.0
        groups_that_count += bool(tokens) or count == "all"
    return numerator, groups_that_count


@EAGER
@pytest.mark.parametrize("groups", [GROUPS, (2, 2, 2, 2, 2), (4, 3, 2, 1, 0), None])
@pytest.mark.parametrize("count", ["all", "non_empty"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_the_table(xp: Any, mode: str, count: str, groups: tuple[int, ...] | None) -> None:
    aggregation, ids = gspo.Aggregation(mode, count, 4.0), None if groups is None else xp(np.asarray(groups))
    numerator, count_ = _truth(mode, count, 4.0, groups or (0,) * 5)
    for dtype in ("float32", "float64"):
        values, rtol = VALUES.astype(dtype), 1e-13 if dtype == "float64" else 1e-6
        found = gspo.aggregate_sum(xp(values), xp(MASK), aggregation, groups=ids)
        assert str(found.sum.dtype).endswith(dtype)
        assert str(found.count.dtype).endswith(dtype)
        np.testing.assert_allclose([float(found.sum), float(found.count)], [numerator, count_], rtol=rtol)
        whole = float(gspo.aggregate(xp(values), xp(MASK), aggregation, groups=ids))
        np.testing.assert_allclose(whole, numerator / count_, rtol=rtol)
        packed = gspo.Packed(xp(np.arange(0, 21, 4)), mask=xp(MASK.reshape(-1)))
        flat = gspo.aggregate(xp(values.reshape(-1)), packed, aggregation, groups=ids)
        np.testing.assert_allclose(float(flat), numerator / count_, rtol=rtol)


@EAGER
def test_the_default_is_the_mean_of_token_means_over_all_responses(xp: Any) -> None:
    numerator, count = _truth("sequence_mean_token_mean", "all", 1.0, GROUPS)
    np.testing.assert_allclose(float(gspo.aggregate(xp(VALUES), xp(MASK))), numerator / count, rtol=1e-13)
    assert float(gspo.aggregate_sum(xp(VALUES), xp(MASK)).count) == 5


@EAGER
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [0.25, 3])
def test_a_normalizer_replaces_the_count_whatever_it_is_held_in(xp: Any, mode: str, number: float) -> None:
    aggregation = gspo.Aggregation(mode, "given", 4.0)
    numerator, _ = _truth(mode, "all", 4.0, (0,) * 5)
    held = [number, xp(np.asarray(number, "float64")), xp(np.asarray(number, "float32"))]
    held += [xp(np.asarray(number, "int32"))] if isinstance(number, int) else []
    for normalizer in held:
        found = gspo.aggregate_sum(xp(VALUES), xp(MASK), aggregation, normalizer=normalizer)
        assert (float(found.count), str(found.count.dtype)[-7:]) == (number, "float64")
        whole = gspo.aggregate(xp(VALUES), xp(MASK), aggregation, normalizer=normalizer)
        np.testing.assert_allclose(float(whole), numerator / number, rtol=1e-13)


@EAGER
def test_nothing_over_nothing_is_zero(xp: Any) -> None:
    nothing = xp(np.zeros((2, 3), bool))
    for mode in MODES:
        assert float(gspo.aggregate(xp(np.full((2, 3), np.nan)), nothing, gspo.Aggregation(mode, "non_empty"))) == 0.0
    zero = xp(np.asarray(0.0))
    assert float(gspo.aggregate(xp(np.ones((2, 3))), nothing, "token_sum", normalizer=zero)) == 0.0


def test_zero_that_numpy_counted_is_an_array_of_its_own() -> None:
    nothing = np.zeros((2, 3), bool)
    assert gspo.aggregate(np.ones((2, 3)), nothing, "token_sum", normalizer=nothing.sum()) == 0.0


def test_zero_divides_nothing_where_a_single_token_counts() -> None:
    single = np.asarray([[False, True], [False, False]])
    for zero in (np.asarray(0), np.asarray(0.0)):
        with pytest.raises(ValueError, match=r"^normalizer: expected a number > 0 where tokens count, got 0$"):
            gspo.aggregate(np.ones((2, 2)), single, normalizer=zero)


@pytest.mark.parametrize(
    ("normalizer", "error", "message"),
    [
        (None, ValueError, "a number, since the aggregation counts as given, got None"),
        ("3", TypeError, "an array, got str"),
        (np.ones(2), ValueError, r"shape \(\) \(one number\), got \(2,\)"),
        (np.asarray(-1e-9), ValueError, "a number >= 0, got -1e-09"),
        (np.asarray(-1), ValueError, "a number >= 0, got -1"),
        (np.asarray(0), ValueError, "a number > 0 where tokens count, got 0"),
        (np.asarray(0.0), ValueError, "a number > 0 where tokens count, got 0"),
        (np.asarray(np.inf), ValueError, "finite numbers, got 1 NaN or inf"),
        (np.asarray(True), TypeError, "a real floating-point dtype, got bool"),
    ],
)
def test_a_bad_normalizer(normalizer: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^normalizer: expected {message}"):
        gspo.aggregate(VALUES, MASK, gspo.Aggregation(count="given"), normalizer=normalizer)


def test_a_normalizer_is_any_real_number() -> None:
    whole = gspo.aggregate(VALUES, MASK)
    np.testing.assert_allclose(gspo.aggregate(VALUES, MASK, normalizer=Fraction(5, 2)), whole * len(MASK) / 2.5)


@pytest.mark.parametrize("nonfinite", [np.nan, np.inf])
def test_counted_values_that_are_not_finite_are_an_error(nonfinite: float) -> None:
    values = np.where(MASK, VALUES, nonfinite)
    np.testing.assert_array_equal(gspo.aggregate(values, MASK), gspo.aggregate(VALUES, MASK))
    with pytest.raises(ValueError, match=r"^values: expected finite numbers at counted positions, got \d+ NaN or inf"):
        gspo.aggregate(np.where(MASK, nonfinite, VALUES), MASK)


def test_arrays_of_two_frameworks_do_not_mix() -> None:
    import array_api_strict as strict

    for name, other in (("groups", np.zeros(5, int)), ("normalizer", np.asarray(2.0)), ("sequences", MASK)):
        arguments = {"sequences": MASK, name: strict.asarray(other)}
        with pytest.raises(TypeError, match=f"^{name}: expected an array of .*numpy, got one of array_api_strict"):
            gspo.aggregate(VALUES, mode="group_token_mean", **arguments)
