"""ROLL: its dialect in both versions, the configurations that it documents, its real loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.rules import findings
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.roll.dialect import DIALECT, HEAD, SEED

from .real import LENGTHS, check_read_again, has_penalty, row_factors

DOCUMENTED = {
    "adv_estimator": "grpo",
    "importance_sampling": "seq",
    "rollout_batch_size": 64,
    "num_return_sequences_in_group": 8,
    "use_kl_loss": True,
    "kl_loss_coef": 0.001,
    "loss_agg_mode": "seq-mean-token-mean",
    "advantage_clip": 2.0,
    "dual_clip_loss": True,
    "reward_clip": 10,
}


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """What ROLL leaves no choice about: which responses count, the clamp of the KL term."""
    aggregation = {**objective["aggregation"], "count": ""}
    penalty = has_penalty(objective) and {**objective["penalty"], "value_clamp": None}
    return {**objective, "aggregation": aggregation, "penalty": penalty}


@pytest.mark.parametrize("version", DIALECT.versions)
def test_what_is_written_is_read_again(version: str) -> None:
    check_read_again(DIALECT, version, 8, _plain)


def test_defaults_differ_by_version() -> None:
    """Hunts the switch of the default aggregation, which the documentation never followed."""
    modes = [DIALECT.read({}, version).objective["aggregation"]["mode"] for version in (SEED, HEAD)]
    assert modes == ["sequence_mean_token_sum", "sequence_mean_token_mean"]


def test_the_documented_configuration() -> None:
    reading = DIALECT.read(DOCUMENTED, HEAD)
    assert reading.objective["surrogate"] == {"kind": "clip", "low": 0.2, "high": 0.2, "dual": 1.4}
    assert reading.advantages == {"center": "mean", "scale": "std", "ddof": 1, "eps": 1e-6}
    rules = {one.rule: one for one in findings(reading)}
    assert "2.47" in rules["advantage-clip"].consequence  # 7/√8, the widest that 8 responses reach
    assert rules["reward-clip"].severity == "note"


def test_the_dual_clip_follows_the_symmetric_range_whatever_the_other_is() -> None:
    ranged = {"use_pg_clip_range": True, "pg_clip_low": 3e-4, "pg_clip_high": 4e-4, "dual_clip_loss": True}
    surrogate = DIALECT.read(ranged, HEAD).objective["surrogate"]
    assert surrogate == {"kind": "clip", "low": 3e-4, "high": 4e-4, "dual": 1.4}


@pytest.mark.parametrize(
    ("settings", "center", "scale"),
    [
        ({"reward_norm": "group"}, "mean", "std"),
        ({"reward_norm": "group", "reward_shift": True}, "mean", "none"),
        ({"reward_norm": "group", "reward_scale": True}, "mean", "std"),
        ({}, "none", "none"),
    ],
)
def test_normalisation_of_the_seed(settings: dict[str, Any], center: str, scale: str) -> None:
    advantages = DIALECT.read({"adv_estimator": "reinforce", **settings}, SEED).advantages
    assert advantages is not None
    assert (advantages["center"], advantages["scale"]) == (center, scale)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"adv_estimator": "reinforce", "norm_std_type": "group"}, "norm-shape"),
        ({"adv_estimator": "reinforce", "norm_mean_type": "running"}, "running-norm"),
        ({"add_token_level_kl": True}, "kl-in-reward"),
        ({"length_loss_weight": True}, "response-weight"),
        ({"entropy_loss_coef": 0.01}, "extra-term"),
        ({"train_infer_correction.filters": [{"agg_type": "token"}]}, "filter"),
        ({"whiten_rewards": True}, "reward-whitening"),
        ({"reward_norm": "group"}, "key-ignored"),
        (
            {
                "rollout_batch_size": 8,
                "actor_train.training_args.per_device_train_batch_size": 1,
                "actor_train.training_args.gradient_accumulation_steps": 8,
            },
            "one-update",
        ),
    ],
)
def test_findings_of_its_own(settings: dict[str, Any], rule: str) -> None:
    assert rule in {one.rule for one in findings(DIALECT.read(settings, HEAD))}
    assert rule not in {one.rule for one in findings(DIALECT.read({}, HEAD))}


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="no gspo_token ratio"):
        DIALECT.write({**PAPER, "ratio": "gspo_token"}, HEAD)
    with pytest.raises(Inexpressible, match="one clip range for both sides"):
        DIALECT.write(PAPER, SEED)


@pytest.mark.parametrize("version", DIALECT.versions)
def test_row_factors_of_the_real_loss(version: str) -> None:
    """seq-mean-token-sum, which the page on GSPO once showed, multiplies every response by its length."""
    modes = ("sequence_mean_token_mean", "sequence_mean_token_sum", "token_mean")
    found = row_factors(f"roll@{version}", *({"mode": mode, "count": "all", "constant": 1.0} for mode in modes))
    np.testing.assert_allclose(found, [np.ones(6), LENGTHS, LENGTHS * 6 / LENGTHS.sum()], rtol=1e-7)
