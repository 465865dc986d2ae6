"""OpenRLHF: its dialect, what its command line makes of GSPO, its real loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_conformance.target import Case
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.openrlhf.dialect import DIALECT

from .real import answers, check_read_again, row_factors, uncounted

VERSION = "0.11.2"
CLIP = {"kind": "clip", "low": 3e-4, "high": 4e-4, "dual": None}


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """What OpenRLHF leaves no choice about: who counts, the cap of the token ratio; a KL term of coefficient 0 is none."""
    return {**uncounted(objective), "log_ratio_cap": None}


def test_what_is_written_is_read_again() -> None:
    check_read_again(DIALECT, VERSION, 4, _plain)


def test_gspo_forces_the_mean_over_responses() -> None:
    settings = DIALECT.gspo(CLIP, VERSION) | {"actor.loss_agg_mode": "token-mean"}
    reading = DIALECT.read(settings, VERSION)
    assert reading.objective == {**PAPER, "surrogate": CLIP}
    assert DIALECT.read({}, VERSION).objective["aggregation"]["mode"] == "token_mean"


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"actor.policy_loss_type": "gspo", "algo.advantage.is_correction_level": "token"}, "correction-ignored"),
        ({"algo.kl.init_coef": 0.02}, "kl-in-reward"),
        ({"algo.advantage.estimator": "group_norm"}, "tiny-eps"),
    ],
)
def test_findings_of_its_own(settings: dict[str, Any], rule: str) -> None:
    assert rule in {one.rule for one in DIALECT.read(settings, VERSION).findings}
    assert not DIALECT.read({"algo.kl.init_coef": 0}, VERSION).findings


@pytest.mark.parametrize("loss", ["ppo", "gspo"])
@pytest.mark.parametrize(("name", "value"), [("level", "sequence"), ("mode", "truncate"), ("gating", "kl")])
def test_a_correction_that_openrlhf_refuses_is_not_read_as_another(loss: str, name: str, value: str) -> None:
    with pytest.raises(Inexpressible, match=f"^is_correction_{name}: OpenRLHF has .*, not '{value}'$"):
        DIALECT.read({"actor.policy_loss_type": loss, f"algo.advantage.is_correction_{name}": value}, VERSION)


@pytest.mark.parametrize(
    ("settings", "severity"),
    [
        ({"reward.clip_range": (-1.0, 1.0)}, "warning"),
        ({"reward.clip_range": (-5.0, 5.0)}, "note"),
        ({"reward_clip_range": (-1.0, 1.0), "advantage_estimator": "rloo"}, "warning"),
        ({"rollout.n_samples_per_prompt": 128}, "warning"),
        ({}, None),
    ],
)
def test_rewards_are_clamped_once_they_are_advantages(settings: dict[str, Any], severity: str | None) -> None:
    plain = {"algo.advantage.estimator": "group_norm", "rollout.n_samples_per_prompt": 8}
    given = settings if "advantage_estimator" in settings else plain | settings
    found = {one.rule: one.severity for one in DIALECT.read(given, VERSION).findings}
    assert found.get("reward-clip") == severity


def test_what_it_cannot_express() -> None:
    token_mean = {**PAPER, "aggregation": {"mode": "token_mean", "count": "all", "constant": 1.0}}
    with pytest.raises(Inexpressible, match="does not aggregate by token_mean"):
        DIALECT.write(token_mean, VERSION)


@pytest.mark.parametrize("spec", ["openrlhf", "openrlhf:default"])
def test_row_factors_of_the_real_loss(spec: str) -> None:
    np.testing.assert_allclose(row_factors(spec, PAPER["aggregation"])[0], np.ones(6), rtol=1e-6)


def test_equal_rewards_get_an_advantage_made_of_rounding() -> None:
    """The numbers of the facts: 0.83 for eight rewards of 0.1 alone; beside another group the deviation is 0, and 1e-9 divides."""
    for count, expected in ((8, -0.8310737), (16, -7.4505806)):
        rewards, groups = np.full(count, 0.1, np.float32), np.arange(count) // 8
        case = Case("group_advantages", {"eps": 1e-9}, {"rewards": rewards, "groups": groups}, outputs=("advantages",))
        np.testing.assert_allclose(answers("openrlhf", case)[0]["advantages"].array, expected, rtol=1e-6)
