"""The primitives that `gspo_core` asks of a backend, in PyTorch.

Nothing here waits for a device: no `.item()`, no shape that depends on values.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gspo_core import Backend, backend_of
from gspo_core.backend import exp_series, register_backend

from .compiled import adds_segments, calls_back, flags, numpy, reduced, segment_sums, subtracts

# Two levels of about this many additions each keep the error of a sum near sqrt(256) roundings.
_SHIFT = 8
BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
"""The integers as wide as a float."""


class TorchBackend(Backend):
    """`gspo_core` on `torch.Tensor`, with autograd, `torch.compile`, `torch.func` and `torch.distributed`."""

    name = "torch"

    def check_dtype(self, name: str, dtype: torch.dtype) -> None:
        """PyTorch stores wide unsigned integers, and has no arithmetic for them."""
        if dtype in (torch.uint16, torch.uint32, torch.uint64):
            raise TypeError(f"{name}: expected integers that PyTorch computes with, such as torch.int64, got {dtype}")

    def stop_gradient(self, values: Tensor) -> Tensor:
        """sg[x] is `detach`."""
        return values.detach()

    def select(self, values: Tensor, condition: Tensor) -> Tensor:
        """v where the condition holds, else 0.

        In host memory the bits of v, as an integer, times 0 or 1: as exact as `where`, in a sixth of its time.
        """
        bits = BITS.get(values.dtype)
        if bits is None or not self.can_inspect(values) or values.is_neg() or _has_graph(values):
            return torch.where(condition, values, values.new_zeros(()))
        kept = keep_bits(condition, values.dtype)
        return torch.mul(kept, values.view(bits), out=kept if kept.shape == values.shape else None).view(values.dtype)

    def truth(self, numbers: Tensor) -> Tensor:
        """Where a number is not 0; compiled C++ reads that from bytes. A conversion takes a quarter of a comparison's time."""
        return flags(numbers).to(torch.float32) != 0 if calls_back(numbers) else numbers.to(torch.bool)

    def expm1(self, values: Tensor) -> Tensor:
        """e^v - 1."""
        if not subtracts(values):
            return values.expm1()
        near, remainder = exp_series(values)
        return torch.where(near == values, near + remainder, values.exp() - 1)

    def exp_remainder(self, values: Tensor) -> Tensor:
        """e^v - 1 - v, in two steps where no derivative is asked for and no compiler subtracts."""
        plain = torch.compiler.is_compiling() or not transformed()
        if plain and not _has_graph(values) and not subtracts(values):
            return values.expm1() - values
        return super().exp_remainder(values)

    def all_finite(self, values: Tensor, condition: Tensor | None = None) -> bool:
        """A sum is finite only if all its terms are; where it is not, it may have overflowed."""
        terms = values.detach() if condition is None else self.select(values.detach(), condition)
        return math.isfinite(terms.sum()) or super().all_finite(values, condition)

    def readable(self, values: Tensor) -> Any:
        """A NumPy view of what can be inspected: comparisons take a tenth of the time there."""
        return values if numpy is None else numpy_of(values)

    def held(self, values: Tensor, low: float, high: float = math.inf) -> Tensor:
        """v, and the bound where v is past one: one call, which makes no tensors of the numbers."""
        return values.clamp(low, None if high == math.inf else high)

    def segment_sum(self, values: Tensor, offsets: Tensor, max_length: int) -> Tensor:
        """Σ_{t in segment i} v_t in two levels; memory O(N) whatever the longest segment."""
        if adds_segments(values):
            if calls_back(values):
                return segment_sums(values, offsets)
            if self.can_inspect(values) and not _has_graph(values):
                return reduced(values, offsets)
        num_tokens, num_segments = values.shape[0], offsets.shape[0] - 1
        position = torch.arange(num_tokens, device=values.device)
        owner = torch.searchsorted(offsets[1:], position, right=True)
        # Segment and block both grow along the tokens, so that their sum names the pair.
        # By shifts: where positions are divided, the C++ that torch.compile writes loses the last, partial block.
        part = owner + (position >> _SHIFT)
        partial = values.new_zeros((num_tokens >> _SHIFT) + num_segments + 1).index_add(0, part, values)
        starts = torch.arange(num_segments + 1, device=values.device) + (offsets >> _SHIFT)
        parts = torch.arange(partial.shape[0], device=values.device)
        whole = torch.searchsorted(starts, parts, right=True) - 1
        return values.new_zeros(num_segments + 1).index_add(0, whole, partial)[:num_segments]

    def running_sum(self, values: Tensor) -> Tensor:
        """One call that every compiler since PyTorch 2.7 can follow."""
        return torch.nn.functional.pad(values.cumsum(0, dtype=values.dtype), (1, 0))

    def all_reduce_sum(self, values: Tensor, group: Any) -> Tensor:
        """Σ over the ranks of `group`, a `ProcessGroup` or a one-dimensional `DeviceMesh`."""
        return values if group is None else _Sum.apply(values, group)

    def all_reduce_max(self, values: Tensor, group: Any) -> Tensor:
        """The greatest over the ranks of `group`."""
        return values if group is None else _all_reduce(values.detach(), "max", group)

    def vary(self, values: Tensor, group: Any) -> Tensor:
        """The identity, whose derivative adds over the ranks of `group`."""
        return values if group is None or not values.requires_grad else _Vary.apply(values, group)

    def device(self, values: Tensor) -> torch.device:
        """The device of `values`."""
        return values.device

    def dense(self, values: Tensor) -> Tensor:
        """Contiguous: `searchsorted` warns of anything else."""
        return values.contiguous()

    def can_inspect(self, values: Tensor) -> bool:
        """True for a plain tensor in host memory that nothing traces or transforms."""
        if torch.compiler.is_compiling() or type(values) not in (Tensor, torch.nn.Parameter):
            return False
        return values.device.type == "cpu" and not transformed()


def keep_bits(flags: Tensor, dtype: torch.dtype) -> Tensor:
    """1 or 0 for each flag, as integers as wide as `dtype`: times the bits of a float they leave it, or leave 0."""
    return flags.view(torch.int8).to(BITS[dtype])


def numpy_of(values: Tensor) -> Any:
    """The numbers of a tensor in host memory, in place unless NumPy lacks their dtype."""
    narrow = values.is_floating_point() and values.dtype not in (torch.float32, torch.float64)
    return (values.float() if narrow else values).detach().resolve_neg().numpy()


def _has_graph(values: Tensor) -> bool:
    return values.requires_grad and torch.is_grad_enabled()


def _all_reduce(values: Tensor, operation: str, group: Any) -> Tensor:
    from torch.distributed._functional_collectives import all_reduce, wait_tensor

    from .distributed.ranks import process_group, taking_part

    if torch.compiler.is_compiling():
        # Reading the result once makes a plain tensor of the asynchronous one.
        return all_reduce(values.contiguous(), operation, group).view_as(values)
    with taking_part("the sums over a context group", process_group("context", group)):
        return wait_tensor(all_reduce(values.contiguous(), operation, group)).view_as(values)


class _Sum(torch.autograd.Function):
    """Σ over ranks; each rank differentiates the loss that all share, so the derivative is the identity."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _all_reduce(values, "sum", group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Vary.apply(gradient, ctx.group), None


class _Vary(torch.autograd.Function):
    """The transpose of `_Sum`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradient, ctx.group), None


def transformed() -> bool:
    """Whether forward-mode derivatives, `torch.func` or a tracer of `torch.fx` are at work."""
    tracer = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY)
    interpreted = torch._C._functorch.peek_interpreter_stack() is not None
    return interpreted or tracer is not None or forward_ad._current_level >= 0


backend = TorchBackend()

# A compiler guards on these tables as they are: whatever this package looks up in them is there from the start.
register_backend("torch", backend)
_known = [Tensor(), torch.nn.Parameter(Tensor())]
if numpy is not None:
    _known += [
        numpy.empty(0),
        *(kind(0) for kind in (numpy.bool_, numpy.int32, numpy.int64, numpy.float32, numpy.float64)),
    ]
for _array in _known:
    backend_of(_array)
