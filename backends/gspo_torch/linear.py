"""From hidden states and the language-model head to log-probabilities, never building `[.., V]`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from gspo_core.validation import check_array, check_floating, check_same_namespace, check_shape

from .backend import transformed
from .head import Gradients, Head, Needs, default_chunk_size
from .inference import keepable
from .logps import check_local, check_temperature, check_tokens, compute_dtype
from .normalise import Normalised
from .once import once


# The tokens that a gradient reaches are counted on the host, so callers' graphs break here.
@_disable_dynamo
def linear_token_logps(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> Tensor:
    """log softmax((W h_t + b)/τ) at y_t, `chunk_size` tokens at a time: memory O(chunk · V) however many tokens.

    Gradients flow to `hidden`, `weight` and `bias`, those that need one. The backward pass makes each
    chunk's logits again (four matrix products in all, against three that keep `[.., V]`) and leaves
    out tokens through which nothing flows back.

    Args:
        hidden: h, `[.., D]`.
        weight: W, `[V, D]`, in the dtype of `hidden`.
        tokens: y, `[..]` integer ids in [0, V).
        bias: b, `[V]`, or None.
        temperature: τ, by which the logits are divided.
        chunk_size: tokens per chunk. None: as many as 64 MiB of float32 logits on a CPU and 1 GiB on another device hold, within bounds.

    Returns: `[..]`, float64 for float64 hidden states and float32 otherwise.

    >>> hidden, weight = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 2.0]])
    >>> linear_token_logps(hidden, weight, torch.tensor([0, 2]))
    tensor([-1.0986, -0.2395])
    """
    layer = check_layer(hidden, weight, bias, temperature, chunk_size)
    check_tokens(tokens, tuple(hidden.shape[:-1]), weight.shape[0], "like hidden without its last dimension")
    return _LinearTokenLogps.apply(tokens, layer, *autocast(hidden, weight, bias))


class Layer(NamedTuple):
    """How a head is to be used, and the dtype of its logits."""

    temperature: float
    chunk_size: int
    dtype: torch.dtype

    def head(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Head:
        """The head over detached tensors."""
        parts = (hidden.detach(), weight.detach(), None if bias is None else bias.detach())
        return Head(*parts, self.temperature, self.chunk_size)


def check_layer(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: Any, chunk_size: Any) -> Layer:
    """Shapes, dtypes and settings of a head, checked."""
    if transformed():
        raise RuntimeError(
            "linear_token_logps, linear_policy_loss: expected to be called outside torch.func, forward-mode derivatives "
            "and make_fx, which cannot follow them; inside, use token_logps(hidden @ weight.T, tokens) and policy_loss"
        )
    named = {"hidden": hidden, "weight": weight} | ({} if bias is None else {"bias": bias})
    check_same_namespace(check_array("hidden", hidden), **named)
    for name, values in named.items():
        check_local(name, values)
        check_floating(name, values)
    if hidden.ndim < 1 or weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"weight: expected shape [V, D] with D the last dimension of hidden {tuple(hidden.shape)}, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],), "one per row of weight")
    _check_dtypes(named)
    check_temperature(temperature)
    if chunk_size is None:
        chunk_size = default_chunk_size(weight.shape[0], hidden.device)
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size: expected a positive integer or None, got {chunk_size!r}")
    return Layer(float(temperature), chunk_size, compute_dtype(hidden))


def _check_dtypes(named: dict[str, Tensor]) -> None:
    hidden = named["hidden"]
    if torch.is_autocast_enabled(hidden.device.type):
        return
    for name, values in named.items():
        if values.dtype != hidden.dtype:
            raise TypeError(f"{name}: expected {hidden.dtype} like hidden, got {values.dtype}")


def autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors as `torch.autocast` would hand them to a linear layer; float64 stays."""
    device = tensors[0].device.type if tensors[0] is not None else "cpu"
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    dtype = torch.float64 if wide else torch.get_autocast_dtype(device)
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def full_precision(like: Tensor) -> AbstractContextManager[None]:
    """Autocast off: dtypes are chosen here."""
    return torch.autocast(like.device.type, enabled=False)


class _LinearTokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, layer: Layer, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        flat = keepable(tokens.reshape(-1).long())
        positions = torch.arange(flat.shape[0], device=flat.device)
        with full_precision(hidden):
            found = layer.head(hidden, weight, bias).normalised(positions, flat)
        ctx.layer = layer
        ctx.save_for_backward(hidden, weight, bias, flat, *found)
        return found.logp.view(tokens.shape).clone()

    @staticmethod
    @_disable_dynamo
    @once("linear_token_logps")
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, tokens, *saved = ctx.saved_tensors
        head = ctx.layer.head(hidden, weight, bias)
        gradients = Gradients(head, Needs(*ctx.needs_input_grad[2:]))
        positions = torch.arange(tokens.shape[0], device=tokens.device)
        with full_precision(hidden):
            gradients.add_tokens(positions, tokens, Normalised(*saved), gradient.reshape(-1))
        return None, None, *gradients.finish()
