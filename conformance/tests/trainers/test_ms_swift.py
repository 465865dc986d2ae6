"""ms-swift: its dialect, the configurations that it documents, its real loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.rules import findings
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.ms_swift.dialect import DIALECT
from gspo_conformance.trainers.room import choose

from .real import LENGTHS, check_read_again, has_penalty, row_factors

VERSION = DIALECT.versions[-1]
DOCUMENTED = {
    "rlhf_type": "grpo",
    "importance_sampling_level": "sequence",
    "epsilon": 3e-4,
    "epsilon_high": 4e-4,
    "beta": 0,
    "gradient_accumulation_steps": 8,
}


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """The clamps of the KL term and who counts are not a choice; the bound on the drift goes through a logarithm."""
    penalty = has_penalty(objective) and {**objective["penalty"], "log_ratio_clamp": None, "value_clamp": None}
    correction = [{**one, "low": one["low"] and round(one["low"], 12)} for one in objective["correction"]]
    aggregation = {**objective["aggregation"], "count": "all"}
    return {**objective, "aggregation": aggregation, "penalty": penalty, "correction": correction}


def test_what_is_written_is_read_again() -> None:
    check_read_again(DIALECT, VERSION, 15, _plain)


def test_the_defaults_are_the_papers_but_for_the_range_and_the_kl_term() -> None:
    reading = DIALECT.read({"importance_sampling_level": "sequence"}, VERSION)
    assert reading.objective["aggregation"] == PAPER["aggregation"]
    rules = {one.rule for one in findings(reading)}
    assert rules == {"inherited-clip-range", "penalty", "one-update"}


@pytest.mark.parametrize(("steps", "updates"), [(4, 1), (8, 1), (12, 2), (32, 4)])
def test_steps_per_generation_are_micro_batches(steps: int, updates: int) -> None:
    """Hunts the example that set 4 for four updates and got one (ms-swift pull request 9352)."""
    reading = DIALECT.read({**DOCUMENTED, "steps_per_generation": steps}, VERSION)
    assert reading.updates_per_rollout == updates
    assert ("one-update" in {one.rule for one in findings(reading)}) == (updates == 1)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"advantage_estimator": "rloo", "beta": 0.04}, "kl-in-reward"),
        ({"top_entropy_quantile": 0.2}, "entropy-mask"),
        ({"overlong_filter": True}, "overlong-filter"),
        ({"loss_type": "dapo"}, "aggregation"),
        ({"scale_rewards": "batch"}, "scale"),
        ({"rollout_importance_sampling_mode": "token_truncate"}, "correction"),
        ({"delta": 1.4}, "dual-clip"),
    ],
)
def test_findings(settings: dict[str, Any], rule: str) -> None:
    base = {**DOCUMENTED, "steps_per_generation": 32}
    assert not findings(DIALECT.read(base, VERSION))
    assert rule in {one.rule for one in findings(DIALECT.read({**base, **settings}, VERSION))}


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="counts every response"):
        DIALECT.write({**PAPER, "aggregation": {**PAPER["aggregation"], "count": "non_empty"}}, VERSION)
    with pytest.raises(Inexpressible, match="is not of this family"):
        DIALECT.read({"loss_type": "real"}, VERSION)


def test_the_name_with_a_dash() -> None:
    assert choose("ms-swift@4.6.0:default") == choose("ms_swift@4.6.0:default")


def test_row_factors_of_the_real_loss() -> None:
    """grpo, dapo and dr_grpo: the paper's, the mean over tokens, and token sums over max_completion_length."""
    modes = {"sequence_mean_token_mean": 1.0, "token_mean": 1.0, "sequence_mean_token_sum": 11.0}
    found = row_factors("ms_swift", *({"mode": mode, "count": "all", "constant": modes[mode]} for mode in modes))
    np.testing.assert_allclose(found, [np.ones(6), LENGTHS * 6 / LENGTHS.sum(), LENGTHS / 11], rtol=1e-12)
