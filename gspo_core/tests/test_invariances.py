"""What must not change the loss, what must change it in a known way, and identities of the paper."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gspo_core as gspo

from .batches import Batch, axes

AXES = axes()
OBJECTIVES = [pytest.param(objective, id=name) for name, objective in AXES.items()]
seeds = st.integers(0, 2**32 - 1)


def _arrays(values: Any, dtype: str | None = None) -> np.ndarray:
    return np.array(values, dtype=dtype)


def _both(objective: gspo.Objective, **arguments: Any) -> tuple[float, np.ndarray]:
    loss = float(gspo.policy_loss(objective, **arguments).loss)
    return loss, gspo.policy_gradient(objective, **arguments)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, -1e9, 1e4])
def test_garbage_where_nothing_counts_changes_nothing(objective: gspo.Objective, garbage: float) -> None:
    """Hunts masking by multiplication: 0·NaN, 0·inf and inf - inf."""
    loss, gradient = _both(objective, **Batch(garbage=0.0).padded(_arrays))
    other, slopes = _both(objective, **Batch(garbage=garbage).padded(_arrays))
    assert other == loss
    np.testing.assert_array_equal(slopes, gradient)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_padding_changes_nothing(objective: gspo.Objective) -> None:
    """Hunts division by the padded length (R3, G9)."""
    arguments = Batch().padded(_arrays)
    loss, gradient = _both(objective, **arguments)
    for name in ("logp", "old_logp", "ref_logp", "behavior_logp"):
        arguments[name] = np.pad(arguments[name], ((0, 0), (0, 6)), constant_values=7.0)
    arguments["sequences"] = gspo.Padded(np.pad(arguments["sequences"].mask, ((0, 0), (0, 6))))
    wider, slopes = _both(objective, **arguments)
    np.testing.assert_allclose(wider, loss, rtol=1e-13)
    np.testing.assert_allclose(slopes[:, :-6], gradient, rtol=1e-12)
    assert not slopes[:, -6:].any()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_order_of_responses_changes_nothing(objective: gspo.Objective) -> None:
    arguments, order = Batch().padded(_arrays), np.asarray([3, 0, 4, 2, 1])
    loss, gradient = _both(objective, **arguments)
    moved = {name: value[order] for name, value in arguments.items() if name != "sequences"}
    moved["sequences"] = gspo.Padded(arguments["sequences"].mask[order])
    other, slopes = _both(objective, **moved)
    np.testing.assert_allclose(other, loss, rtol=1e-13)
    np.testing.assert_allclose(slopes, gradient[order], rtol=1e-12)


def _part(arguments: dict[str, Any], rows: slice) -> dict[str, Any]:
    part = {name: value[rows] for name, value in arguments.items() if name != "sequences"}
    return part | {"sequences": gspo.Padded(arguments["sequences"].mask[rows])}


@pytest.mark.parametrize("objective", [p for p in OBJECTIVES if p.values[0].aggregation.mode != "group_token_mean"])
def test_micro_batches_add_up_to_the_step(objective: gspo.Objective) -> None:
    """Hunts means of means (G5, G6, X3)."""
    arguments = Batch().padded(_arrays)
    whole = gspo.policy_loss(objective, **arguments)
    parts = []
    for rows in (slice(0, 1), slice(1, 3), slice(3, 5)):
        part = _part(arguments, rows)
        del part["groups"]
        parts.append(gspo.policy_loss_sum(objective, **part))
    total, count = sum(float(part.sum) for part in parts), sum(float(part.count) for part in parts)
    if objective.aggregation.mode == "token_sum":
        count = 1.0
    np.testing.assert_allclose(total / count, float(whole.loss), rtol=1e-12)


def test_a_normalizer_makes_micro_batch_losses_and_gradients_add() -> None:
    arguments, objective = Batch().padded(_arrays), gspo.Objective.gspo(gspo.Clip(0.2, 0.3))
    loss, gradient = _both(objective, **arguments)
    parts = [_both(objective, **_part(arguments, rows), normalizer=5) for rows in (slice(0, 2), slice(2, 5))]
    np.testing.assert_allclose(sum(part[0] for part in parts), loss, rtol=1e-13)
    np.testing.assert_allclose(np.concatenate([part[1] for part in parts]), gradient, rtol=1e-13)


@given(seed=seeds, spread=st.sampled_from([1e-4, 1e-2, 0.5]))
@settings(max_examples=30, deadline=None)
def test_gspo_token_is_gspo_under_uniform_advantages(seed: int, spread: float) -> None:
    """Value, clip decision and gradient (the paper's claim below eq. 17). Hunts a missing stop-gradient (D1)."""
    arguments = Batch(seed, spread=spread).padded(_arrays)
    for clip in (gspo.Clip(3e-4, 4e-4), gspo.Clip(0.2, 0.3)):
        one = gspo.policy_loss(gspo.Objective.gspo(clip), **arguments)
        two = gspo.policy_loss(gspo.Objective.gspo_token(clip), **arguments)
        np.testing.assert_allclose(float(two.loss), float(one.loss), rtol=1e-12, atol=1e-15)
        assert float(one.metrics["clip_fraction"]) == float(two.metrics["clip_fraction"])
        gradients = [
            gspo.policy_gradient(gspo.Objective(ratio, clip), **arguments) for ratio in ("sequence", "gspo_token")
        ]
        np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-12)


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_on_policy_every_ratio_gives_the_policy_gradient(seed: int) -> None:
    """At π_θ = π_old: s = 1, nothing is clipped, and GSPO, GSPO-token and GRPO have one gradient, -A/(G |y|)."""
    arguments = Batch(seed).padded(_arrays)
    arguments["old_logp"] = arguments["logp"]
    lengths = arguments["sequences"].mask.sum(axis=1, keepdims=True)
    expected = np.where(arguments["sequences"].mask, -1.0, 0.0) * (
        arguments["advantages"][:, None] / (5 * np.maximum(lengths, 1))
    )
    for name in ("gspo", "gspo_token", "grpo", "ppo", "gmpo", "sapo"):
        out = gspo.policy_loss(AXES[name], **arguments)
        assert float(out.metrics["ratio_is_one"]) == 1.0
        assert float(out.metrics["clip_fraction"]) == 0.0
        np.testing.assert_allclose(gspo.policy_gradient(AXES[name], **arguments), expected, rtol=1e-13)


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_length_one_is_token_ppo(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logp, old = -rng.exponential(size=(6, 1)), -rng.exponential(size=(6, 1))
    arguments = {"logp": logp, "old_logp": old, "advantages": rng.normal(size=6), "sequences": np.ones((6, 1))}
    clip = gspo.Clip(0.2, 0.3)
    one = _both(gspo.Objective.gspo(clip), **arguments)
    for objective in (gspo.Objective.ppo(clip), gspo.Objective.gspo_token(clip), gspo.Objective.grpo(clip)):
        loss, gradient = _both(objective, **arguments)
        np.testing.assert_allclose(loss, one[0], rtol=1e-13)
        np.testing.assert_allclose(gradient, one[1], rtol=1e-13)


def test_opposite_tokens_cancel_in_the_geometric_mean() -> None:
    """d = [ln 2, -ln 2] gives s = 1 although both tokens are far outside any GRPO range (R1, C6)."""
    logp, old = np.log([[0.5, 0.4]]), np.log([[0.25, 0.8]])
    out = gspo.gspo_loss(logp, old, np.ones(1), np.ones((1, 2)))
    np.testing.assert_allclose(float(out.loss), -1.0, rtol=1e-15)
    assert float(out.metrics["clip_fraction"]) == 0.0


def test_padded_and_packed_agree_bitwise_on_what_is_exact() -> None:
    batch = Batch(spread=0.0)
    for objective in (gspo.Objective.gspo(), gspo.Objective.grpo()):
        arguments = [batch.padded(_arrays), batch.packed(_arrays)]
        losses = {float(gspo.policy_loss(objective, **each).loss) for each in arguments}
        assert len(losses) == 1


def test_one_bad_sequence_spoils_no_other() -> None:
    """An overflowing response with A < 0 has an infinite loss; every other gradient stays as it was (N6, N7)."""
    arguments = Batch().padded(_arrays, "float32")
    objective = gspo.Objective.gspo(gspo.Clip(0.2, 0.3))
    clean = gspo.policy_gradient(objective, **arguments)
    arguments["logp"] = arguments["logp"].copy()
    arguments["logp"][1, :3] = 2000.0
    with np.errstate(over="ignore"):
        spoilt = gspo.policy_gradient(objective, **arguments)
    rows = [0, 2, 3, 4]
    np.testing.assert_array_equal(spoilt[rows], clean[rows])
    assert np.isneginf(-spoilt[1, :3]).all()


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_overflow_in_the_branch_not_taken_leaves_no_nan(framework: str) -> None:
    """A > 0 and a mean log-ratio of 100 in float32: TRL's gradient is NaN here, the paper's is 0."""
    logp, old = np.zeros((2, 2), np.float32), np.asarray([[-100, -100], [-1, -1]], np.float32)
    advantages, mask = np.asarray([1.0, 0.0], np.float32), np.ones((2, 2), bool)
    for name in ("gspo", "gspo_token", "grpo", "sapo", "vespo", "cispo", "gmpo", "minirl"):
        objective = AXES[name]
        arguments = {"logp": logp, "old_logp": old, "advantages": advantages, "sequences": mask, "behavior_logp": old}
        assert np.isfinite(_autodiff(framework, replace(objective), **arguments)).all(), name


@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
def test_a_steep_sigmoid_that_overflows_leaves_no_nan(framework: str) -> None:
    """e^{-τ (x - 1)} overflows float32 where τ (1 - x) > 88; the gradient of SAPO there is 0."""
    objective = gspo.Objective("token", gspo.Sapo(100.0, 100.0))
    logp, old = np.full((1, 2), -1, np.float32), np.asarray([[5, -1]], np.float32)
    arguments = {"logp": logp, "old_logp": old, "advantages": np.ones(1, np.float32), "sequences": logp < 0}
    found = gspo.policy_gradient if framework == "numpy" else functools.partial(_autodiff, framework)
    np.testing.assert_allclose(found(objective, **arguments), [[0.0, -0.5]])


def test_a_response_whose_ratio_is_nearly_too_large_has_a_finite_loss() -> None:
    """x A is within float32, T x A is not, and nobody asked for it."""
    logp, old = np.zeros((1, 64), np.float32), np.full((1, 64), -88, np.float32)
    arguments = {"logp": logp, "old_logp": old, "advantages": -np.ones(1, np.float32), "sequences": old < 0}
    with np.errstate(over="ignore"):
        loss = gspo.policy_loss(gspo.Objective.gspo(), **arguments).loss
    np.testing.assert_allclose(loss, np.exp(88), rtol=1e-5)


def test_a_penalty_that_names_the_aggregation_of_the_objective_shares_its_normalizer() -> None:
    arguments = Batch().padded(_arrays) | {"normalizer": 7.0}
    for mode in ("sequence_mean_token_mean", "token_mean", "token_sum"):
        shared = gspo.Objective.grpo().replace(aggregation=mode, penalty=gspo.Penalty("k2", 0.5))
        named = shared.replace(penalty=replace(shared.penalty, aggregation=shared.aggregation))
        other = shared.replace(penalty=replace(shared.penalty, aggregation=gspo.Aggregation(mode, constant=2.0)))
        assert _both(named, **arguments)[0] == _both(shared, **arguments)[0]
        np.testing.assert_array_equal(_both(named, **arguments)[1], _both(shared, **arguments)[1])
        assert _both(other, **arguments)[0] != _both(shared, **arguments)[0]


@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize("importance", [None, "token"])
def test_a_clamped_penalty_that_overflows_leaves_no_nan(framework: str, importance: str | None) -> None:
    """z = -200 in float32: k3 is held at its clamp, and the gradient of that token is 0, not 0 times infinity (KL-8)."""
    penalty = gspo.Penalty("k3", 0.1, importance, value_clamp=10.0)
    logp, ref = np.full((1, 2), -1, np.float32), np.asarray([[199, -1.5]], np.float32)
    arguments = {"logp": logp, "old_logp": logp, "advantages": np.ones(1, np.float32), "ref_logp": ref}
    arguments["sequences"] = np.ones((1, 2), bool)
    objective = replace(gspo.Objective.gspo(), penalty=penalty)
    found = _autodiff(framework, objective, **arguments)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(found, gspo.policy_gradient(objective, **arguments), rtol=1e-6)
    assert found[0, 0] == (-0.5 if importance is None else 0.0)


def _autodiff(framework: str, objective: gspo.Objective, **arguments: np.ndarray) -> np.ndarray:
    if framework == "torch":
        import torch

        tensors = {name: torch.from_numpy(value) for name, value in arguments.items()}
        tensors["logp"].requires_grad_()
        gspo.policy_loss(objective, **tensors).loss.backward()
        return tensors["logp"].grad.numpy()
    import jax

    arrays = {name: jax.numpy.asarray(value) for name, value in arguments.items()}
    logp = arrays.pop("logp")
    return np.asarray(jax.grad(lambda values: gspo.policy_loss(objective, logp=values, **arrays).loss)(logp))
