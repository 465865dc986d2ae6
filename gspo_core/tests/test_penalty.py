"""Estimators of the KL, their slopes, and clamps that are closed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gspo_core as gspo
from gspo_core.penalty import ESTIMATORS, estimate_slope

from .batches import EAGER

Z = np.asarray([-2.0, -0.5, 0.0, 1e-9, 0.25, 3.0])
VALUES = {
    "k1": Z,
    "k2": Z**2 / 2,
    "k3": np.asarray([math.fsum([math.expm1(-z), z]) for z in Z]),
    "k3_plus": np.asarray([math.fsum([math.expm1(-z), z]) for z in Z]),
    "abs": abs(Z),
}
SLOPES = {"k1": Z * 0 + 1, "k2": Z, "k3": -np.expm1(-Z), "k3_plus": Z, "abs": np.sign(Z)}


@EAGER
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator(xp: Any, estimator: str) -> None:
    found = xp.numpy(gspo.kl_penalty(xp(Z - 1.5), xp(Z * 0 - 1.5), estimator))
    np.testing.assert_allclose(found, VALUES[estimator], rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(xp.numpy(estimate_slope(estimator, xp(Z))), SLOPES[estimator], rtol=1e-14)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_slope_is_what_autograd_finds(estimator: str) -> None:
    import torch

    logp = torch.asarray(Z).requires_grad_()
    gspo.kl_penalty(logp, torch.zeros(6, dtype=torch.float64), estimator).sum().backward()
    assert logp.grad is not None
    moved = Z != 0 if estimator == "abs" else Z == Z
    np.testing.assert_allclose(logp.grad.numpy()[moved], SLOPES[estimator][moved], rtol=1e-14, atol=1e-16)


SMALL = np.asarray([1e-8, -1e-7, 3e-6, -1e-5, 1e-3, -0.1, 0.5, -0.9, 1.1, -1.1], np.float32)


@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
def test_k3_and_its_slope_keep_the_digits_of_a_small_log_ratio(framework: str) -> None:
    """In float32 e^{-z} - 1 + z leaves one digit of z = 1e-6, and 1 - e^{-z} as autodiff writes it, 1 - (expm1(-z) + 1), two."""
    found = {"numpy": _k3_in_numpy, "torch": _k3_in_torch, "jax": _k3_in_jax}[framework](SMALL)
    wide = SMALL.astype(float)
    for one, expected in zip(found, (np.expm1(-wide) + wide, -np.expm1(-wide)), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-6)


def _k3_in_numpy(z: np.ndarray) -> tuple[Any, Any]:
    return gspo.kl_penalty(z, 0 * z), estimate_slope("k3", z)


def _k3_in_torch(z: np.ndarray) -> tuple[Any, Any]:
    import torch

    logp = torch.asarray(z).requires_grad_()
    value = gspo.kl_penalty(logp, 0 * logp.detach())
    return value.detach().numpy(), torch.autograd.grad(value.sum(), logp)[0].numpy()


def _k3_in_jax(z: np.ndarray) -> tuple[Any, Any]:
    import jax

    value, pullback = jax.vjp(lambda logp: gspo.kl_penalty(logp, jax.numpy.zeros_like(logp)), jax.numpy.asarray(z))
    return value, pullback(jax.numpy.ones_like(value))[0]


@EAGER
def test_the_wider_dtype_wins(xp: Any) -> None:
    for one, other in (("float32", "float64"), ("float64", "float32"), ("float32", "float32")):
        found = gspo.kl_penalty(xp(Z, one), xp(Z * 0, other))
        assert str(found.dtype).endswith(max(one, other))


def _slopes(penalty: gspo.Penalty, z: float) -> tuple[float, float]:
    """The penalty of one token with log-ratio z to the reference, and its derivative."""
    objective = gspo.Objective("token", gspo.Unclipped(), penalty=penalty)
    arguments = {"logp": np.asarray([[z]]), "old_logp": np.zeros((1, 1)), "ref_logp": np.zeros((1, 1))}
    arguments |= {"advantages": np.zeros(1), "sequences": np.ones((1, 1), bool)}
    loss, slopes = gspo.policy_loss(objective, **arguments).loss, gspo.policy_gradient(objective, **arguments)
    return float(loss), float(slopes[0, 0])


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_at_a_clamp_the_gradient_passes_and_beyond_it_does_not(side: float) -> None:
    beyond = math.nextafter(0.5, 1)
    by_ratio, by_value = gspo.Penalty("k2", 1.0, log_ratio_clamp=0.5), gspo.Penalty("k2", 1.0, value_clamp=0.125)
    for penalty in (by_ratio, by_value):
        assert _slopes(penalty, side * 0.25) == (0.03125, side * 0.25)
        assert _slopes(penalty, side * 0.5) == (0.125, side * 0.5)
        assert _slopes(penalty, side * 2.0) == (0.125, 0.0)
    assert _slopes(by_ratio, side * beyond) == (0.125, 0.0)
    both = gspo.Penalty("k1", 1.0, log_ratio_clamp=0.5, value_clamp=0.25)
    assert _slopes(both, side * 0.25) == (side * 0.25, 1.0)
    assert _slopes(both, side * 9.0) == (side * 0.25, 0.0)


def test_the_slope_of_k3_with_token_importance_is_w_z() -> None:
    """The sum w (k3' + k3) leaves 1 - 1 of z = -36 (GSPO-KL-5); a clamp keeps the sum, where k3' is 0."""
    for z in (-36.0, -1.0, 2.0):
        assert _slopes(gspo.Penalty("k3", 1.0, "token"), z)[1] == pytest.approx(math.exp(z) * z, rel=1e-14, abs=0.0)
    value, slope = _slopes(gspo.Penalty("k3", 1.0, "token", value_clamp=5.0), -4.0)
    assert value == slope == pytest.approx(5 * math.exp(-4.0), rel=1e-14)
