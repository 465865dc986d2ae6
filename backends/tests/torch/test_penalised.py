"""A penalty added to a closed form: the core's loss, metrics and gradient, and the long way where it must."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import gspo_torch as gspo
from gspo_torch import tokens

from .test_native import assert_equal, both
from .test_token_surrogates import LAYOUTS, answers_of, batch

OBJECTIVES = {
    "gspo": gspo.Objective.gspo(gspo.Clip(0.1, 0.2)),
    "grpo": gspo.Objective.grpo(),
    "cispo": gspo.Objective.cispo(),
    "gmpo": gspo.Objective.gmpo(gspo.Gmpo(0.1, 0.2)),
}
ESTIMATORS = ["k1", "k2", "k3", "k3_plus", "abs"]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each penalty could be added."""
    return answers_of("add_penalty", monkeypatch)


def referred(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """The batch with a reference; NaN where nothing counts."""
    arguments = batch(dtype=dtype)
    moved = 0.5 * torch.randn(9, 33, generator=torch.Generator().manual_seed(3), dtype=dtype)
    reference = torch.where(arguments["sequences"], arguments["logp"] + moved, torch.tensor(float("nan"), dtype=dtype))
    return arguments | {"ref_logp": reference}


@LAYOUTS
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_is_the_core(
    monkeypatch: pytest.MonkeyPatch, found: list[bool], name: str, estimator: str, layout: Callable[..., Any]
) -> None:
    monkeypatch.setattr(tokens, "_BLOCK", 70)
    own = gspo.Penalty(estimator, 0.3, aggregation=gspo.Aggregation("token_mean"))
    for penalty in (gspo.Penalty(estimator, 0.3), own):
        objective = OBJECTIVES[name].replace(penalty=penalty)
        assert_equal(both(objective, layout(referred())), 1e-12, 1e-15)
        assert_equal(both(objective, layout(referred()) | {"normalizer": 5.0}), 1e-12, 1e-15)
    assert found == [True] * 4


def test_in_float32(found: list[bool]) -> None:
    objective = OBJECTIVES["grpo"].replace(penalty=gspo.Penalty("k3", 0.3))
    assert_equal(both(objective, referred(torch.float32)), 2e-6, 5e-8)
    assert found == [True]


def test_where_it_overflows_the_core_takes_over(found: list[bool]) -> None:
    objective = OBJECTIVES["gspo"].replace(penalty=gspo.Penalty("k3", 0.3))
    arguments = referred(torch.float32)
    arguments["ref_logp"][4, 0] = arguments["logp"][4, 0] + 100.0
    (core, wanted), (out, gradient) = both(objective, arguments)
    assert core.loss == out.loss == torch.inf
    torch.testing.assert_close(gradient, wanted)
    assert found == [False]


def test_a_reference_that_is_not_finite_is_refused() -> None:
    arguments = referred()
    arguments["ref_logp"][4, 1] = -torch.inf
    with pytest.raises(ValueError, match=r"^ref_logp: expected finite"):
        gspo.policy_loss(OBJECTIVES["gspo"].replace(penalty=gspo.Penalty("k3", 0.3)), **arguments)


HELD = [
    {"importance": "token"},
    {"importance": "sequence"},
    {"value_clamp": 0.02},
    {"log_ratio_clamp": 0.3},
    {"importance": "token", "log_ratio_clamp": 0.3, "value_clamp": 0.02},
    {"importance": "sequence", "log_ratio_clamp": 0.3, "value_clamp": 0.02},
]


@LAYOUTS
@pytest.mark.parametrize("held", HELD, ids=lambda held: "-".join(map(str, held.values())))
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_clamps_and_importance(
    monkeypatch: pytest.MonkeyPatch, found: list[bool], estimator: str, held: Any, layout: Callable[..., Any]
) -> None:
    monkeypatch.setattr(tokens, "_BLOCK", 70)
    objective = OBJECTIVES["grpo"].replace(penalty=gspo.Penalty(estimator, 0.3, **held))
    assert_equal(both(objective, layout(referred())), 1e-12, 1e-15)
    assert_equal(both(objective, layout(referred(torch.float32))), 2e-6, 5e-8)
    assert found == [True] * 2


def test_a_value_that_overflows_is_held(found: list[bool]) -> None:
    objective = OBJECTIVES["gspo"].replace(penalty=gspo.Penalty("k3", 0.3, value_clamp=10.0))
    arguments = referred(torch.float32)
    arguments["ref_logp"][4, 0] = arguments["logp"][4, 0] + 100.0
    assert_equal(both(objective, arguments), 2e-6, 5e-8)
    assert found == [True]
