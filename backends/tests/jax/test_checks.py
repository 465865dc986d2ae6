"""Value checks: eager calls check, differentiated or not; traced ones cannot, and do not break. Sums of segments, of any length."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_check_looks_at_what_counts_and_compiles_nothing(dtype: Any) -> None:
    """Hunts a check that compiles an operation for every shape that it meets."""
    values = np.full((1, 1019), -1.0)  # a size that nothing else has here
    values[0, 1:] = np.nan
    bad, counted = jax.device_put(values.astype(dtype)), jax.device_put(~np.isnan(values))
    compiled: list[str] = []

    def note(event: str, *_: Any, **__: Any) -> None:
        compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        assert not gspo.backend.all_finite(bad)
        assert gspo.backend.all_finite(bad, counted)
        assert not compiled
        _ = bad + bad
        assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


@pytest.mark.parametrize("size", [255, 256, 257, 600])
def test_a_segment_sum_of_one_block_or_of_many_stays_within_its_segment(size: int) -> None:
    """Hunts a sum that lets a NaN, an overflow, or a token behind the last segment into another."""
    values = np.arange(size, dtype=np.float32)
    values[3], values[-1] = np.nan, np.inf
    offsets = [0, 3, 4, 4, size - 1]
    found = gspo.backend.segment_sum(jnp.asarray(values), jnp.asarray(offsets), size)
    expected = [values[start:end].sum(dtype=np.float64) for start, end in pairwise(offsets)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_importing_the_package_is_enough() -> None:
    """A copy of the source tree on the path has no entry point."""
    program = (
        "import importlib.metadata as metadata; metadata.entry_points = lambda **_: (); import jax, gspo_jax as gspo; "
        "print(gspo.backend_of(jax.numpy.zeros(())).name)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.stdout == "jax\n", found.stderr
