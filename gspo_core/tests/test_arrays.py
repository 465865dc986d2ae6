"""The dtype of the mathematics, and bounds without a minimum or a maximum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gspo_core as gspo
from gspo_core.arrays import clamp, compute_dtype, namespace_of

from .batches import EAGER


@EAGER
def test_float64_wins_and_nothing_narrower_than_float32_computes(xp: Any) -> None:
    half = np.ones(1, "float16") if xp.name != "strict" else np.ones(1, "float32")
    single, double = xp(np.ones(1), "float32"), xp(np.ones(1))
    found = namespace_of(single)
    assert compute_dtype(xp(half)) == compute_dtype(single) == compute_dtype(xp(half), None, single) == found.float32
    assert (
        compute_dtype(single, double)
        == compute_dtype(double, single)
        == compute_dtype(single, None, double)
        == found.float64
    )


@EAGER
@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(None, None, [-2, -1, 0, 1, 2]), (-1.0, None, [-1, -1, 0, 1, 2]), (None, 1.0, [-2, -1, 0, 1, 1]),
     (-1.0, 1.0, [-1, -1, 0, 1, 1]), (0.0, 0.0, [0, 0, 0, 0, 0])],
)  # fmt: skip
def test_a_bound_of_none_is_none_and_a_bound_of_zero_is_one(
    xp: Any, low: float | None, high: float | None, expected: Any
) -> None:
    np.testing.assert_array_equal(xp.numpy(clamp(xp(np.arange(-2.0, 3.0)), low, high)), expected)


def test_the_derivative_at_a_bound_is_that_inside_it() -> None:
    import torch

    values = torch.asarray([-1.5, -1.0, 0.0, 1.0, 1.5], requires_grad=True)
    clamp(values, -1.0, 1.0).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_float64_of_another_machine_is_float64() -> None:
    """As files of NumPy hold it; NumPy itself calls it another dtype, and float32 would make these rewards equal."""
    rewards = np.asarray([1e6, 1e6 + 1e-3])
    swapped = rewards.astype(rewards.dtype.newbyteorder())
    found = gspo.group_advantages(swapped, np.zeros(2, int))
    np.testing.assert_array_equal(found, gspo.group_advantages(rewards, np.zeros(2, int)), strict=True)
