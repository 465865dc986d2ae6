"""`record`: what every optimiser step saw, in files that `gspo audit` reads.

    with gspo_jax.record("trace", every=10) as trace:
        for batch in batches:
            state, out = train_step(state, batch)              # jitted
            trace.step(objective=objective, logp=out.logp, old_logp=batch.old_logp, mask=batch.mask,
                       advantages=batch.advantages, loss=out.loss, metrics=out.metrics)

A traced function has no values to record, so what a jitted step computed is returned from it and
recorded outside. Copies to the host start at once and are awaited a step later. No failure reaches the caller.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gspo_core.recording import Recorder, Stored

_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}


class JaxRecorder(Recorder):
    """A `Recorder` of JAX and NumPy arrays; `step` and `part` take `sequences` in place of `mask` or `offsets`."""

    def keep(self, name: str, array: Any) -> Any:
        """The array itself, which nothing can change, its copy to the host begun."""
        if isinstance(array, jax.core.Tracer):
            raise TypeError(
                f"{name}: expected a value, got a tracer; return it from the jitted function and record it outside"
            )
        if name == "mask":
            array = jnp.asarray(array, dtype=bool)
        if isinstance(array, jax.Array):
            array.copy_to_host_async()
            return array
        return array if isinstance(array, (int, float)) else np.array(array)

    def ready(self, kept: Iterable[Any]) -> bool:
        """Whether every array has been computed."""
        return all(one.is_ready() for one in kept if isinstance(one, jax.Array))

    def store(self, kept: Any) -> Stored:
        """The bytes of an array."""
        values = np.asarray(kept)
        if values.dtype.name not in _NAMES:
            values = values.astype(np.float32 if jnp.issubdtype(values.dtype, jnp.floating) else np.int64)
        return Stored(_NAMES[values.dtype.name], values.shape, np.ascontiguousarray(values).tobytes())

    def scalar(self, kept: Any) -> float:
        """The number in an array."""
        return float(kept)


def record(
    path: str | os.PathLike[str],
    *,
    every: int = 1,
    max_bytes: int | None = None,
    first_step: int = 0,
    rank: int | None = None,
    **run: Any,
) -> JaxRecorder:
    """A context manager whose `step` records what an optimiser step saw into the folder `path`.

    Args:
        path: the folder of the trace; each process writes into a folder of its own below it.
        every: records one rollout in so many where `rollout` marks them, else one optimiser step in so many.
        max_bytes: ends the recording, not the training, before this process has written more.
        first_step: the number of the first optimiser step, for a run that is resumed, into a folder of its own.
        rank: of this process; `jax.process_index()` where None.
        run: what the audit is to know: `advantages` (keyword arguments of `group_advantages`), `group_size`, `temperature`,
            `ranks`, `micro_batches` and `rank_losses` ("sum" or "mean": how losses become that of the step), `trainer`, `dtype`.
    """
    if jax.process_count() > 1:
        run.setdefault("ranks", jax.process_count())
    return JaxRecorder(
        path,
        every=every,
        max_bytes=max_bytes,
        first_step=first_step,
        rank=jax.process_index() if rank is None else rank,
        **run,
    )
