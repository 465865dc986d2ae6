"""What the checks at the edge let pass, what they refuse, and the place that they name."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

from gspo_core import validation
from gspo_core.validation import (
    as_boolean,
    check_array,
    check_binary,
    check_choice,
    check_finite,
    check_flag,
    check_floating,
    check_integer,
    check_no_nan,
    check_number,
    check_same_namespace,
    check_shape,
    check_size,
    value_checks,
)

SPOILT = np.asarray([[0.0, 1.0, np.inf], [np.nan, 1.0, -np.inf]])


@pytest.mark.parametrize(
    ("counted", "told"),
    [
        (None, "finite numbers, got 3 NaN or inf, the first at index (0, 2)"),
        (SPOILT == 0, None),
        (np.isnan(SPOILT), "finite numbers at counted positions, got 1 NaN or inf, the first at index (1, 0)"),
        (~np.isnan(SPOILT), "finite numbers at counted positions, got 2 NaN or inf, the first at index (0, 2)"),
    ],
)
def test_the_first_that_is_not_finite_is_counted_and_placed(counted: Any, told: str | None) -> None:
    for kind in (np.asarray, strict.asarray):
        flags = None if counted is None else kind(counted)
        assert _error(check_finite, "x", kind(SPOILT), flags) == (told and f"x: expected {told}")


@pytest.mark.parametrize(
    ("counted", "told"),
    [
        (None, "numbers, got 1 NaN, the first at index (1, 0)"),
        (~np.isnan(SPOILT), None),
        (SPOILT != 0, "numbers at counted positions, got 1 NaN, the first at index (1, 0)"),
    ],
)
def test_infinity_is_a_number_where_only_nan_is_refused(counted: Any, told: str | None) -> None:
    assert _error(check_no_nan, "x", SPOILT, counted) == (told and f"x: expected {told}")


def test_flags_are_booleans_or_zero_and_one() -> None:
    cube = np.zeros((2, 3, 4))
    cube[1, 2, 3] = cube[1, 0, 1] = 0.5
    assert (
        _error(check_binary, "x", cube) == "x: expected only 0 and 1, got 2 other values, the first at index (1, 0, 1)"
    )
    assert _error(check_binary, "x", np.asarray([0, 1, 1])) is None
    for flags in (np.asarray([False, True]), np.asarray([0, 1]), np.asarray([0.0, 1.0], "float32")):
        found = as_boolean("x", flags)
        assert found.dtype == bool
        assert found.tolist() == [False, True]
    boolean = np.asarray([True])
    assert as_boolean("x", boolean) is boolean
    assert (
        _error(as_boolean, "x", np.asarray([-1]))
        == "x: expected only 0 and 1, got 1 other values, the first at index (0,)"
    )
    assert _error(as_boolean, "x", np.ones(1, complex)) == "x: expected booleans, or 0 and 1, got complex128"


@pytest.mark.parametrize(
    ("value", "options", "told"),
    [
        (0.0, {"low": 0.0}, None),
        (0.0, {"low": 0.0, "strict": True}, "a number > 0, got 0.0"),
        (5e-324, {"low": 0.0, "strict": True}, None),
        (-5e-324, {"low": 0.0}, "a number >= 0, got -5e-324"),
        (2, {"low": 2.5}, "a number >= 2.5, got 2"),
        (-7, {}, None),
        (sys.float_info.max, {}, None),
        (-sys.float_info.max, {}, None),
        (10**400, {}, "a finite number, got " + f"1{'0' * 59}"),
        (-float("inf"), {}, "a finite number, got -inf"),
        (float("nan"), {}, "a finite number, got nan"),
        (True, {}, "a number, got bool"),
        ("3e-4", {}, "a number, got str '3e-4'"),
    ],
)
def test_numbers(value: Any, options: dict[str, Any], told: str | None) -> None:
    assert _error(check_number, "x", value, **options) == (told and f"x: expected {told}")


def test_sizes_flags_and_choices() -> None:
    for size, told in ((0, None), (np.int64(3), None), (-1, "an integer >= 0, got -1"), (True, "an integer, got bool"),
                       (1.0, "an integer, got float"), (-(10**99), f"an integer >= 0, got -1{'0' * 58}")):  # fmt: skip
        assert _error(check_size, "x", size) == (told and f"x: expected {told}")
    for flag, told in (
        (True, None),
        (False, None),
        (0, "True or False, got int"),
        (None, "True or False, got NoneType"),
    ):
        assert _error(check_flag, "x", flag) == (told and f"x: expected {told}")
    choices = (None, "a", "b")
    for choice, told in (
        (None, None),
        ("b", None),
        ("c", "'c'"),
        (0, "0"),
        (["a"], "['a']"),
        ("c" * 999, f"'{'c' * 199}"),
    ):
        assert _error(check_choice, "x", choice, choices) == (told and f"x: expected one of None, 'a', 'b', got {told}")
    assert _error(check_choice, "x", None, ("a",)) == "x: expected one of 'a', got None"


def test_arrays_dtypes_shapes_and_frameworks() -> None:
    class Half:
        shape = dtype = ()

    assert check_array("x", np.ones(1)) is not check_array("x", strict.asarray([1.0]))
    assert _error(check_array, "x", 1.0) == "x: expected an array, got float"
    assert _error(check_array, "x", Half()) == "x: expected an Array API array, got Half"
    assert _error(check_array, "x", type("Shapeless", (), {"dtype": 1})()) == "x: expected an array, got Shapeless"
    assert _error(check_shape, "x", np.ones((2, 3)), (2, 3), "as it is") is None
    assert (
        _error(check_shape, "x", np.ones((2, 3)), [3, 2], "turned") == "x: expected shape (3, 2) (turned), got (2, 3)"
    )
    assert _error(check_shape, "x", None, (2,), "two") == "x: expected an array, got NoneType"
    for good in ("float16", "float32", "float64"):
        assert _error(check_floating, "x", np.ones(1, good)) is None
    for bad in ("int64", "bool", "complex64", "longdouble"):
        assert (
            _error(check_floating, "x", np.ones(1, bad))
            == f"x: expected a real floating-point dtype, got {np.dtype(bad)}"
        )
    for good in ("int8", "uint64"):
        assert _error(check_integer, "x", np.ones(1, good)) is None
    for bad in ("bool", "float32"):
        assert _error(check_integer, "x", np.ones(1, bad)) == f"x: expected an integer dtype, got {bad}"
    numpy = check_array("x", np.ones(1))
    assert _error(check_same_namespace, numpy, first=np.ones(1), none=None, last=np.ones(2)) is None
    told = "last: expected an array of numpy, got one of array_api_strict"
    assert _error(check_same_namespace, numpy, first=np.ones(1), none=None, last=strict.asarray([1])) == told


def test_checks_of_values_come_back_whatever_happens_inside() -> None:
    bad = np.asarray([np.nan])
    with contextlib.suppress(KeyError), value_checks(False):
        with value_checks(True):
            assert validation.reads_values(bad)
        assert not validation.reads_values(bad)
        for check in (check_finite, check_no_nan, check_binary):
            check("x", bad)
        raise KeyError
    assert validation.reads_values(bad)
    with pytest.raises(ValueError, match="x"):
        check_finite("x", bad)


def _error(check: Any, *arguments: Any, **options: Any) -> str | None:
    """What a check says, or None where it lets pass."""
    try:
        check(*arguments, **options)
    except (TypeError, ValueError) as error:
        return str(error)
    return None
