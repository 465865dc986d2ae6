"""`gspo_torch.linear_policy_loss`, fed log-probabilities through a head of two tokens whose logits are the hidden states.

The gradient at the first token's hidden state is g (1 - π), which gives g = d loss / d log π back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import gspo_torch

from .core import LOSSES, Arrays, CoreTarget
from .torch import Torch
from .two_tokens import candidates


class FusedTorch(Torch):
    """Chunks of a few tokens, so that most responses are longer than one."""

    def loss_and_gradient(self, objective: Any, arguments: Arrays) -> tuple[Any, Tensor]:
        """`linear_policy_loss`, then `backward` to the hidden states."""
        rest = dict(arguments)
        given = rest.pop("logp")
        counted = rest["sequences"].bind(tuple(given.shape)).counted
        hidden, logp = hidden_states(given, counted)
        hidden.requires_grad_()
        found = gspo_torch.linear_policy_loss(
            objective,
            hidden=hidden,
            weight=_eye(hidden),
            tokens=torch.zeros_like(given, dtype=torch.int64),
            chunk_size=max(3, counted.numel() // 8),
            **{name: _same_policy(name, value, given, logp) for name, value in rest.items()},
        )
        return found, _gradient(found.loss, hidden, logp, counted)


def hidden_states(logp: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of two tokens `[.., 2]` in float32 or wider, and the log-probabilities of the first that they have."""
    dtype = torch.float64 if logp.dtype == torch.float64 else torch.float32
    states, wanted = candidates(torch.where(counted, logp.double(), -1.0).flatten(), dtype)
    found = _logps(states)
    best = (found.double() - wanted[:, None]).abs().argmin(-1)
    row = torch.arange(len(best), device=best.device)
    shape = tuple(logp.shape)
    states = torch.where(counted.flatten()[:, None], states[row, best], torch.nan)
    return states.view(*shape, 2), found[row, best].view(shape)


def _logps(states: Tensor) -> Tensor:
    tokens = torch.zeros_like(states[..., 0], dtype=torch.int64)
    return gspo_torch.linear_token_logps(states, _eye(states), tokens, chunk_size=1 << 16)


def _eye(hidden: Tensor) -> Tensor:
    return torch.eye(2, dtype=hidden.dtype, device=hidden.device)


def _same_policy(name: str, value: Any, given: Tensor, logp: Tensor) -> Any:
    """Log-probabilities that equal the current policy's come from the same head, and equal what it computes."""
    if not name.endswith("logp") or value.shape != given.shape:
        return value
    return torch.where(value == given, logp, value.to(torch.promote_types(value.dtype, logp.dtype)))


def _gradient(loss: Tensor, hidden: Tensor, logp: Tensor, counted: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, hidden)
    return torch.where(counted, gradient[..., 0] / -torch.expm1(logp), gradient[..., 0])


def target() -> CoreTarget:
    """The built-in target `torch:fused`."""
    return fused("torch:fused", "cpu")


def fused(name: str, device: str, **options: Any) -> CoreTarget:
    """The operations that have a loss, on `device`."""
    return CoreTarget(name, FusedTorch(device), gspo_torch, LOSSES, **options)
