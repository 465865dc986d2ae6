"""DTensor arguments: the placement of logp says what each rank holds, and the gradient comes back placed alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Partial, Placement, Replicate, Shard, distribute_tensor

import gspo_torch as gspo
from gspo_torch import distributed

from .batches import batch, close, objectives, single
from .world import World

PLACEMENTS = {
    "rows": ((4,), (Shard(0),)),
    "columns": ((4,), (Shard(1),)),
    "both": ((2, 2), (Shard(1), Shard(0))),
    "rows-repeated": ((2, 2), (Replicate(), Shard(0))),
    "repeated": ((4,), (Replicate(),)),
}


def _placed(whole: dict[str, Any], mesh: DeviceMesh, placements: tuple[Placement, ...]) -> dict[str, Any]:
    """Per-response values are handed over replicated, and laid anew."""
    repeated = (Replicate(),) * mesh.ndim
    return {name: distribute_tensor(v, mesh, placements if v.ndim == 2 else repeated) for name, v in whole.items()}


def all_placements(kind: str, responses: int) -> None:
    shape, placements = PLACEMENTS[kind]
    mesh = init_device_mesh("cpu", shape)
    whole = {name: values[:responses] for name, values in batch().items()}
    for name in ("gspo", "dapo", "penalty-sequence-own"):
        truth, gradient = single(objectives()[name], whole)
        placed = _placed(whole, mesh, placements)
        logp = placed["logp"].requires_grad_()
        found = distributed.reduce(objectives()[name], **placed, world_scale=1)
        found.loss.backward()
        close(found.loss, truth.loss, f"{name}: loss")
        for metric, value in truth.metrics.items():
            close(found.metrics[metric], value, f"{name}: {metric}")
        assert logp.grad.placements == placements
        close(logp.grad.full_tensor(), gradient, f"{name}: gradient")


@pytest.mark.parametrize("kind", PLACEMENTS)
def test_placements(world: World, kind: str) -> None:
    world.run(all_placements, kind, 8)


def test_fewer_rows_than_ranks(world: World) -> None:
    world.run(all_placements, "rows", 3)


def refusals() -> None:
    mesh, objective = init_device_mesh("cpu", (4,)), gspo.Objective.gspo()
    placed = _placed(batch(), mesh, (Shard(0),))
    with pytest.raises(
        TypeError, match="old_logp: expected a DTensor on the mesh of logp, since logp is one, got a plain"
    ):
        distributed.reduce(objective, **(placed | {"old_logp": batch()["old_logp"]}), world_scale=1)
    with pytest.raises(ValueError, match="data: expected None, since the placement of logp says"):
        distributed.reduce(objective, **placed, data=mesh, world_scale=1)
    packed = gspo.Packed(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="sequences: expected a DTensor mask"):
        distributed.reduce(objective, **(placed | {"sequences": packed}), world_scale=1)
    twice = init_device_mesh("cpu", (2, 2))
    with pytest.raises(ValueError, match=r"logp: expected a \[B, T\] DTensor with Replicate and at most one Shard"):
        distributed.reduce(objective, **_placed(batch(), twice, (Shard(0), Shard(0))), world_scale=1)
    partial = torch.distributed.tensor.DTensor.from_local(batch()["logp"], mesh, (Partial(),))
    with pytest.raises(ValueError, match=r"logp: expected a \[B, T\] DTensor"):
        distributed.reduce(objective, **(placed | {"logp": partial}), world_scale=1)


def test_what_is_refused(world: World) -> None:
    world.run(refusals)
