"""The recorder on JAX: what a jitted step returns is recorded outside it."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import gspo_jax as gspo
from gspo_conformance.audit import read_trace

MASK = jnp.asarray([[True, True, False], [True, False, False]])
ADVANTAGES = jnp.asarray([1.0, -1.0])


@jax.jit
def _step(logp: jax.Array, old: jax.Array) -> tuple[gspo.PolicyLoss, jax.Array]:
    def loss(values: jax.Array) -> tuple[jax.Array, gspo.PolicyLoss]:
        out = gspo.gspo_loss(values, old, ADVANTAGES, MASK)
        return out.loss, out

    gradient, out = jax.grad(loss, has_aux=True)(logp)
    return out, gradient


def test_steps_hold_what_the_jitted_function_returned(tmp_path: Path) -> None:
    logp = old = jnp.asarray([[-1.0, -2.0, -3.0], [-0.5, 9, 9]])
    losses = []
    with gspo.record(tmp_path, every=2) as trace:
        for _ in range(3):
            out, gradient = _step(logp, old)
            losses.append(float(out.loss))
            trace.step(
                objective=gspo.Objective.gspo(),
                logp=logp,
                old_logp=old,
                advantages=ADVANTAGES,
                sequences=MASK,
                gradient=gradient,
                loss=out.loss,
                metrics=out.metrics,
            )
            logp = logp - gradient
    found = read_trace(tmp_path)
    assert found.indices == (0, 2)
    assert [step.parts[0].loss for step in found.steps()] == [losses[0], losses[2]]
    part = found.step(0).parts[0]
    np.testing.assert_array_equal(part.array("gradient"), [[-0.25, -0.25, 0], [0.5, 0, 0]])
    assert part.metrics["ratio_is_one"] == 1
    assert found.ends[0]["reason"] == "closed"


def test_a_tracer_ends_the_recording_and_not_the_program(tmp_path: Path) -> None:
    with gspo.record(tmp_path) as trace:
        jax.jit(lambda logp: trace.step(logp=logp, sequences=MASK))(jnp.zeros((2, 3)))
    end = read_trace(tmp_path).ends[0]
    assert end["reason"] == "error"
    assert "got a tracer" in end["message"]


def test_packed_bfloat16(tmp_path: Path) -> None:
    with gspo.record(tmp_path) as trace:
        logp = jnp.asarray([-1.0, -2.0, -3.0], jnp.bfloat16)
        trace.step(logp=logp, old_logp=logp, sequences=gspo.Packed(jnp.asarray([0, 2, 3])))
    part = read_trace(tmp_path).step(0).parts[0]
    assert part.stored == {"logp": "bfloat16", "old_logp": "bfloat16"}
    assert part.tokens.lengths.tolist() == [2, 1]
