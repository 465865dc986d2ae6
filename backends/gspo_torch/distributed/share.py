"""What one micro-batch adds to the loss of a union, and the derivative of that by the log-probabilities of this rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gspo_core import Objective, PolicyLoss
from gspo_core.arrays import compute_dtype
from gspo_core.gradient import step_gradient
from gspo_core.loss import step_loss
from gspo_core.responses import needs_no_tokens, response_step
from gspo_core.sequences import Layout
from gspo_core.step import Step, bind, prepare
from gspo_core.validation import check_finite, reads_values

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
            step, found, gradient = _by_response(objective, layout, weigh, arguments)
        else:
            step = weigh(prepare(objective, **arguments, normalizer=1.0))
            found, gradient = step_loss(step), step_gradient(step).mul
        report = report_of(step, found)
    return _WithGradient.apply(tokens["logp"], found.loss, gradient), report


def _by_response(
    objective: Objective, layout: Layout, weigh: Weigh, arguments: dict[str, Any]
) -> tuple[Step, PolicyLoss, Callable[[Tensor], Tensor]]:
    """Where T_i and Σ_t d_{i,t} are enough: the tokens are read once, and again for the gradient."""
    logp, old_logp = arguments["logp"], arguments["old_logp"]
    sums = log_ratio_sums(logp, old_logp, layout, compute_dtype(logp, old_logp))
    if reads_values(logp) and not math.isfinite(sums.tokens.divergence):
        check_finite("logp", logp, layout.counted)
        check_finite("old_logp", old_logp, layout.counted)
    options = {name: arguments[name] for name in ("advantages", "groups")}
    step = weigh(response_step(objective, log_ratio=sums.log_ratio, lengths=sums.lengths, normalizer=1.0, **options))
    coefficient = step_gradient(step)
    return step, step_loss(step, sums.tokens), lambda factor: spread(coefficient * factor, layout)


class _WithGradient(torch.autograd.Function):
    """A scalar that was found, and its derivative as a function of the factor that comes back."""

    @staticmethod
    def forward(ctx: Any, logp: Tensor, loss: Tensor, gradient: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(logp)  # so that a change in place before the gradient is made is an error
        ctx.gradient = gradient
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        (logp,) = ctx.saved_tensors
        return ctx.gradient(factor).to(logp.dtype), None, None
