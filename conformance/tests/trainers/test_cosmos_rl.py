"""Cosmos-RL: its dialect, the mini-batches that a mean over tokens is taken of, its real loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.configuration import read_configuration
from gspo_conformance.lint.detection import recognised
from gspo_conformance.lint.rules import findings
from gspo_conformance.target import Case
from gspo_conformance.trainers import parts
from gspo_conformance.trainers.cosmos_rl.dialect import DIALECT
from gspo_conformance.trainers.cosmos_rl.findings import POLICY
from gspo_conformance.trainers.dialect import PAPER, Inexpressible

from . import real

VERSION = "0.4.7"
POLICY_OF = {
    "type": "grpo",
    "variant": "gspo",
    "loss_type": "seq-mean-token-mean",
    "epsilon_low": 3e-4,
    "epsilon_high": 4e-4,
    "batch_size_per_optimize": 32,
}
RECIPE = {
    **{POLICY + key: value for key, value in POLICY_OF.items()},
    "train.train_batch_per_replica": 512,
    "policy.parallelism.dp_shard_size": 4,
}
DRIFTED = parts.weight("geometric", "reject", math.exp(-0.1), numerator="current", negative_only=True)


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """Who counts and where the log-ratio is capped are no choices, nor are the clamps of k3; a mask without bounds is a clamp without."""
    penalty = objective["penalty"] if real.has_penalty(objective) else None
    return {
        **real.uncounted(objective),
        "penalty": penalty and {**penalty, **parts.CLAMPS},
        "log_ratio_cap": None,
    }


def test_what_is_written_is_read_again() -> None:
    real.check_read_again(DIALECT, VERSION, 50, _plain)


def test_the_recipe_is_the_papers_with_a_cap() -> None:
    reading = DIALECT.read(RECIPE, VERSION)
    assert reading.objective == {**PAPER, "log_ratio_cap": 10.0}
    assert reading.updates_per_rollout == 4
    told = {(one.rule, one.severity) for one in findings(reading)}
    assert told == {("ddof", "note"), ("log-ratio-cap", "note")}


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"loss_type": "token-mean"}, "micro-batch-mean"),
        ({"loss_type": "token-mean"}, "aggregation"),
        ({"unbiased_loss_max_tokens": 1024}, "aggregation"),
        ({"variant": "grpo"}, "ratio"),
        ({"aipo_rho": 2.0}, "dual-clip"),
        ({"aipo_rho": 2.0}, "key-ignored"),
        ({"lower_bound_ratio": 10.0}, "key-ignored"),
        ({"behav_imp_weight_cap": 5.0}, "key-ignored"),
        ({"unbiased_kl_estimate": True}, "key-ignored"),
        ({"epsilon_low": -1.0, "epsilon_high": -1.0}, "surrogate"),
        ({"use_decoupled_loss": True}, "correction"),
        ({"off_policy_masking_delta": 0.1}, "correction"),
        ({"use_rollout_logprobs_for_loss": True}, "old-policy"),
        ({"use_rollout_logprobs_for_loss": True, "use_decoupled_loss": True}, "refused"),
        ({"uncentralized_training": True}, "refused"),
        ({"temperature": 0.9}, "temperature"),
        ({"min_filter_prefix_tokens": 1}, "token-mask"),
        ({"kl_beta": 0.01}, "penalty"),
        ({"entropy_coeff": 0.01}, "entropy-bonus"),
        ({"positive_nll_coef": 0.1}, "extra-term"),
        ({"unbiased_advantage": True}, "scale"),
        ({"algo": "mine"}, "advantages"),
        ({"overlong_reward.enable_overlong_penalty": True}, "overlong-penalty"),
        ({"batch_size_per_optimize": None}, "one-update"),
    ],
)
def test_findings(settings: dict[str, Any], rule: str) -> None:
    more = {POLICY + key: value for key, value in settings.items()}
    assert rule not in {one.rule for one in findings(DIALECT.read(RECIPE, VERSION))}
    assert rule in {one.rule for one in findings(DIALECT.read({**RECIPE, **more}, VERSION))}


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("rollout.n_generation", 1, "group-size"),
        ("train.logprob_dtype", "bfloat16", "dtype"),
        ("distillation.enable", True, "kl-in-advantage"),
        ("rollout.sampling_config.temperature", 0.6, "temperature"),
    ],
)
def test_findings_outside_the_policy(key: str, value: Any, rule: str) -> None:
    assert rule in {one.rule for one in findings(DIALECT.read({**RECIPE, key: value}, VERSION))}


def test_the_ratio_is_one_unless_a_rank_takes_more_than_one_step() -> None:
    """Hunts steps counted from the responses of all ranks, and a ratio of 1 said of one to the sampler."""
    size, shards = POLICY + "batch_size_per_optimize", "policy.parallelism.dp_shard_size"
    updates = [
        ({size: None}, 1),
        ({size: 128}, 1),
        ({size: None, POLICY + "mu_iterations": 3}, 3),
        ({shards: 1}, 16),
        ({shards: -1}, None),
        ({size: None, POLICY + "use_rollout_logprobs_for_loss": True}, None),
    ]
    found = [DIALECT.read({**RECIPE, **more}, VERSION).updates_per_rollout for more, _ in updates]
    assert found == [wanted for _, wanted in updates]


def test_a_variant_that_nothing_says_is_of_grpo_is_not_read() -> None:
    variant = {POLICY + "variant": "gspo"}
    assert "not-policy" in {one.rule for one in DIALECT.read(variant, VERSION).findings}
    for more in ({"type": "grpo"}, {"temperature": 1.0}, {"use_remote_reward": True}):
        settings = variant | {POLICY + key: value for key, value in more.items()}
        assert "not-policy" not in {one.rule for one in DIALECT.read(settings, VERSION).findings}
    with pytest.raises(Inexpressible, match="supervised fine-tuning"):
        DIALECT.read({POLICY + "mini_batch": 1, POLICY + "experiment": "sft_8b"}, VERSION)


def test_a_negative_epsilon_is_no_bound_and_aipo_is_one_for_either_sign() -> None:
    own = {POLICY + "variant": "grpo"}
    free = {POLICY + "epsilon_low": -1.0, POLICY + "epsilon_high": -1.0}
    assert DIALECT.read(free | {POLICY + "variant": "gspo"}, VERSION).objective["surrogate"] == {"kind": "unclipped"}
    surrogate = DIALECT.read(free | own, VERSION).objective["surrogate"]
    assert (surrogate["low"], surrogate["dual"]) == (1.0, 3.0)
    bound = DIALECT.read(own | {POLICY + "aipo_rho": 2.0}, VERSION).objective["surrogate"]
    assert bound == parts.clip(1.0, 1.0, 2.0)


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="gspo_token"):
        DIALECT.write({**PAPER, "ratio": "gspo_token"}, VERSION)
    with pytest.raises(Inexpressible, match="no dual clip"):
        DIALECT.write({**PAPER, "surrogate": parts.clip(0.2, 0.2, 3.0)}, VERSION)
    with pytest.raises(Inexpressible, match="those of tokens"):
        DIALECT.write({**PAPER, "correction": [DRIFTED]}, VERSION)
    with pytest.raises(Inexpressible, match="trainer_type 'grpo_vla'"):
        DIALECT.read({POLICY + "trainer_type": "grpo_vla"}, VERSION)
    with pytest.raises(Inexpressible, match="ends it at 1"):
        DIALECT.read({POLICY + "type": "grpo", POLICY + "aipo_rho": 1.0}, VERSION)


def test_its_configurations_are_recognised(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("[train.train_policy]\ntype = 'grpo'\nvariant = 'gspo'\ntemperature = 0.9\nepsilon_low = 3e-4\n")
    settings = read_configuration([str(file)]).settings
    assert recognised([str(file)], settings)[0] == "cosmos_rl"
    assert recognised([], RECIPE)[0] == "cosmos_rl"


def test_row_factors_of_the_real_loss() -> None:
    modes = [("sequence_mean_token_mean", 1.0), ("token_mean", 1.0), ("sequence_mean_token_sum", 1.0)]
    found = real.row_factors(
        "cosmos_rl", *(parts.aggregation(*one) for one in [*modes, ("sequence_mean_token_sum", 10.0)])
    )
    lengths = real.LENGTHS
    wanted = [np.ones(6), lengths * 6 / lengths.sum(), lengths, lengths / 10]
    np.testing.assert_allclose(found, wanted, rtol=1e-8)


def test_row_factors_of_the_default_are_those_of_a_mean_over_tokens() -> None:
    (found,) = real.row_factors("cosmos_rl:default", PAPER["aggregation"])
    np.testing.assert_allclose(found, real.LENGTHS * 6 / real.LENGTHS.sum(), rtol=1e-8)


def test_a_mean_over_tokens_is_one_of_mini_batches() -> None:
    """Factors 2|y|/(|y| + |y'|) in mini-batches of two: hunts a share of the tokens of the step."""
    lengths, old = (10, 8, 7, 5), np.full((2, 10), -1.5)
    masks = [np.arange(10) < np.array(pair)[:, None] for pair in (lengths[:2], lengths[2:])]
    given = {"logp": old, "old_logp": old, "advantages": np.array([1.0, -1.0])}
    inputs = {"parts": [given | {"mask": mask.astype(np.int64)} for mask in masks]}
    objective = {**PAPER, "aggregation": parts.aggregation("token_mean")}
    outputs = ("loss", "gradient.0", "gradient.1")
    (found,) = real.answers("cosmos_rl", Case("step", {"objective": objective}, inputs, "float64", outputs))
    rows = np.concatenate([found["gradient.0"].array[:, 0], found["gradient.1"].array[:, 0]])
    paper = np.array([-1.0, 1.0, -1.0, 1.0]) / (4 * np.array(lengths))
    np.testing.assert_allclose(rows / paper, [20 / 18, 16 / 18, 14 / 12, 10 / 12], rtol=1e-8)


def test_the_mask_of_what_drifted_is_beside_the_weights_of_tokens() -> None:
    """A response with a negative advantage that fell by more than the bound contributes nothing, one that fell by less all."""
    sampled = np.full((3, 2), -1.5)
    inputs = {"old_logp": sampled, "behavior_logp": sampled, "mask": np.ones((3, 2), np.int64)}
    inputs |= {"logp": sampled - np.array([[0.2], [0.05], [0.2]]), "advantages": np.array([-1.0, -1.0, 1.0])}
    correction = [parts.weight("token", "clamp"), DRIFTED]
    objective = {**PAPER, "surrogate": parts.clip(0.5, 0.5), "correction": correction}
    (found,) = real.answers(
        "cosmos_rl", Case("policy_loss", {"objective": objective}, inputs, "float64", ("gradient",))
    )
    wanted = np.array([0.0, np.exp(-0.05), -np.exp(-0.2)]) / 6
    np.testing.assert_allclose(found["gradient"].array, np.repeat(wanted[:, None], 2, 1), rtol=1e-8)
