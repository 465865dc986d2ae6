"""What needs no trainer: the error where there is none, how configurations become objectives, and the function verl calls."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import gspo_torch as gspo
from gspo_torch import Aggregation, Clip, Correction, Objective, Penalty
from gspo_torch.integrations import absent, trl, verl


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absent, "find_spec", lambda name: None)
    trl._classes.cache_clear()


@pytest.mark.parametrize("name", ["GSPOTrainer", "GSPOConfig"])
def test_without_trl_the_error_names_the_command(nothing_installed: None, name: str) -> None:
    with pytest.raises(
        ImportError, match=r"^trl: expected an installation .*install it with: pip install trl==1\.16\.0$"
    ):
        getattr(trl, name)


def test_without_verl_the_error_names_the_command(nothing_installed: None) -> None:
    with pytest.raises(ImportError, match=r"^verl: expected an installation .*with: pip install verl==0\.9\.1$"):
        verl.register()


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'GRPOTrainer'"):
        trl.GRPOTrainer  # noqa: B018


def _args(**changes: Any) -> SimpleNamespace:
    defaults = {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
        "delta": None,
        "beta": 0.0,
        "use_bias_correction_kl": True,
        "max_completion_length": 16,
        "use_vllm": False,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "sequence_mask",
        "vllm_importance_sampling_clip_min": None,
        "vllm_importance_sampling_clip_max": 3.0,
        "off_policy_mask_threshold": None,
    }
    return SimpleNamespace(**(defaults | changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Objective.gspo()),
        ({"epsilon": 0.2, "epsilon_high": None, "delta": 1.5}, Objective.gspo(Clip(0.2, 0.2, 1.5))),
        ({"loss_type": "luspo"}, Objective.luspo()),
        (
            {"loss_type": "dr_grpo"},
            Objective.gspo().replace(aggregation=Aggregation("sequence_mean_token_sum", constant=16)),
        ),
        ({"loss_type": "dapo"}, Objective.gspo().replace(aggregation="token_mean")),
        ({"beta": 0.1}, Objective.gspo().replace(penalty=Penalty("k3", 0.1, importance="sequence"))),
        ({"beta": 0.1, "use_bias_correction_kl": False}, Objective.gspo().replace(penalty=Penalty("k3", 0.1))),
        ({"use_vllm": True}, Objective.gspo().replace(correction=Correction("sequence", "mask", high=3.0))),
        (
            {"use_vllm": True, "vllm_importance_sampling_mode": "token_truncate"},
            Objective.gspo().replace(correction=Correction("token", "clamp", high=3.0)),
        ),
        (
            {"off_policy_mask_threshold": 0.5},
            Objective.gspo().replace(
                correction=Correction(
                    "geometric", "reject", low=math.exp(-0.5), numerator="current", negative_only=True
                )
            ),
        ),
    ],
)
def test_what_a_trl_configuration_describes(changes: dict[str, Any], expected: Objective) -> None:
    assert trl.objective_of(_args(**changes)) == expected


def test_a_loss_type_that_depends_on_the_micro_batches_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss_type: expected one of 'grpo', 'dapo', 'luspo', 'dr_grpo'.*got 'bnpo'"):
        trl.objective_of(_args(loss_type="bnpo"))


def _actor(**info: Any) -> SimpleNamespace:
    return SimpleNamespace(clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.3, global_batch_info=info)


def _verl_batch() -> dict[str, Any]:
    """As verl lays it out: advantages and weights per token; the fifth response is empty."""
    draw = torch.Generator().manual_seed(0)
    mask = torch.arange(7) < torch.tensor([7, 3, 5, 1, 0])[:, None]
    old = -torch.rand(5, 7, generator=draw, dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 0.5, -2.0, 3.0], dtype=torch.float64)
    return {
        "old_log_prob": old,
        "log_prob": old + 0.4 * torch.randn(5, 7, generator=draw, dtype=torch.float64),
        "advantages": advantages[:, None] * mask,
        "response_mask": mask,
    }


def _expected(objective: Objective, batch: dict[str, Any], normalizer: float | None) -> gspo.PolicyLoss:
    return gspo.policy_loss(
        objective,
        logp=batch["log_prob"],
        old_logp=batch["old_log_prob"],
        advantages=torch.tensor([1.0, -1.0, 0.5, -2.0, 3.0], dtype=torch.float64),
        sequences=batch["response_mask"],
        normalizer=normalizer,
    )


@pytest.mark.parametrize(("info", "normalizer"), [({}, 4.0), ({"dp_size": 2, "global_batch_size": 12}, 6.0)])
def test_the_function_that_verl_calls_is_gspo(info: dict[str, Any], normalizer: float) -> None:
    batch = _verl_batch()
    batch["log_prob"].requires_grad_()
    truth = _expected(Objective.gspo(Clip(0.2, 0.3)), batch, normalizer)
    (expected,) = torch.autograd.grad(truth.loss, batch["log_prob"])
    loss, metrics = verl.policy_loss_function()(**batch, config=_actor(**info))
    loss -= 0.0  # verl subtracts the entropy term in place
    (gradient,) = torch.autograd.grad(loss, batch["log_prob"])
    torch.testing.assert_close(loss, truth.loss)
    torch.testing.assert_close(gradient, expected)
    assert metrics["actor/pg_clipfrac"] == pytest.approx(float(truth.metrics["clip_fraction"]))
    assert all(isinstance(value, float) for value in metrics.values())


@pytest.mark.parametrize(
    ("mode", "info", "normalizer"),
    [
        ("token_mean", {"dp_size": 2, "batch_num_tokens": 40}, 20.0),
        ("token_sum", {"dp_size": 2}, 0.5),
        ("sequence_mean_token_sum", {"dp_size": 4, "global_batch_size": 12}, 3.0),
    ],
)
def test_an_objective_of_ones_own_in_verl(mode: str, info: dict[str, Any], normalizer: float) -> None:
    objective = Objective("sequence", Clip(0.2, 0.3), mode)
    batch = _verl_batch()
    loss, _ = verl.policy_loss_function(objective)(**batch, loss_agg_mode="whatever", config=_actor(**info))
    torch.testing.assert_close(loss, _expected(objective, batch, normalizer).loss)


def test_weights_of_verls_rollout_correction_multiply_the_surrogate() -> None:
    batch = _verl_batch()
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0], dtype=torch.float64)[:, None].expand(5, 7)
    loss, metrics = verl.policy_loss_function()(**batch, config=_actor(), rollout_is_weights=weights)
    assert metrics == verl.policy_loss_function()(**batch, config=_actor())[1]
    scaled = batch | {"advantages": batch["advantages"] * weights}
    torch.testing.assert_close(loss, verl.policy_loss_function()(**scaled, config=_actor())[0])
    assert loss != verl.policy_loss_function()(**batch, config=_actor())[0]


def test_what_verl_may_not_ask_for() -> None:
    batch = _verl_batch()
    with pytest.raises(ValueError, match="loss_agg_mode: expected 'seq-mean-token-mean' with loss_mode 'gspo_core'"):
        verl.policy_loss_function()(**batch, loss_agg_mode="token-mean", config=_actor())
    with pytest.raises(ValueError, match="global_batch_info: expected the totals of 2 ranks"):
        verl.policy_loss_function()(**batch, config=_actor(dp_size=2))
    varying = batch | {"advantages": batch["log_prob"]}
    with pytest.raises(ValueError, match="advantages: expected one value per response for a sequence-level objective"):
        verl.policy_loss_function(Objective.gspo())(**varying, config=_actor())


def test_what_verl_cannot_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verl, "import_trainer", lambda *names, **options: SimpleNamespace())
    with pytest.raises(ValueError, match="objective: expected an aggregation without groups"):
        verl.register(Objective.dapo())
    with pytest.raises(ValueError, match="objective: expected no penalty and no correction"):
        verl.register(Objective.decoupled())
