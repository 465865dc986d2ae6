"""PipelineRL: its dialect over the files of `conf/finetune`, configurations that it ships, its real loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.detection import recognised
from gspo_conformance.lint.rules import findings
from gspo_conformance.target import Case
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.pipelinerl.dialect import DIALECT, RL, TUNE, VALUE_HEAD
from gspo_conformance.trainers.room import choose

from .real import LENGTHS, answers, check_read_again, row_factors, uncounted

VERSION = "58d39345"
CLIP = {"kind": "clip", "low": 3e-4, "high": 4e-4, "dual": None}
SUM = {"mode": "sequence_mean_token_sum", "count": "all", "constant": 1.0}
RECIPE = {**DIALECT.gspo(CLIP, VERSION), RL + "divide_advantage_by_std": True}
TOOLS = {RL + "policy_loss": "gspo", RL + "overlong_filtering": True}
REMAINS = {"aggregation", "baseline"}


def _rules(settings: dict[str, Any]) -> set[str]:
    return {one.rule for one in findings(DIALECT.read(settings, VERSION))}


def test_what_is_written_is_read_again() -> None:
    check_read_again(DIALECT, VERSION, 4, uncounted)


def test_gspo_weighs_a_response_by_its_length() -> None:
    assert DIALECT.read(RECIPE, VERSION).objective == {**PAPER, "aggregation": SUM}
    assert _rules(RECIPE) == REMAINS
    with pytest.raises(Inexpressible, match="sums over tokens"):
        DIALECT.write(PAPER, VERSION)


def test_the_shipped_tools_inherit_range_and_scale() -> None:
    assert _rules(TOOLS) == REMAINS | {"inherited-clip-range", "scale", "overlong-filter"}


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({TUNE + "seq_packing": False}, "refused"),
        ({RL + "kl_coef": 0.1}, "kl-ignored"),
        ({RL + "final_kl_coef": 0.1}, "kl-ignored"),
        ({RL + "entropy_bonus": 0.01}, "key-ignored"),
        ({RL + "relu_log_p_weights": True}, "key-ignored"),
        ({RL + "use_advantages": False}, "key-ignored"),
        ({RL + "aggregate_loss": "mean"}, "key-ignored"),
        ({RL + "reward_minus_kl_coef": 0.1}, "key-ignored"),
        ({RL + "group_normalization": True}, "loss-scale"),
        ({TUNE + "attempts": 1}, "group-size"),
        ({TUNE + "model_class": VALUE_HEAD}, "advantages"),
        ({RL + "filter_zero_advantage_groups": True}, "dynamic-sampling"),
        ({RL + "policy_loss": "ppo", RL + "kl_coef": 0.1}, "penalty"),
        ({RL + "policy_loss": "ppo", RL + "final_kl_coef": 0.1}, "kl-schedule"),
        ({RL + "policy_loss": "ppo", RL + "relu_log_p_weights": True}, "advantage-clip"),
    ],
)
def test_findings(settings: dict[str, Any], rule: str) -> None:
    assert rule in _rules({**RECIPE, **settings})


def test_the_chosen_file_of_finetune_sets_the_rest() -> None:
    """Hunts defaults that Hydra composes: `finetune=grpo`, or `override finetune` in the list of defaults."""
    assert DIALECT.read({"finetune": "grpo"}, VERSION).settings[RL + "policy_loss"] == "ppo"
    listed = {"defaults": ["miniwob", {"override finetune": "ppo"}, "_self_"], "finetune.seq_length": 16384}
    assert DIALECT.read(listed, VERSION).advantages is None
    assert DIALECT.read({"rl.policy_loss": "gspo"}, VERSION).objective["ratio"] == "sequence"


def test_what_it_cannot_express() -> None:
    luspo = {**PAPER, "aggregation": SUM}
    form = {"estimator": "k3", "importance": None, "aggregation": None, "log_ratio_clamp": 5.0, "value_clamp": None}
    with pytest.raises(Inexpressible, match="has no KL term"):
        DIALECT.write({**luspo, "penalty": {**form, "coefficient": 0.1}}, VERSION)
    with pytest.raises(Inexpressible, match="with a dual clip"):
        DIALECT.write({**luspo, "surrogate": {**CLIP, "dual": 3.0}}, VERSION)
    with pytest.raises(Inexpressible, match="empty ones too"):
        DIALECT.write({**luspo, "aggregation": {**SUM, "count": "non_empty"}}, VERSION)
    with pytest.raises(Inexpressible, match="constant 16"):
        DIALECT.write({**luspo, "aggregation": {**SUM, "constant": 16.0}}, VERSION)


def test_its_command_is_recognised() -> None:
    assert recognised(["python -m pipelinerl.launch finetune.rl.policy_loss=gspo"], {})[0] == "pipelinerl"
    assert recognised(["finetune.rl.epsilon_low=3e-3"], {})[0] == "pipelinerl"


def test_the_source_is_a_checkout() -> None:
    assert choose("pipelinerl").version.commit.startswith(VERSION)
    assert choose("pipelinerl").version.source.endswith("ServiceNow/PipelineRL")


@pytest.mark.parametrize("spec", ["pipelinerl", "pipelinerl:default"])
def test_row_factors_of_the_real_loss(spec: str) -> None:
    aggregation = SUM if spec == "pipelinerl" else PAPER["aggregation"]
    np.testing.assert_allclose(row_factors(spec, aggregation, dtype="float32")[0], LENGTHS, rtol=1e-6)


def test_advantages_are_those_of_the_others_over_the_deviation_of_the_group() -> None:
    inputs = {"rewards": np.array([1, 0, 0, 0, 0, 0], np.float32), "groups": np.zeros(6, np.int64)}
    scaled = {"center": "leave_one_out", "scale": "std", "eps": 1e-4}
    plain = {"center": "leave_one_out", "scale": "none"}
    found = answers(
        "pipelinerl", *(Case("group_advantages", one, inputs, outputs=("advantages",)) for one in (scaled, plain))
    )
    np.testing.assert_allclose(found[0]["advantages"].array, [2.4489, *[-0.4898] * 5], atol=1e-4)
    np.testing.assert_allclose(found[1]["advantages"].array, [1, *[-0.2] * 5], atol=1e-6)
