"""verl: its dialect in two versions whose default aggregation of GSPO differs, and its real loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.rules import findings
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.verl.dialect import ACTOR, DIALECT

from .real import LENGTHS, check_read_again, row_factors

CLIP = {"kind": "clip", "low": 3e-4, "high": 4e-4, "dual": None}
TOKEN_MEAN = LENGTHS * 6 / LENGTHS.sum()


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """What verl leaves no choice about: which responses count, the cap of gspo, the clamps of the KL term, GSPO-token."""
    plain = {**objective, "aggregation": {**objective["aggregation"], "count": ""}, "log_ratio_cap": None}
    if objective["ratio"] == "gspo_token":
        plain["ratio"] = "sequence"
    if objective["surrogate"]["kind"] == "gmpo":
        plain["ratio"] = ""
    if penalty := objective["penalty"]:
        plain["penalty"] = {**penalty, "log_ratio_clamp": None, "value_clamp": None}
    return plain


@pytest.mark.parametrize("version", DIALECT.versions)
def test_what_is_written_is_read_again(version: str) -> None:
    check_read_again(DIALECT, version, 12, _plain)


@pytest.mark.parametrize(("version", "mode"), [("0.9.0", "sequence_mean_token_mean"), ("0.9.1", "token_mean")])
def test_the_same_settings_in_two_versions(version: str, mode: str) -> None:
    """Hunts the silent change of 0.9.1: the settings of the documentation, another objective."""
    reading = DIALECT.read(DIALECT.gspo(CLIP, version), version)
    assert reading.objective["aggregation"]["mode"] == mode
    assert ("aggregation" in {one.rule for one in findings(reading)}) == (version == "0.9.1")


def test_the_key_without_effect_in_090_is_told() -> None:
    settings = DIALECT.gspo(CLIP, "0.9.0") | {"loss_agg_mode": "token-mean"}
    rules = {one.rule for one in DIALECT.read(settings, "0.9.0").findings}
    assert "aggregation-ignored" in rules
    assert DIALECT.read(settings, "0.9.0").objective["aggregation"]["mode"] == "sequence_mean_token_mean"
    assert not DIALECT.read(settings, "0.9.1").findings


def test_clip_ratio_alone_has_no_effect() -> None:
    reading = DIALECT.read({ACTOR + "policy_loss.loss_mode": "gspo", ACTOR + "clip_ratio": 3e-4}, "0.9.1")
    assert reading.objective["surrogate"] == {"kind": "clip", "low": 0.2, "high": 0.2, "dual": None}
    assert [one.rule for one in reading.findings] == ["clip-range-ignored"]


def test_reading_of_a_documented_configuration() -> None:
    settings = {
        "loss_mode": "vanilla",
        "use_kl_loss": True,
        "algorithm.adv_estimator": "grpo",
        "ppo_mini_batch_size": 256,
    }
    reading = DIALECT.read(settings, "0.9.1")
    assert reading.objective["surrogate"]["dual"] == 3.0
    penalty = reading.objective["penalty"]
    assert (penalty["log_ratio_clamp"], penalty["value_clamp"]) == (20.0, 10.0)
    assert reading.advantages == {"center": "mean", "scale": "std", "ddof": 1, "eps": 1e-6}
    assert reading.updates_per_rollout == 4


def test_what_it_cannot_express() -> None:
    token_mean = {**PAPER, "aggregation": {"mode": "token_mean", "count": "all", "constant": 1.0}}
    with pytest.raises(Inexpressible, match="aggregates by seq-mean-token-mean alone"):
        DIALECT.write(token_mean, "0.9.0")
    assert DIALECT.write(token_mean, "0.9.1")[ACTOR + "loss_agg_mode"] == "token-mean"
    with pytest.raises(Inexpressible, match="caps the log-ratio"):
        DIALECT.write({**PAPER, "ratio": "token", "log_ratio_cap": 5.0}, "0.9.1")


def test_row_factors_of_the_real_loss() -> None:
    modes = ("sequence_mean_token_mean", "token_mean", "sequence_mean_token_sum")
    found = row_factors("verl@0.9.1", *({"mode": mode, "count": "all", "constant": 1.0} for mode in modes))
    np.testing.assert_allclose(found, [np.ones(6), TOKEN_MEAN, LENGTHS], rtol=1e-6)


@pytest.mark.parametrize(("version", "expected"), [("0.9.0", np.ones(6)), ("0.9.1", TOKEN_MEAN)])
def test_row_factors_of_the_default(version: str, expected: np.ndarray) -> None:
    found = row_factors(f"verl@{version}:default", PAPER["aggregation"])
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
