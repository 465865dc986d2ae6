"""From logits to the log-probabilities of sampled tokens, a few tokens at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gspo_core.validation import check_array, check_floating, check_integer, check_number, check_shape, reads_values

from .backend import transformed
from .inference import keepable
from .normalise import Normalised, exponentials_, normalise_, normalised, slopes, slopes_
from .once import once

# Bytes of logits worked on at once: what stays in a core's cache, and what keeps a GPU busy.
_HOST_BYTES = 1 << 20
_DEVICE_BYTES = 1 << 26


def token_logps(logits: Tensor, tokens: Tensor, *, temperature: float = 1.0) -> Tensor:
    """log π(y_t) = z_y/τ - log Σ_j e^{z_j/τ}, in float32 or wider, without a second `[.., V]` array.

    Clauses GSPO-NUM-1 and GSPO-NUM-2. The gradient to `logits` is exact and in their dtype; the
    backward pass makes the softmax again from two numbers per token. Under `torch.func` and forward-mode
    derivatives PyTorch differentiates the formula instead.

    Args:
        logits: `[.., V]`, of any floating dtype.
        tokens: `[..]` integer ids of the sampled tokens, in [0, V).
        temperature: τ, by which the logits are divided.

    Returns: `[..]`, float64 for float64 logits and float32 otherwise.

    >>> logits = torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    >>> token_logps(logits, torch.tensor([0, 1]))
    tensor([-0.6931, -0.6931])
    """
    check_array("logits", logits)
    check_local("logits", logits)
    check_floating("logits", logits)
    if logits.ndim == 0:
        raise ValueError("logits: expected shape [.., V], got ()")
    check_temperature(temperature)
    check_tokens(tokens, tuple(logits.shape[:-1]), logits.shape[-1], "like logits without the vocabulary")
    if not torch.compiler.is_compiling() and transformed():
        return normalised(logits.to(compute_dtype(logits)) / temperature, tokens.long()).logp
    return _TokenLogps.apply(logits, tokens, float(temperature))


def check_local(name: str, values: Any) -> None:
    """No DTensor: what is worked on here is what one rank holds."""
    if hasattr(values, "to_local"):
        raise TypeError(
            f"{name}: expected a plain tensor, got a DTensor; FSDP makes its parameters whole inside the forward pass of "
            f"their module, and a head with rows over ranks is for gspo_torch.distributed.linear_token_logps"
        )


def check_temperature(temperature: Any) -> None:
    """τ > 0."""
    check_number("temperature", temperature, low=0.0, strict=True)


def check_tokens(
    tokens: Tensor, shape: tuple[int, ...], vocabulary: int, meaning: str, counted: Tensor | None = None
) -> None:
    """Integer ids of `shape`, within the vocabulary wherever they count."""
    check_array("tokens", tokens)
    check_integer("tokens", tokens)
    check_shape("tokens", tokens, shape, meaning)
    if not reads_values(tokens):
        return
    outside = (tokens < 0) | (tokens >= vocabulary)
    where = ""
    if counted is not None:
        outside, where = outside & counted, " at counted positions"
    if bool(outside.any()):
        first = tuple(outside.nonzero()[0].tolist())
        raise ValueError(
            f"tokens: expected ids in [0, {vocabulary}){where}, got {int(outside.sum())} others, "
            f"the first, {int(tokens[first])}, at index {first}"
        )


def compute_dtype(values: Tensor) -> torch.dtype:
    """float64 for float64, float32 for anything narrower (GSPO-NUM-1, GSPO-NUM-2)."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        tokens, dtype = keepable(tokens.long()), compute_dtype(logits)
        if torch.compiler.is_compiling():
            # A compiler would write out every turn of a loop, and fuses what is done with all tokens at once.
            found = normalised(logits.to(dtype) / temperature, tokens)
        else:
            found = _normalised_by_chunks(logits, tokens.reshape(-1), dtype, temperature)
        ctx.save_for_backward(logits, tokens, *found)
        ctx.temperature = temperature
        return found.logp.view(tokens.shape).clone()

    @staticmethod
    @once("token_logps")
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, tokens, *saved = ctx.saved_tensors
        found = Normalised(*saved)
        weights = gradient / ctx.temperature
        if torch.compiler.is_compiling():
            scaled = logits.to(found.logp.dtype) / ctx.temperature
            return slopes(scaled, tokens, found, weights).to(logits.dtype), None, None
        return _slopes_by_chunks(logits, tokens.reshape(-1), found, weights.reshape(-1), ctx.temperature), None, None


def _normalised_by_chunks(logits: Tensor, tokens: Tensor, dtype: torch.dtype, temperature: float) -> Normalised:
    found = Normalised.empty(tokens.numel(), logits, dtype)
    for at, part in _chunks(logits):
        found.put(at, normalise_(_scaled(part, dtype, temperature), tokens[at]))
    return found


def _slopes_by_chunks(logits: Tensor, tokens: Tensor, found: Normalised, weights: Tensor, temperature: float) -> Tensor:
    result = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    rows = result.view(-1, logits.shape[-1])
    for at, part in _chunks(logits):
        exponentials = exponentials_(_scaled(part, found.logp.dtype, temperature), found.peak[at])
        rows[at] = _without_unused(slopes_(exponentials, tokens[at], found.at(at), weights[at]), weights[at])
    return result


def _scaled(logits: Tensor, dtype: torch.dtype, temperature: float) -> Tensor:
    copy = logits.to(dtype, copy=True)
    return copy if temperature == 1.0 else copy.div_(temperature)


def _without_unused(slopes: Tensor, weights: Tensor) -> Tensor:
    """Exactly 0 where nothing flows back: the logits of a masked token may be NaN (GSPO-DATA-2)."""
    unused = weights == 0
    if reads_values(weights) and not bool(unused.any()):
        return slopes
    return slopes.masked_fill_(unused[:, None], 0.0)


def _chunks(logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Views `[tokens, V]` of consecutive tokens, small enough to work on, and which tokens they are."""
    budget = _HOST_BYTES if logits.device.type == "cpu" else _DEVICE_BYTES
    size = max(1, budget // (max(1, logits.shape[-1]) * 4))
    start = 0
    for rows in _matrices(logits):
        for part in rows.split(size) if rows.shape[0] else ():
            yield slice(start, start + part.shape[0]), part
            start += part.shape[0]


def _matrices(logits: Tensor) -> Iterator[Tensor]:
    """`logits` as views `[tokens, V]`: one where its strides allow, else one for each of the first index."""
    if logits.ndim <= 2:
        yield logits.reshape(-1, logits.shape[-1])
    elif logits.is_contiguous():
        yield logits.view(-1, logits.shape[-1])
    else:
        for part in logits.unbind(0):
            yield from _matrices(part)
