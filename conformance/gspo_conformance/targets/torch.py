"""`gspo_torch`; gradients by autograd."""

from __future__ import annotations

from typing import Any

import torch

import gspo_torch

from ..tensors import NumPyArray
from .core import Arrays, CoreTarget


class Torch:
    """Tensors on the CPU; the narrow dtypes are native."""

    version = {"torch": torch.__version__}

    def array(self, values: NumPyArray, storage: str | None) -> torch.Tensor:
        """A tensor that shares nothing with the suite."""
        tensor = torch.tensor(values)
        return tensor.to(getattr(torch, storage)) if storage and values.dtype.kind == "f" else tensor

    def numpy(self, values: Any) -> NumPyArray:
        """Detached; bfloat16 and float16 widened to float32, which NumPy can hold."""
        tensor = torch.as_tensor(values).detach()
        return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()

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
