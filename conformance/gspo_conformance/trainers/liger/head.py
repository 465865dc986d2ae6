"""Hidden states whose log-probabilities are those of a case: two tokens, the identity as head, so logits are hidden states.

The second token's logit makes the first one's log-probability what the case says, to a unit in the last
place or better: candidates around the solution are tried in Liger's own log-softmax. The gradient at the
second logit is -g (1 - π), which gives g = d loss / d log π back.
"""

from __future__ import annotations

from typing import Any

import torch
from liger_kernel.chunked_loss.fused_linear_ppo import LigerFusedLinearPPOBase
from torch import Tensor

from ...target import Skip

WEIGHT = torch.eye(2)
_TRIED = 4
# A probability of one has no gradient; at logits 40 apart its logarithm is 4e-18 from 0.
_SURE = -4e-18


def hidden_states(logp: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states `[B, T, 2]`, and the log-probabilities of the first token that Liger computes from them; NaN for what is not finite."""
    if bool((logp > 0).any()):
        raise Skip("a log-probability above 0 has no hidden state")
    wanted = logp.double().clamp(max=_SURE)
    likely = wanted > -0.5
    solution = torch.where(likely, torch.log(torch.expm1(-wanted)), wanted - torch.log(-torch.expm1(wanted)))
    tried = _neighbours(solution.float())
    zero = torch.zeros_like(tried)
    states = torch.where(likely[..., None, None], torch.stack([zero, tried], -1), torch.stack([tried, zero], -1))
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


def _neighbours(values: Tensor) -> Tensor:
    """The values with `_TRIED` numbers on either side, `[.., 2 _TRIED + 1]`."""
    up, down = [values], [values]
    for _ in range(_TRIED):
        up.append(torch.nextafter(up[-1], torch.full_like(values, torch.inf)))
        down.append(torch.nextafter(down[-1], torch.full_like(values, -torch.inf)))
    return torch.stack([*down[:0:-1], *up], -1)


def _logps(states: Tensor) -> Tensor:
    """Liger's log-probabilities of the first token, `[B, T, K]`."""
    rows = states.reshape(1, -1, 2)
    tokens = torch.zeros(rows.shape[:2], dtype=torch.int64)
    return LigerFusedLinearPPOBase.chunk_forward(rows, WEIGHT, tokens).reshape(states.shape[:-1]).detach()
