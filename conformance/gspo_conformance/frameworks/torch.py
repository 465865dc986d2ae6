"""A loss function on PyTorch tensors; the gradient by `backward`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def run(fn: Any, gradient: Any, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The loss, and d loss / d logp by autograd or by `gradient`."""
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    logp = tensors["logp"].requires_grad_(gradient == "autodiff")
    loss = fn(*tensors.values())
    if gradient is None:
        return {"loss": loss}
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"the loss: expected a tensor, got {type(loss).__name__}; with .item() it has no gradient")
    if gradient != "autodiff":
        return {"loss": loss, "gradient": gradient(*tensors.values())}
    if loss.numel() != 1:
        raise ValueError(f"the loss: expected one number, got shape {list(loss.shape)}: is a mean missing?")
    if not loss.requires_grad:
        raise ValueError("the loss does not depend on logp: was it detached?")
    loss.backward()
    return {"loss": loss, "gradient": torch.zeros_like(logp) if logp.grad is None else logp.grad}
