"""Groups of ranks, and the few exchanges between them; every one waits for all ranks of the group."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

# How collectives fail when a rank is gone or late: RuntimeError covers DistBackendError and DistNetworkError.
_FAILURES = (RuntimeError, TimeoutError)
_DTYPES = (
    *(torch.bool, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)


class _Alone:
    """The group of this rank only, for which nothing is exchanged."""

    def size(self) -> int:
        """1."""
        return 1

    def rank(self) -> int:
        """0."""
        return 0


ALONE = _Alone()


def process_group(name: str, group: Any) -> dist.ProcessGroup:
    """The `ProcessGroup` of a `ProcessGroup`, of a one-dimensional `DeviceMesh`, or of all ranks (None)."""
    if group is ALONE:
        return group
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(f"{name}: expected an initialised process group, call torch.distributed.init_process_group")
    if group is None:
        return dist.group.WORLD
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise ValueError(f"{name}: expected a mesh of 1 dimension, such as mesh['dp'], got {group.ndim}")
        return group.get_group()
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"{name}: expected a ProcessGroup that this rank belongs to, or a DeviceMesh, got {type(group).__name__}"
        )
    return group


def data_group(data: Any) -> Any:
    """The ranks that hold responses: a process without a process group, which is asked for none, holds them all."""
    alone = data is None and not (dist.is_available() and dist.is_initialized())
    return ALONE if alone else process_group("data", data)


def check_disjoint(data: dist.ProcessGroup, context: Any) -> None:
    """Ranks that hold parts of the same sequences are no data-parallel ranks: their union would count twice."""
    if context is None or data is ALONE:
        return
    shared = set(dist.get_process_group_ranks(data)) & set(
        dist.get_process_group_ranks(process_group("context", context))
    )
    if shared != {dist.get_rank()}:
        raise ValueError(
            f"data: expected ranks that hold other sequences, got ranks {sorted(shared)} that are also in the context "
            f"group of `sequences`; name the data-parallel group, such as mesh['dp']"
        )


@contextmanager
def taking_part(what: str, group: dist.ProcessGroup) -> Generator[None]:
    """Turns the failure of an exchange into an error that says what was exchanged and who had to be there."""
    try:
        yield
    except _FAILURES as error:
        ranks = dist.get_process_group_ranks(group)
        raise RuntimeError(
            f"{what}: expected all of the ranks {ranks} to take part; one is gone, late, or called something else "
            f"(rank {dist.get_rank()} saw: {str(error).strip().splitlines()[0]})"
        ) from error


def gather(values: Tensor, group: dist.ProcessGroup, what: str) -> Tensor:
    """`values` of every rank, stacked along a new first dimension; the same shape on all."""
    values = values.detach().contiguous()
    if group.size() == 1:
        return values[None]
    parts = [torch.empty_like(values) for _ in range(group.size())]
    with taking_part(what, group):
        dist.all_gather(parts, values, group=group)
    return torch.stack(parts)


def gather_uneven(values: Tensor, group: dist.ProcessGroup, what: str) -> list[Tensor]:
    """`values` of every rank, which may differ in their first dimension; the sizes are exchanged first, and what they are numbers of."""
    own = torch.tensor([values.shape[0], _DTYPES.index(values.dtype)], device=values.device)
    sizes, kinds = gather(own, group, what).T.tolist()
    if len(set(kinds)) > 1:
        ranks, dtypes = dist.get_process_group_ranks(group), [_DTYPES[kind] for kind in kinds]
        raise TypeError(f"{what}: expected one dtype on all of the ranks {ranks}, got {', '.join(map(str, dtypes))}")
    padded = values.new_zeros((max(sizes), *values.shape[1:]))
    padded[: values.shape[0]] = values.detach()
    return [part[:size] for part, size in zip(gather(padded, group, what), sizes, strict=True)]
