"""log-softmax of a few tokens at a time, in place: the arithmetic that every path from logits to log-probabilities shares.

With m the largest logit, e_j = e^{z_j - m} and R the sum of e_j without the sampled token y:
log π(y) = z_y - m - log(R + e_y), which is -log1p(R) where y is the largest; 1 - π(y) = -expm1(log π(y)).
Leaving y out of the sum keeps the digits of log π and of 1 - π that a probability near one would cancel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .backend import backend


class Normalised(NamedTuple):
    """log π(y) of each token, and m and R + e_y, from which its softmax is made again; each `[tokens]`."""

    logp: Tensor
    peak: Tensor
    total: Tensor

    @classmethod
    def empty(cls, count: int, like: Tensor, dtype: torch.dtype) -> Normalised:
        """Room for `count` tokens."""
        return cls(*torch.empty(3, count, dtype=dtype, device=like.device))

    def put(self, at: slice, part: Normalised) -> None:
        """Writes the values of some tokens."""
        for whole, values in zip(self, part, strict=True):
            whole[at] = values

    def at(self, index: slice | Tensor) -> Normalised:
        """The values of some tokens."""
        return Normalised(*(values[index] for values in self))


def normalise_(logits: Tensor, tokens: Tensor) -> Normalised:
    """log softmax at `tokens`; leaves e^{z - m} in `logits` `[tokens, V]`, and 0 at the sampled token."""
    peak = logits.amax(-1)
    picked = logits.gather(-1, tokens[:, None])[:, 0] - peak
    exponentials_(logits, peak)
    rest = logits.scatter_(-1, tokens[:, None], 0.0).sum(-1)
    total = rest + picked.exp()
    return Normalised(torch.where(picked == 0, -rest.log1p(), picked - total.log()), peak, total)


def exponentials_(logits: Tensor, peak: Tensor) -> Tensor:
    """e^{z - m}, in place."""
    return logits.sub_(peak[:, None]).exp_()


def slopes_(exponentials: Tensor, tokens: Tensor, found: Normalised, gradient: Tensor) -> Tensor:
    """g (1[j = y] - softmax_j) = d (g log π(y)) / d z_j, in place of e^{z - m}."""
    exponentials.mul_((-gradient / found.total)[:, None])
    return exponentials.scatter_(-1, tokens[:, None], (-gradient * found.logp.expm1())[:, None])


def normalised(logits: Tensor, tokens: Tensor) -> Normalised:
    """`normalise_` without a change in place or a loop, for `[.., V]` and `[..]`; `logp` has a derivative.

    What compilers fuse into two passes over the logits, and what transforms of functions follow.
    """
    peak = logits.detach().amax(-1)
    picked = logits.gather(-1, tokens[..., None])[..., 0] - peak
    rest = torch.where(_others(logits, tokens), (logits - peak[..., None]).exp(), 0.0).sum(-1)
    total, top = rest + picked.exp(), picked.detach() == 0
    # Where y is the largest, picked is 0 and takes part for its derivative alone.
    near = -(rest * (-torch.where(top, picked, 0.0)).exp()).log1p()
    return Normalised(torch.where(top, near, picked - total.log()), peak, total)


def slopes(logits: Tensor, tokens: Tensor, found: Normalised, gradient: Tensor) -> Tensor:
    """`slopes_` of logits without a change in place, exactly 0 in rows where g is 0 (GSPO-DATA-2)."""
    share = (logits - found.peak[..., None]).exp() / found.total[..., None]
    slope = torch.where(_others(logits, tokens), -share, -backend.expm1(found.logp)[..., None])
    return torch.where(gradient[..., None] != 0, slope * gradient[..., None], 0.0)


def _others(logits: Tensor, tokens: Tensor) -> Tensor:
    return torch.arange(logits.shape[-1], device=logits.device) != tokens[..., None]
