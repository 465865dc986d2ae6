"""slime: its dialect, run scripts that it ships, its real loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.rules import findings
from gspo_conformance.target import Case
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.room import choose
from gspo_conformance.trainers.slime.dialect import DIALECT, ICEPOP

from .real import LENGTHS, answers, check_read_again, row_factors, uncounted

VERSION = "624b824a"
CLIP = {"kind": "clip", "low": 3e-4, "high": 4e-4, "dual": None}
RECIPE = {**DIALECT.gspo(CLIP, VERSION), "n_samples_per_prompt": 8, "num_steps_per_rollout": 4}


def test_what_is_written_is_read_again() -> None:
    check_read_again(DIALECT, VERSION, 25, uncounted)


def test_gspo_as_it_comes_is_the_papers() -> None:
    assert DIALECT.read(DIALECT.gspo(CLIP, VERSION), VERSION).objective == PAPER
    assert not findings(DIALECT.read(RECIPE, VERSION))


def test_the_upper_bound_follows_the_lower() -> None:
    """Hunts the run scripts that set one number: their range is symmetric."""
    reading = DIALECT.read({"advantage_estimator": "gspo", "eps_clip": 4e-4}, VERSION)
    assert reading.objective["surrogate"] == {"kind": "clip", "low": 4e-4, "high": 4e-4, "dual": None}


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"n_samples_per_prompt": 1}, "group-size"),
        ({"kl_coef": 0.01}, "kl-ignored"),
        ({"use_opd": True}, "kl-in-advantage"),
        ({"use_opsm": True}, "sequence-mask"),
        ({"use_rollout_logprobs": True}, "old-policy"),
        ({"entropy_coef": 0.001}, "entropy-bonus"),
        ({"custom_pg_loss_reducer_function_path": "mine.reducer"}, "custom-code"),
        ({"calculate_per_token_loss": True}, "aggregation"),
        ({"disable_grpo_std_normalization": True}, "scale"),
        ({"disable_rewards_normalization": True}, "group-baseline"),
        ({"normalize_advantages": True}, "whitening"),
        ({"use_kl_loss": True, "kl_loss_coef": 0.001}, "penalty"),
        ({"eps_clip_c": 1.3}, "dual-clip"),
        ({"advantage_estimator": "ppo"}, "advantages"),
        ({"num_steps_per_rollout": 1}, "one-update"),
    ],
)
def test_findings(settings: dict[str, Any], rule: str) -> None:
    assert rule in {one.rule for one in findings(DIALECT.read({**RECIPE, **settings}, VERSION))}


def test_the_steps_of_a_rollout_follow_from_the_sizes() -> None:
    sizes = {"rollout_batch_size": 64, "n_samples_per_prompt": 8, "global_batch_size": 128}
    assert DIALECT.read(sizes, VERSION).updates_per_rollout == 4
    assert DIALECT.read({}, VERSION).updates_per_rollout is None


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="counts every response"):
        DIALECT.write({**PAPER, "aggregation": {**PAPER["aggregation"], "count": "non_empty"}}, VERSION)
    with pytest.raises(Inexpressible, match="on the gspo_token ratio"):
        DIALECT.write({**PAPER, "ratio": "gspo_token"}, VERSION)
    told = DIALECT.read({"use_tis": True, "custom_tis_function_path": "mine.weights"}, VERSION)
    assert told.objective["correction"] == []
    assert "custom_tis_function_path" in {one.key for one in told.findings}
    assert DIALECT.read({"use_tis": True, "custom_tis_function_path": ICEPOP}, VERSION).objective["correction"]


def test_the_source_is_a_checkout() -> None:
    assert choose("slime").version.commit.startswith(VERSION)
    assert choose("slime").version.source.endswith("THUDM/slime")


def test_row_factors_of_the_real_loss() -> None:
    modes = ("sequence_mean_token_mean", "token_mean")
    found = row_factors("slime", *({"mode": mode, "count": "all", "constant": 1.0} for mode in modes))
    np.testing.assert_allclose(found, [np.ones(6), LENGTHS * 6 / LENGTHS.sum()], rtol=1e-12)


def test_row_factors_of_the_default() -> None:
    np.testing.assert_allclose(row_factors("slime:default", PAPER["aggregation"])[0], np.ones(6), rtol=1e-12)


def test_uneven_groups_become_one() -> None:
    """The numbers of the facts (slime issue 1414)."""
    inputs = {"rewards": np.array([0.2, 1, 0, 0, 1], np.float32), "groups": np.array([0, 0, 0, 1, 1])}
    (found,) = answers("slime", Case("group_advantages", {}, inputs, outputs=("advantages",)))
    np.testing.assert_allclose(found["advantages"].array, [-0.4636, 1.0817, -0.8499, -0.8499, 1.0817], atol=1e-4)
