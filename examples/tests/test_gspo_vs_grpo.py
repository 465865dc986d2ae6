"""GSPO beside GRPO: equal starts, routes that are replayed, and a table and figure that are those of the numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import arithmetic
import gspo_vs_grpo
from recording import Settings

SMALL = Settings(iterations=2, prompts=4, group=8, mini_batches=2, width=16, warm_up=0.0)


@pytest.fixture
def sevens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that a random policy gets now and then."""
    monkeypatch.setattr(arithmetic, "rewards", lambda _, responses: (responses[:, 0] == 7).astype(np.float32))


@pytest.mark.usefixtures("sevens")
def test_both_objectives_start_equal_and_the_first_steps_tell_them_apart(tmp_path: Path) -> None:
    gspo_vs_grpo.measure_all(SMALL, 1, tmp_path / "numbers.json")
    found = gspo_vs_grpo.measure_all(SMALL, 2, tmp_path / "numbers.json")
    runs = found["runs"]
    assert len(runs) == 12
    for policy in gspo_vs_grpo.POLICIES:
        ours, theirs = (gspo_vs_grpo.chosen(runs, policy, objective) for objective in ("GSPO", "GRPO"))
        assert [run["reward"][0] for run in ours] == [run["reward"][0] for run in theirs]
        assert np.mean([run["clip_fraction"] for run in ours]) > np.mean([run["clip_fraction"] for run in theirs])
    text = gspo_vs_grpo.table(found)
    assert text.startswith("2 seeds; 2 rollouts of 4 x 8 responses")
    assert text.count("\n| mixture, replay |") == 3


def test_a_token_uses_two_experts_and_replay_holds_them() -> None:
    policy = gspo_vs_grpo.new_policy("mixture", replace(SMALL, seed=3))
    prompts = torch.from_numpy(arithmetic.prompts(np.arange(40)))
    responses = policy.answer(prompts, torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = gspo_vs_grpo.logps(policy, prompts, responses)
        routes = [mixture.chosen for mixture in gspo_vs_grpo.mixtures(policy)]
        assert [route.shape for route in routes] == [(40, 9, 2)] * 2
        torch.testing.assert_close(gspo_vs_grpo.logps(policy, prompts, responses, routes), before)
        for mixture in gspo_vs_grpo.mixtures(policy):
            torch.nn.init.normal_(mixture.router.weight)
        gspo_vs_grpo.logps(policy, prompts, responses, routes)
        assert all(torch.equal(m.chosen, r) for m, r in zip(gspo_vs_grpo.mixtures(policy), routes, strict=True))
        gspo_vs_grpo.logps(policy, prompts, responses)
        assert not any(torch.equal(m.chosen, r) for m, r in zip(gspo_vs_grpo.mixtures(policy), routes, strict=True))


def test_an_interval_is_student_s() -> None:
    mean, half = gspo_vs_grpo.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    assert half == pytest.approx(1.963, abs=2e-3)
