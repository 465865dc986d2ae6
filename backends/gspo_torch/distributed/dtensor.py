"""`DTensor` arguments: what each rank holds of them, and which ranks hold the rest."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from gspo_core import Packed, Padded

from .ranks import ALONE


def localise(arguments: dict[str, Any], data: Any) -> tuple[dict[str, Any], Any]:
    """The local arrays of a call of `policy_loss` on DTensors placed like `logp`, and the ranks of its Shard(0).

    Shard(0) of `[B, T]` spreads responses, Shard(1) splits each over the ranks of its context group,
    Replicate repeats the work. The other arrays are laid out anew where they are not placed like `logp`.
    """
    logp: DTensor = arguments["logp"]
    if data is not None:
        raise ValueError("data: expected None, since the placement of logp says which ranks hold the rest, got a group")
    data, context = _groups(logp)
    local = {name: _local(name, value, logp) for name, value in arguments.items() if name != "sequences"}
    mask = _mask(arguments["sequences"], logp)
    return local | {"sequences": Padded(mask, context=context) if mask.shape[0] else None}, data


def _groups(logp: DTensor) -> tuple[Any, Any]:
    mesh, placements = logp.device_mesh, logp.placements
    found: dict[int, Any] = {0: ALONE, 1: None}
    for dimension, placement in enumerate(placements):
        if isinstance(placement, Replicate):
            continue
        repeated = isinstance(placement, Shard) and placements.count(placement) > 1
        if type(placement) is not Shard or placement.dim not in found or logp.ndim != 2 or repeated:
            raise ValueError(
                f"logp: expected a [B, T] DTensor with Replicate and at most one Shard(0) and one Shard(1), "
                f"got shape {tuple(logp.shape)} placed {placements}; flatten mesh dimensions that shard the same one"
            )
        found[placement.dim] = mesh.get_group(dimension)
    return found[0], found[1]


def _mask(sequences: Any, logp: DTensor) -> Tensor:
    mask = sequences.mask if isinstance(sequences, Padded) else sequences
    if isinstance(sequences, Packed) or (isinstance(sequences, Padded) and sequences.context is not None):
        raise ValueError(
            f"sequences: expected a DTensor mask or Padded(mask) without a context, since the placement of logp says "
            f"which ranks hold the rest of a sequence, got {type(sequences).__name__}"
        )
    return _local("sequences", mask, logp)


def _local(name: str, value: Any, logp: DTensor) -> Any:
    if not isinstance(value, Tensor) or (value.ndim == 0 and not isinstance(value, DTensor)):
        return value
    if not isinstance(value, DTensor) or value.device_mesh != logp.device_mesh:
        raise TypeError(f"{name}: expected a DTensor on the mesh of logp, since logp is one, got {_kind(value)}")
    like_tokens = value.ndim == 2
    placements = logp.placements if like_tokens else tuple(_of_responses(placement) for placement in logp.placements)
    return value.redistribute(placements=placements).to_local(grad_placements=placements)


def _of_responses(placement: Placement) -> Placement:
    """Where a value per response lies: split like the rows, repeated along the columns."""
    return Replicate() if placement == Shard(1) else placement


def _kind(value: Tensor) -> str:
    return f"a DTensor on {value.device_mesh}" if isinstance(value, DTensor) else "a plain tensor"
