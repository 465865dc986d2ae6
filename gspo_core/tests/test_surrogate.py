"""The gate, its boundary, and each surrogate's published shape, against scalar arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gspo_core as gspo

LOW, HIGH = 0.2, 0.3


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (0.5, 1.0, 0.5, 1.0),  # below the range, A > 0: kept (C1)
        (1.5, 1.0, 1.3, 0.0),  # above, A > 0: clipped
        (0.5, -1.0, -0.8, 0.0),  # below, A < 0: clipped
        (1.5, -1.0, -1.5, -1.0),  # above, A < 0: kept
        (1.0, 2.0, 2.0, 2.0),
        (9.0, 0.0, 0.0, 0.0),
    ],
)
def test_the_gate_is_one_sided(ratio: float, advantage: float, value: float, slope: float) -> None:
    import torch

    clip = gspo.Clip(LOW, HIGH)
    x = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    found = gspo.clipped_surrogate(x, torch.tensor([advantage], dtype=torch.float64), clip)
    found.sum().backward()
    assert found.item() == pytest.approx(value, abs=1e-15)
    assert x.grad is not None
    assert x.grad.item() == slope


@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize(("log_ratio", "advantage"), [(math.log(1.5), 1.0), (math.log(0.5), -1.0)])
def test_on_the_boundary_the_full_gradient_passes(framework: str, log_ratio: float, advantage: float) -> None:
    """The range is closed. `clip` + `minimum` would give 1, 0.75, 0.5 or 0, by framework and version."""
    clip = gspo.Clip(0.5, 0.5)
    ratio = np.asarray([1.5 if advantage > 0 else 0.5])
    if framework == "torch":
        import torch

        x = torch.tensor(ratio, requires_grad=True)
        gspo.clipped_surrogate(x, torch.tensor([advantage], dtype=x.dtype), clip).sum().backward()
        assert x.grad is not None
        slope = x.grad.item()
    else:
        import jax

        weights = jax.numpy.asarray([advantage])
        slope = jax.grad(lambda x: gspo.clipped_surrogate(x, weights, clip).sum())(jax.numpy.asarray(ratio)).item()
    assert slope == advantage


def test_dual_clip_bounds_negative_advantages_only() -> None:
    clip = gspo.Clip(LOW, HIGH, dual=2.0)
    ratio, advantages = np.asarray([5.0, 1.5, 0.5, 5.0]), np.asarray([-1.0, -1.0, -1.0, 1.0])
    np.testing.assert_allclose(gspo.clipped_surrogate(ratio, advantages, clip), [-2.0, -1.5, -0.8, 1.3])


def _one(surrogate: Any, ratio: str, log_ratios: list[float], advantage: float) -> tuple[float, np.ndarray, Any]:
    logp, old = np.asarray([log_ratios]) - 2.0, np.full((1, len(log_ratios)), -2.0)
    arguments = {"logp": logp, "old_logp": old, "advantages": np.asarray([advantage]), "sequences": np.ones(logp.shape)}
    objective = gspo.Objective(ratio, surrogate)
    out = gspo.policy_loss(objective, **arguments)
    return -float(out.loss), -gspo.policy_gradient(objective, **arguments)[0], out.metrics


D = [0.3, -0.7, 0.1]


@pytest.mark.parametrize("advantage", [0.7, -0.7])
def test_gmpo_clips_tokens_in_log_space_before_the_mean(advantage: float) -> None:
    value, slope, metrics = _one(gspo.Gmpo(0.4, 0.2), "token", D, advantage)
    held = [min(d, 0.2) if advantage > 0 else max(d, -0.4) for d in D]
    mean = math.exp(sum(held) / 3)
    assert value == pytest.approx(mean * advantage, rel=1e-14)
    np.testing.assert_allclose(slope, [mean * advantage / 3 * (n == d) for n, d in zip(held, D, strict=True)])
    assert float(metrics["clip_fraction"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("advantage", "tau"), [(0.7, 1.0), (-0.7, 1.05)])
def test_sapo_is_a_sigmoid_around_one(advantage: float, tau: float) -> None:
    value, slope, _ = _one(gspo.Sapo(), "token", D, advantage)
    p = [1 / (1 + math.exp(-tau * (math.exp(d) - 1))) for d in D]
    assert value == pytest.approx(sum(4 / tau * q * advantage for q in p) / 3, rel=1e-14)
    np.testing.assert_allclose(
        slope, [4 * q * (1 - q) * math.exp(d) * advantage / 3 for q, d in zip(p, D, strict=True)], rtol=1e-13
    )


@pytest.mark.parametrize("advantage", [0.7, -0.7])
def test_cispo_clips_the_weight_and_keeps_the_gradient(advantage: float) -> None:
    value, slope, metrics = _one(gspo.Cispo(None, 0.2), "token", D, advantage)
    weight = [min(math.exp(d), 1.2) for d in D]
    expected = sum(w * advantage * (d - 2) for w, d in zip(weight, D, strict=True)) / 3
    assert value == pytest.approx(expected, rel=1e-14)
    np.testing.assert_allclose(slope, np.asarray(weight) * advantage / 3)
    assert float(metrics["clip_fraction_high"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("advantage", "k", "lam"), [(0.7, 2.0, 3.0), (-0.7, 3.0, 2.0)])
def test_vespo_weighs_by_the_product(advantage: float, k: float, lam: float) -> None:
    product = math.exp(sum(D))
    _, slope, metrics = _one(gspo.Vespo(), "product", D, advantage)
    np.testing.assert_allclose(slope, product**k * math.exp(lam * (1 - product)) * advantage / 3, rtol=1e-13)
    assert float(metrics["ratio_mean"]) == pytest.approx(product)


def test_vespo_without_decay_is_a_power_however_large_the_ratio() -> None:
    weight = gspo.Vespo(k_pos=0.5, lam_pos=0.0).weight(np.asarray([2.0, 800.0]), np.ones(2))
    np.testing.assert_allclose(weight, np.exp([1.0, 400.0]))


def test_a_saturated_sigmoid_has_no_slope_beside_a_weight_that_overflowed() -> None:
    assert gspo.Sapo().slope(np.asarray([100.0]), np.asarray([np.inf])) == 0


@pytest.mark.parametrize("advantage", [0.7, -0.7])
def test_reinforce_drops_what_its_gate_closes(advantage: float) -> None:
    _, slope, _ = _one(gspo.Reinforce(gspo.Clip(0.2, 0.2)), "token", D, advantage)
    ratios = np.exp(D)
    kept = ratios <= 1.2 if advantage > 0 else ratios >= 0.8
    np.testing.assert_allclose(slope, kept * advantage / 3)
    _, slope, _ = _one(gspo.Reinforce(), "token", D, advantage)
    np.testing.assert_allclose(slope, advantage / 3)


def test_a_cap_holds_the_ratio_and_cuts_the_gradient() -> None:
    """verl's exponent clamp, as a named deviation (A15, C9)."""
    objective = gspo.Objective("sequence", gspo.Clip(0.2, 0.2), log_ratio_cap=0.5)
    arguments = {"old_logp": np.full((1, 2), -2.0), "advantages": np.asarray([-1.0]), "sequences": np.ones((1, 2))}
    out = gspo.policy_loss(objective, logp=np.full((1, 2), -1.0), **arguments)
    assert float(out.loss) == pytest.approx(math.exp(0.5))
    assert not gspo.policy_gradient(objective, logp=np.full((1, 2), -1.0), **arguments).any()


RATIOS = ("token", "sequence", "gspo_token", "product")
SURROGATES = {"unclipped": gspo.Unclipped(), "clip": gspo.Clip(0.2, 0.3), "dual": gspo.Clip(0.2, 0.3, 2.0), "sapo": gspo.Sapo(),
              "reinforce": gspo.Reinforce(), "gated": gspo.Reinforce(gspo.Clip(0.1, 0.1)), "cispo": gspo.Cispo(0.1, 0.2),
              "vespo": gspo.Vespo()}  # fmt: skip
EVERY = [
    pytest.param(surrogate, ratio, id=f"{name}-{ratio}") for name, surrogate in SURROGATES.items() for ratio in RATIOS
]


@pytest.mark.parametrize(("surrogate", "ratio"), [*EVERY, pytest.param(gspo.Gmpo(), "token", id="gmpo")])
def test_no_advantage_is_no_loss_even_where_the_ratio_overflows(surrogate: Any, ratio: str) -> None:
    """0 times infinity is not what A = 0 means (GSPO-SURR-12): value, gradient and clip fractions are exactly 0."""
    objective = gspo.Objective(ratio, surrogate)
    for d in (1000.0, -1000.0):
        arguments = {
            "logp": np.full((1, 2), d),
            "old_logp": np.zeros((1, 2)),
            "advantages": np.zeros(1),
            "sequences": np.ones((1, 2)),
        }
        with np.errstate(over="ignore"):
            out, slopes = gspo.policy_loss(objective, **arguments), gspo.policy_gradient(objective, **arguments)
        assert float(out.loss) == 0.0
        assert not slopes.any()
        assert float(out.metrics["clip_fraction"]) == 0.0


def test_no_advantage_is_no_surrogate_even_where_the_ratio_is_infinite() -> None:
    for clip in (gspo.Clip(0.1, 0.2), gspo.Clip(0.1, 0.2, 3.0)):
        assert gspo.clipped_surrogate(np.asarray([np.inf, 0.0]), np.zeros(2), clip).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dual", [None, 1.7])
def test_value_slope_and_gate_at_once_are_those_apart(dual: float | None) -> None:
    clip = gspo.Clip(LOW, HIGH, dual)
    log_ratio, advantages = np.meshgrid([-900.0, -0.5, 0.0, 0.2, 0.6, 900.0], [-2.0, 0.0, 0.5])
    with np.errstate(over="ignore"):
        found = clip.evaluate(log_ratio, advantages)
        np.testing.assert_array_equal(found.value, clip.value(log_ratio, advantages, lambda values: values))
        np.testing.assert_array_equal(found.slope, clip.slope(log_ratio, advantages))
        for one, other in zip(found.clipped, clip.clipped(np.exp(log_ratio), advantages), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_range_of_zero_still_holds_the_ratio_of_one(advantage: float) -> None:
    """Bounds belong to the range: on-policy nothing is clipped, whatever the range."""
    for surrogate in (
        gspo.Clip(0.0, 0.0),
        gspo.Cispo(0.0, 0.0),
        gspo.Gmpo(0.0, 0.0),
        gspo.Reinforce(gspo.Clip(0.0, 0.0)),
    ):
        _, slope, metrics = _one(surrogate, "token", [0.0, 0.0], advantage)
        np.testing.assert_array_equal(slope, [advantage / 2] * 2)
        assert float(metrics["clip_fraction"]) == 0.0
    for d in (0.25, -0.25):
        _, slope, metrics = _one(gspo.Gmpo(0.25, 0.25), "token", [d, d], advantage)
        np.testing.assert_allclose(slope, [math.exp(d) * advantage / 2] * 2)
        assert float(metrics["clip_fraction"]) == 0.0


def test_the_wider_of_ratio_and_advantages_computes() -> None:
    for ratio, advantages in (("float32", "float64"), ("float64", "float32"), ("float32", "float32")):
        found = gspo.clipped_surrogate(np.ones(2, ratio), np.ones(2, advantages), gspo.Clip(0.1, 0.2))
        assert found.dtype == max(ratio, advantages)
