"""Liger-Kernel: its dialect, what `LigerFusedLinearGRPOLoss` makes of GSPO, its real loss from hidden states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.rules import findings
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.liger.dialect import DIALECT

from .real import LENGTHS, check_read_again, row_factors, same

VERSION = "0.8.5"
CLIP = {"kind": "clip", "low": 3e-4, "high": 4e-4, "dual": None}
TOKEN_MEAN = LENGTHS * 6 / LENGTHS.sum()


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """What Liger leaves no choice about: the clamp of VESPO's log-ratio; a KL term of coefficient 0 is none."""
    plain = same(objective)
    return {**plain, "log_ratio_cap": None} if objective["surrogate"]["kind"] == "vespo" else plain


def test_what_is_written_is_read_again() -> None:
    check_read_again(DIALECT, VERSION, 12, _plain)


def test_gspo_as_it_comes_is_the_mean_over_tokens_with_a_kl_term() -> None:
    reading = DIALECT.read(DIALECT.gspo(CLIP, VERSION), VERSION)
    assert reading.objective["surrogate"] == CLIP
    told = {one.rule: one.fix for one in findings(reading)}
    assert told["aggregation"] == "loss_type='grpo'"
    assert told["penalty"].startswith("beta=0.0")


def test_the_paper_is_written_with_loss_type_grpo() -> None:
    settings = DIALECT.write(PAPER, VERSION)
    assert (settings["loss_type"], settings["importance_sampling_level"]) == ("grpo", "sequence")
    assert DIALECT.read(settings, VERSION).objective == PAPER


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"loss_type": "luspo"}, "padding-in-mean"),
        ({"loss_type": "dr_grpo"}, "missing-length"),
        ({"beta": 0.0}, "unused-reference"),
        ({"temperature": 0.7}, "temperature"),
    ],
)
def test_findings_of_its_own(settings: dict[str, Any], rule: str) -> None:
    assert rule in {one.rule for one in DIALECT.read(settings, VERSION).findings}
    assert not DIALECT.read({}, VERSION).findings


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="on the gspo_token ratio"):
        DIALECT.write({**PAPER, "ratio": "gspo_token"}, VERSION)
    with pytest.raises(Inexpressible, match="counts every response"):
        DIALECT.write({**PAPER, "aggregation": {**PAPER["aggregation"], "count": "non_empty"}}, VERSION)
    with pytest.raises(Inexpressible, match="refuses loss_type 'sapo'"):
        DIALECT.read({"loss_type": "sapo", "importance_sampling_level": "sequence"}, VERSION)


def test_row_factors_of_the_real_loss() -> None:
    modes = [("sequence_mean_token_mean", 1.0), ("token_mean", 1.0), ("sequence_mean_token_sum", 1.0)]
    modes.append(("sequence_mean_token_sum", 16.0))
    every = ({"mode": mode, "count": "all", "constant": one} for mode, one in modes)
    found = row_factors("liger", *every, dtype="float32")
    np.testing.assert_allclose(found, [np.ones(6), TOKEN_MEAN, LENGTHS, LENGTHS / 16], rtol=2e-6)


def test_row_factors_of_the_default() -> None:
    (found,) = row_factors("liger:default", PAPER["aggregation"], dtype="float32")
    np.testing.assert_allclose(found, TOKEN_MEAN, rtol=2e-6)
