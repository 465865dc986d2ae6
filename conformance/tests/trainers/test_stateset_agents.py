"""StateSet Agents: its dialect, what its `GSPOConfig` makes of the paper, its real loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.rules import findings
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.stateset_agents.dialect import DIALECT

from .real import LENGTHS, check_read_again, has_penalty, row_factors

VERSION = "0.69.0"
CLIP = {"kind": "clip", "low": 3e-4, "high": 4e-4, "dual": None}
OVERRIDES = "objective_overrides."


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """What it leaves no choice about: the clamp, and that a count may always be given; a KL term of coefficient 0 is none."""
    aggregation = {**objective["aggregation"], "count": ""}
    if aggregation["mode"] != "sequence_mean_token_sum":
        aggregation["constant"] = 1.0
    penalty = objective["penalty"] if has_penalty(objective) else None
    return {**objective, "aggregation": aggregation, "penalty": penalty, "log_ratio_cap": None}


def test_what_is_written_is_read_again() -> None:
    check_read_again(DIALECT, VERSION, 20, _plain)


def test_its_gspo_is_the_papers_with_one_update_of_a_rollout() -> None:
    reading = DIALECT.read({}, VERSION)
    assert reading.objective == {**PAPER, "log_ratio_cap": 20.0}
    assert {one.rule for one in findings(reading) if one.severity == "error"} == {"one-update"}
    assert DIALECT.read({"num_iterations": 4}, VERSION).updates_per_rollout == 4


def test_a_named_objective_keeps_its_own_clip_range() -> None:
    reading = DIALECT.read({"objective": "gspo_token", "clip_range_left": 0.1, "clip_range_right": 0.1}, VERSION)
    assert reading.objective["surrogate"] == CLIP
    assert reading.objective["ratio"] == "gspo_token"


def test_log_probabilities_in_half_precision_are_an_error() -> None:
    reading = DIALECT.read({"logprob_dtype": "bf16"}, VERSION)
    assert "dtype" in {one.rule for one in findings(reading) if one.severity == "error"}
    assert "dtype" not in {one.rule for one in findings(DIALECT.read({"logprob_dtype": "fp32"}, VERSION))}


def test_overrides_come_last_nested_or_flat() -> None:
    nested = DIALECT.read({"objective_overrides": {"clip_low": 0.1, "advantage": "group_mean"}}, VERSION)
    flat = DIALECT.read({OVERRIDES + "clip_low": 0.1, OVERRIDES + "advantage": "group_mean"}, VERSION)
    assert nested == flat
    assert nested.objective["surrogate"]["low"] == 0.1
    assert nested.advantages is not None
    assert nested.advantages["scale"] == "none"


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"objective": "gspo", "clip_range_left": 1e-3}, "clip-range-ignored"),
        ({"objective": "grpo"}, "refused"),
        ({"mini_batch_size": 4}, "key-ignored"),
        ({"beta": 0.1}, "kl-of-mean"),
        ({OVERRIDES + "entropy_coef": 0.01}, "entropy-bonus"),
        ({"rescore_old_log_probs": False}, "sampler-as-old"),
    ],
)
def test_findings_of_its_own(settings: dict[str, Any], rule: str) -> None:
    assert rule in {one.rule for one in DIALECT.read(settings, VERSION).findings}
    assert not DIALECT.read({}, VERSION).findings


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="no such ratio"):
        DIALECT.write({**PAPER, "ratio": "product"}, VERSION)
    with pytest.raises(Inexpressible, match="not of this family"):
        DIALECT.read({"objective": "gepo"}, VERSION)


def test_row_factors_of_the_real_loss() -> None:
    modes = (("sequence_mean_token_mean", 1.0), ("token_mean", 1.0), ("sequence_mean_token_sum", 16.0))
    every = ({"mode": mode, "count": "all", "constant": one} for mode, one in modes)
    found = row_factors("stateset_agents", *every)
    np.testing.assert_allclose(found, [np.ones(6), LENGTHS * 6 / LENGTHS.sum(), LENGTHS / 16], rtol=1e-9)


def test_row_factors_of_the_default() -> None:
    (found,) = row_factors("stateset_agents:default", PAPER["aggregation"])
    np.testing.assert_allclose(found, np.ones(6), rtol=1e-9)
