"""TRL: its dialect, the configurations that it documents, its real loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.rules import findings
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.trl.dialect import DIALECT

from .real import LENGTHS, check_read_again, row_factors, uncounted

VERSION = "1.16.0"
CLIP = {"kind": "clip", "low": 3e-4, "high": 4e-4, "dual": None}
TOKEN_MEAN = LENGTHS * 6 / LENGTHS.sum()


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """What TRL leaves no choice about: who counts, the clamp of VESPO's log-ratio; a KL term of coefficient 0 is none."""
    plain = uncounted(objective)
    return {**plain, "log_ratio_cap": None} if objective["surrogate"]["kind"] == "vespo" else plain


def test_what_is_written_is_read_again() -> None:
    check_read_again(DIALECT, VERSION, 12, _plain)


def test_gspo_as_documented_is_the_mean_over_tokens() -> None:
    reading = DIALECT.read(DIALECT.gspo(CLIP, VERSION), VERSION)
    assert reading.objective["surrogate"] == CLIP
    assert reading.objective["aggregation"]["mode"] == "token_mean"
    assert "loss_type='grpo'" in {one.rule: one for one in findings(reading)}["aggregation"].fix


def test_the_paper_is_written_with_loss_type_grpo() -> None:
    settings = DIALECT.write(PAPER, VERSION)
    assert (settings["loss_type"], settings["importance_sampling_level"]) == ("grpo", "sequence")
    assert DIALECT.read(settings, VERSION).objective == PAPER


@pytest.mark.parametrize(
    ("settings", "updates"),
    [
        ({}, 1),
        ({"steps_per_generation": 8, "gradient_accumulation_steps": 2}, 4),
        ({"generation_batch_size": 32, "per_device_train_batch_size": 8, "num_iterations": 2}, 8),
        ({"steps_per_generation": 4, "gradient_accumulation_steps": 3}, 2),
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 4, "num_iterations": 2}, 1),
    ],
)
def test_updates_of_a_generated_batch(settings: dict[str, Any], updates: int) -> None:
    """Hunts steps counted as if they ended where batches do: TRL asks whether the accumulation is a multiple of the batch."""
    assert DIALECT.read(settings, VERSION).updates_per_rollout == updates


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"top_entropy_quantile": 0.2, "importance_sampling_level": "sequence"}, "entropy-mask"),
        ({"off_policy_mask_threshold": 0.5}, "off-policy-mask"),
    ],
)
def test_findings_of_its_own(settings: dict[str, Any], rule: str) -> None:
    assert rule in {one.rule for one in DIALECT.read(settings, VERSION).findings}
    assert not DIALECT.read({}, VERSION).findings


def test_the_correction_for_the_sampler() -> None:
    (correction,) = DIALECT.read({"use_vllm": True}, VERSION).objective["correction"]
    assert (correction["level"], correction["action"], correction["high"]) == ("sequence", "mask", 3.0)
    assert DIALECT.read({}, VERSION).objective["correction"] == []


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="on the gspo_token ratio"):
        DIALECT.write({**PAPER, "ratio": "gspo_token"}, VERSION)
    with pytest.raises(Inexpressible, match="counts every response"):
        DIALECT.write({**PAPER, "aggregation": {**PAPER["aggregation"], "count": "non_empty"}}, VERSION)


def test_row_factors_of_the_real_loss() -> None:
    modes = (("sequence_mean_token_mean", 1.0), ("token_mean", 1.0), ("sequence_mean_token_sum", 16.0))
    found = row_factors("trl", *({"mode": mode, "count": "all", "constant": one} for mode, one in modes))
    np.testing.assert_allclose(found, [np.ones(6), TOKEN_MEAN, LENGTHS / 16], rtol=1e-7)


def test_row_factors_of_the_default() -> None:
    np.testing.assert_allclose(row_factors("trl:default", PAPER["aggregation"])[0], TOKEN_MEAN, rtol=1e-7)
