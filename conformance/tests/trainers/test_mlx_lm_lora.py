"""mlx-lm-lora: its dialect, what a file behind `--config` leaves of it, its real loss on MLX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gspo_conformance.cli import main
from gspo_conformance.lint.configuration import read_configuration
from gspo_conformance.lint.detection import recognised
from gspo_conformance.lint.overruled import overruled
from gspo_conformance.lint.rules import findings
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.mlx_lm_lora.dialect import DIALECT

from .real import LENGTHS, RATIOS, check_read_again, row_factors, same

VERSION = "5.10.2"
CLIP = {"kind": "clip", "low": 3e-4, "high": 4e-4, "dual": None}


def test_what_is_written_is_read_again() -> None:
    check_read_again(DIALECT, VERSION, 10, same)


def test_its_gspo_has_a_kl_term_and_one_update() -> None:
    reading = DIALECT.read(DIALECT.gspo(CLIP, VERSION), VERSION)
    assert {**reading.objective, "penalty": None} == PAPER
    assert reading.objective["penalty"]["coefficient"] == 0.1
    assert {one.rule for one in findings(reading) if one.severity != "note"} == {"one-update", "penalty"}


@pytest.mark.parametrize(
    ("settings", "rule"),
    [({"group_size": 1}, "group-size"), ({"temperature": 0.8, "top_k": 0, "top_p": 1.0}, "sampler-filter")],
)
def test_findings_of_its_own(settings: dict[str, Any], rule: str) -> None:
    plain = {"top_k": 0, "top_p": 1.0}
    assert rule in {one.rule for one in DIALECT.read(settings, VERSION).findings}
    assert not DIALECT.read(plain, VERSION).findings


def test_keys_that_others_have_too_do_not_tell_it() -> None:
    """Hunts a configuration of TRL that is taken for one of a trainer on MLX, which knows the sampler's keys as well."""
    own = {"epsilon": 3e-4, "epsilon_high": 4e-4, "beta": 0.0, "importance_sampling_level": "sequence"}
    shared = {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "max_completion_length": 512, "use_liger_loss": False}
    assert recognised([], own | shared)[0] == "trl"
    assert recognised([], own | shared | {"group_size": 8, "grpo_loss_type": "grpo"})[0] == "mlx_lm_lora"


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="no gspo_token ratio"):
        DIALECT.write({**PAPER, "ratio": "gspo_token"}, VERSION)
    with pytest.raises(Inexpressible, match="importance_sampling_level None"):
        DIALECT.read({"importance_sampling_level": None}, VERSION)
    with pytest.raises(Inexpressible, match="train_mode 'dpo'"):
        DIALECT.read({"train_mode": "dpo"}, VERSION)


def test_what_the_default_of_a_flag_overrules_in_a_file_is_told(tmp_path: Path) -> None:
    """Hunts GSPO that is switched on where nobody reads it."""
    (tmp_path / "run.yaml").write_text("importance_sampling_level: sequence\nepsilon_high: 4.0e-4\ngroup_size: 4\n")
    configuration, found = overruled(read_configuration([str(tmp_path / "run.yaml")]), DIALECT)
    assert [one.key for one in found] == ["importance_sampling_level"]
    assert found[0].fix == "--importance-sampling-level sequence on the command line"
    objective = DIALECT.read(configuration.settings, VERSION).objective
    assert (objective["ratio"], objective["surrogate"]["high"]) == ("token", 4e-4)
    over = read_configuration([str(tmp_path / "run.yaml"), "importance_sampling_level=sequence"])
    assert overruled(over, DIALECT) == (over, [])


def test_the_lint_reads_such_a_file_as_the_trainer_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("train_mode: grpo\nimportance_sampling_level: sequence\n")
    assert main(["lint", str(tmp_path / "run.yaml"), "--dialect", "mlx_lm_lora"]) == 1
    shown = capsys.readouterr().out
    assert "importance_sampling_level: sequence is never read" in shown
    assert "the importance ratio is per token" in shown


@pytest.mark.parametrize("spec", ["mlx_lm_lora", "mlx_lm_lora:default"])
def test_row_factors_are_those_of_a_ratio_of_one(spec: str) -> None:
    (found,) = row_factors(spec, PAPER["aggregation"], dtype="float32")
    np.testing.assert_allclose(found, 1 / RATIOS, rtol=2e-6)


def test_row_factors_on_the_policy_that_sampled() -> None:
    modes = {"sequence_mean_token_mean": 1.0, "token_mean": 1.0, "sequence_mean_token_sum": 16.0}
    every = ({"mode": mode, "count": "all", "constant": constant} for mode, constant in modes.items())
    found = row_factors("mlx_lm_lora", *every, dtype="float32", ratios=np.ones(6))
    np.testing.assert_allclose(found, [np.ones(6), LENGTHS * 6 / LENGTHS.sum(), LENGTHS / 16], rtol=2e-6)
