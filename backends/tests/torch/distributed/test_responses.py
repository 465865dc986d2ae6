"""Groups that are spread over ranks: advantages are those of the whole group (GSPO-DIST-4)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

import gspo_torch as gspo
from gspo_torch import distributed

from .batches import OWNERS, close
from .world import World

REWARDS = torch.tensor([1.0, 0.0, 0.5, 0.1, 0.0, 0.1, 1.0, 0.1])
GROUPS = torch.tensor([3, -1, 3, 2**40, -1, 3, -1, 2**40])
VALID = torch.tensor([1, 1, 1, 1, 0, 1, 1, 1], dtype=torch.bool)
SETTINGS: list[dict[str, Any]] = [{}, {"scale": "none"}, {"scale": "batch_std"}, {"center": "leave_one_out", "ddof": 0}]


def split_groups(dtype: torch.dtype) -> None:
    mine = list(OWNERS[dist.get_rank()])
    rewards = REWARDS.to(dtype)
    for valid in (None, VALID):
        own = {"valid": None if valid is None else valid[mine]}
        everyone = {"valid": valid}
        for settings in SETTINGS:
            found = distributed.group_advantages(rewards[mine], GROUPS[mine], **own, **settings)
            truth = gspo.group_advantages(rewards, GROUPS, **everyone, **settings)
            close(found, truth[mine], str(settings))
        found = distributed.leave_one_out_advantages(rewards[mine], GROUPS[mine], **own)
        close(found, gspo.leave_one_out_advantages(rewards, GROUPS, **everyone)[mine], "leave one out")
        kept = distributed.informative_groups(rewards[mine], GROUPS[mine], low=0.2, **own)
        assert torch.equal(kept, gspo.informative_groups(rewards, GROUPS, low=0.2, **everyone)[mine])
        assert found.shape == kept.shape == (len(mine),)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_groups_split_over_ranks(world: World, dtype: torch.dtype) -> None:
    world.run(split_groups, dtype)


def nothing_anywhere() -> None:
    none = torch.zeros(0)
    assert distributed.group_advantages(none, none.long()).shape == (0,)


def test_no_rank_has_a_response(world: World) -> None:
    world.run(nothing_anywhere)


def refusals() -> None:
    with pytest.raises(ValueError, match=r"groups: expected shape \(2,\) like rewards, got \(3,\)"):
        distributed.group_advantages(torch.zeros(2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"rewards: expected shape \[n\], got \(2, 1\)"):
        distributed.group_advantages(torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.int64))
    rewards, groups = torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(TypeError, match="rewards: expected a real floating-point dtype"):
        distributed.group_advantages(rewards.cfloat(), groups)
    with pytest.raises(TypeError, match="groups: expected integers that PyTorch computes with"):
        distributed.group_advantages(rewards, groups.to(torch.uint16))
    with pytest.raises(ValueError, match="valid: expected only 0 and 1, got 1 other values"):
        distributed.group_advantages(rewards, groups, valid=torch.tensor([1, 2]))


def test_what_is_refused(world: World) -> None:
    world.run(refusals)
