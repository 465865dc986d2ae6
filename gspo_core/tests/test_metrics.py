"""Each metric against its clause, on numbers small enough to do by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import gspo_core as gspo

NAMES = [
    "approx_kl",
    "clip_fraction",
    "clip_fraction_dual",
    "clip_fraction_high",
    "clip_fraction_low",
    "effective_sample_size",
    "kl_penalty",
    "num_sequences",
    "num_tokens",
    "ratio_is_one",
    "ratio_max",
    "ratio_mean",
    "ratio_min",
]


def _metrics(objective: gspo.Objective, log_ratios: list[list[float]], mask: list[list[int]], a: list[float]) -> dict:
    old = np.full(np.shape(mask), -1.0)
    out = gspo.policy_loss(
        objective, logp=old + np.asarray(log_ratios), old_logp=old, advantages=np.asarray(a), sequences=np.asarray(mask)
    )
    assert sorted(out.metrics) == NAMES
    return {name: float(value) for name, value in out.metrics.items()}


def test_clip_fraction_weighs_tokens_and_reads_the_gate() -> None:
    """Responses of 1, 3 and 2 tokens; the last is outside the range but not clipped (A > 0, s below)."""
    found = _metrics(
        gspo.Objective.gspo(gspo.Clip(0.1, 0.1)),
        [[0.2, 0, 0], [-0.3, -0.3, -0.3], [-0.5, -0.5, 0]],
        [[1, 0, 0], [1, 1, 1], [1, 1, 0]],
        [1.0, -1.0, 1.0],
    )
    assert found["clip_fraction_high"] == pytest.approx(1 / 6)
    assert found["clip_fraction_low"] == pytest.approx(3 / 6)
    assert found["clip_fraction"] == pytest.approx(4 / 6)
    assert (found["num_sequences"], found["num_tokens"]) == (3, 6)


def test_a_batch_that_is_clipped_whole_has_a_clip_fraction_of_exactly_1() -> None:
    """9/28 + 18/28 + 1/28, rounded each, is more than 1 in float64, and the value lies in [0, 1] (GSPO-METRIC-1)."""
    low, high, dual = ([-1.0], -1.0), ([1.0], 1.0), ([9.0], -1.0)
    rows, advantages = zip(*[low] * 9, *[high] * 18, dual, strict=True)
    objective = gspo.Objective("token", gspo.Clip(0.2, 0.2, dual=3.0))
    assert _metrics(objective, list(rows), [[1]] * 28, list(advantages))["clip_fraction"] == 1.0


def test_ratio_statistics_are_over_units() -> None:
    log_ratios, mask = [[0.2, 0.4], [0.1, 9.0], [5.0, 5.0]], [[1, 1], [1, 0], [0, 0]]
    by_sequence = _metrics(gspo.Objective.gspo(), log_ratios, mask, [1.0, 1.0, 1.0])
    ratios = np.exp([0.3, 0.1])
    assert by_sequence["ratio_mean"] == pytest.approx(ratios.mean())
    assert (by_sequence["ratio_min"], by_sequence["ratio_max"]) == pytest.approx((ratios.min(), ratios.max()))
    assert by_sequence["effective_sample_size"] == pytest.approx(ratios.sum() ** 2 / (ratios**2).sum())
    by_token = _metrics(gspo.Objective.grpo(), log_ratios, mask, [1.0, 1.0, 1.0])
    d = np.asarray([0.2, 0.4, 0.1])
    assert by_token["ratio_mean"] == pytest.approx(np.exp(d).mean())
    assert by_token["approx_kl"] == by_sequence["approx_kl"] == pytest.approx((np.exp(d) - 1 - d).mean())


@pytest.mark.parametrize("spread", [0.0, 1e-4])
def test_no_sample_is_larger_than_the_number_of_its_units(spread: float) -> None:
    """The square of 11,587 is no float32, and its quotient by 11,587 was 11,587.001 (GSPO-METRIC-4)."""
    logp = (spread * np.random.default_rng(0).normal(size=(1, 11_587))).astype(np.float32)
    loss = gspo.grpo_loss(logp, 0 * logp, np.ones(1, np.float32), np.ones_like(logp))
    size = loss.metrics["effective_sample_size"]
    assert 11_586 < size <= 11_587
    assert spread or size == 11_587


def test_a_ratio_that_is_always_one_is_reported() -> None:
    """Old log-probabilities taken from the current policy: nothing is ever clipped, and nobody notices (R5)."""
    assert _metrics(gspo.Objective.gspo(), [[0.0, 9.0]], [[1, 0]], [1.0])["ratio_is_one"] == 1.0
    assert _metrics(gspo.Objective.gspo(), [[1e-9, -1e-9]], [[1, 1]], [1.0])["ratio_is_one"] == 0.0


@pytest.mark.parametrize("preset", [gspo.Objective.gspo, gspo.Objective.grpo])
def test_one_token_is_a_whole_batch(preset: Callable[[gspo.Clip], gspo.Objective]) -> None:
    found = _metrics(preset(gspo.Clip(0.1, 0.1)), [[0.2, 0.0]], [[1, 0]], [1.0])
    assert (found["clip_fraction"], found["num_tokens"], found["effective_sample_size"]) == (1.0, 1.0, 1.0)
    assert found["ratio_mean"] == pytest.approx(np.exp(0.2))
    assert found["approx_kl"] == pytest.approx(np.expm1(0.2) - 0.2)


def test_a_batch_without_a_counted_token_is_quiet() -> None:
    for objective in (gspo.Objective.gspo(), gspo.Objective.grpo(), gspo.Objective.dapo()):
        found = _metrics(objective, [[np.inf, np.nan]], [[0, 0]], [1.0])
        assert found["ratio_mean"] == found["ratio_min"] == found["ratio_max"] == 1.0
        assert found["clip_fraction"] == found["effective_sample_size"] == found["approx_kl"] == 0.0
        assert found["ratio_is_one"] == 1.0


def test_kl_penalty_is_the_aggregate_before_the_coefficient() -> None:
    objective = gspo.Objective.gspo().replace(penalty=gspo.Penalty("k1", 0.5))
    logp, ref = np.asarray([[-1.0, -2.0], [-3.0, 0.0]]), np.asarray([[-2.0, -2.0], [-3.5, 9.0]])
    arguments = {"logp": logp, "old_logp": logp, "ref_logp": ref, "advantages": np.zeros(2)}
    out = gspo.policy_loss(objective, sequences=np.asarray([[1, 1], [1, 0]]), **arguments)
    assert float(out.metrics["kl_penalty"]) == pytest.approx(0.5)
    assert float(out.loss) == pytest.approx(0.25)


def test_metrics_carry_no_gradient() -> None:
    import torch

    logp = torch.full((2, 2), -1.0, requires_grad=True)
    out = gspo.gspo_loss(logp, torch.full((2, 2), -1.1), torch.ones(2), torch.ones(2, 2))
    assert not any(value.requires_grad for value in out.metrics.values())
