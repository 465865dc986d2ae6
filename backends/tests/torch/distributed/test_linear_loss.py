"""`linear_policy_loss` where each rank holds a part of every sequence: loss and gradients are those of the whole."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

import gspo_torch as gspo
from gspo_torch import distributed

from .batches import LENGTHS, TOKENS, batch, close, objectives, rows
from .world import World


def parts_of_sequences(packed: bool) -> None:
    whole = rows(batch(), range(len(LENGTHS)), packed)
    draw = torch.Generator().manual_seed(1)
    shape = whole.pop("logp").shape
    hidden = torch.randn(*shape, 4, generator=draw, dtype=torch.float64)
    weight = torch.randn(9, 4, generator=draw, dtype=torch.float64)
    ids = torch.randint(9, tuple(shape), generator=draw)
    split = distributed.ContextSplit(whole["sequences"])
    sharded = {name: split.shard(whole[name]) for name in TOKENS if name in whole}
    for name, objective in objectives().items():
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        truth = gspo.linear_policy_loss(
            objective, hidden=leaves[0], weight=leaves[1], tokens=ids, design="recompute", **whole
        )
        truth.loss.backward()
        mine = [split.shard(hidden).requires_grad_(), weight.clone().requires_grad_()]
        found = gspo.linear_policy_loss(
            objective,
            hidden=mine[0],
            weight=mine[1],
            tokens=split.shard(ids),
            chunk_size=3,
            **(whole | sharded | {"sequences": split.sequences}),
        )
        found.loss.backward()
        dist.all_reduce(mine[1].grad)
        close(found.loss, truth.loss, f"{name}: loss")
        close(mine[0].grad, split.shard(leaves[0].grad), f"{name}: hidden states")
        close(mine[1].grad, leaves[1].grad, f"{name}: weight, added over ranks")


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_sequences_cut_over_ranks_are_whole(world: World, packed: bool) -> None:
    world.run(parts_of_sequences, packed)


def single_pass() -> None:
    split = distributed.ContextSplit(torch.ones(2, 8, dtype=torch.bool))
    local = split.sequences.mask.shape
    with pytest.raises(ValueError, match="design: expected 'auto' or 'recompute' for sequences split over ranks"):
        gspo.linear_policy_loss(
            gspo.Objective.gspo(),
            hidden=torch.zeros(*local, 4, requires_grad=True),
            weight=torch.zeros(9, 4),
            tokens=torch.zeros(local, dtype=torch.int64),
            old_logp=torch.zeros(local),
            advantages=torch.ones(2),
            sequences=split.sequences,
            design="single_pass",
        )


def test_a_single_pass_is_refused_on_every_rank(world: World) -> None:
    world.run(single_pass)
