"""ART: its dialect, what its page on GSPO leaves as it comes, its real packing and loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.configuration import read_configuration
from gspo_conformance.lint.detection import recognised
from gspo_conformance.lint.rules import findings
from gspo_conformance.target import Case
from gspo_conformance.trainers.art.dialect import CAP, DIALECT
from gspo_conformance.trainers.dialect import PAPER, Inexpressible

from . import real

VERSION = "0.5.18"
RECIPE = {
    "loss_fn": "ppo",
    "importance_sampling_level": "sequence",
    "epsilon": 3e-4,
    "epsilon_high": 4e-4,
    "precalculate_logprobs": True,
}
AGGREGATION = {**PAPER["aggregation"], "count": "non_empty"}


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """Who counts is not a choice; a KL term of coefficient 0 is none."""
    return {**real.same(objective), "aggregation": AGGREGATION}


def test_what_is_written_is_read_again() -> None:
    real.check_read_again(DIALECT, VERSION, 20, _plain)


def test_the_recipe_is_the_papers_but_for_what_cannot_be_had() -> None:
    reading = DIALECT.read(RECIPE, VERSION)
    assert reading.objective == {**PAPER, "aggregation": AGGREGATION}
    assert {(one.rule, one.severity) for one in findings(reading)} == {
        ("ddof", "note"),
        ("advantage-rescaling", "note"),
    }


def test_the_page_on_gspo_leaves_the_surrogate_of_cispo() -> None:
    reading = DIALECT.read({"_config.importance_sampling_level": "sequence"}, VERSION)
    assert reading.objective["surrogate"] == {"kind": "cispo", "low": None, "high": 4.0}
    told = next(one for one in findings(reading) if one.rule == "surrogate")
    assert (told.severity, told.key, told.fix.partition(" ")[0]) == ("error", "loss_fn", "loss_fn='ppo'")


def test_the_upper_bound_follows_the_lower_with_ppo_alone() -> None:
    sequence = {"importance_sampling_level": "sequence", "epsilon": 0.1}
    assert DIALECT.read({**sequence, "ppo": True}, VERSION).objective["surrogate"]["high"] == 0.1
    assert DIALECT.read(sequence, VERSION).objective["surrogate"] == {"kind": "cispo", "low": 0.1, "high": 4.0}


def test_a_bound_of_none_is_the_lower_one_in_a_train_config_and_not_given_to_train() -> None:
    lower = {"importance_sampling_level": "sequence", "epsilon": 0.1}
    assert DIALECT.read({**lower, "_config.epsilon_high": None}, VERSION).objective["surrogate"]["high"] == 0.1
    assert DIALECT.read({**lower, "epsilon_high": None}, VERSION).objective["surrogate"]["high"] == 4.0


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"mask_prob_ratio": True}, "two-sided-mask"),
        ({CAP: 1.0001}, "cap-below-range"),
        ({CAP: 3.0}, "dual-clip"),
        ({"truncated_importance_sampling": 2.0, "precalculate_logprobs": False}, "ratio-twice"),
        ({"truncated_importance_sampling": 2.0}, "correction"),
        ({"precalculate_logprobs": False}, "old-policy"),
        ({"advantage_balance": 0.5}, "advantage-balance"),
        ({"kl_penalty_coef": 0.1}, "kl-in-advantage"),
        ({"kimi_k2_tau": 0.1}, "log-ratio-in-advantage"),
        ({"scale_rewards": False}, "scale"),
        ({"normalize_advantages": False}, "scale"),
        ({"importance_sampling_level": "token"}, "ratio"),
        ({"epsilon": None, "epsilon_high": None}, "inherited-clip-range"),
    ],
)
def test_findings(settings: dict[str, Any], rule: str) -> None:
    before = {one.rule for one in findings(DIALECT.read(RECIPE, VERSION))}
    found = {one.rule for one in findings(DIALECT.read({**RECIPE, **settings}, VERSION))}
    assert rule in found - before


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="inverse length"):
        DIALECT.write({**PAPER, "aggregation": {**PAPER["aggregation"], "mode": "token_mean"}}, VERSION)
    with pytest.raises(Inexpressible, match="a token or of a sequence"):
        DIALECT.write({**PAPER, "ratio": "gspo_token"}, VERSION)
    with pytest.raises(Inexpressible, match="mixes the ratios"):
        DIALECT.read({"importance_sampling_level": "geometric_average"}, VERSION)


def test_a_call_of_train_is_a_configuration(tmp_path: Path) -> None:
    """Hunts settings that stand in no `...Config(...)`."""
    file = tmp_path / "loop.py"
    file.write_text(
        "from art.local import LocalBackend\nawait backend.train(model, groups, loss_fn='ppo', epsilon=3e-4)\n"
    )
    settings = read_configuration([str(file)]).settings
    assert settings == {"loss_fn": "ppo", "epsilon": 3e-4}
    assert recognised([str(file)], settings)[0] == "art"


def test_keys_that_trl_has_too_stay_trls() -> None:
    assert recognised([], {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4})[0] == "trl"


def test_row_factors_of_the_real_loss() -> None:
    (found,) = real.row_factors("art", AGGREGATION, dtype="float32")
    np.testing.assert_allclose(found, np.ones(6), rtol=1e-6)


def test_row_factors_of_the_default_are_those_of_a_clipped_weight() -> None:
    (found,) = real.row_factors("art:default", PAPER["aggregation"], dtype="float32")
    np.testing.assert_allclose(found, np.clip(real.RATIOS, 0.8, 1.2) / real.RATIOS, rtol=1e-6)


def test_in_float16_responses_share_a_ratio() -> None:
    """The ids of the responses become infinite: hunts one ratio for several responses of a row."""
    old = np.full((6, 4), -1.5, np.float32)
    inputs = {"old_logp": old, "logp": old + np.float32([[-0.25], [0.25]] * 3), "mask": np.ones((6, 4), np.int64)}
    inputs["advantages"] = real.ADVANTAGES.astype(np.float32)
    case = Case("policy_loss", {"objective": real.wide(PAPER)}, inputs, "float32", ("loss", "gradient"), "float16")
    merged, apart = (one["gradient"].array for one in real.answers("art", case, replace(case, input_dtype=None)))
    assert np.abs(merged - apart).max() > 0.1 * np.abs(apart).max()


def test_advantages_are_rescaled_by_the_packing_and_not_before() -> None:
    """The numbers of the facts: a winner among 8."""
    given = {"ddof": 0}
    inputs = {"rewards": np.array([1, *[0] * 7], np.float32), "groups": np.zeros(8, np.int64)}
    logp = np.full((8, 1), -1.0, np.float32)
    batch = {**inputs, "logp": logp, "old_logp": logp, "mask": np.ones((8, 1), np.int64)}
    alone = Case("group_advantages", given, inputs, outputs=("advantages",))
    packed = Case("pipeline", {"objective": PAPER, "advantages": given}, batch, outputs=("advantages",))
    first, second = (one["advantages"].array for one in real.answers("art", alone, packed))
    np.testing.assert_allclose(first[[0, 1]], [2.645744, -0.377963], rtol=1e-5)
    np.testing.assert_allclose(second[[0, 1]], [4.0, -4 / 7], rtol=1e-5)
