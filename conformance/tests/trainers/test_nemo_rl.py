"""NeMo-RL: its dialect, the recipe for GSPO that it ships, its real loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.rules import findings
from gspo_conformance.target import Case
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.nemo_rl.dialect import DIALECT
from gspo_conformance.trainers.room import choose

from .real import LENGTHS, answers, check_read_again, row_factors, uncounted

VERSION = "7ea279ab"
CLIP = {"kind": "clip", "low": 3e-4, "high": 4e-4, "dual": None}
SHIPPED = {
    "grpo.num_prompts_per_step": 128,
    "grpo.num_generations_per_prompt": 8,
    "loss_fn.reference_policy_kl_penalty": 0.0,
    "loss_fn.sequence_level_importance_ratios": True,
    "loss_fn.token_level_loss": False,
    "policy.train_global_batch_size": 64,
}
RECIPE = {**SHIPPED, **DIALECT.gspo(CLIP, VERSION), "grpo.use_leave_one_out_baseline": False}


def test_what_is_written_is_read_again() -> None:
    check_read_again(DIALECT, VERSION, 35, uncounted)


def test_the_shipped_recipe_inherits_range_and_baseline() -> None:
    reading = DIALECT.read(SHIPPED, VERSION)
    assert reading.objective["aggregation"] == PAPER["aggregation"]
    assert reading.advantages == {"center": "leave_one_out", "scale": "leave_one_out_std", "ddof": 1, "eps": 1e-6}
    assert {one.rule for one in findings(reading)} == {"inherited-clip-range", "baseline", "scale", "lone-winner"}
    assert reading.updates_per_rollout == 16
    assert not findings(DIALECT.read(RECIPE, VERSION))


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"token_level_loss": True}, "refused"),
        ({"force_on_policy_ratio": True}, "ratio-forced"),
        ({"reference_policy_kl_penalty": 0.01}, "kl-score"),
        ({"reference_policy_kl_penalty": 0.01, "use_kl_in_reward": True}, "kl-ignored"),
        ({"positive_example_nll_weight": 0.1}, "likelihood-term"),
        ({"grpo.advantage_clip_high": 5.0}, "advantage-clip"),
        ({"grpo.overlong_filtering": True}, "overlong-filter"),
        ({"grpo.use_leave_one_out_baseline": True}, "lone-winner"),
        ({"use_importance_sampling_correction": True}, "correction-level"),
        ({"grpo.adv_estimator.name": "reinforce_plus_plus"}, "whitening"),
        ({"policy.train_global_batch_size": 1024}, "one-update"),
        ({"sequence_level_importance_ratios": False}, "ratio"),
    ],
)
def test_findings(settings: dict[str, Any], rule: str) -> None:
    assert rule in {one.rule for one in findings(DIALECT.read({**RECIPE, **settings}, VERSION))}


def test_the_estimator_inherits_what_it_does_not_set() -> None:
    for value in (None, "${grpo.normalize_rewards}"):
        settings = {**RECIPE, "grpo.normalize_rewards": False, "grpo.adv_estimator.normalize_rewards": value}
        reading = DIALECT.read(settings, VERSION)
        assert reading.advantages is not None
        assert reading.advantages["scale"] == "none"


def test_the_correction_has_the_level_of_the_ratio() -> None:
    """Hunts the product over a response that stands beside a geometric ratio."""
    weight = {"action": "clamp", "low": None, "high": 2.0, "numerator": "old", "negative_only": False}
    objective = {**PAPER, "correction": [{**weight, "level": "sequence"}]}
    assert DIALECT.read(DIALECT.write(objective, VERSION), VERSION).objective["correction"] == objective["correction"]
    with pytest.raises(Inexpressible, match="weights are those of a sequence"):
        DIALECT.write({**PAPER, "correction": [{**weight, "level": "geometric"}]}, VERSION)


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="on the sequence ratio with token_mean"):
        DIALECT.write({**PAPER, "aggregation": {**PAPER["aggregation"], "mode": "token_mean"}}, VERSION)
    with pytest.raises(Inexpressible, match="empty ones too"):
        DIALECT.write({**PAPER, "aggregation": {**PAPER["aggregation"], "count": "non_empty"}}, VERSION)


def test_the_name_with_a_dash() -> None:
    assert choose("nemo-rl@7ea279ab:default") == choose("nemo_rl@7ea279ab:default")


@pytest.mark.parametrize("spec", ["nemo-rl", "nemo-rl:default"])
def test_row_factors_of_the_real_loss(spec: str) -> None:
    found = row_factors(spec, PAPER["aggregation"])
    np.testing.assert_allclose(found[0], np.ones(len(LENGTHS)), rtol=1e-12)


def test_token_level_loss_weighs_responses_by_their_length() -> None:
    token = {**PAPER, "ratio": "token"}
    found = row_factors("nemo-rl", {"mode": "token_mean", "count": "all", "constant": 1.0}, objective=token)
    np.testing.assert_allclose(found[0], LENGTHS * 6 / LENGTHS.sum(), rtol=1e-12)


def test_the_only_success_of_a_group_is_not_divided() -> None:
    """The numbers of the facts: leave-one-out, mean and deviation, then those of the group."""
    inputs = {"rewards": np.array([1, 0, 0, 0, 0, 0], np.float32), "groups": np.zeros(6, np.int64)}
    alone = {"center": "leave_one_out", "scale": "leave_one_out_std"}
    found = answers("nemo-rl", *(Case("group_advantages", one, inputs, outputs=("advantages",)) for one in (alone, {})))
    np.testing.assert_allclose(found[0]["advantages"].array, [1, *[-0.4472] * 5], atol=1e-4)
    np.testing.assert_allclose(found[1]["advantages"].array, [2.0412, *[-0.4082] * 5], atol=1e-4)
