"""What `torch.compile` calls instead of compiling it: two operations that inductor writes badly for processors.

It reads booleans one by one, which takes longer than the rest of a loss, and adds segments up by
`index_add`. Graphs that leave this process (`torch.export`), transformed tensors and those of other
kinds do without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

try:
    import numpy
except ImportError:  # PyTorch runs without it
    numpy = None

_NOTHING = type(None)
# What NumPy adds up by segment.
_OF_NUMPY = () if numpy is None else (torch.float32, torch.float64)


def subtracts(values: Tensor) -> bool:
    """Whether a compiler writes C++ for what happens to `values`: e^v - 1 is a subtraction there."""
    return torch.compiler.is_compiling() and values.device.type == "cpu"


def calls_back(values: Tensor) -> bool:
    """Whether that C++ may call the operations below."""
    plain = type(values) is Tensor and not torch.compiler.is_exporting()
    # A compiler takes what this returns for an object, also where it is None: only `isinstance` tells.
    return plain and subtracts(values) and isinstance(torch._C._functorch.peek_interpreter_stack(), _NOTHING)


def adds_segments(values: Tensor) -> bool:
    """Whether `reduced` takes `values`."""
    return values.dtype in _OF_NUMPY


def reduced(values: Tensor, offsets: Tensor) -> Tensor:
    """Pairwise sums, segment by segment, in a tenth of the time of `index_add`; without a derivative."""
    array, ends = values.detach().numpy(), offsets.detach().numpy()
    filled = numpy.flatnonzero(ends[:-1] < ends[1:])
    found = numpy.zeros(len(ends) - 1, dtype=array.dtype)
    if filled.size:
        with numpy.errstate(all="ignore"):
            found[filled] = numpy.add.reduceat(array[: ends[-1]], ends[filled])
    return torch.from_numpy(found)


def repeated(per_segment: Tensor, offsets: Tensor, num_tokens: int) -> Tensor:
    """v_i at every token of segment i, and 0 past the last segment; without a derivative."""
    counts = torch.diff(offsets, append=offsets.new_full((1,), num_tokens))
    values = torch.cat([per_segment.detach(), per_segment.new_zeros(1)])
    if numpy is None or values.device.type != "cpu":
        return torch.repeat_interleave(values, counts, output_size=num_tokens)
    return torch.from_numpy(numpy.repeat(values.numpy(), counts.numpy()))


def _flags(numbers: Tensor) -> Tensor:
    """1 where a number is not 0, in bytes of their own."""
    return numbers.to(torch.bool, copy=True).view(torch.uint8)


_LIBRARY = torch.library.Library("gspo", "FRAGMENT")


def _define(signature: str, function: Callable[..., Tensor], fake: Callable[..., Tensor]) -> Any:
    """An operation that no compiler looks into."""
    name = signature.partition("(")[0]
    _LIBRARY.define(signature)
    _LIBRARY.impl(name, function, "CPU")
    torch.library.register_fake(f"gspo::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.gspo, name)


flags = _define("flags(Tensor numbers) -> Tensor", _flags, lambda numbers: torch.empty_like(numbers, dtype=torch.uint8))
segment_sums = _define(
    "segment_sums(Tensor values, Tensor offsets) -> Tensor",
    reduced,
    lambda values, offsets: values.new_empty(offsets.shape[0] - 1),
)
segment_values = _define(
    "segment_values(Tensor per_segment, Tensor offsets, SymInt num_tokens) -> Tensor",
    repeated,
    lambda per_segment, _offsets, num_tokens: per_segment.new_empty(num_tokens),
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.num_tokens = inputs[0].shape[0]
    ctx.save_for_backward(inputs[1])


def _spread_back(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return segment_values(gradient, ctx.saved_tensors[0], ctx.num_tokens), None


def _sum_back(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return segment_sums(gradient, ctx.saved_tensors[0]), None, None


torch.library.register_autograd("gspo::segment_sums", _spread_back, setup_context=_keep, lib=_LIBRARY)
torch.library.register_autograd("gspo::segment_values", _sum_back, setup_context=_keep, lib=_LIBRARY)
