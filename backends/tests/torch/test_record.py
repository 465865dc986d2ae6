"""The recorder: what the loss saw is what the trace holds, and nothing that goes wrong reaches the training."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import gspo_torch as gspo
from gspo_conformance.audit import read_trace
from gspo_torch import distributed
from gspo_torch.distributed.ranks import ALONE
from gspo_torch.observers import OBSERVERS

MASK = torch.tensor([[True, True, False], [True, False, False]])
ADVANTAGES = torch.tensor([1.0, -1.0])


def _train(
    steps: int, micro_batches: int = 1, dtype: torch.dtype = torch.float32, **options: Any
) -> list[torch.Tensor]:
    """Log-probabilities that are their own parameters; returns the losses."""
    weight = torch.nn.Parameter(torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -0.25, -4.0]], dtype=dtype))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    old, losses = weight.detach().clone(), []
    for _ in range(steps):
        for _ in range(micro_batches):
            out = gspo.gspo_loss(weight * 1, old, ADVANTAGES, MASK, **options)
            out.loss.backward()
            losses.append(out.loss.detach())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def test_every_call_is_there_with_what_it_was_given_and_what_it_returned(tmp_path: Path) -> None:
    with gspo.record(tmp_path, gradient=True, group_size=2):
        losses = _train(3, micro_batches=2)
    trace = read_trace(tmp_path)
    assert trace.indices == (0, 1, 2)
    assert trace.run == {"every": 1, "group_size": 2, "objective": gspo.Objective.gspo().to_dict()}
    assert trace.ends == {0: {"reason": "closed", "step": 3}}
    parts = [part for step in trace.steps() for part in step.parts]
    assert [(part.step, part.microbatch) for part in parts] == [(i, j) for i in range(3) for j in range(2)]
    assert [part.loss for part in parts] == [loss.item() for loss in losses]
    assert parts[0].metrics["ratio_is_one"] == 1
    assert parts[2].metrics["ratio_is_one"] == 0
    tokens = parts[0].tokens
    assert tokens.logp is not None
    assert tokens.logp.tolist() == [-1, -2, -0.5]
    assert parts[0].array("gradient").tolist() == [[-0.25, -0.25, 0], [0.5, 0, 0]]
    assert parts[0].array("mask").tolist() == MASK.tolist()
    assert parts[0].names == {"logp", "old_logp", "mask", "advantages", "gradient"}
    assert not OBSERVERS


def test_later_changes_in_place_do_not_reach_the_trace(tmp_path: Path) -> None:
    logp, old = torch.zeros(2, 3), torch.zeros(2, 3)
    with gspo.record(tmp_path) as trace:
        gspo.GSPOLoss()(logp, old, ADVANTAGES, MASK)
        old.fill_(7)
        trace.step()
    assert read_trace(tmp_path).step(0).parts[0].array("old_logp").max() == 0


def test_packed_and_bfloat16_are_stored_as_they_are(tmp_path: Path) -> None:
    logp = torch.tensor([-1.0, -2.0, -3.0, 0.0], dtype=torch.bfloat16)
    with gspo.record(tmp_path):
        gspo.gspo_loss(logp, logp, ADVANTAGES, gspo.Packed(torch.tensor([0, 2, 3]), mask=torch.tensor([1, 1, 1, 0])))
    part = read_trace(tmp_path).step(0).parts[0]
    assert part.stored["logp"] == "bfloat16"
    assert part.tokens.lengths.tolist() == [2, 1]


def test_steps_are_sampled_and_rollouts_whole(tmp_path: Path) -> None:
    with gspo.record(tmp_path / "steps", every=2):
        _train(5)
    assert read_trace(tmp_path / "steps").indices == (0, 2, 4)
    with gspo.record(tmp_path / "rollouts", every=2) as trace:
        for _ in range(3):
            trace.rollout(rewards=torch.tensor([1.0, 0.0]), groups=torch.tensor([0, 0]))
            _train(2)
    found = read_trace(tmp_path / "rollouts")
    assert [(step.index, step.rollout, step.minibatch) for step in found.steps()] == [
        (0, 0, 0),
        (1, 0, 1),
        (4, 2, 0),
        (5, 2, 1),
    ]
    assert found.step(4).rollouts[0].array("rewards").tolist() == [1, 0]


def test_a_run_that_is_resumed_goes_on_counting(tmp_path: Path) -> None:
    with gspo.record(tmp_path, first_step=7):
        _train(2)
    assert read_trace(tmp_path).indices == (7, 8)


def test_what_the_loss_is_not_given_is_recorded_beside_it(tmp_path: Path) -> None:
    with gspo.record(tmp_path) as trace:
        trace.beside(behavior_logp=torch.full((2, 3), -1.5), rewards=torch.tensor([1.0, 0.0]))
        _train(2)
    first, second = (step.parts[0] for step in read_trace(tmp_path).steps())
    assert first.array("behavior_logp").max() == -1.5
    assert {"behavior_logp", "rewards"} <= first.names
    assert "rewards" not in second.names


def test_the_budget_ends_the_recording_and_the_trace_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), gspo.record(tmp_path, max_bytes=3000):
        losses = _train(20)
    trace = read_trace(tmp_path)
    assert len(losses) == 20
    assert 1 <= len(trace.indices) < 20
    assert trace.ends[0]["reason"] == "budget"
    assert "max_bytes 3000" in trace.ends[0]["message"]
    assert len(caplog.records) == 1


def test_a_failure_ends_the_recording_and_not_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), gspo.record(tmp_path) as trace:
        trace.beside(rewards="none")
        assert len(_train(3)) == 3
    assert trace.ended == "error"
    assert read_trace(tmp_path).ends[0]["reason"] == "error"
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING), gspo.record(tmp_path / "file"):
        assert len(_train(2)) == 2


def test_a_folder_with_a_trace_is_refused_before_the_training(tmp_path: Path) -> None:
    with gspo.record(tmp_path):
        _train(1)
    with pytest.raises(FileExistsError, match="path: expected no trace of this rank yet"):
        gspo.record(tmp_path)
    with pytest.raises(ValueError, match="every: expected a positive integer, got 0"):
        gspo.record(tmp_path / "new", every=0)


def test_another_optimiser_ends_no_step(tmp_path: Path) -> None:
    critic = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with gspo.record(tmp_path):
        for _ in range(2):
            critic.step()
            _train(1)
            critic.step()
    assert read_trace(tmp_path).indices == (0, 1)


def test_the_shares_of_a_union_are_recorded_with_their_normaliser(tmp_path: Path) -> None:
    logp = torch.zeros(2, 3, requires_grad=True)
    with gspo.record(tmp_path) as trace:
        union = distributed.Union(gspo.Objective.gspo(), [MASK, MASK[:1]], world_scale=1, data=ALONE)
        for rows in (slice(0, 2), slice(0, 1)):
            union.loss(logp=logp[rows], old_logp=logp[rows], advantages=ADVANTAGES[rows], sequences=MASK[rows])
        trace.step()
    parts = read_trace(tmp_path).step(0).parts
    assert [part.normalizer for part in parts] == [3, 3]
    assert sum(part.loss or 0 for part in parts) == pytest.approx(-1 / 3)


def test_a_killed_run_leaves_whole_files(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
import torch, gspo_torch as gspo
logp, mask = torch.zeros(64, 256), torch.ones(64, 256)
with gspo.record({str(tmp_path)!r}) as trace:
    for i in range(1000):
        gspo.gspo_loss(logp, logp, torch.ones(64), mask)
        trace.step()
        if i == 20:
            os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    trace = read_trace(tmp_path)
    assert trace.indices == tuple(range(21))
    assert not trace.broken
    assert not trace.ends


def test_a_compiled_loss_is_left_alone(tmp_path: Path) -> None:
    compiled = torch.compile(lambda logp: gspo.gspo_loss(logp, logp, ADVANTAGES, MASK).loss, backend="eager")
    with gspo.record(tmp_path) as trace:
        assert compiled(torch.zeros(2, 3)).item() == 0
        trace.step()
    assert trace.ended == "closed"


def test_a_look_at_the_loss_is_no_part_of_the_step(tmp_path: Path) -> None:
    """Hunts an evaluation under `no_grad` that counts as a micro-batch."""
    weight = torch.nn.Parameter(torch.zeros(2, 3))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    with gspo.record(tmp_path):
        for _ in range(2):
            gspo.gspo_loss(weight * 1, torch.zeros(2, 3), ADVANTAGES, MASK).loss.backward()
            with torch.no_grad():
                gspo.gspo_loss(weight * 1, torch.zeros(2, 3), ADVANTAGES, MASK)
            optimizer.step()
    assert [len(step.parts) for step in read_trace(tmp_path).steps()] == [1, 1]
