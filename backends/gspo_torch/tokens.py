"""Σ_t over the counted tokens of each response, and a value per response laid back on its tokens.

In host memory this runs block by block through two small buffers: memory bandwidth and fresh pages are what
a loss costs, not arithmetic. A token is selected there by multiplying its bits, as integers, with 0
or 1: as exact as `where` (NaN and infinity included), in a sixth of its time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gspo_core.metrics import TokenSums, divergence
from gspo_core.sequences import Layout

from .backend import BITS, backend, numpy
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


def log_ratio_sums(logp: Tensor, old_logp: Tensor, layout: Layout, dtype: torch.dtype) -> LogRatioSums:
    """Sums of d = `logp` - `old_logp` over the counted tokens, in `dtype`, without a derivative."""
    if backend.can_inspect(logp):
        return _host_sums(logp, old_logp, layout, dtype)
    d = logp.to(dtype) - old_logp.to(dtype)
    d = layout.clean(d)
    tokens = TokenSums(divergence(d).sum(), (d != 0).any())
    return LogRatioSums(layout.sum_tokens(d), layout.lengths(dtype), tokens)


def spread(per_response: Tensor, layout: Layout) -> Tensor:
    """v_i at every counted token of response i and exactly 0 elsewhere, whatever v_i is."""
    counted = layout.counted
    values = per_response[:, None] if counted.ndim == 2 else repeated(per_response, layout.offsets, counted.shape[0])
    if not backend.can_inspect(counted):
        return layout.clean(values.expand(counted.shape))
    found = per_response.new_empty(counted.shape)
    bits = BITS[found.dtype]
    for block in blocks_of(counted):
        found[block].view(bits).copy_(counted[block].view(torch.int8)).mul_(values[block].view(bits))
    return found


def _host_sums(logp: Tensor, old_logp: Tensor, layout: Any, dtype: torch.dtype) -> LogRatioSums:
    counted, padded = layout.counted, layout.counted.ndim == 2
    blocks = blocks_of(counted)
    scratch = counted.new_empty(blocks[0].stop, *counted.shape[1:], dtype=dtype)
    # Packed segments cross blocks: their differences are kept, and summed at the end.
    differences = torch.empty_like(scratch) if padded else counted.new_empty(counted.shape, dtype=dtype)
    sums, lengths, total, moved = [], [], 0.0, False
    for block in blocks:
        size = block.stop - block.start
        d = differences[:size] if padded else differences[block]
        buffer, flags = scratch[:size], counted[block].view(torch.int8)
        keep = buffer.view(BITS[dtype]).copy_(flags)
        subtract(logp[block], old_logp[block], d).view(keep.dtype).mul_(keep)
        if padded:
            sums.append(d.sum(1))
            lengths.append(buffer.copy_(flags).sum(1))
        here = sum_of_divergence(d, buffer)
        total, moved = total + here, moved or here != 0 or bool(d.any())
    if padded:
        log_ratio, counts = torch.cat(sums), torch.cat(lengths)
    else:
        log_ratio = backend.segment_sum(differences, layout.offsets, layout.max_length)
        counts = layout.lengths(dtype)
    return LogRatioSums(log_ratio, counts, TokenSums(log_ratio.new_tensor(total), log_ratio.new_tensor(moved)))


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


def blocks_of(counted: Tensor) -> list[slice]:
    """Slices of the first dimension with about `_BLOCK` tokens for each thread."""
    size = counted.shape[0]
    step = max(1, _BLOCK * torch.get_num_threads() * size // counted.numel())
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]
