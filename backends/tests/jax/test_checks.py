"""Value checks: eager calls check, differentiated or not; traced ones cannot, and do not break."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import gspo_jax as gspo

BAD = jnp.asarray([[-1.0, jnp.nan]], dtype=jnp.float32)
ZERO, MASK, ADVANTAGES = jnp.zeros((1, 2), jnp.float32), jnp.ones((1, 2), dtype=bool), jnp.ones(1, jnp.float32)


def _loss(logp: Any) -> Any:
    return gspo.gspo_loss(logp, ZERO, ADVANTAGES, MASK).loss


@pytest.mark.parametrize("transform", [lambda f: f, jax.grad, jax.value_and_grad])
def test_an_eager_call_names_the_argument(transform: Any) -> None:
    """Hunts a check that `jax.grad` switches off: its tracers are concrete outside `jit`."""
    with pytest.raises(ValueError, match=r"logp: expected finite numbers .* index \(0, 1\)"):
        transform(_loss)(BAD)


@pytest.mark.parametrize("transform", [jax.jit, lambda f: jax.jit(jax.grad(f))])
def test_a_traced_call_does_not_read_values(transform: Any) -> None:
    assert jnp.isnan(transform(_loss)(BAD)).all()


def test_a_mask_may_be_mapped_over_where_the_values_are_not() -> None:
    """Hunts a check that reads captured values through a mask that `jax.vmap` traces, outside `jit`."""
    masks = jnp.asarray([[[True, True]], [[True, False]], [[False, False]]])
    found = jax.vmap(lambda mask: gspo.gspo_loss(ZERO, ZERO, ADVANTAGES, mask, normalizer=jnp.float32(2.0)).loss)(masks)
    assert found.tolist() == [-0.5, -0.5, 0.0]
    jax.vmap(lambda mask: gspo.whiten(ZERO, mask))(masks)
