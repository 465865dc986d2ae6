"""`policy_loss` with its gradient in closed form: one pass forward, one back, and no graph in between.

The core computes the loss, the metrics and the gradient; `_ClosedForm` hands that gradient to autograd.
Where tensors are traced or transformed (`torch.compile`, `torch.func`), are no plain tensors, or are
split over ranks, the core's own differentiable path runs; and so it does for a second derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import gspo_core
from gspo_core import Clip, Objective
from gspo_core.objective import PAPER_CLIP
from gspo_core.sequences import Sequences

from .backend import transformed
from .closed_form import solve
from .inference import keepable
from .observers import OBSERVERS, tell
from .results import PolicyLoss
from .solution import Solution, times


def policy_loss(
    objective: Objective,
    *,
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    sequences: Sequences | Tensor,
    ref_logp: Tensor | None = None,
    behavior_logp: Tensor | None = None,
    groups: Tensor | None = None,
    normalizer: Any = None,
) -> PolicyLoss:
    """L = -(1/M) Σ_i ω_i Σ_t w_{i,t} J(x_{i,t}, A_{i,t}) + β · KL, with its gradient in closed form.

    `gspo_core.policy_loss` on tensors, faster: the same arguments, loss, metrics and gradient
    (GSPO-GRAD-1 to GSPO-GRAD-5). Differentiable twice; under `torch.compile` and `torch.func` too.

    >>> logp = torch.tensor([[-1.0, -2.0], [-1.5, 0.0]], requires_grad=True)
    >>> mask, advantages = torch.tensor([[True, True], [True, False]]), torch.tensor([1.0, -1.0])
    >>> out = policy_loss(Objective.gspo(), logp=logp, old_logp=logp, advantages=advantages, sequences=mask)
    >>> out.loss.backward()
    >>> logp.grad
    tensor([[-0.2500, -0.2500],
            [ 0.5000,  0.0000]])
    """
    rest = {
        "old_logp": old_logp,
        "advantages": advantages,
        "sequences": sequences,
        "ref_logp": ref_logp,
        "behavior_logp": behavior_logp,
        "groups": groups,
        "normalizer": normalizer,
    }
    if not _is_plain(logp) or getattr(sequences, "context", None) is not None:
        return gspo_core.policy_loss(objective, logp=logp, **rest)
    with torch.no_grad():
        solution = solve(objective, logp.detach(), rest)
    loss = solution.loss
    if logp.requires_grad and torch.is_grad_enabled():
        loss = _ClosedForm.apply(logp, solution, objective, rest)
    found = PolicyLoss(loss, solution.metrics)
    if OBSERVERS:
        tell(objective, logp, rest, found)
    return found


def gspo_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    sequences: Sequences | Tensor,
    *,
    clip: Clip = PAPER_CLIP,
    normalizer: Any = None,
) -> PolicyLoss:
    """L = -(1/G) Σ_i min(s_i A_i, clip(s_i, 1-low, 1+high) A_i). Eq. 5; `Objective.gspo`.

    Args:
        logp: log π_θ of the sampled tokens, `[B, T]` (padded) or `[N]` (packed); the only argument with a gradient.
        old_logp: log π_old, of the policy before the first update, like `logp`.
        advantages: `[num_sequences]`.
        sequences: which tokens are those of responses: a `[B, T]` mask, `Padded(mask)` or `Packed(offsets)`.
        clip: ε_low and ε_high.
        normalizer: replaces G, so that micro-batches and ranks add up to the loss of the whole step.

    Returns: `PolicyLoss(loss, metrics)`.
    """
    return _preset(Objective.gspo, clip, logp, old_logp, advantages, sequences, normalizer)


def gspo_token_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    sequences: Sequences | Tensor,
    *,
    clip: Clip = PAPER_CLIP,
    normalizer: Any = None,
) -> PolicyLoss:
    """L = -(1/G) Σ_i (1/|y_i|) Σ_t min(s_{i,t} A_{i,t}, clip(s_{i,t}) A_{i,t}). Eq. 13; `Objective.gspo_token`.

    Arguments as in `gspo_loss`; `advantages` may also have the shape of `logp`.
    """
    return _preset(Objective.gspo_token, clip, logp, old_logp, advantages, sequences, normalizer)


def grpo_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    sequences: Sequences | Tensor,
    *,
    clip: Clip = Clip(0.2, 0.27),
    normalizer: Any = None,
) -> PolicyLoss:
    """L = -(1/G) Σ_i (1/|y_i|) Σ_t min(w_{i,t} A_{i,t}, clip(w_{i,t}) A_{i,t}). Eq. 2; `Objective.grpo`.

    Arguments as in `gspo_token_loss`.
    """
    return _preset(Objective.grpo, clip, logp, old_logp, advantages, sequences, normalizer)


def ppo_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    sequences: Sequences | Tensor,
    *,
    clip: Clip = Clip(0.2, 0.2),
    normalizer: Any = None,
) -> PolicyLoss:
    """GRPO's form with PPO's range; eq. 1 is one response. `Objective.ppo`.

    Arguments as in `gspo_token_loss`.
    """
    return _preset(Objective.ppo, clip, logp, old_logp, advantages, sequences, normalizer)


def _preset(
    preset: Callable[[Clip], Objective],
    clip: Clip,
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    sequences: Any,
    normalizer: Any,
) -> PolicyLoss:
    return policy_loss(
        preset(clip), logp=logp, old_logp=old_logp, advantages=advantages, sequences=sequences, normalizer=normalizer
    )


class _ClosedForm(torch.autograd.Function):
    """The loss that was found, with the derivative that was found."""

    @staticmethod
    def forward(ctx: Any, logp: Tensor, solution: Solution, objective: Objective, rest: dict[str, Any]) -> Tensor:
        # What the gradient reads again is saved, so that a change in place before then is an error.
        ctx.save_for_backward(logp, *map(keepable, solution.reads))
        ctx.gradient, ctx.objective, ctx.rest = solution.gradient, objective, rest
        ctx.versions = _versions(rest)
        return solution.loss

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        logp = ctx.saved_tensors[0]
        if not torch.is_grad_enabled():
            return times(ctx.gradient, factor).to(logp.dtype), None, None, None
        # Under create_graph the gradient is differentiated in turn, from the arguments as they are now.
        changed = [name for name, version in _versions(ctx.rest).items() if version != ctx.versions[name]]
        if changed:
            raise RuntimeError(
                f"{changed[0]}: changed in place since the loss was computed, so that its gradient cannot be differentiated"
            )
        loss = gspo_core.policy_loss(ctx.objective, logp=logp, **ctx.rest).loss
        (gradient,) = torch.autograd.grad(loss, logp, factor, create_graph=True)
        return gradient, None, None, None


def _versions(rest: dict[str, Any]) -> dict[str, int]:
    """How often each tensor among the arguments was changed in place."""
    tensors = ((name, value) for name, value in rest.items() if isinstance(value, Tensor))
    return {name: 0 if value.is_inference() else value._version for name, value in tensors}


def _is_plain(logp: Any) -> bool:
    """Whether `logp` is an ordinary tensor that nothing traces or transforms."""
    if torch.compiler.is_compiling() or type(logp) not in (Tensor, torch.nn.Parameter):
        return False
    return not transformed()
