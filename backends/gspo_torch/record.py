"""`record`: what every call of the loss saw, in files that `gspo audit` reads.

    with gspo_torch.record("trace", every=10, max_bytes=10**9):
        train()

Inside, every call of `policy_loss`, its presets and `GSPOLoss` is recorded, and every step of an
optimiser ends a step of the trace. Copies leave a GPU without waiting for it and are written a step
later. A full disk, an exhausted budget or any other failure ends the recording, never the training.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from gspo_core.recording import Recorder, Stored, guarded

from .observers import OBSERVERS

_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}


class TorchRecorder(Recorder):
    """A `Recorder` of tensors; `gradient` records what arrives at `logp` in the backward pass too."""

    def __init__(self, path: Any, *, gradient: bool = False, optimizer: Any = None, **options: Any) -> None:
        super().__init__(path, **options)
        self.gradient = gradient
        self._optimizer = optimizer
        self._hook: Any = None

    def __enter__(self) -> TorchRecorder:
        self.attach()
        return self

    def attach(self) -> None:
        """Begins to listen; `close` ends it."""
        register = getattr(self._optimizer, "register_step_post_hook", register_optimizer_step_post_hook)
        self._hook = register(lambda *_: self.advance())
        OBSERVERS.append(self)

    def close(self) -> None:
        """Stops listening, writes what is left and the end mark."""
        if self in OBSERVERS:
            OBSERVERS.remove(self)
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        super().close()

    @guarded
    def observe(self, objective: Any, logp: Tensor, arguments: dict[str, Any], found: Any) -> None:
        """A call of the loss; one under `torch.no_grad` trains nothing and is no part of a step."""
        if not torch.is_grad_enabled():
            return
        arrays = {name: arguments[name] for name in ("old_logp", "ref_logp", "behavior_logp", "groups", "advantages")}
        self.part(
            objective=objective,
            loss=found.loss,
            metrics=found.metrics,
            normalizer=arguments["normalizer"],
            logp=logp,
            **{name: value for name, value in arrays.items() if value is not None},
            sequences=arguments["sequences"],
        )
        if self.gradient and self.recording and logp.requires_grad:
            self.watch(logp)

    @guarded
    def watch(self, logp: Tensor) -> None:
        """Records the gradient that arrives at `logp` with the call of the loss before."""
        arrays = self._calls[-1].arrays

        def arrived(gradient: Tensor) -> None:
            kept = self._kept("gradient", gradient)
            if kept is not None:
                arrays["gradient"] = kept

        logp.register_hook(arrived)

    @guarded
    def _kept(self, name: str, value: Any) -> Any:
        return self.keep(name, value)

    def keep(self, name: str, array: Any) -> Any:
        """A copy on the host, on its way where the array is on a device."""
        if not isinstance(array, Tensor):
            return array if isinstance(array, (int, float)) else torch.as_tensor(array)
        values = array.detach()
        if hasattr(values, "to_local"):
            values = values.to_local()
        if name == "mask":
            values = values.bool()
        if values.device.type == "cpu":
            return values.clone(memory_format=torch.contiguous_format)
        if not values.is_cuda:
            return values.to("cpu").contiguous()
        # A copy of a CUDA tensor that does not block lands in pinned memory, and is there when the event has passed.
        copy, arrival = values.contiguous().to("cpu", non_blocking=True), torch.cuda.Event()
        arrival.record()
        return _Copy(copy, arrival)

    def ready(self, kept: Iterable[Any]) -> bool:
        """Whether every copy has arrived."""
        return all(one.arrival.query() for one in kept if isinstance(one, _Copy))

    def store(self, kept: Any) -> Stored:
        """The bytes of a copy."""
        tensor = _arrived(kept)
        if tensor.dtype not in _NAMES:
            tensor = tensor.float() if tensor.is_floating_point() else tensor.long()
        return Stored(_NAMES[tensor.dtype], tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().data)

    def scalar(self, kept: Any) -> float:
        """The number in a copy."""
        return float(kept if isinstance(kept, (int, float)) else _arrived(kept).item())


class _Copy:
    """A host tensor, and the event after which it holds what was copied."""

    __slots__ = ("arrival", "tensor")

    def __init__(self, tensor: Tensor, arrival: Any) -> None:
        self.tensor, self.arrival = tensor, arrival


def _arrived(kept: Any) -> Tensor:
    if not isinstance(kept, _Copy):
        return kept
    kept.arrival.synchronize()
    return kept.tensor


def record(
    path: str | os.PathLike[str],
    *,
    every: int = 1,
    max_bytes: int | None = None,
    first_step: int = 0,
    gradient: bool = False,
    rank: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    **run: Any,
) -> TorchRecorder:
    """A context manager that records every call of the loss inside it into the folder `path`.

    Args:
        path: the folder of the trace; each rank writes into a folder of its own below it.
        every: records one rollout in so many where `rollout` marks them, else one optimiser step in so many.
        max_bytes: ends the recording, not the training, before this rank has written more.
        first_step: the number of the first optimiser step, for a run that is resumed, into a folder of its own.
        gradient: records d loss / d logp too, as it arrives in the backward pass.
        rank: of this process; that of `torch.distributed` where None.
        optimizer: whose steps count; those of all optimisers after a call of the loss where None.
        run: what the audit is to know: `advantages` (keyword arguments of `group_advantages`), `group_size`, `temperature`,
            `ranks`, `micro_batches` and `rank_losses` ("sum" or "mean": how losses become that of the step), `trainer`, `dtype`.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if rank is None:
        rank = torch.distributed.get_rank() if distributed else 0
    if distributed:
        run.setdefault("ranks", torch.distributed.get_world_size())
    return TorchRecorder(
        path,
        every=every,
        max_bytes=max_bytes,
        first_step=first_step,
        gradient=gradient,
        rank=rank,
        optimizer=optimizer,
        **run,
    )
