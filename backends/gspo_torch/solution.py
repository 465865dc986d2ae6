"""What a step comes to, once it is solved without autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from gspo_core.sequences import Layout


class Solution(NamedTuple):
    """A loss, its metrics, and its gradient, a new tensor, as a function of the factor that comes back; the tensors that this reads."""

    loss: Tensor
    metrics: dict[str, Tensor]
    gradient: Callable[[Tensor], Tensor]
    reads: tuple[Tensor, ...]


def times(gradient: Callable[[Tensor], Tensor], factor: Tensor) -> Tensor:
    """The gradient times a factor, or times many at once (`is_grads_batched`), which products alone can follow."""
    if not is_legacy_batchedtensor(factor):
        return gradient(factor)
    return gradient(torch.ones((), dtype=factor.dtype, device=factor.device)) * factor


def places(layout: Layout) -> tuple[Tensor, ...]:
    """What says where the tokens of responses are, when a value per response is laid on them or a loss is differentiated again."""
    return (layout.counted,) if layout.counted.ndim == 2 else (layout.counted, layout.offsets)
