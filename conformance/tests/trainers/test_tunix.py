"""Tunix: its dialect, both its GRPO configs, its real loss on JAX."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.rules import findings
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.tunix.dialect import DIALECT

from .real import ADVANTAGES, LENGTHS, RATIOS, check_read_again, row_factors

VERSION = "0.1.7"
CLIP = {"kind": "clip", "low": 3e-4, "high": 4e-4, "dual": None}


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """What Tunix leaves no choice about: the token form, who counts, the cap; a KL term of coefficient 0 is none."""
    penalty = objective["penalty"]
    ratio = {"sequence": "gspo_token"}.get(objective["ratio"], objective["ratio"])
    aggregation = {**objective["aggregation"], "count": ""}
    kept = penalty if penalty and penalty["coefficient"] else None
    return {**objective, "ratio": ratio, "aggregation": aggregation, "penalty": kept, "log_ratio_cap": None}


def test_what_is_written_is_read_again() -> None:
    check_read_again(DIALECT, VERSION, 20, _plain)


def test_gspo_as_it_comes_has_a_kl_term_of_k1() -> None:
    reading = DIALECT.read(DIALECT.gspo(CLIP, VERSION), VERSION)
    assert reading.objective["surrogate"] == CLIP
    assert reading.objective["ratio"] == "gspo_token"
    assert {one.rule for one in findings(reading) if one.severity == "warning"} == {"penalty", "k1-in-loss"}


def test_the_plain_config_has_one_epsilon_and_needs_iterations() -> None:
    reading = DIALECT.read({"loss_algo": "gspo-token", "epsilon": 3e-4, "beta": 0.0}, VERSION)
    assert (reading.objective["surrogate"]["low"], reading.objective["surrogate"]["high"]) == (3e-4, 3e-4)
    assert {one.rule for one in findings(reading) if one.severity == "error"} == {"one-update"}
    assert DIALECT.read({"epsilon_high": 4e-4}, VERSION).updates_per_rollout is None
    assert DIALECT.read({"num_iterations": 3}, VERSION).updates_per_rollout == 3


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"loss_algo": "gspo-token", "rl_training_config.max_seq_token_per_tpu": 4096}, "packing"),
        ({"agentic_grpo_config.epsilon_hi": 4e-4}, "key-ignored"),
        ({"beta": 0.1}, "k1-in-loss"),
        ({"degenerate_group_masking": True}, "group-masking"),
        ({"loss_algo": "gspo-token", "epsilon_high": 4e-4}, "sampler-as-old"),
        ({"loss_algo": "gspo-token"}, "token-clamp"),
    ],
)
def test_findings_of_its_own(settings: dict[str, Any], rule: str) -> None:
    assert rule in {one.rule for one in DIALECT.read(settings, VERSION).findings}
    assert not DIALECT.read({"beta": 0.0}, VERSION).findings


def test_the_correction_for_the_sampler() -> None:
    (correction,) = DIALECT.read({"sampler_is": "token"}, VERSION).objective["correction"]
    assert (correction["level"], correction["action"], correction["high"]) == ("token", "clamp", 2.0)


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="on the product ratio"):
        DIALECT.write({**PAPER, "ratio": "product"}, VERSION)
    with pytest.raises(Inexpressible, match="at 10 and at nothing else"):
        DIALECT.write({**PAPER, "log_ratio_cap": 2.0}, VERSION)


def test_row_factors_of_the_real_loss() -> None:
    modes = (("sequence_mean_token_mean", 1.0), ("token_mean", 1.0), ("sequence_mean_token_sum", 16.0))
    every = ({"mode": mode, "count": "all", "constant": one} for mode, one in modes)
    found = row_factors("tunix", *every, dtype="float32")
    np.testing.assert_allclose(found, [np.ones(6), LENGTHS * 6 / LENGTHS.sum(), LENGTHS / 16], rtol=2e-6)


def test_row_factors_of_the_default_are_those_of_its_kl_term() -> None:
    (found,) = row_factors("tunix:default", PAPER["aggregation"], dtype="float32")
    np.testing.assert_allclose(found, 1 - 0.04 / (RATIOS * ADVANTAGES), rtol=2e-6)
