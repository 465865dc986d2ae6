"""Losses of responses and of tokens in PyTorch, each with something to get wrong."""

from __future__ import annotations

from typing import Any

import torch


def paper(
    logp: Any,
    old_logp: Any,
    advantages: Any,
    mask: Any,
    *,
    length: Any = None,
    scale: float = 1.0,
    clip: Any = (3e-4, 4e-4),
) -> Any:
    """The losses of the paper's responses, with a length, a factor of the log-ratio and a clip range to get wrong."""
    length = mask.sum(1).clamp(min=1) if length is None else length
    ratio = torch.exp(scale * torch.where(mask, logp - old_logp, 0.0).sum(1) / length)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip[0], 1 + clip[1]) * advantages)
    return -torch.where(mask.any(1), surrogate, 0.0)


def formed(logp: Any, old_logp: Any, advantages: Any, mask: Any, *, length: Any) -> Any:
    """The loss of the paper in GSPO-token's form, with a length of the ratio alone to get wrong."""
    mean = torch.where(mask, logp - old_logp, 0.0).sum(1) / length
    ratio, a = torch.exp(logp - logp.detach() + mean.detach()[:, None]), advantages[:, None]
    value = torch.where(mask, -torch.minimum(ratio * a, ratio.clamp(1 - 3e-4, 1 + 4e-4) * a), 0.0)
    return (value.sum(1) / mask.sum(1).clamp(min=1)).mean()


def tied(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
    """A clipped term without a gradient is as small as the other inside the range, where `minimum` gives each of them half."""
    ratio = torch.exp(torch.where(mask, logp - old_logp, 0.0).sum(1) / mask.sum(1).clamp(min=1))
    value = torch.minimum(ratio * advantages, ratio.detach().clamp(1 - 3e-4, 1 + 4e-4) * advantages)
    return -torch.where(mask.any(1), value, 0.0)


def narrow(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
    """The losses of the paper's responses with a ratio that was bfloat16 on its way."""
    ratio = torch.exp(torch.where(mask, logp - old_logp, 0.0).sum(1) / mask.sum(1).clamp(min=1)).bfloat16().float()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - 3e-4, 1 + 4e-4) * advantages)


def mean(values: Any, mask: Any) -> Any:
    """The mean of every row's counted values."""
    return torch.where(mask, values, 0.0).sum(1) / mask.sum(1).clamp(min=1)


def centred(values: Any) -> Any:
    return (values - values.mean()) / (values.std(unbiased=False) + 1e-8)


def last_place(mask: Any) -> Any:
    return ((torch.arange(mask.shape[1]) + 1) * mask).amax(1).clamp(min=1)


def spans(mask: Any) -> Any:
    return (last_place(mask) - (mask.cumsum(1) == 0).sum(1)).clamp(min=1)


def no_end(mask: Any) -> Any:
    return mask & (mask.flip(1).cumsum(1).flip(1) > 1)


def rest(mask: Any) -> Any:
    """What a mean over one token less is to be multiplied by to be divided by the length."""
    return (mask.sum(1) - 1) / mask.sum(1).clamp(min=1)


def by_token(logp: Any, old_logp: Any, advantages: Any, mask: Any, *, high: float = 0.2) -> Any:
    """PPO's losses of the responses of a batch, with a clip range to get wrong."""
    ratio, a = torch.exp(torch.where(mask, logp - old_logp, 0.0)), advantages[:, None]
    value = -torch.minimum(ratio * a, ratio.clamp(0.8, 1 + high) * a)
    return (value * mask).sum(1) / mask.sum(1).clamp(min=1)
