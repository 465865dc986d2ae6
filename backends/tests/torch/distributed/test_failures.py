"""A rank that dies or comes too late is one clear error on the others, within the time limit of the group."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import gspo_torch as gspo
from gspo_torch import distributed

from .batches import batch
from .world import World

LIMIT = 1.5


@pytest.fixture
def pair() -> Iterator[World]:
    two = World(2, timeout=LIMIT)
    yield two
    two.close()


def late(told: str) -> float:
    """The rank that is in time says so when it has its error; the other comes no earlier."""
    distributed.group_advantages(batch()["advantages"], batch()["groups"])
    if dist.get_rank() == 0:
        seconds = _seconds_to_the_error()
        Path(told).touch()
        return seconds
    while not Path(told).exists():
        time.sleep(LIMIT / 30)
    return 0.0


def dead() -> float:
    distributed.group_advantages(batch()["advantages"], batch()["groups"])
    if dist.get_rank() == 1:
        os._exit(3)
    return _seconds_to_the_error()


def dead_along_sequences() -> None:
    split = distributed.ContextSplit(torch.ones(2, 4))
    logp = split.shard(-torch.ones(2, 4))
    if dist.get_rank() == 1:
        os._exit(3)
    expected = "the sums over a context group: expected all of the ranks [0, 1] to take part"
    with pytest.raises(RuntimeError, match=re.escape(expected)):
        gspo.gspo_loss(logp, logp, torch.ones(2), split.sequences)


def several_dtypes() -> None:
    kind = (torch.int32, torch.int64)[dist.get_rank()]
    expected = r"groups: expected one dtype on all of the ranks \[0, 1\], got torch.int32, torch.int64"
    with pytest.raises(TypeError, match=expected):
        distributed.group_advantages(torch.ones(2), torch.zeros(2, dtype=kind))


def _seconds_to_the_error() -> float:
    begin = time.monotonic()
    expected = "the normaliser: expected all of the ranks [0, 1] to take part; one is gone, late, or called something"
    with pytest.raises(RuntimeError, match=re.escape(expected)):
        distributed.reduce(gspo.Objective.gspo(), **batch(), world_scale=2)
    return time.monotonic() - begin


def test_a_rank_that_died(pair: World) -> None:
    survivor, casualty = pair.answers(dead, grace=4 * LIMIT)
    assert casualty.failure == "the process ended with 3"
    assert survivor.failure is None


def test_a_rank_that_died_with_its_part_of_the_sequences(pair: World) -> None:
    survivor, casualty = pair.answers(dead_along_sequences, grace=4 * LIMIT)
    assert casualty.failure == "the process ended with 3"
    assert survivor.failure is None


def test_a_dtype_of_its_own_is_said_on_every_rank(pair: World) -> None:
    pair.run(several_dtypes)


def test_a_rank_that_is_late(pair: World, tmp_path: Path) -> None:
    in_time = pair.answers(late, str(tmp_path / "told"))[0]
    assert in_time.failure is None
    assert in_time.value > LIMIT / 2
