"""Unsloth on MLX: what its configuration leaves of the one on PyTorch, its real loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.detection import recognised
from gspo_conformance.lint.rules import findings
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.unsloth.dialect import CLAMPS
from gspo_conformance.trainers.unsloth_mlx.dialect import DEFAULTS, DIALECT
from gspo_conformance.words import UsageError

from .real import LENGTHS, check_read_again, has_penalty, row_factors

VERSION = "2026.10.9"
CLIP = {"kind": "clip", "low": 3e-4, "high": 4e-4, "dual": None}
TOKEN_MEAN = LENGTHS * 6 / LENGTHS.sum()
RECIPE = {**DIALECT.gspo(CLIP, VERSION), "loss_type": "grpo", "beta": 0.0, "steps_per_generation": 16}


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """Who counts and the clamps of the KL term are not a choice."""
    penalty = has_penalty(objective) and {**objective["penalty"], **CLAMPS}
    return {**objective, "aggregation": {**objective["aggregation"], "count": ""}, "penalty": penalty}


def test_what_is_written_is_read_again() -> None:
    check_read_again(DIALECT, VERSION, 12, _plain)


def test_its_settings_are_those_that_exist_on_mlx() -> None:
    """Hunts settings of PyTorch that are told as if they held here."""
    reading = DIALECT.read({**RECIPE, "vllm_importance_sampling_mode": "token_mask"}, VERSION)
    assert not findings(reading)
    assert set(reading.settings) == set(DEFAULTS)
    assert reading.given == set(RECIPE)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"beta": None}, "penalty"),
        ({"loss_type": None}, "aggregation"),
        ({"loss_type": "dapo", "epsilon_high": None}, "silent-override"),
        ({"loss_type": "dapo"}, "overlong-filter"),
        ({"loss_type": "dr_grpo"}, "silent-override"),
        ({"steps_per_generation": None}, "one-update"),
    ],
)
def test_findings(settings: dict[str, Any], rule: str) -> None:
    read = {**RECIPE, "scale_rewards": "group", **settings}
    assert rule in {one.rule for one in findings(DIALECT.read(read, VERSION))}


def test_the_spread_that_is_kept_with_dr_grpo_and_a_loss_type_in_capitals() -> None:
    """Hunts a lint that ends with an error where `resolve_grpo_config` goes on, and one that goes on where it ends."""
    kept = DIALECT.read({"loss_type": "DR_GRPO", "scale_rewards": None}, VERSION)
    assert kept.settings["loss_type"] == "dr_grpo"
    assert (kept.settings["scale_rewards"], (kept.advantages or {})["scale"]) == ("group", "std")
    assert (DIALECT.read({"loss_type": "dr_grpo"}, VERSION).advantages or {})["scale"] == "none"
    assert DIALECT.read({"loss_type": "DAPO"}, VERSION).objective["surrogate"]["high"] == 0.28
    with pytest.raises(Inexpressible, match="refuses scale_rewards=None"):
        DIALECT.read({"loss_type": "grpo", "scale_rewards": None}, VERSION)


def test_a_kl_term_has_no_weight() -> None:
    penalty = DIALECT.read({**RECIPE, "beta": 0.1}, VERSION).objective["penalty"]
    assert (penalty["coefficient"], penalty["importance"]) == (0.1, None)


@pytest.mark.parametrize("settings", [{"loss_type": "cispo"}, {"use_vllm": True}, {"use_liger_loss": True}])
def test_what_it_refuses(settings: dict[str, Any]) -> None:
    with pytest.raises(Inexpressible, match="on MLX"):
        DIALECT.read(settings, VERSION)


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="no loss_type 'luspo' on MLX"):
        DIALECT.write(
            {**PAPER, "aggregation": {"mode": "sequence_mean_token_sum", "count": "all", "constant": 1}}, VERSION
        )


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("from unsloth import MLXGRPOConfig\nc = MLXGRPOConfig(epsilon=3e-4, beta=0.0)\n", "unsloth_mlx"),
        ("from unsloth import FastLanguageModel\nc = GRPOConfig(epsilon=3e-4, beta=0.0)\n", "unsloth"),
    ],
)
def test_it_is_told_from_unsloth_on_pytorch(program: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(program)
    assert recognised([str(tmp_path / "run.py")], {"epsilon": 3e-4, "beta": 0.0})[0] == name


def test_another_project_with_such_a_class_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text("@dataclass\nclass MLXGRPOConfig:\n    clip_eps: float = 0.2\n")
    with pytest.raises(UsageError, match="no setting in it"):
        recognised([str(tmp_path / "run.py")], {})


def test_row_factors_of_the_real_loss() -> None:
    modes = {"sequence_mean_token_mean": 1.0, "token_mean": 1.0, "sequence_mean_token_sum": 11.0}
    every = ({"mode": mode, "count": "all", "constant": constant} for mode, constant in modes.items())
    found = row_factors("unsloth_mlx", *every, dtype="float32")
    np.testing.assert_allclose(found, [np.ones(6), TOKEN_MEAN, LENGTHS / 11], rtol=2e-6)


def test_row_factors_of_the_default() -> None:
    (found,) = row_factors("unsloth_mlx:default", PAPER["aggregation"], dtype="float32")
    np.testing.assert_allclose(found, TOKEN_MEAN, rtol=2e-6)
