"""Backward passes without a derivative of their own: differentiating twice is an error that says so."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Backward = Callable[[Any, Tensor], tuple[Any, ...]]


def once(name: str) -> Callable[[Backward], Backward]:
    """Decorates the backward pass of an autograd function; `name` is what the caller called.

    `torch.autograd.function.once_differentiable` lets a gradient pass as a constant where the incoming
    one is; here it raises as soon as it is differentiated.
    """

    def decorate(backward: Backward) -> Backward:
        @wraps(backward)
        def guarded(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
            with torch.no_grad():
                found = backward(ctx, gradient)
            if not torch.is_grad_enabled():
                return found
            source = next(one for one in ctx.saved_tensors if one is not None and one.requires_grad)
            return tuple(_End.apply(one, source, name) if isinstance(one, Tensor) else one for one in found)

        return guarded

    return decorate


class _End(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, source: Tensor, name: str) -> Tensor:  # noqa: ARG004
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:  # noqa: ARG004
        raise RuntimeError(f"{ctx.name}: expected to be differentiated once; its gradient has no derivative")
