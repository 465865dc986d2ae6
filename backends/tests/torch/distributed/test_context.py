"""Context parallelism: each rank holds a part of each sequence; loss, metrics and gradient are those of the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

import gspo_torch as gspo
from gspo_torch import distributed

from .batches import LENGTHS, TOKENS, batch, close, objectives, rows, single
from .world import World


def _cut(whole: dict[str, Any], order: str) -> tuple[distributed.ContextSplit, dict[str, Any]]:
    split = distributed.ContextSplit(whole["sequences"], order=order)
    tokens = {name: split.shard(whole[name]) for name in TOKENS}
    return split, whole | tokens | {"sequences": split.sequences}


def all_objectives(order: str, packed: bool, dtype: torch.dtype) -> None:
    whole = rows(batch(dtype=dtype), range(len(LENGTHS)), packed)
    for name, objective in objectives().items():
        truth, gradient = single(objective, whole)
        split, part = _cut(whole, order)
        logp = part["logp"].clone().requires_grad_()
        found = gspo.policy_loss(objective, **(part | {"logp": logp}))
        found.loss.backward()
        close(found.loss, truth.loss, f"{name}: loss")
        for metric, value in truth.metrics.items():
            close(found.metrics[metric], value, f"{name}: {metric}")
        close(logp.grad, split.shard(gradient), f"{name}: gradient")
        close(split.unshard(logp.grad, gradient.shape[-1]), gradient, f"{name}: whole gradient")


@pytest.mark.parametrize(
    ("order", "packed", "dtype"),
    [
        ("zigzag", False, torch.float64),
        ("zigzag", True, torch.float32),
        ("contiguous", False, torch.float32),
        ("contiguous", True, torch.float64),
    ],
)
def test_sequences_cut_over_ranks_are_whole(world: World, order: str, packed: bool, dtype: torch.dtype) -> None:
    world.run(all_objectives, order, packed, dtype)


class Wire(TorchDispatchMode):
    """Counts the bytes that this rank hands to collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function.namespace == "_c10d_functional" and function.__name__.startswith("all_"):
            self.sent.append(arguments[0].numel() * arguments[0].element_size())
        return function(*arguments, **(options or {}))


def bytes_of_a_step(length: int, packed: bool) -> list[int]:
    draw = torch.Generator().manual_seed(0)
    sequences = gspo.Packed(torch.arange(4) * length) if packed else torch.ones(3, length, dtype=torch.bool)
    old = -torch.rand((3 * length,) if packed else (3, length), generator=draw)
    split = distributed.ContextSplit(sequences)
    logp = (split.shard(old) + 1e-3).requires_grad_()
    with Wire() as wire:
        found = gspo.gspo_loss(logp, split.shard(old), torch.tensor([1.0, -1.0, 0.5]), split.sequences)
        found.loss.backward()
    return wire.sent


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_one_number_per_sequence_is_exchanged_whatever_its_length(world: World, packed: bool) -> None:
    """T_i and Σ d_{i,t}, 4 bytes each for 3 sequences; two numbers more for the metrics; nothing in the backward pass."""
    for length in (64, 4096):
        for sent in world.run(bytes_of_a_step, length, packed):
            assert sorted(sent) == [4, 4, 12, 12]


def pieces(length: int) -> dict[str, Any]:
    split = distributed.ContextSplit(torch.ones(2, length, dtype=torch.bool))
    values = torch.arange(2 * length * 3).view(2, length, 3)
    assert torch.equal(split.unshard(split.shard(values)), values)
    return split.positions.tolist()


def test_zigzag_pairs_an_early_piece_with_a_late_one(world: World) -> None:
    assert world.run(pieces, 16) == [[0, 1, 14, 15], [2, 3, 12, 13], [4, 5, 10, 11], [6, 7, 8, 9]]
    shares = world.run(pieces, 13)
    assert sorted(position for share in shares for position in share) == list(range(13))
    assert max(map(len, shares)) - min(map(len, shares)) <= 2


def refusals() -> None:
    group = dist.group.WORLD
    whole = batch()
    split, part = _cut(whole, "zigzag")
    with pytest.raises(ValueError, match="sequences: expected whole sequences"):
        distributed.ContextSplit(split.sequences)
    with pytest.raises(ValueError, match=r"values: expected 8 tokens along dimension 1, got shape \(8, 7\)"):
        split.shard(whole["logp"][:, :7])
    with pytest.raises(ValueError, match="data: expected ranks that hold other sequences, got ranks"):
        distributed.reduce(gspo.Objective.gspo(), **part, data=group, world_scale=1)


def test_what_is_refused(world: World) -> None:
    world.run(refusals)
