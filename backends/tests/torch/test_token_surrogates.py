"""Surrogates per token in one pass over blocks: the core's loss, metrics and gradient, and the long way where it must."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import gspo_torch as gspo
from gspo_torch import closed_form, tokens

from .test_native import assert_equal, both

OBJECTIVES = {
    "grpo": gspo.Objective.grpo(),
    "ppo": gspo.Objective.ppo(),
    "dapo": gspo.Objective.dapo(),
    "dr_grpo": gspo.Objective.dr_grpo(7.0),
    "reinforce_pp": gspo.Objective.reinforce_pp(),
    "dual": gspo.Objective("token", gspo.Clip(0.1, 0.2, 1.3)),
    "no room": gspo.Objective("token", gspo.Clip(0.0, 0.0)),
    "unclipped": gspo.Objective("token", gspo.Unclipped()),
    "cispo": gspo.Objective("token", gspo.Cispo(None, 0.2), gspo.Aggregation("token_mean")),
    "cispo on both sides": gspo.Objective("token", gspo.Cispo(0.1, 0.2)),
    "sapo": gspo.Objective.sapo(),
    "sapo, steep": gspo.Objective("token", gspo.Sapo(3.0, 20.0)),
    "reinforce": gspo.Objective.rloo(),
    "gated": gspo.Objective("token", gspo.Reinforce(gspo.Clip(0.1, 0.2, 1.3))),
    "gmpo": gspo.Objective.gmpo(gspo.Gmpo(0.1, 0.2)),
    "vespo of tokens": gspo.Objective("token", gspo.Vespo()),
    "held above any ratio": gspo.Objective.grpo().replace(log_ratio_cap=20.0),
}


def answers_of(name: str, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call of that function of `closed_form` found something, as they are made."""
    seen: list[bool] = []

    def asked(*arguments: Any) -> Any:
        result = whole(*arguments)
        seen.append(result is not None)
        return result

    whole = getattr(closed_form, name)
    monkeypatch.setattr(closed_form, name, asked)
    return seen


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each scan found something."""
    return answers_of("scan", monkeypatch)


def batch(spread: float = 0.3, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Nine responses, one empty and one whole, with holes; advantages of both signs and 0."""
    random = torch.Generator().manual_seed(0)
    old = -torch.rand(9, 33, generator=random, dtype=dtype)
    logp = old + spread * torch.randn(9, 33, generator=random, dtype=dtype)
    mask = torch.rand(9, 33, generator=random) < 0.8
    mask[3], mask[4] = False, True
    advantages = torch.tensor([1.0, -1.0, 0.0, 2.0, -0.5, 0.7, -2.0, 0.0, 1.5], dtype=dtype)
    garbage = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e4], dtype=dtype).repeat(9, 9)[:, :33]
    tensors = {"logp": torch.where(mask, logp, garbage), "old_logp": torch.where(mask, old, -garbage)}
    return tensors | {"advantages": advantages, "sequences": mask, "groups": torch.tensor([0, 1, 0, 2, 2, 1, 1, 0, 3])}


def packed(arguments: dict[str, Any]) -> dict[str, Any]:
    """The rows end to end but for the empty one, a segment without tokens, and NaN behind the last."""
    kept = torch.arange(len(arguments["sequences"])) != 3
    tail = torch.full((5,), float("nan"), dtype=arguments["logp"].dtype)
    names = [name for name in arguments if name.endswith("logp")]
    mask = torch.cat([arguments["sequences"][kept].flatten(), torch.ones(5, dtype=torch.bool)])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (33 * kept).cumsum(0)])
    flat = {name: torch.cat([arguments[name][kept].flatten(), tail]) for name in names}
    return arguments | flat | {"sequences": gspo.Packed(offsets, mask=mask)}


LAYOUTS = pytest.mark.parametrize("layout", [dict, packed], ids=["padded", "packed"])


@LAYOUTS
@pytest.mark.parametrize("block", [1, 70, 1 << 16])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_is_the_core(
    monkeypatch: pytest.MonkeyPatch, found: list[bool], name: str, block: int, layout: Callable[..., Any]
) -> None:
    monkeypatch.setattr(tokens, "_BLOCK", block)
    assert_equal(both(OBJECTIVES[name], layout(batch())), 1e-12, 1e-15)
    assert_equal(both(OBJECTIVES[name], layout(batch()) | {"normalizer": 5.0}), 1e-12, 1e-15)
    assert found == [True, True]


def test_packed_without_a_mask(found: list[bool]) -> None:
    arguments = packed(batch())
    whole = {name: arguments[name].clamp(-2.0, -1.0).nan_to_num(-1.5) for name in ("logp", "old_logp")}
    whole["sequences"] = gspo.Packed(arguments["sequences"].offsets.int())
    assert_equal(both(OBJECTIVES["grpo"], arguments | whole), 1e-12, 1e-15)
    assert found == [True]


@LAYOUTS
@pytest.mark.parametrize("name", ["grpo", "dual", "cispo", "cispo on both sides", "sapo", "sapo, steep", "gmpo"])
def test_in_float32(found: list[bool], name: str, layout: Callable[..., Any]) -> None:
    assert_equal(both(OBJECTIVES[name], layout(batch(dtype=torch.float32))), 2e-6, 5e-8)
    assert found == [True]


@pytest.mark.parametrize("shift", [0.0, 0.4, -0.4])
def test_log_ratios_on_one_side_of_zero(found: list[bool], shift: float) -> None:
    """The 0 that stands at uncounted tokens is neither the least nor the greatest ratio."""
    arguments = batch()
    random = torch.Generator().manual_seed(1)
    moved = shift * (1 + torch.rand(arguments["logp"].shape, generator=random, dtype=torch.float64))
    assert_equal(both(OBJECTIVES["grpo"], arguments | {"logp": arguments["old_logp"] + moved}), 1e-12, 1e-15)
    assert found == [True]


def test_at_the_bounds_the_gate_is_open(found: list[bool]) -> None:
    """x = 1, and both bounds are 1: the whole gradient passes (GSPO-SURR-4)."""
    logp = torch.full((2, 2), -1.0, requires_grad=True)
    mask = torch.ones(2, 2, dtype=torch.bool)
    out = gspo.policy_loss(
        OBJECTIVES["no room"],
        logp=logp,
        old_logp=logp,
        advantages=torch.tensor([1.0, -1.0]),
        sequences=mask,
    )
    out.loss.backward()
    assert logp.grad.tolist() == [[-0.25, -0.25], [0.25, 0.25]]
    assert out.metrics["clip_fraction"] == 0
    assert found == [True]


@pytest.mark.parametrize("difference", [100.0, 60.0, -60.0, 1000.0])
def test_where_something_overflows_the_core_takes_over(difference: float) -> None:
    arguments = batch(dtype=torch.float32)
    arguments["logp"][4, :2] = arguments["old_logp"][4, :2] + difference
    arguments["logp"][6, arguments["sequences"][6]] = arguments["old_logp"][6, arguments["sequences"][6]] + difference
    for name in ("grpo", "dual", "cispo on both sides", "sapo", "unclipped"):
        assert_equal(both(OBJECTIVES[name], arguments), 2e-6, 1e-8)


@LAYOUTS
@pytest.mark.parametrize("name", ["grpo", "dual", "cispo on both sides", "sapo, steep", "gated", "gspo_token"])
def test_advantages_of_tokens(
    monkeypatch: pytest.MonkeyPatch, found: list[bool], name: str, layout: Callable[..., Any]
) -> None:
    """Both signs and 0 within a response; NaN where nothing counts."""
    monkeypatch.setattr(tokens, "_BLOCK", 70)
    objective = (OBJECTIVES | {"gspo_token": gspo.Objective.gspo_token(gspo.Clip(0.02, 0.03))})[name]
    signs = torch.tensor([1.0, -2.0, 0.0, 0.5, -0.3])
    for dtype, rtol, atol in ((torch.float64, 1e-12, 1e-15), (torch.float32, 2e-6, 5e-8)):
        arguments = layout(batch(dtype=dtype))
        shape = arguments["logp"].shape
        advantages = signs.to(dtype)[torch.arange(arguments["logp"].numel()) % 5].view(shape)
        counted = arguments["sequences"] if layout is dict else arguments["logp"].isfinite()
        advantages = torch.where(counted, advantages, torch.nan)
        assert_equal(both(objective, arguments | {"advantages": advantages}), rtol, atol)
    assert found == [True, True]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_an_advantage_of_a_token_that_is_not_finite_is_named(wrong: float) -> None:
    arguments = batch()
    advantages = torch.ones(9, 33, dtype=torch.float64)
    advantages[4, 1] = wrong
    with pytest.raises(ValueError, match=r"^advantages: expected finite"):
        gspo.policy_loss(OBJECTIVES["grpo"], **(arguments | {"advantages": advantages}))


def test_what_it_does_not_cover(found: list[bool]) -> None:
    """Where the cap holds a ratio, the scan says so."""
    assert_equal(both(OBJECTIVES["grpo"].replace(log_ratio_cap=0.1), batch()), 1e-12, 1e-15)
    assert found == [False]
