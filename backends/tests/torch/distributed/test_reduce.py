"""Data parallelism: whatever the split over ranks and micro-batches, loss, gradient and metrics are those of one call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from gspo_torch import distributed

from .batches import OWNERS, batch, objectives, rows, single
from .world import World

DTYPES = (torch.float64, torch.float32)


def _close(got: torch.Tensor, truth: torch.Tensor, what: str) -> None:
    tolerance = 64 * torch.finfo(truth.dtype).eps
    torch.testing.assert_close(got, truth, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}")


def _check(found: Any, gradient: torch.Tensor, mine: list[int], truth: Any, packed: bool, what: str) -> None:
    _close(found.loss.detach(), truth[0].loss.detach(), f"{what}: loss")
    assert found.metrics.keys() == truth[0].metrics.keys()
    for name, value in truth[0].metrics.items():
        _close(found.metrics[name], value.detach(), f"{what}: {name}")
    expected = rows({"sequences": batch()["sequences"], "gradient": truth[1]}, mine)["gradient"] if mine else None
    if packed or not mine:
        return
    _close(gradient, expected, f"{what}: gradient")


def all_objectives(packed: bool) -> None:
    for dtype in DTYPES:
        whole = batch(dtype=dtype)
        mine = list(OWNERS[dist.get_rank()])
        for name, objective in objectives().items():
            truth = single(objective, whole)
            part = rows(whole, mine, packed)
            logp = part["logp"].clone().requires_grad_()
            found = distributed.reduce(objective, **(part | {"logp": logp}), world_scale=1)
            (gradient,) = torch.autograd.grad(found.loss, logp)
            _check(found, gradient, mine, truth, packed, f"{name} {dtype}")


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_any_split_over_ranks_is_the_union(world: World, packed: bool) -> None:
    world.run(all_objectives, packed)
