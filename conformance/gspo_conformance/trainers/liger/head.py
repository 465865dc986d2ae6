"""Hidden states whose log-probabilities are those of a case: two tokens, the identity as head, so logits are hidden states.

The gradient at the second logit is -g (1 - π), which gives g = d loss / d log π back.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from liger_kernel.chunked_loss.fused_linear_ppo import LigerFusedLinearPPOBase
from torch import Tensor

from ...targets.two_tokens import candidates

WEIGHT = torch.eye(2)
FORWARD = LigerFusedLinearPPOBase.chunk_forward
# Up to 0.7 it returns the log-probabilities of all tokens, and the logits.
SELECTS = "selected_token_ids" in signature(FORWARD).parameters


def hidden_states(logp: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states `[B, T, 2]`, and the log-probabilities of the first token that Liger computes from them; NaN for what is not finite."""
    states, wanted = candidates(logp, torch.float32)
    found = _logps(states)
    best = (found.double() - wanted[..., None]).abs().nan_to_num(0.0).argmin(-1, keepdim=True)
    chosen = torch.take_along_dim(states, best[..., None], -2).squeeze(-2)
    chosen = torch.where(wanted.isfinite()[..., None], chosen, torch.nan)
    return chosen, torch.take_along_dim(found, best, -1).squeeze(-1)


def gradient_of(hidden: Tensor) -> Tensor:
    """d loss / d log π of the first token, from the gradient at the hidden states."""
    gradient: Any = hidden.grad
    other = hidden.detach().double().softmax(-1)[..., 1]
    return torch.where(gradient[..., 1] == 0, 0.0, gradient[..., 1] / -other).float()


def _logps(states: Tensor) -> Tensor:
    """Liger's log-probabilities of the first token, `[B, T, K]`."""
    rows = states.reshape(1, -1, 2)
    tokens = torch.zeros(rows.shape[:2], dtype=torch.int64)
    found = FORWARD(rows, WEIGHT, tokens) if SELECTS else FORWARD(rows, WEIGHT)[0][..., 0]
    return found.reshape(states.shape[:-1]).detach()
