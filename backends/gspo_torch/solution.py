"""What a step comes to, once it is solved without autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Solution(NamedTuple):
    """A loss, its metrics, and its gradient, a new tensor, as a function of the factor that comes back; the tensors that this reads."""

    loss: Tensor
    metrics: dict[str, Tensor]
    gradient: Callable[[Tensor], Tensor]
    reads: tuple[Tensor, ...]
