"""Each ratio against scalar arithmetic, on a mask with a hole, an empty response and garbage where nothing counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gspo_core as gspo

from .batches import EAGER

MASK = np.asarray([[1, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
NEW = np.where(MASK, -np.asarray([[0.5, 2.0, 9, 0.25], [9, 1.5, 9, 9], [9, 9, 9, 9]]), np.nan)
OLD = np.where(MASK, -np.asarray([[1.0, 1.25, 9, 0.75], [9, 1.0, 9, 9], [9, 9, 9, 9]]), np.inf)
D = [[0.5, -0.75, 0.5], [-0.5], []]
MEANS = [0.25 / 3, -0.5, 0.0]


def _laid(rows: list[list[float]], elsewhere: float) -> np.ndarray:
    found = np.full(MASK.shape, elsewhere)
    found[MASK] = [value for row in rows for value in row]
    return found


EXPECTED = {
    "token_log_ratio": _laid(D, 0.0),
    "token_ratio": _laid([[math.exp(d) for d in row] for row in D], 1.0),
    "sequence_log_ratio": np.asarray(MEANS),
    "sequence_ratio": np.exp(MEANS),
    "gspo_token_ratio": _laid([[math.exp(mean)] * len(row) for mean, row in zip(MEANS, D, strict=True)], 1.0),
}


@EAGER
@pytest.mark.parametrize(
    "dtypes", [("float64", "float64"), ("float32", "float32"), ("float32", "float64"), ("float64", "float32")]
)
@pytest.mark.parametrize("name", EXPECTED)
def test_every_ratio(xp: Any, name: str, dtypes: tuple[str, str]) -> None:
    function, expected = getattr(gspo, name), EXPECTED[name]
    new, old = (values.astype(dtype) for values, dtype in zip((NEW, OLD), dtypes, strict=True))
    found = xp.numpy(function(xp(new), xp(old), xp(MASK)))
    assert found.dtype == max(dtypes)
    np.testing.assert_allclose(found, expected, rtol=1e-15 if "float64" in dtypes else 2e-7)
    packed = gspo.Packed(xp(np.asarray([0, 4, 8, 12])), mask=xp(MASK.reshape(-1)))
    flat = xp.numpy(function(xp(new.reshape(-1)), xp(old.reshape(-1)), packed))
    np.testing.assert_allclose(flat, expected.reshape(-1), rtol=1e-15 if "float64" in dtypes else 2e-7)


def test_the_derivative_of_the_gspo_token_ratio_is_that_of_its_own_token() -> None:
    """d s_{i,t} / d log π_θ(y_{i,u}) = s_i for t = u, else 0 (eq. 16); nothing flows to π_old."""
    import torch

    new, old = (
        torch.asarray(np.where(MASK, NEW, 0.0)).requires_grad_(),
        torch.asarray(np.where(MASK, OLD, 0.0)).requires_grad_(),
    )
    found = gspo.gspo_token_ratio(new, old, torch.asarray(MASK))
    (slopes,) = torch.autograd.grad(found[0, 3], new, retain_graph=True)
    expected = np.zeros(MASK.shape)
    expected[0, 3] = math.exp(MEANS[0])
    np.testing.assert_allclose(slopes.numpy(), expected, rtol=1e-15)
    (to_old,) = torch.autograd.grad(found.sum(), old, allow_unused=True)
    assert to_old is None or not to_old.any()


def test_a_long_response_is_as_exact_by_columns_as_by_rows() -> None:
    """NumPy makes 9999 of a tenth 100,000 times where it adds column to column (GSPO-NUM-4)."""
    logp = np.full((2, 100_000), -0.1, np.float32, order="F")
    found = gspo.sequence_log_ratio(logp, 0 * logp, np.asfortranarray(logp < 0))
    np.testing.assert_allclose(found, [-0.1, -0.1], rtol=1e-6)
