"""`gspo_torch`; gradients by autograd."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch

import gspo_torch

from ..tensors import NumPyArray
from .core import LOSSES, Arrays, CoreTarget


class Torch:
    """Tensors on one device; the narrow dtypes are native."""

    version = {"torch": torch.__version__}

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def array(self, values: NumPyArray, storage: str | None) -> torch.Tensor:
        """A tensor that shares nothing with the suite."""
        tensor = torch.tensor(values, device=self.device)
        return tensor.to(getattr(torch, storage)) if storage and values.dtype.kind == "f" else tensor

    def numpy(self, values: Any) -> NumPyArray:
        """Detached; bfloat16 and float16 widened to float32, which NumPy can hold."""
        tensor = torch.as_tensor(values).detach()
        return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy(force=True)

    def loss_and_gradient(self, objective: Any, arguments: Arrays) -> tuple[Any, torch.Tensor]:
        """`policy_loss`, then `backward`."""
        logp = arguments["logp"].requires_grad_()
        found = gspo_torch.policy_loss(objective, **arguments)
        return found, gradient_of(found.loss, logp)


def gradient_of(loss: torch.Tensor, logp: torch.Tensor) -> torch.Tensor:
    """d loss / d logp; zero where the loss does not depend on it."""
    if not loss.requires_grad:
        return torch.zeros_like(logp)
    (gradient,) = torch.autograd.grad(loss, logp, allow_unused=True)
    return torch.zeros_like(logp) if gradient is None else gradient


def target() -> CoreTarget:
    """The built-in target `torch`."""
    return CoreTarget("torch", Torch(), gspo_torch)


def compile_target() -> CoreTarget:
    """The built-in target `torch:compile`: the operations that have a loss."""
    return CoreTarget("torch:compile", CompiledTorch(), gspo_torch, LOSSES, traced=True)


class CompiledTorch(Torch):
    """The same with `torch.compile(fullgraph=True)`, dynamic shapes and one program for each objective."""

    def __init__(self) -> None:
        super().__init__()
        self._compiled: dict[Any, Any] = {}

    def loss_and_gradient(self, objective: Any, arguments: Arrays) -> tuple[Any, torch.Tensor]:
        """`policy_loss` as one graph, then `backward` through it; every vector must find or make such a graph."""
        logp, rest = arguments["logp"].requires_grad_(), dict(arguments)
        names = tuple(name for name in rest if name != "logp")
        key = objective, names, logp.dtype
        if key not in self._compiled:
            self._compiled[key] = compiled_loss(objective, names)
        found = self._compiled[key](logp, *(rest[name] for name in names))
        return found, gradient_of(found.loss, logp)


def compiled_loss(objective: Any, names: tuple[str, ...]) -> Any:
    """`policy_loss` of `logp` and the arguments of these names. Each program has its own code object, and so its own few guards."""

    def loss(logp: torch.Tensor, *values: Any) -> Any:
        return gspo_torch.policy_loss(objective, logp=logp, **dict(zip(names, values, strict=True)))

    own = FunctionType(loss.__code__.replace(), loss.__globals__, closure=loss.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=True, backend="aot_eager")
