"""`gspo_jax`; gradients by `jax.grad`. float64 runs under `jax.enable_x64`, float32 as JAX ships."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

import gspo_jax

from ..target import Case
from ..tensors import NumPyArray
from .core import Arrays, CoreTarget


class Jax:
    """JAX arrays on the default device, operation by operation."""

    version = {"jax": jax.__version__}

    def array(self, values: NumPyArray, storage: str | None) -> jax.Array:
        """A JAX array."""
        array = jnp.asarray(values)
        return array.astype(storage) if storage and values.dtype.kind == "f" else array

    def numpy(self, values: Any) -> NumPyArray:
        """bfloat16 widened to float32, which every NumPy can hold."""
        array = jnp.asarray(values)
        return jax.device_get(array.astype(jnp.float32) if array.dtype in (jnp.bfloat16, jnp.float16) else array)

    def loss_and_gradient(self, objective: Any, arguments: Arrays) -> tuple[Any, jax.Array]:
        """`jax.value_and_grad` of `policy_loss`."""
        rest = dict(arguments)

        def loss(logp: jax.Array) -> tuple[jax.Array, Any]:
            found = gspo_jax.policy_loss(objective, logp=logp, **rest)
            return found.loss, found

        (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(rest.pop("logp"))
        return found, gradient


class JaxTarget(CoreTarget):
    """The core on JAX, in the precision that the case names."""

    def run(self, case: Case) -> dict[str, Any]:
        """The outputs of the case as NumPy arrays."""
        with jax.enable_x64(case.dtype == "float64"):
            return super().run(case)


class JitTarget(JaxTarget):
    """The same with each case compiled as one program; where values cannot be read, no input is refused."""

    def native(self, case: Case) -> dict[str, Any]:
        """The outputs of the case in JAX arrays."""
        whole = super().native
        return jax.jit(lambda inputs: whole(replace(case, inputs=inputs)))(dict(case.inputs))


def target() -> CoreTarget:
    """The built-in target `jax`."""
    return JaxTarget("jax", Jax(), gspo_jax)


def jit_target() -> CoreTarget:
    """The built-in target `jax:jit`."""
    return JitTarget("jax:jit", Jax(), gspo_jax)
