"""From hidden states to the policy loss, chunked over tokens: gradients are formed on the way, no `[.., V]` is ever kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from gspo_core import Objective
from gspo_core.sequences import Sequences, bind_sequences
from gspo_core.validation import check_array, check_choice

from .head import Gradients, Needs
from .linear import autocast, check_layer
from .linear_designs import DESIGNS, FusedCall
from .logps import check_tokens
from .once import once
from .results import PolicyLoss


# Chunks are counted on the host and sums are kept in place: a trace of that would be wrong, so callers' graphs break here.
# `torch.compiler.disable` does the same and imports the compiler at once; this waits for the first call.
@_disable_dynamo
def linear_policy_loss(
    objective: Objective,
    *,
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    sequences: Sequences | Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    ref_logp: Tensor | None = None,
    behavior_logp: Tensor | None = None,
    groups: Tensor | None = None,
    normalizer: Any = None,
    chunk_size: int | None = None,
    design: str = "auto",
) -> PolicyLoss:
    """`policy_loss` of log softmax((W h_t + b)/τ) at y_t, with memory O(chunk · V) whatever the length of a sequence.

    The gradients to `hidden`, `weight` and `bias` are formed during the call, from d loss / d log π in
    the core's closed form, and multiplied by what flows back. Uncounted tokens enter no product;
    sequences whose gradient is exactly 0 (clipped, zero advantage) enter none of the backward products.

    Args:
        objective: any `Objective`.
        hidden: the states whose next tokens are `tokens`: `[B, T, D]` (padded) or `[N, D]` (packed).
        weight: the head, `[V, D]`, in the dtype of `hidden`; its gradient is summed in float32.
        tokens: integer ids, `[B, T]` or `[N]`; any number at uncounted positions.
        old_logp: as in `policy_loss`, and so are `advantages`, `sequences`, `ref_logp`, `behavior_logp`, `groups` and `normalizer`.
        bias: `[V]`, or None.
        temperature: by which the logits are divided.
        chunk_size: tokens per chunk, as in `linear_token_logps`.
        design: "recompute" makes each chunk's logits twice; "single_pass" makes them once and is an error where a response
            longer than a chunk does not allow it; "auto" chooses for each response.

    Returns: `PolicyLoss(loss, metrics)`.

    >>> import gspo_torch as gspo
    >>> hidden, weight = torch.eye(2, requires_grad=True), torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 2.0]])
    >>> tokens, offsets = torch.tensor([0, 2]), torch.tensor([0, 1, 2])
    >>> out = gspo.linear_policy_loss(
    ...     gspo.Objective.gspo(),
    ...     hidden=hidden,
    ...     weight=weight,
    ...     tokens=tokens,
    ...     old_logp=gspo.linear_token_logps(hidden, weight, tokens).detach(),
    ...     advantages=torch.tensor([1.0, -1.0]),
    ...     sequences=gspo.Packed(offsets),
    ... )
    >>> out.loss.backward()
    >>> hidden.grad
    tensor([[0.0000, 0.3333],
            [0.0000, 0.2130]])
    """
    check_choice("design", design, DESIGNS)
    layer = check_layer(hidden, weight, bias, temperature, chunk_size)
    check_array("tokens", tokens)
    layout = bind_sequences(sequences, tuple(tokens.shape), "tokens")
    check_tokens(tokens, tuple(hidden.shape[:-1]), weight.shape[0], "like hidden without D", layout.counted)
    call = FusedCall(
        objective,
        tokens,
        layer,
        design,
        {
            "old_logp": old_logp,
            "advantages": advantages,
            "sequences": sequences,
            "ref_logp": ref_logp,
            "behavior_logp": behavior_logp,
            "groups": groups,
            "normalizer": normalizer,
        },
    )
    parameters = autocast(hidden, weight, bias)
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in parameters):
        loss = _LinearPolicyLoss.apply(call, *parameters)
        return PolicyLoss(loss, call.metrics)
    return call.evaluate(layer.head(*parameters))


class _LinearPolicyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: FusedCall, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(hidden, weight, bias)
        ctx.gradients = Gradients(call.layer.head(hidden, weight, bias), Needs(*ctx.needs_input_grad[1:]))
        return call.differentiate(ctx.gradients)

    @staticmethod
    @_disable_dynamo
    @once("linear_policy_loss")
    def backward(ctx: Any, factor: Tensor) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            # A second pass through a retained graph: the first one took the buffers away.
            gradients = Gradients(ctx.call.layer.head(*ctx.saved_tensors), Needs(*ctx.needs_input_grad[1:]))
            ctx.call.differentiate(gradients)
        return None, *gradients.finish(factor)
