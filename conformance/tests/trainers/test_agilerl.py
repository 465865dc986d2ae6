"""AgileRL: its dialect, what its `GSPO` makes of the paper, its real loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.rules import findings
from gspo_conformance.trainers.agilerl.dialect import DIALECT
from gspo_conformance.trainers.dialect import PAPER, Inexpressible

from .real import ADVANTAGES, LENGTHS, RATIOS, check_read_again, row_factors, same, uncounted

VERSION = "2.58.0"
CLIP = {"kind": "clip", "low": 3e-4, "high": 4e-4, "dual": None}
TIS = {"level": "token", "action": "clamp", "low": None, "high": 2.0, "numerator": "old", "negative_only": False}


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """What AgileRL leaves no choice about: who counts in a mean over tokens; a KL term of coefficient 0 is none."""
    return uncounted(objective) if objective["aggregation"]["mode"] == "token_mean" else same(objective)


def test_what_is_written_is_read_again() -> None:
    check_read_again(DIALECT, VERSION, 10, _plain)


def test_gspo_as_it_comes_is_the_mean_over_tokens_behind_masks() -> None:
    reading = DIALECT.read(DIALECT.gspo(CLIP, VERSION), VERSION)
    assert reading.objective["surrogate"] == CLIP
    assert [one["level"] for one in reading.objective["correction"]] == ["token", "geometric"]
    told = {one.rule: one.fix for one in findings(reading)}
    assert told["aggregation"] == "loss_norm='micro_batch'"
    assert {"token-mask", "sequence-mask", "penalty", "scale", "one-update"} <= set(told)


def test_the_weight_and_the_masks_are_written() -> None:
    masks = [
        {**TIS, "action": "reject", "low": 0.5, "high": 5.0, "numerator": "current"},
        {**TIS, "level": "geometric", "action": "reject", "low": 0.75, "high": None, "numerator": "current"},
    ]
    masks[1]["negative_only"] = True
    settings = DIALECT.write({**PAPER, "correction": [TIS, *masks]}, VERSION)
    assert settings["off_policy_token_mask_bounds"] == (0.5, 5.0)
    read = DIALECT.read(settings, VERSION).objective["correction"]
    assert read[:2] == [TIS, masks[0]]
    assert read[2]["low"] == pytest.approx(0.75)
    with pytest.raises(Inexpressible, match="wherever it has the sampler's"):
        DIALECT.write({**PAPER, "correction": masks}, VERSION)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"clip_coef": (3e-4, 4e-4)}, "clip-as-distance"),
        ({"INIT_HP.USE_KL_ADVANTAGE_SHAPING": True}, "kl-in-advantage"),
        ({"adv_clip_range": 5.0}, "advantage-clip"),
        ({"filter_zero_adv": True}, "zero-filter"),
        ({"loss_type": "gspo"}, "token-mask"),
        ({"loss_type": "gspo"}, "sequence-mask"),
    ],
)
def test_findings_of_its_own(settings: dict[str, Any], rule: str) -> None:
    assert rule in {one.rule for one in DIALECT.read(settings, VERSION).findings}
    assert [one.rule for one in DIALECT.read({}, VERSION).findings] == ["masked-penalty"]
    assert not DIALECT.read({"beta": 0.0}, VERSION).findings


def test_updates_of_a_rollout() -> None:
    assert DIALECT.read({"batch_size": 32, "mini_batch_size": 64, "update_epochs": 2}, VERSION).updates_per_rollout == 8


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="no gspo_token ratio"):
        DIALECT.write({**PAPER, "ratio": "gspo_token"}, VERSION)
    with pytest.raises(Inexpressible, match="not an objective of this family"):
        DIALECT.read({"importance_sampling_level": "turn"}, VERSION)


def test_row_factors_of_the_real_loss() -> None:
    counts = (("sequence_mean_token_mean", "all"), ("sequence_mean_token_mean", "non_empty"), ("token_mean", "all"))
    every = ({"mode": mode, "count": count, "constant": 1.0} for mode, count in counts)
    found = row_factors("agilerl", *every, dtype="float32")
    np.testing.assert_allclose(found, [np.ones(6), np.ones(6), LENGTHS * 6 / LENGTHS.sum()], rtol=2e-6)


def test_row_factors_of_the_default_without_the_responses_that_its_mask_drops() -> None:
    (found,) = row_factors("agilerl:default", PAPER["aggregation"], dtype="float32")
    kept = (ADVANTAGES > 0) | (np.exp(-0.03) < RATIOS)
    np.testing.assert_allclose(found, LENGTHS * 6 / LENGTHS.sum() * kept, rtol=2e-6)
