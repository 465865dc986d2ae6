"""Log-probabilities from a language-model head whose vocabulary is cut over ranks (tensor parallel)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.distributed.tensor import DTensor, Replicate, Shard

from gspo_core.validation import check_array, check_integer, check_shape, reads_values

from ..head import Gradients, Head, Needs
from ..linear import Layer, autocast, check_layer, full_precision
from ..normalise import Normalised, exponentials_
from ..once import once
from .ranks import gather, process_group, taking_part


# As `gspo_torch.linear_token_logps`: callers' graphs break here.
@_disable_dynamo
def linear_token_logps(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    group: Any = None,
    start: int | None = None,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> Tensor:
    """`gspo_torch.linear_token_logps` where each rank of `group` holds some rows of W and b.

    Three numbers per token and rank are exchanged forward (largest logit, sum of exponentials, logit of
    the sampled token), and the gradient of `hidden` backward. Every rank passes the same `hidden` and
    `tokens`, gets the same log-probabilities and differentiates the one loss computed from them: its
    gradients are the whole of `hidden`'s, and those of its own rows of `weight` and `bias`.

    Args:
        hidden: h, `[.., D]`, the same on every rank; or a replicated DTensor.
        weight: this rank's rows of W, `[V_r, D]`; or the whole as a DTensor with Shard(0), which names `group` and `start`.
        tokens: y, `[..]` integer ids in the whole vocabulary.
        group: the ranks that hold the vocabulary, a `ProcessGroup` or one-dimensional `DeviceMesh`; all where None.
        start: the id of this rank's first row. None: every rank holds as many rows, in order of rank.
        bias: this rank's rows of b, `[V_r]`, placed like `weight`.
        temperature: τ, by which the logits are divided.
        chunk_size: tokens per chunk, as in `gspo_torch.linear_token_logps`.

    Returns: `[..]`, float64 for float64 hidden states and float32 otherwise.
    """
    if isinstance(weight, DTensor):
        group, start = _placed(weight, group, start)
    named = (("hidden", hidden), ("weight", weight), ("bias", bias))
    hidden, weight, bias = (_local(name, value, weight) for name, value in named)
    ranks = process_group("group", group)
    layer = check_layer(hidden, weight, bias, temperature, chunk_size)
    check_array("tokens", tokens)
    check_integer("tokens", tokens)
    check_shape("tokens", tokens, tuple(hidden.shape[:-1]), "like hidden without its last dimension")
    first = ranks.rank() * weight.shape[0] if start is None else start
    return _VocabularyParallel.apply(tokens, first, layer, ranks, *autocast(hidden, weight, bias))


def _placed(weight: DTensor, group: Any, start: int | None) -> tuple[Any, int]:
    """The ranks and the first row that the placement of `weight` names."""
    if group is not None or start is not None:
        raise ValueError("group, start: expected None, since the placement of weight names them, got a value")
    mesh, placements = weight.device_mesh, weight.placements
    if mesh.ndim != 1 or placements != (Shard(0),):
        raise ValueError(
            f"weight: expected a DTensor with Shard(0) on a mesh of 1 dimension, got {placements} on {mesh.ndim}"
        )
    # Shard(0) is `torch.chunk`: all parts but the last have the same number of rows.
    return mesh, mesh.get_local_rank() * -(-weight.shape[0] // mesh.size())


def _local(name: str, value: Tensor | None, weight: Tensor) -> Tensor | None:
    """What this rank holds; gradients of DTensors are placed like they are."""
    if not isinstance(value, DTensor):
        return value
    expected = (Replicate(),) if name == "hidden" else (Shard(0),)
    if not isinstance(weight, DTensor) or value.device_mesh != weight.device_mesh or value.placements != expected:
        raise ValueError(f"{name}: expected {expected} on the mesh of weight, got {value.placements}")
    return value.to_local(grad_placements=expected)


class _Targets(NamedTuple):
    """Where among this rank's rows each sampled token is: a valid row always, and whether it is the right one."""

    rows: Tensor
    here: Tensor


def _targets(tokens: Tensor, first: int, count: int) -> _Targets:
    rows = tokens.reshape(-1).long() - first
    return _Targets(rows.clamp(0, max(0, count - 1)), (rows >= 0) & (rows < count))


class _VocabularyParallel(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        first: int,
        layer: Layer,
        ranks: dist.ProcessGroup,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        targets = _targets(tokens, first, weight.shape[0])
        with full_precision(hidden):
            local = _local_statistics(layer.head(hidden, weight, bias), targets)
        found = _combined(gather(local, ranks, "the statistics of the vocabulary's parts"), tokens)
        ctx.layer, ctx.ranks = layer, ranks
        ctx.save_for_backward(hidden, weight, bias, *targets, *found)
        return found.logp.view(tokens.shape).clone()

    @staticmethod
    @_disable_dynamo
    @once("linear_token_logps")
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, rows, here, *saved = ctx.saved_tensors
        gradients = _PartGradients(ctx.layer.head(hidden, weight, bias), Needs(*ctx.needs_input_grad[4:]), here)
        positions = torch.arange(rows.shape[0], device=rows.device)
        with full_precision(hidden):
            if weight.shape[0]:
                gradients.add_tokens(positions, rows, Normalised(*saved), gradient.reshape(-1))
        if gradients.hidden is not None:
            with taking_part("the gradient of hidden states", ctx.ranks):
                dist.all_reduce(gradients.hidden, group=ctx.ranks)
        return None, None, None, None, *gradients.finish()


def _local_statistics(head: Head, targets: _Targets) -> Tensor:
    """m, Σ_j e^{z_j - m} without the sampled token, and its logit z_y, each `[tokens]`; -∞, 0 and -∞ of no row."""
    count = targets.rows.shape[0]
    none = torch.tensor([-torch.inf, 0.0, -torch.inf], dtype=head.dtype, device=head.hidden.device)
    found = none[:, None].repeat(1, count)
    positions = torch.arange(count, device=head.hidden.device)
    for at in head.chunks(count if head.weight.shape[0] else 0):
        logits, row, here = head.logits(head.rows(positions[at])), targets.rows[at, None], targets.here[at]
        peak, picked = logits.amax(-1), logits.gather(-1, row)[:, 0]
        exponentials_(logits, peak)
        kept = torch.where(here[:, None], 0.0, logits.gather(-1, row))
        found[0, at], found[1, at] = peak, logits.scatter_(-1, row, kept).sum(-1)
        found[2, at] = torch.where(here, picked, -torch.inf)
    return found


def _combined(parts: Tensor, tokens: Tensor) -> Normalised:
    """log softmax over all parts `[ranks, 3, tokens]`, as `normalise_` has it over one."""
    peaks, sums, picked = parts.unbind(1)
    _check_owned(picked, tokens)
    peak = peaks.amax(0)
    rest = (sums * (peaks - peak).exp()).sum(0)
    target = picked.amax(0) - peak
    total = rest + target.exp()
    return Normalised(torch.where(target == 0, -rest.log1p(), target - total.log()), peak, total)


def _check_owned(picked: Tensor, tokens: Tensor) -> None:
    """Every token is in exactly one rank's part of the vocabulary."""
    if not reads_values(tokens):
        return
    wrong = ((picked > -torch.inf).sum(0) != 1) & ~picked.isnan().any(0)
    if bool(wrong.any()):
        token = int(tokens.reshape(-1)[wrong.nonzero()[0, 0]])
        raise ValueError(
            f"tokens: expected ids that exactly one rank holds the row of, got {int(wrong.sum())} others, the first "
            f"{token}; where ranks hold unequal parts of the vocabulary, pass start"
        )


class _PartGradients(Gradients):
    """Gradients of one part of the vocabulary: the sampled token of a position may be in another."""

    def __init__(self, head: Head, needs: Needs, here: Tensor) -> None:
        super().__init__(head, needs)
        self._here = here

    def slopes(
        self, exponentials: Tensor, tokens: Tensor, found: Normalised, weights: Tensor, positions: Tensor
    ) -> Tensor:
        exponentials.mul_((-weights / found.total)[:, None])
        row, here = tokens[:, None], self._here[positions]
        own = torch.where(here, -weights * found.logp.expm1(), exponentials.gather(-1, row)[:, 0])
        return exponentials.scatter_(-1, row, own[:, None])
