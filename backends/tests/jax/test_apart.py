"""What nothing differentiates is computed outside the trace of `jax.grad`, where all of it is concrete."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gspo_jax as gspo

_RNG = np.random.default_rng(7)
_LOGP = jnp.asarray(_RNG.normal(-1.0, 0.1, (3, 5)), jnp.float32)
_OLD = _LOGP + jnp.asarray(_RNG.normal(0.0, 0.2, (3, 5)), jnp.float32)
_ADVANTAGES = jnp.asarray([1.0, -1.0, 0.5], jnp.float32)
_MASK = jnp.arange(5)[None, :] < jnp.asarray([[5], [3], [1]])

_CORRECTED = gspo.Objective.gspo().replace(
    penalty=gspo.Penalty("k3", 0.1),
    correction=(gspo.Correction(numerator="current", high=2.0), gspo.Correction("sequence", "mask", 0.5, 2.0)),
)


def _loss(objective: gspo.Objective, logp: Any, **changed: Any) -> gspo.PolicyLoss:
    arguments = {"old_logp": _OLD, "advantages": _ADVANTAGES, "sequences": _MASK, "ref_logp": _OLD}
    return gspo.policy_loss(objective, logp=logp, **(arguments | {"behavior_logp": _OLD + 0.1} | changed))


def _flow(objective: gspo.Objective, **changed: Any) -> Any:
    def loss(logp: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        found = _loss(objective, logp, **changed)
        return found.loss, found.metrics

    return jax.value_and_grad(loss, has_aux=True)


@pytest.mark.parametrize("objective", [gspo.Objective.gspo(), gspo.Objective.grpo(), _CORRECTED])
def test_one_result_whether_the_trace_is_left_or_not(objective: gspo.Objective):
    flow = _flow(objective)
    eager, compiled = flow(_LOGP), jax.jit(flow)(_LOGP)
    for ours, theirs in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("mapped", ["advantages", "old_logp", "sequences", "behavior_logp"])
def test_one_traced_argument_among_concrete_ones(mapped: str):
    many = {
        "advantages": jnp.stack([_ADVANTAGES, -_ADVANTAGES]),
        "old_logp": jnp.stack([_OLD, _OLD + 0.1]),
        "sequences": jnp.stack([_MASK, jnp.ones_like(_MASK)]),
        "behavior_logp": jnp.stack([_OLD, _OLD - 0.2]),
    }[mapped]
    together = jax.vmap(lambda one: _flow(_CORRECTED, **{mapped: one})(_LOGP))(many)
    for i, one in enumerate(many):
        alone = _flow(_CORRECTED, **{mapped: one})(_LOGP)
        for ours, theirs in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(ours[i], theirs, rtol=1e-5, atol=1e-9)


def test_one_array_as_both_policies():
    loss, gradient = jax.value_and_grad(lambda logp: _loss(_CORRECTED, logp, old_logp=logp).loss)(_LOGP)
    still, expected = jax.value_and_grad(lambda logp: _loss(_CORRECTED, logp, old_logp=_LOGP).loss)(_LOGP)
    assert loss == still
    np.testing.assert_array_equal(gradient, expected)


def test_a_gradient_of_a_gradient():
    objective = gspo.Objective.ppo().replace(penalty=gspo.Penalty("k2", 0.1))

    def slope(logp: jax.Array) -> jax.Array:
        return (jax.grad(lambda x: _loss(objective, x).loss)(logp) ** 2).sum()

    np.testing.assert_allclose(jax.grad(slope)(_LOGP), jax.jit(jax.grad(slope))(_LOGP), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("transform", "times"),
    [(lambda f: f, 2), (jax.value_and_grad, 2), (jax.jit, 0), (lambda f: jax.jit(jax.grad(f)), 0)],
)
def test_the_trace_is_left_twice_and_for_concrete_arrays_alone(
    transform: Any, times: int, monkeypatch: pytest.MonkeyPatch
):
    left: list[int] = []
    leave = jax.core.eval_context
    monkeypatch.setattr(jax.core, "eval_context", lambda: left.append(1) or leave())
    transform(lambda logp: _loss(_CORRECTED, logp).loss)(_LOGP)
    assert len(left) == times
