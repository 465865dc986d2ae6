"""Unsloth: what its configuration computes where nothing is set, its real loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.rules import findings
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.unsloth.dialect import CLAMPS, DIALECT

from .real import LENGTHS, check_read_again, has_penalty, row_factors

VERSION = "2026.10.9"
CLIP = {"kind": "clip", "low": 3e-4, "high": 4e-4, "dual": None}
TOKEN_MEAN = LENGTHS * 6 / LENGTHS.sum()
RECIPE = {**DIALECT.gspo(CLIP, VERSION), "loss_type": "grpo", "beta": 0.0, "steps_per_generation": 4}


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """Who counts and the clamps of the KL term are not a choice."""
    penalty = has_penalty(objective) and {**objective["penalty"], **CLAMPS}
    return {**objective, "aggregation": {**objective["aggregation"], "count": ""}, "penalty": penalty}


def test_what_is_written_is_read_again() -> None:
    check_read_again(DIALECT, VERSION, 25, _plain)


@pytest.mark.parametrize(("loss", "beta"), [(None, None), ("grpo", 0.001), ("dr_grpo", None), ("bnpo", 0.001)])
def test_the_kl_term_depends_on_the_loss_type(loss: str | None, beta: float | None) -> None:
    """Hunts a KL term that comes with the setting that removes the mean over tokens."""
    settings = {"importance_sampling_level": "sequence", "loss_type": loss, "max_completion_length": 11}
    penalty = DIALECT.read(settings, VERSION).objective["penalty"]
    assert (penalty and penalty["coefficient"]) == beta


def test_naming_the_default_loss_type_changes_the_range() -> None:
    for settings, high in (({}, 0.2), ({"loss_type": "dapo"}, 0.28), ({"loss_type": "dapo", "epsilon_high": 0.2}, 0.2)):
        assert DIALECT.read(settings, VERSION).objective["surrogate"]["high"] == high


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"beta": None}, "penalty"),
        ({"loss_type": None}, "aggregation"),
        ({"loss_type": "dapo", "epsilon_high": None}, "silent-override"),
        ({"loss_type": "dr_grpo", "scale_rewards": "group"}, "silent-override"),
        ({"steps_per_generation": 1}, "one-update"),
        ({"use_vllm": True, "vllm_importance_sampling_correction": True}, "correction"),
    ],
)
def test_findings(settings: dict[str, Any], rule: str) -> None:
    assert not findings(DIALECT.read(RECIPE, VERSION))
    assert rule in {one.rule for one in findings(DIALECT.read({**RECIPE, **settings}, VERSION))}


def test_the_correction_is_off_with_vllm_alone() -> None:
    assert not DIALECT.read({**RECIPE, "use_vllm": True}, VERSION).objective["correction"]


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="is not accepted by TRL"):
        DIALECT.read({"loss_type": "gspo"}, VERSION)
    own = {"level": "token", "action": "reject", "low": 0.5, "high": 2.0, "numerator": "old"}
    rejecting = {**PAPER, "correction": [{**own, "negative_only": False}]}
    with pytest.raises(Inexpressible, match="one weight"):
        DIALECT.write(rejecting, VERSION)


def test_row_factors_of_the_real_loss() -> None:
    modes = {"sequence_mean_token_mean": 1.0, "token_mean": 1.0, "sequence_mean_token_sum": 11.0}
    found = row_factors("unsloth", *({"mode": mode, "count": "all", "constant": modes[mode]} for mode in modes))
    np.testing.assert_allclose(found, [np.ones(6), TOKEN_MEAN, LENGTHS / 11], rtol=1e-6)


def test_row_factors_of_the_default() -> None:
    np.testing.assert_allclose(row_factors("unsloth:default", PAPER["aggregation"])[0], TOKEN_MEAN, rtol=1e-6)
