"""SkyRL: its dialect, the default that is not GSPO, its real driver and worker."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.rules import findings
from gspo_conformance.target import Case
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.skyrl.dialect import ALGORITHM, DIALECT, ROWS

from .real import LENGTHS, answers, check_read_again, has_penalty, row_factors

VERSION = "0.4.0"
CLIP = {"kind": "clip", "low": 3e-4, "high": 4e-4, "dual": None}
TOKEN_MEAN = LENGTHS * 6 / LENGTHS.sum()
RECIPE = {
    **DIALECT.gspo(CLIP, VERSION),
    "loss_reduction": "sequence_mean",
    "use_kl_loss": False,
    "trainer.policy_mini_batch_size": 256,
}


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """What SkyRL leaves no choice about: the caps, GSPO-token, the clamps of k3; a KL term of its own aggregation is that of the rows."""
    plain = {**objective, "log_ratio_cap": None, "penalty": None}
    if objective["ratio"] == "gspo_token":
        plain["ratio"] = "sequence"
    if has_penalty(objective):
        own = objective["penalty"]["aggregation"] or objective["aggregation"]
        plain["penalty"] = {**objective["penalty"], "aggregation": own, "log_ratio_clamp": None, "value_clamp": None}
    return plain


def test_what_is_written_is_read_again() -> None:
    check_read_again(DIALECT, VERSION, 25, _plain)


def test_gspo_alone_is_a_mean_over_tokens() -> None:
    reading = DIALECT.read(DIALECT.gspo(CLIP, VERSION), VERSION)
    assert reading.objective["aggregation"]["mode"] == "token_mean"
    assert reading.objective["penalty"]["aggregation"] == ROWS
    assert {"aggregation", "penalty"} <= {one.rule for one in findings(reading)}


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"off_policy_correction.token_mask_is_threshold_high": 2.0}, "threshold-ignored"),
        ({"off_policy_correction.tis_ratio_type": "sequence"}, "correction-level"),
        ({"generator.step_wise_trajectories": True}, "step-wise"),
        ({"use_entropy_loss": True}, "entropy-bonus"),
        ({"use_kl_in_reward": True}, "kl-in-reward"),
        ({"advantage_batch_normalize": True}, "whitening-padding"),
        ({"advantage_estimator": "maxrl"}, "advantages"),
        ({"trainer.policy_mini_batch_size": 1024}, "one-update"),
        ({"eps_clip_low": 0.2, "eps_clip_high": 0.28}, "clip-range"),
    ],
)
def test_findings(settings: dict[str, Any], rule: str) -> None:
    assert {one.severity for one in findings(DIALECT.read(RECIPE, VERSION))} == {"note"}
    assert rule in {one.rule for one in findings(DIALECT.read({**RECIPE, **settings}, VERSION))}


def test_a_mask_is_a_weight_and_a_filter_with_one_bound() -> None:
    """Hunts a mask that keeps its tokens at weight 1: SkyRL's token mask alone does."""
    own = {"level": "token", "low": 0.5, "high": 2.0, "numerator": "old", "negative_only": False}
    for action, weight in (("mask", "token"), ("reject", None)):
        objective = {**PAPER, "ratio": "token", "correction": [{**own, "action": action}]}
        settings = DIALECT.write(objective, VERSION)
        assert settings.get(ALGORITHM + "off_policy_correction.tis_ratio_type") == weight
        assert DIALECT.read(settings, VERSION).objective["correction"] == objective["correction"]


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="counts every response"):
        DIALECT.write({**PAPER, "aggregation": {**ROWS, "count": "non_empty"}}, VERSION)
    penalty = {"estimator": "k2", "coefficient": 0.1, "importance": None, "aggregation": None}
    objective = {**PAPER, "aggregation": {**ROWS, "mode": "token_mean"}}
    objective["penalty"] = penalty | {"log_ratio_clamp": None, "value_clamp": None}
    with pytest.raises(Inexpressible, match="always the mean over responses"):
        DIALECT.write(objective, VERSION)
    with pytest.raises(Inexpressible, match="not accepted by SkyRL"):
        DIALECT.read({"loss_reduction": "mean"}, VERSION)


def test_row_factors_of_the_real_loss() -> None:
    modes = {"sequence_mean_token_mean": 1.0, "token_mean": 1.0, "sequence_mean_token_sum": 11.0}
    found = row_factors("skyrl", *({"mode": mode, "count": "all", "constant": modes[mode]} for mode in modes))
    np.testing.assert_allclose(found, [np.ones(6), TOKEN_MEAN, LENGTHS / 11], rtol=1e-6)


def test_row_factors_of_the_default() -> None:
    np.testing.assert_allclose(row_factors("skyrl:default", ROWS)[0], TOKEN_MEAN, rtol=1e-6)


def test_a_single_response_keeps_its_reward() -> None:
    """The numbers of the facts, beside eight rewards of 0.1 whose mean is rounded."""
    singleton = {"rewards": np.array([0.7, 1, 0], np.float32), "groups": np.array([0, 1, 1])}
    equal = {"rewards": np.full(8, 0.1, np.float32), "groups": np.zeros(8, np.int64)}
    found = answers(
        "skyrl", *(Case("group_advantages", {}, one, outputs=("advantages",)) for one in (singleton, equal))
    )
    np.testing.assert_allclose(found[0]["advantages"].array, [0.7, 0.7071, -0.7071], atol=1e-4)
    np.testing.assert_allclose(found[1]["advantages"].array, -0.00739, atol=1e-5)
