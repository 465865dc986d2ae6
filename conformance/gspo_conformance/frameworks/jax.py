"""A loss function on JAX arrays; the gradient by `jax.grad`. float64 runs under `jax.enable_x64`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

VERSION = jax.__version__


def run(fn: Any, gradient: Any, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The loss, and d loss / d logp by `jax.value_and_grad` or by `gradient`."""
    with jax.enable_x64(arrays["logp"].dtype == "float64"):
        logp, *rest = (jnp.asarray(array) for array in arrays.values())
        if gradient == "autodiff":
            loss, slope = jax.value_and_grad(fn)(logp, *rest)
            return jax.device_get({"loss": loss, "gradient": slope})
        found = {"loss": fn(logp, *rest)}
        return jax.device_get(found if gradient is None else found | {"gradient": gradient(logp, *rest)})
