"""`gspo_jax` inside `jax.shard_map` on four virtual devices: responses in two halves, and the tokens of each in two.

Each case is cut, answered by devices that each see a quarter of it (a half, where the number of responses
is odd or they are packed), and put together again.
"""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import gspo_jax

from ..words import HarnessError
from .core import LOSSES, Arrays, CoreTarget
from .jax import Jax
from .jax_fused import EagerTarget

_DEVICES = 4
_TOKENS = ("logp", "old_logp", "ref_logp", "behavior_logp", "mask")


class ShardedJax(Jax):
    """Loss, metrics and gradient over a mesh with the axes `data` and `context`."""

    def loss_and_gradient(self, objective: Any, arguments: Arrays) -> tuple[Any, jax.Array]:
        """`policy_loss` with `axis_name` and `context`."""
        rest = dict(arguments)
        sequences, normalizer = rest.pop("sequences"), rest.pop("normalizer", None)
        size = rest["logp"].shape[-1]
        if isinstance(sequences, gspo_jax.Padded):
            rest["mask"], rows = sequences.mask, sequences.mask.shape[0]
        else:
            rows = 1
            rest["offsets"] = _offsets_of_halves(np.asarray(sequences.offsets), size)
            mask = sequences.mask
            rest["mask"] = jnp.ones(size, bool) if mask is None else mask
        by_token = tuple(name for name, value in rest.items() if _by_token(name, value, rest))
        even = {name: _even(value) if name in by_token else value for name, value in rest.items()}
        program = _program(objective, "offsets" in rest, 2 - rows % 2, tuple(rest), by_token, normalizer)
        found, gradient = jax.tree.map(np.asarray, program(even))
        return jax.tree.map(jnp.asarray, (found, gradient[..., :size]))


@lru_cache(maxsize=64)
def _program(
    objective: Any, packed: bool, rows: int, names: tuple[str, ...], by_token: tuple[str, ...], normalizer: Any
) -> Any:
    """One compiled program for all cases that differ in their numbers only."""
    mesh = jax.make_mesh(
        (rows, 2), ("data", "context"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: 2 * rows]
    )
    tokens = P("context") if packed else P("data", "context")
    special = {"offsets": P("context")}
    specs = {name: tokens if name in by_token else special.get(name, P() if packed else P("data")) for name in names}

    def local(arrays: Arrays) -> tuple[Any, jax.Array]:
        rest = dict(arrays)
        mask = rest.pop("mask")
        if packed:
            sequences: Any = gspo_jax.Packed(rest.pop("offsets")[0], mask=mask, context="context")
        else:
            sequences = gspo_jax.Padded(mask, context="context")

        def loss(logp: jax.Array) -> tuple[jax.Array, Any]:
            found = gspo_jax.policy_loss(
                objective, **(rest | {"logp": logp}), sequences=sequences, normalizer=normalizer, axis_name="data"
            )
            return found.loss, found

        gradient, found = jax.grad(loss, has_aux=True)(rest["logp"])
        return found, gradient

    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=(P(), tokens)))


def _by_token(name: str, value: Any, arrays: Arrays) -> bool:
    if name != "advantages":
        return name in _TOKENS
    sequences = arrays["offsets"].shape[1] - 1 if "offsets" in arrays else None
    return value.shape == arrays["logp"].shape and value.shape != (sequences,)


def _even(values: jax.Array) -> jax.Array:
    """One more token, which does not count, where their number is odd."""
    widths = [(0, 0)] * (values.ndim - 1) + [(0, values.shape[-1] % 2)]
    garbage = jnp.nan if jnp.issubdtype(values.dtype, jnp.floating) else False
    return jnp.pad(values, widths, constant_values=garbage)


def _offsets_of_halves(offsets: Any, size: int) -> jax.Array:
    """What each of two devices holds of every segment: offsets `[2, S + 1]` within its half of the tokens."""
    half = (size + size % 2) // 2
    return jnp.asarray(np.stack([np.clip(offsets - start, 0, half) for start in (0, half)]))


def target() -> CoreTarget:
    """The built-in target `jax:shard`: the operations that have a loss."""
    with contextlib.suppress(RuntimeError):  # JAX has started, with the devices that it has
        jax.config.update("jax_num_cpu_devices", _DEVICES)
    if len(jax.devices()) < _DEVICES:
        raise HarnessError(
            f"target 'jax:shard': expected {_DEVICES} devices, got {len(jax.devices())}; "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={_DEVICES} makes that many of a CPU"
        )
    return EagerTarget("jax:shard", ShardedJax(), gspo_jax, LOSSES, traced=True)
