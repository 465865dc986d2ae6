"""A loss function on PyTorch tensors; the gradient by `backward`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

VERSION = torch.__version__
NEAR = 2.0**-20


def run(fn: Any, gradient: Any, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The loss, and d loss / d logp by autograd or by `gradient`. As in training, `logp` is no leaf: it may be changed in place."""
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    leaf = tensors["logp"].requires_grad_(gradient == "autodiff")
    if gradient != "autodiff":
        loss = fn(*tensors.values())
        return {"loss": loss} if gradient is None else {"loss": _tensor(loss), "gradient": gradient(*tensors.values())}
    loss = _tensor(fn(*(tensors | {"logp": leaf.clone()}).values()))
    if leaf.grad is None:
        if loss.requires_grad:
            loss.backward()
        elif not _held(fn, tensors, loss):
            raise ValueError("the loss does not depend on the first argument: was it detached?")
    return {"loss": loss, "gradient": torch.zeros_like(leaf) if leaf.grad is None else leaf.grad}


def _held(fn: Any, tensors: Mapping[str, torch.Tensor], loss: torch.Tensor) -> bool:
    """Whether a loss without a graph is a bound: to one side at least it stays where it is, as where every response is clipped."""
    logp = tensors["logp"].detach()
    return any(torch.equal(fn(*{**tensors, "logp": logp * factor}.values()), loss) for factor in (1 + NEAR, 1 - NEAR))


def _tensor(loss: Any) -> torch.Tensor:
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"the loss: expected a tensor, got {type(loss).__name__}; with .item() it has no gradient")
    return loss
