"""Σ_t over the counted tokens of each response, and a value per response laid back on its tokens.

In host memory this runs block by block, of rows or of packed tokens, through two small buffers: memory bandwidth and
fresh pages are what a loss costs, not arithmetic. A token is selected there by multiplying its bits, as integers, with 0
or 1: as exact as `where` (NaN and infinity included), in a sixth of its time.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gspo_core.metrics import TokenSums, divergence
from gspo_core.sequences import Layout

from .backend import BITS, backend, keep_bits, numpy
from .compiled import repeated

# So many tokens of each of the two buffers, per thread: larger ones leave the cache, smaller ones cost more calls.
_BLOCK = 1 << 17
# On processors with vectors of 512 bits NumPy's expm1, on one core, does the work of three of PyTorch's.
_CORES_OF_TORCH = 4
_NUMPY_IS_WIDE = numpy is not None and not {"AVX512_SKX", "X86_V4"}.isdisjoint(
    numpy.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", ())
)


class LogRatioSums(NamedTuple):
    """Σ_t d_{i,t} and T_i, `[S]`, and the sums that the token metrics are made of."""

    log_ratio: Tensor
    lengths: Tensor
    tokens: TokenSums


class Block(NamedTuple):
    """Some tokens and the responses that they are of: whole rows, or a stretch of packed ones with `offsets` into it."""

    tokens: slice
    responses: slice
    offsets: Tensor | None = None

    def spread(self, per_response: Tensor) -> Tensor:
        """v_i at every token of response i: `[rows, 1]`, or `[tokens]` with 0 past the last response."""
        own = per_response[self.responses]
        return (
            own[:, None] if self.offsets is None else repeated(own, self.offsets, self.tokens.stop - self.tokens.start)
        )

    def sums(self, values: Tensor) -> Tensor:
        """Σ_t v_t over the tokens of each response that are here."""
        if self.offsets is None:
            return values.sum(1)
        return backend.segment_sum(values, self.offsets, values.shape[0])

    def lengths(self, keep: Tensor) -> Tensor:
        """T of whole rows, from 1 or 0 of each token; a packed layout knows its own."""
        return keep.sum(1, dtype=keep.dtype) if self.offsets is None else keep[:0]


def joined(blocks: list[Block], parts: list[Tensor], layout: Layout) -> Tensor:
    """`[S]` from what each block has of its responses: a long packed one crosses blocks, whose parts add up in float64."""
    if blocks[0].offsets is None:
        return torch.cat(parts)
    whole = parts[0].new_zeros(layout.num_sequences, dtype=torch.float64)
    for block, part in zip(blocks, parts, strict=True):
        whole[block.responses] += part
    return whole.to(parts[0].dtype)


def lengths_of(layout: Layout, parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """T_i, where each block has `lengths` of its part."""
    return layout.lengths(dtype) if layout.counted.ndim == 1 else torch.cat(parts).to(dtype)


def log_ratio_sums(logp: Tensor, old_logp: Tensor, layout: Layout, dtype: torch.dtype) -> LogRatioSums:
    """Sums of d = `logp` - `old_logp` over the counted tokens, in `dtype`, without a derivative."""
    if backend.can_inspect(logp):
        return _host_sums(logp, old_logp, layout, dtype)
    d = logp.to(dtype) - old_logp.to(dtype)
    d = layout.clean(d)
    tokens = TokenSums(divergence(d).sum(), d.any())
    whole = Block(slice(None), slice(None), None if d.ndim == 2 else layout.offsets)
    return LogRatioSums(whole.sums(d), layout.lengths(dtype), tokens)


def token_sums(values: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """Σ_t v_t over the counted tokens, `[S]`, in host memory."""
    blocks, parts = blocks_of(layout), []
    for block in blocks:
        kept = values[block.tokens].to(dtype, copy=True)
        kept.view(BITS[dtype]).mul_(keep_bits(layout.counted[block.tokens], dtype))
        parts.append(block.sums(kept))
    return joined(blocks, parts, layout)


def spread(per_response: Tensor, layout: Layout) -> Tensor:
    """v_i at every counted token of response i and exactly 0 elsewhere, whatever v_i is."""
    counted = layout.counted
    if not backend.can_inspect(counted):
        values = (
            per_response[:, None] if counted.ndim == 2 else repeated(per_response, layout.offsets, counted.shape[0])
        )
        return layout.clean(values.expand(counted.shape))
    found = per_response.new_empty(counted.shape)
    bits = BITS[found.dtype]
    for block in blocks_of(layout):
        kept = found[block.tokens].view(bits).copy_(counted[block.tokens].view(torch.int8))
        kept.mul_(block.spread(per_response).view(bits))
    return found


def scaled(values: Tensor, per_response: Tensor, layout: Layout) -> Tensor:
    """v_t c_i, in host memory."""
    found = torch.empty_like(values)
    for block in blocks_of(layout):
        torch.mul(values[block.tokens], block.spread(per_response), out=found[block.tokens])
    return found


def _host_sums(logp: Tensor, old_logp: Tensor, layout: Layout, dtype: torch.dtype) -> LogRatioSums:
    counted, blocks = layout.counted, blocks_of(layout)
    buffers = counted.new_empty(2, blocks[0].tokens.stop, *counted.shape[1:], dtype=dtype)
    sums, lengths, total, moved = [], [], 0.0, False
    for block in blocks:
        d, buffer = buffers[:, : block.tokens.stop - block.tokens.start]
        keep = buffer.view(BITS[dtype]).copy_(counted[block.tokens].view(torch.int8))
        subtract(logp[block.tokens], old_logp[block.tokens], d).view(keep.dtype).mul_(keep)
        sums.append(block.sums(d))
        lengths.append(block.lengths(keep))
        here = sum_of_divergence(d, buffer)
        total, moved = total + here, moved or here != 0 or bool(d.any())
    log_ratio = joined(blocks, sums, layout)
    tokens = TokenSums(log_ratio.new_tensor(total), log_ratio.new_tensor(moved))
    return LogRatioSums(log_ratio, lengths_of(layout, lengths, dtype), tokens)


def sum_of_divergence(d: Tensor, scratch: Tensor) -> float:
    """Σ (e^d - 1 - d), the core's `divergence`. It is positive wherever a d is not 0, but for underflow."""
    return exp_minus_one(d, scratch).sub_(d).sum().item()


def exp_minus_one(values: Tensor, out: Tensor) -> Tensor:
    """e^v - 1, into `out`, which may be `values`."""
    if not _NUMPY_IS_WIDE or torch.get_num_threads() >= _CORES_OF_TORCH:
        return torch.expm1(values, out=out)
    with numpy.errstate(all="ignore"):
        numpy.expm1(values.numpy(), out=out.numpy())
    return out


def subtract(new: Tensor, old: Tensor, out: Tensor) -> Tensor:
    """`new` - `old` in the dtype of `out`, which no narrower one enters."""
    if out.dtype in (new.dtype, old.dtype):
        return torch.sub(new, old, out=out)
    return out.copy_(new).sub_(old)


def blocks_of(layout: Any) -> list[Block]:
    """The tokens in order, about `_BLOCK` of them for each thread at a time."""
    counted = layout.counted
    size = counted.shape[0]
    step = max(1, _BLOCK * torch.get_num_threads() * size // counted.numel())
    parts = [slice(start, min(start + step, size)) for start in range(0, size, step)]
    if counted.ndim == 2:
        return [Block(part, part) for part in parts]
    bounds = layout.offsets.tolist()
    return [_stretch(layout.offsets, bounds, part) for part in parts]


def _stretch(offsets: Tensor, bounds: list[int], part: slice) -> Block:
    first = bisect_right(bounds, part.start) - 1
    last = min(bisect_left(bounds, part.stop), len(bounds) - 1)
    inside = offsets[first : last + 1].clamp(part.start, part.stop) - part.start
    return Block(part, slice(first, last), inside)
