"""A loss that is another objective's is told by its name and numbers; a term beside it by its coefficient."""

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


def k3(z: Any) -> Any:
    return (-z).exp() + z - 1


def mean(values: Any, mask: Any) -> Any:
    return torch.where(mask, values, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


TERMS = {
    "`0.05 k3`": (0.05, k3),
    "`0.01 k1`": (0.01, lambda z: z),
    "`0.002 k2`": (0.002, lambda z: z * z / 2),
}


@pytest.mark.parametrize("name", TERMS)
def test_an_added_term_is_named_with_its_coefficient(name: str) -> None:
    """Hunts a k3 whose rounding near 0 hides it: e^z - z - 1 as trainers write it, in float32."""
    coefficient, term = TERMS[name]

    def beside(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        z = torch.where(mask, logp - old_logp, 0.0)
        penalty = mean(term(z), mask).mean()
        return loss(Objective.gspo())(logp, old_logp, advantages, mask) + coefficient * penalty

    diagnosis = found(loss_target(beside))
    assert (
        f"returns the loss of {name} (GSPO-KL-6): {coefficient:g} times {name[-3:-1]} towards" in diagnosis["sentence"]
    )
    assert diagnosis["mutants"] == []


def test_an_added_term_is_named_beside_another_mean() -> None:
    def tokens(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        z = torch.where(mask, logp - old_logp, 0.0)
        s = mean(z, mask).exp()
        kept = torch.min(s * advantages, s.clamp(1 - 3e-4, 1 + 4e-4) * advantages)[:, None]
        return torch.where(mask, 0.04 * k3(z) - kept, 0.0).sum() / mask.sum().clamp(min=1)

    sentence = found(loss_target(tokens))["sentence"]
    assert "`aggregation.token-mean` (GSPO-AGG-1) and `0.04 k3` (GSPO-KL-6)" in sentence
    assert "0.04 times k3 towards the old policy in the loss, which nobody asked for" in sentence


def test_the_entropy_of_the_sampled_tokens_is_a_term_too() -> None:
    def bonus(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        return loss(Objective.gspo())(logp, old_logp, advantages, mask) + 0.01 * mean(logp, mask).mean()

    assert "returns the loss of `0.01 log π` (GSPO-KL-6)" in found(loss_target(bonus))["sentence"]


def test_grpo_with_its_kl_term_is_told_as_that() -> None:
    def grpo(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        z = torch.where(mask, logp - old_logp, 0.0)
        w, a = z.exp(), advantages[:, None]
        return mean(0.04 * k3(z) - torch.min(w * a, w.clamp(0.8, 1.28) * a), mask).mean()

    sentence = found(loss_target(grpo))["sentence"]
    assert "returns the loss of `grpo(0.2, 0.28)` (GSPO-RATIO-2) and `0.04 k3` (GSPO-KL-6)" in sentence
