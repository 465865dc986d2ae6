"""Logits of two tokens, the first of which has a given log-probability: how a head of a vocabulary is fed what a case says.

The second token's logit makes the first one's log-probability what the case says, to a unit in the last
place or better: candidates around the solution are tried in the function under test.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..target import Skip

_TRIED = 4
# A probability of one has no gradient; at logits 40 apart its logarithm is 4e-18 from 0.
_SURE = -4e-18


def candidates(logp: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pairs of logits `[.., 2 _TRIED + 1, 2]` around the solution, and the log-probabilities wanted, in float64 and below 0."""
    if bool((logp > 0).any()):
        raise Skip("a log-probability above 0 has no hidden state")
    wanted = logp.double().clamp(max=_SURE)
    likely = wanted > -0.5
    solution = torch.where(likely, torch.log(torch.expm1(-wanted)), wanted - torch.log(-torch.expm1(wanted)))
    tried = _neighbours(solution.to(dtype))
    zero = torch.zeros_like(tried)
    pairs = torch.where(likely[..., None, None], torch.stack([zero, tried], -1), torch.stack([tried, zero], -1))
    return pairs, wanted


def _neighbours(values: Tensor) -> Tensor:
    """The values with `_TRIED` numbers on either side, `[.., 2 _TRIED + 1]`."""
    up, down = [values], [values]
    for _ in range(_TRIED):
        up.append(torch.nextafter(up[-1], torch.full_like(values, torch.inf)))
        down.append(torch.nextafter(down[-1], torch.full_like(values, -torch.inf)))
    return torch.stack([*down[:0:-1], *up], -1)
