"""A surrogate with another constant than was asked for is named with the number that fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import gspo_core
from gspo_conformance import check, loss_target
from gspo_core import Objective

from .test_diagnosis import found

FITTED = (
    ("gspo", {"low": 3e-3, "high": 4e-3}, "clip(low=0.003, high=0.004)", "GSPO-SURR-3", "low=0.0003 and high=0.0004"),
    ("grpo", {"low": 0.1, "high": 0.1}, "clip(low=0.1, high=0.1)", "GSPO-SURR-3", "low=0.2 and high=0.27"),
    ("grpo", {"high": 0.28}, "clip(high=0.28)", "GSPO-SURR-3", "high=0.27"),
    ("dapo", {"dual": 10.0}, "clip(dual=10)", "GSPO-SURR-5", "no dual"),
    ("cispo", {"high": 9.0}, "cispo(high=9)", "GSPO-SURR-8", "high=4"),
    ("cispo", {"low": 0.5, "high": 9.0}, "cispo(low=0.5, high=9)", "GSPO-SURR-8", "no low and high=4"),
    ("gmpo", {"low": 0.2, "high": 0.2}, "gmpo(low=0.2, high=0.2)", "GSPO-SURR-9", "low=0.4 and high=0.4"),
    ("sapo", {"tau_pos": 1.05}, "sapo(tau_pos=1.05)", "GSPO-SURR-10", "tau_pos=1"),
    ("sapo", {"tau_pos": 0.5, "tau_neg": 0.5}, "sapo(tau_pos=0.5, tau_neg=0.5)", "GSPO-SURR-10", "tau_pos=1 and tau_neg=1.05"),
)  # fmt: skip


def loss(preset: str, changes: dict[str, Any]) -> Any:
    objective: Objective = getattr(Objective, preset)()
    objective = objective.replace(surrogate=replace(objective.surrogate, **changes))

    def other(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        arrays = {"logp": logp, "old_logp": old_logp, "advantages": advantages, "sequences": gspo_core.Padded(mask)}
        return gspo_core.policy_loss(objective, **arrays).loss

    return other


@pytest.mark.parametrize(("preset", "changes", "name", "clause", "asked"), FITTED)
def test_another_constant_is_named_with_its_clause_and_what_was_asked_for(
    preset: str, changes: dict[str, Any], name: str, clause: str, asked: str
) -> None:
    diagnosis = found(loss_target(loss(preset, changes), objective=preset))
    assert diagnosis["sentence"].startswith(f"returns the loss of `{name}` ({clause}): in place of {asked}")
    assert (diagnosis["mutants"], diagnosis["clauses"]) == ([], [clause])


def test_numbers_that_fit_most_answers_alone_are_not_named() -> None:
    """Hunts `clip(low=0.002, high=0.28)` of a range of 0.2 and 0.28 that nothing but two answers can tell."""

    def wide(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        m = mask.float()
        ratio = torch.exp(((logp - old_logp) * m).sum(1) / m.sum(1).clamp(min=1))
        return (-torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages) * (m.sum(1) > 0)).mean()

    assert "clip(low=0.2, high=0.28)" in (told := found(loss_target(wide))["sentence"]) or "clip(" not in told


def test_a_constant_beside_another_mistake_is_not_made_up() -> None:
    own = loss("cispo", {"high": 9.0})
    run = check(loss_target(lambda *arrays: 2 * own(*arrays), objective="cispo"))
    assert run.diagnosis is not None
    assert run.diagnosis["sentence"].startswith("unknown deviation; ")
