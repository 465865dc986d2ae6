"""A loss that is another objective's is told by its name, and by its numbers where these are not the usual ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gspo_core
from gspo_conformance import loss_target
from gspo_core import Cispo, Clip, Objective, Reinforce, Sapo

from .test_diagnosis import found

OBJECTIVES = {
    "grpo(0.2, 0.28)": Objective.grpo(Clip(0.2, 0.28)),
    "grpo(0.2, 0.2) by token_mean": Objective.reinforce_pp(),
    "reinforce": Objective("token", Reinforce()),
    "reinforce by sequence_mean_token_sum": Objective.rloo(),
    "weighted reinforce": Objective("sequence", Cispo(high=1e30)),
    "cispo by token_mean": Objective.cispo().replace(aggregation="token_mean"),
    "sequence cispo": Objective("sequence", Cispo(3e-4, 4e-4)),
    "sequence cispo, one-sided": Objective("sequence", Cispo(high=4e-4)),
    "sapo": Objective.sapo(),
    "sequence sapo": Objective("sequence", Sapo()),
    "gmpo": Objective.gmpo(),
    "vespo by token_mean": Objective.vespo(),
}


def loss(objective: Objective) -> Any:
    def other(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        arrays = {"logp": logp, "old_logp": old_logp, "advantages": advantages, "sequences": gspo_core.Padded(mask)}
        return gspo_core.policy_loss(objective, **arrays).loss

    return other


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_objective_that_is_computed_is_named(name: str) -> None:
    diagnosis = found(loss_target(loss(OBJECTIVES[name])))
    assert f"returns the loss of `{name}` (" in diagnosis["sentence"]
    assert "another objective than was asked for" in diagnosis["sentence"]
    assert diagnosis["mutants"] == [], "no name that `gspo explain` knows"


def test_it_is_named_beside_a_mistake() -> None:
    """Dr. GRPO divides by the padded width, and this one lets what is masked overflow."""

    def width(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        ratio = (logp - old_logp).exp()
        kept = torch.min(ratio * advantages[:, None], ratio.clamp(0.8, 1.2) * advantages[:, None])
        return -torch.where(mask, kept, 0.0).sum() / mask.numel()

    diagnosis = found(loss_target(width))
    assert "`grpo(0.2, 0.2) by padded width` (GSPO-RATIO-2) and `numerics.masked-overflow`" in diagnosis["sentence"]
    assert diagnosis["mutants"] == ["numerics.masked-overflow"]


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.15), (0.2, 0.35)])
def test_a_range_of_its_own_is_found(low: float, high: float) -> None:
    """Hunts a fit that one answer with NaN in it ends, and one end of the range that stands for both."""
    sentence = found(loss_target(loss(Objective.grpo(Clip(low, high)))))["sentence"]
    assert f"`ratio.token-level` (GSPO-RATIO-2) and `clip(low={low}, high={high})` (GSPO-SURR-3)" in sentence
