"""EasyDeL: its dialect, what its trainer makes of GSPO, its real loss on JAX."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.rules import findings
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.easydel.dialect import DIALECT

from .real import LENGTHS, RATIOS, check_read_again, row_factors, same

VERSION = "0.3.0"
CLIP = {"kind": "clip", "low": 3e-4, "high": 4e-4, "dual": None}


def test_what_is_written_is_read_again() -> None:
    check_read_again(DIALECT, VERSION, 10, same)


def test_its_gspo_is_the_papers_with_what_no_setting_mends() -> None:
    reading = DIALECT.read(DIALECT.gspo(CLIP, VERSION), VERSION)
    assert reading.objective == PAPER
    told = {one.rule for one in findings(reading) if one.severity != "note"}
    assert told == {"one-update", "clip-inverted"}


def test_the_runner_says_which_trainer() -> None:
    section = {"config.trainer.trainer_type": "grpo", "config.trainer.beta": 0.1}
    objective = DIALECT.read(section, VERSION).objective
    assert (objective["ratio"], objective["surrogate"]["high"]) == ("token", 0.2)
    assert objective["penalty"]["coefficient"] == 0.1
    assert DIALECT.read({"trainer.trainer_type": "gspo"}, VERSION).objective == PAPER


def test_a_sequence_ratio_has_one_column() -> None:
    alone = {"loss_type": "dr_grpo", "max_completion_length": 512}
    assert DIALECT.read(alone, VERSION).objective["aggregation"]["constant"] == 1
    assert DIALECT.read(alone | {"beta": 0.1}, VERSION).objective["aggregation"]["constant"] == 512


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"num_iterations": 4}, "key-ignored"),
        ({"loss_type": "cispo"}, "live-weight"),
        ({"loss_type": "dr_grpo"}, "one-column"),
        ({"max_loss_completion_tokens": 128}, "truncated-loss"),
        ({"top_entropy_quantile": 0.2}, "entropy-mask"),
        ({"num_return_sequences": 1}, "group-size"),
    ],
)
def test_findings_of_its_own(settings: dict[str, Any], rule: str) -> None:
    assert rule in {one.rule for one in DIALECT.read(settings, VERSION).findings}
    assert {one.rule for one in DIALECT.read({}, VERSION).findings} == {"clip-inverted"}


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="no gspo_token ratio"):
        DIALECT.write({**PAPER, "ratio": "gspo_token"}, VERSION)
    aggregation = {"mode": "sequence_mean_token_sum", "count": "all", "constant": 6.0}
    with pytest.raises(Inexpressible, match="with the constant 6"):
        DIALECT.write({**PAPER, "aggregation": aggregation}, VERSION)


def test_row_factors_of_the_real_loss_inside_the_range() -> None:
    modes = ("sequence_mean_token_mean", "token_mean", "sequence_mean_token_sum")
    found = row_factors(
        "easydel", *({"mode": mode, "count": "all", "constant": 1.0} for mode in modes), dtype="float32"
    )
    np.testing.assert_allclose(found, [np.ones(6), LENGTHS * 6 / LENGTHS.sum(), LENGTHS], rtol=2e-6)


def test_row_factors_of_its_trainer_are_those_of_a_ratio_of_one() -> None:
    (found,) = row_factors("easydel:default", PAPER["aggregation"], dtype="float32")
    np.testing.assert_allclose(found, 1 / RATIOS, rtol=2e-6)
