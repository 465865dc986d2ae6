"""Corrections beside the fast paths: the core's loss, metrics and gradient, and its errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import gspo_torch as gspo
from gspo_core.step import Step
from gspo_torch import closed_form

from .test_native import assert_equal, both
from .test_token_surrogates import LAYOUTS, batch, packed

OBJECTIVES = {
    "gspo": gspo.Objective.gspo(gspo.Clip(0.1, 0.2)),
    "product": gspo.Objective("product", gspo.Unclipped()),
    "grpo": gspo.Objective.grpo(),
    "cispo": gspo.Objective("token", gspo.Cispo(0.1, 0.2)),
    "gspo_token": gspo.Objective.gspo_token(gspo.Clip(0.1, 0.2)),
    "gmpo": gspo.Objective.gmpo(gspo.Gmpo(0.1, 0.2)),
    "sapo, k3": gspo.Objective.sapo().replace(penalty=gspo.Penalty("k3", 0.2)),
}
CORRECTIONS = [
    gspo.Correction("token", "clamp", high=1.2),
    gspo.Correction("token", "mask", low=0.7, high=1.3, numerator="current"),
    gspo.Correction("geometric", "mask", low=0.9, high=1.2, negative_only=True),
    gspo.Correction("sequence", "reject", low=0.5, high=3.0),
    (gspo.Correction("geometric", "reject", low=0.8), gspo.Correction("token", "clamp", high=2.0, negative_only=True)),
]


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the core is asked for the whole step."""

    def prepare(*_: Any, **__: Any) -> Step:
        raise AssertionError("expected a fast path")

    monkeypatch.setattr(closed_form, "prepare", prepare)


def sampled(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """The batch with log-probabilities of a sampler and of a reference; NaN where nothing counts."""
    arguments, random = batch(dtype=dtype), torch.Generator().manual_seed(5)
    nothing = torch.tensor(float("nan"), dtype=dtype)
    for name in ("behavior_logp", "ref_logp"):
        moved = 0.2 * torch.randn(9, 33, generator=random, dtype=dtype)
        arguments[name] = torch.where(arguments["sequences"], arguments["old_logp"] + moved, nothing)
    return arguments


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("correction", CORRECTIONS)
@LAYOUTS
@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_is_the_core(name: str, correction: Any, layout: Callable[..., Any]) -> None:
    assert_equal(both(OBJECTIVES[name].replace(correction=correction), layout(sampled())), 1e-12, 1e-15)


@pytest.mark.parametrize("name", ["gspo", "grpo"])
def test_a_sampler_that_is_not_finite_is_refused_where_its_weight_would_be_held(name: str) -> None:
    arguments = sampled()
    arguments["behavior_logp"][4, 1] = -torch.inf
    with pytest.raises(ValueError, match=r"^behavior_logp: expected finite"):
        gspo.policy_loss(OBJECTIVES[name].replace(correction=CORRECTIONS[0]), **arguments)


@pytest.mark.parametrize("name", ["gspo", "grpo"])
def test_a_weight_that_overflows_beside_an_advantage_of_zero(name: str) -> None:
    """A = 0 gives 0, whatever the weight (GSPO-SURR-12)."""
    arguments = sampled(torch.float32)
    arguments["behavior_logp"][2] = torch.where(arguments["sequences"][2], arguments["old_logp"][2] - 200.0, 0.0)
    objective = OBJECTIVES[name].replace(correction=gspo.Correction("token", "mask", low=0.1))
    assert arguments["advantages"][2] == 0
    assert_equal(both(objective, arguments), 2e-6, 5e-8)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_as_many_advantages_as_packed_tokens_and_responses_are_those_of_responses(name: str) -> None:
    """GSPO-ADV-14, where a correction of negative advantages asks for them token by token."""
    logp = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64)
    arguments = {
        "logp": logp,
        "old_logp": logp - 0.01,
        "behavior_logp": logp - torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64),
        "ref_logp": logp + 0.1,
        "advantages": torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64),
        "sequences": gspo.Packed(torch.tensor([0, 2, 2, 3])),
    }
    objective = OBJECTIVES[name].replace(correction=gspo.Correction("token", "clamp", high=1.15, negative_only=True))
    assert_equal(both(objective, arguments), 1e-12, 1e-15)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("name", ["gspo", "grpo"])
def test_packed_bfloat16_advantages_say_which_weights_a_correction_leaves(name: str) -> None:
    arguments = packed(sampled(torch.float32))
    arguments["advantages"] = arguments["advantages"].bfloat16()
    objective = OBJECTIVES[name].replace(correction=CORRECTIONS[-1])
    assert_equal(both(objective, arguments), 2e-6, 5e-8)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("action", ["mask", "reject"])
def test_a_weight_that_is_no_number_is_not_taken_for_one_outside(action: str) -> None:
    """GSPO-NUM-6, where values are not checked and a response has one surrogate."""
    arguments = sampled()
    arguments["behavior_logp"][4, 1] = torch.nan
    objective = OBJECTIVES["gspo"].replace(correction=gspo.Correction("token", action, low=0.5, high=2.0))
    with gspo.value_checks(False):
        assert gspo.policy_loss(objective, **arguments).loss.isnan()
