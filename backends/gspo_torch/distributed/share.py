"""What one micro-batch adds to the loss of a union, and the derivative of that by the log-probabilities of this rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gspo_core import Objective
from gspo_core.arrays import compute_dtype
from gspo_core.gradient import step_gradient
from gspo_core.loss import step_loss
from gspo_core.responses import needs_no_tokens, response_step
from gspo_core.sequences import Layout
from gspo_core.step import Step, bind, prepare
from gspo_core.validation import check_finite, reads_values

from ..inference import keepable
from ..once import once
from ..solution import Solution, places, times
from ..tokens import log_ratio_sums, spread
from .reports import Report, report_of

Weigh = Callable[[Step], Step]


def share(objective: Objective, weigh: Weigh, arguments: dict[str, Any]) -> tuple[Tensor, Report]:
    """(1/M) Σ_i ω_i Σ_t l_{i,t} of the micro-batch with the ω and M that `weigh` puts into its step.

    The gradient is in closed form, except over a context group: there autograd knows which sums went
    over ranks, and repeats none of them.
    """
    tokens = {name: arguments[name] for name in ("logp", "old_logp", "ref_logp", "behavior_logp")}
    layout = bind(objective, arguments["sequences"], arguments["advantages"], arguments["groups"], **tokens)
    if layout.context is not None:
        step = weigh(prepare(objective, **arguments, normalizer=1.0))
        found = step_loss(step)
        return found.loss, report_of(step, found)
    with torch.no_grad():
        if tokens["logp"].numel() and needs_no_tokens(objective, arguments["advantages"], layout.num_sequences):
            step, found = _by_response(objective, layout, weigh, arguments)
        else:
            step = weigh(prepare(objective, **arguments, normalizer=1.0))
            found = Solution(*step_loss(step), step_gradient(step).mul, ())
        report = report_of(step, found)
    return _Shared.apply(tokens["logp"], found), report


def _by_response(
    objective: Objective, layout: Layout, weigh: Weigh, arguments: dict[str, Any]
) -> tuple[Step, Solution]:
    """Where T_i and Σ_t d_{i,t} are enough: the tokens are read once, and again for the gradient."""
    logp, old_logp = arguments["logp"], arguments["old_logp"]
    sums = log_ratio_sums(logp, old_logp, layout, compute_dtype(logp, old_logp))
    if reads_values(logp) and not math.isfinite(sums.tokens.divergence):
        check_finite("logp", logp, layout.counted)
        check_finite("old_logp", old_logp, layout.counted)
    options = {name: arguments[name] for name in ("advantages", "groups")}
    step = weigh(response_step(objective, log_ratio=sums.log_ratio, lengths=sums.lengths, normalizer=1.0, **options))
    coefficient = step_gradient(step)
    loss, metrics = step_loss(step, sums.tokens)
    return step, Solution(loss, metrics, lambda factor: spread(coefficient * factor, layout), places(layout))


class _Shared(torch.autograd.Function):
    """The loss that was found, with the derivative that was found."""

    @staticmethod
    def forward(ctx: Any, logp: Tensor, found: Solution) -> Tensor:
        # What the gradient reads again is saved, so that a change in place before then is an error.
        ctx.save_for_backward(logp, *map(keepable, found.reads))
        ctx.gradient = found.gradient
        return found.loss.clone()

    @staticmethod
    @once("distributed.Union, distributed.reduce")
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None]:
        return times(ctx.gradient, factor).to(ctx.saved_tensors[0].dtype), None
