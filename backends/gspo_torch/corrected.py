"""The weights of a correction, in host memory: those of tokens by blocks, those of responses from sums of log-ratios."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gspo_core import Correction, Objective
from gspo_core.aggregation import divide
from gspo_core.arrays import compute_dtype, times
from gspo_core.correction import correction_weights
from gspo_core.responses import Responses
from gspo_core.validation import check_finite

from .backend import keep_bits, numpy
from .tokens import Block, blocks_of, joined, lengths_of, log_ratio_sums, subtract

Weigh = Callable[[Block], Tensor]


def token_weights(objective: Objective, layout: Any, logp: Tensor, rest: dict[str, Any]) -> Weigh:
    """The product of the weights at the tokens of a block, finite at uncounted ones where it is at counted ones."""
    dtype = compute_dtype(logp, rest["old_logp"])
    advantages = rest["advantages"].detach().to(dtype).resolve_neg()
    by_response = tuple(advantages.shape) == (layout.num_sequences,)
    each = [
        _of_tokens(one, layout, logp, rest, dtype) if one.level == "token" else _of_responses(one, layout, logp, rest)
        for one in objective.correction
    ]

    def weigh(block: Block) -> Tensor:
        found = None
        for one, weights in zip(objective.correction, each, strict=True):
            here = weights(block)
            if one.negative_only:
                own = block.spread(advantages) if by_response else advantages[block.tokens]
                here = _unless(own < 0, here)
            found = here if found is None else times(found, here)
        assert found is not None
        return found

    return weigh


def response_weights(objective: Objective, layout: Any, logp: Tensor, rest: dict[str, Any]) -> Tensor | None:
    """The mean weight of each response, `[S]`: of one alike at all of its tokens, log-ratios are summed alone."""
    if not objective.correction:
        return None
    dtype = compute_dtype(logp, rest["old_logp"])
    if all(one.level != "token" for one in objective.correction):
        return _summed(objective.correction, layout, logp, rest, rest["advantages"].detach().to(dtype))
    weigh = token_weights(objective, layout, logp, rest)
    blocks, sums, lengths = blocks_of(layout), [], []
    for block in blocks:
        keep = keep_bits(layout.counted[block.tokens], dtype)
        weights = weigh(block)
        weights.view(keep.dtype).mul_(keep)
        sums.append(block.sums(weights))
        lengths.append(block.lengths(keep))
    return divide(joined(blocks, sums, layout), lengths_of(layout, lengths, dtype))


def _of_tokens(correction: Correction, layout: Any, logp: Tensor, rest: dict[str, Any], dtype: torch.dtype) -> Weigh:
    numerator = logp if correction.numerator == "current" else rest["old_logp"]
    behavior_logp = rest["behavior_logp"]

    def weights(block: Block) -> Tensor:
        counted = layout.counted[block.tokens]
        keep = keep_bits(counted, dtype)
        d = torch.empty(counted.shape, dtype=dtype, device=counted.device)
        subtract(numerator[block.tokens], behavior_logp[block.tokens], d).view(keep.dtype).mul_(keep)
        if not math.isfinite(d.sum().item()):
            check_finite("behavior_logp", behavior_logp, layout.counted)
        return _cut(correction, d.exp_())

    return weights


def _of_responses(correction: Correction, layout: Any, logp: Tensor, rest: dict[str, Any]) -> Weigh:
    alone = dataclasses.replace(correction, negative_only=False)
    weights = _summed((alone,), layout, logp, rest, None)

    def at(block: Block) -> Tensor:
        spread, counted = block.spread(weights), layout.counted[block.tokens]
        return spread.expand(counted.shape).clone()

    return at


def _summed(
    corrections: tuple[Correction, ...], layout: Any, logp: Tensor, rest: dict[str, Any], advantages: Tensor | None
) -> Tensor:
    """The weights of responses, of corrections that have one each."""
    dtype, behavior_logp = compute_dtype(logp, rest["old_logp"]), rest["behavior_logp"]
    check_finite("behavior_logp", behavior_logp, layout.counted)
    numerators, read = {"current": logp, "old": rest["old_logp"]}, {one.numerator for one in corrections}
    sums = {name: log_ratio_sums(numerators[name], behavior_logp, layout, dtype) for name in read}
    responses = Responses(next(iter(sums.values())).lengths)
    means = {name: responses.clean(one.log_ratio / one.lengths) for name, one in sums.items()}
    zeros = torch.zeros_like(next(iter(means.values())))
    new, old = (means.get(name, zeros) for name in ("current", "old"))
    return correction_weights(corrections, responses, new, old, zeros, zeros if advantages is None else advantages)


def _cut(correction: Correction, weights: Tensor) -> Tensor:
    """The core's cut of weights, in place."""
    low, high = correction.low, correction.high
    if correction.action == "clamp":
        return weights if low is None and high is None else weights.clamp_(low, high)
    inside = numpy.ones(weights.shape, dtype=bool)
    if low is not None:
        inside &= ~numpy.less(weights.numpy(), low)
    if high is not None:
        inside &= ~numpy.greater(weights.numpy(), high)
    flags = torch.from_numpy(inside)
    if correction.action == "reject":
        return torch.where(weights.isnan(), weights, flags.to(weights.dtype))
    keep = keep_bits(flags, weights.dtype)
    weights.view(keep.dtype).mul_(keep)
    return weights


def _unless(negative: Tensor, weights: Tensor) -> Tensor:
    """The weights where A < 0, else 1."""
    keep = keep_bits(negative, weights.dtype)
    weights.view(keep.dtype).mul_(keep)
    return weights.add_((~negative).to(weights.dtype))
