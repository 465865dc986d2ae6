"""Miles: its dialect, which is slime's with other clamps, run scripts that it ships, its real loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.detection import recognised
from gspo_conformance.lint.rules import findings
from gspo_conformance.target import Case
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.miles.dialect import DIALECT
from gspo_conformance.trainers.room import choose

from .real import LENGTHS, answers, check_read_again, row_factors, uncounted

VERSION = "31f1ca96"
CLIP = {"kind": "clip", "low": 3e-4, "high": 4e-4, "dual": None}
RECIPE = {**DIALECT.gspo(CLIP, VERSION), "n_samples_per_prompt": 8, "num_steps_per_rollout": 4}
SHIPPED = {
    "advantage_estimator": "gspo",
    "kl_loss_coef": 0.0,
    "kl_loss_type": "low_var_kl",
    "entropy_coef": 0.0,
    "eps_clip": 4e-4,
    "rollout_batch_size": 8,
    "n_samples_per_prompt": 8,
    "global_batch_size": 64,
}


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """Who counts and the cap are no choice; a KL term of coefficient 0 is none."""
    return {**uncounted(objective), "log_ratio_cap": None}


def test_what_is_written_is_read_again() -> None:
    check_read_again(DIALECT, VERSION, 20, _plain)


def test_gspo_as_it_comes_is_the_papers_with_a_cap() -> None:
    assert DIALECT.read(DIALECT.gspo(CLIP, VERSION), VERSION).objective == {**PAPER, "log_ratio_cap": 20.0}
    assert {one.rule for one in findings(DIALECT.read(RECIPE, VERSION))} == {"log-ratio-cap"}


def test_the_shipped_recipe_makes_one_update_of_a_rollout() -> None:
    rules = {one.rule for one in findings(DIALECT.read(SHIPPED, VERSION))}
    assert rules == {"one-update", "log-ratio-cap"}


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"skip_actor_forward_only": True, "num_steps_per_rollout": 1}, "ratio-forced"),
        ({"skip_actor_forward_only": True}, "refused"),
        (
            {
                "skip_actor_forward_only": True,
                "num_steps_per_rollout": None,
                "global_batch_size": 8,
                "rollout_batch_size": 2,
            },
            "refused",
        ),
        ({"skip_actor_forward_only": True, "num_steps_per_rollout": 1, "kl_coef": 0.01}, "refused"),
        ({"use_rollout_logprobs": True, "use_tis": True}, "refused"),
        ({"kl_coef": 0.01, "kl_loss_coef": 0.01}, "refused"),
        ({"kl_coef": 0.01}, "kl-ignored"),
        ({"n_samples_per_prompt": 1}, "group-size"),
        ({"use_opd": True}, "kl-in-advantage"),
        ({"use_opsm": True}, "sequence-mask"),
        ({"use_tis": True, "custom_tis_function_path": "mine.weights"}, "custom-code"),
    ],
)
def test_findings(settings: dict[str, Any], rule: str) -> None:
    assert rule in {one.rule for one in findings(DIALECT.read({**RECIPE, **settings}, VERSION))}


def test_the_policy_of_the_engine_is_no_forced_ratio() -> None:
    settings = {**SHIPPED, "skip_actor_forward_only": True, "use_rollout_logprobs": True}
    assert not {one.rule for one in findings(DIALECT.read(settings, VERSION))} & {"ratio-forced", "refused"}


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="surrogate cispo on the token ratio"):
        DIALECT.write({**PAPER, "ratio": "token", "surrogate": {"kind": "cispo", "low": None, "high": 4.0}}, VERSION)
    with pytest.raises(Inexpressible, match="caps the log-ratio at 20"):
        DIALECT.write({**PAPER, "log_ratio_cap": 2.0}, VERSION)
    form = {"coefficient": 0.1, "estimator": "k3", "importance": None, "aggregation": None, "value_clamp": 10.0}
    with pytest.raises(Inexpressible, match="its log-ratio clamped to 20 and its value"):
        DIALECT.write({**PAPER, "penalty": {**form, "log_ratio_clamp": None}}, VERSION)
    written = DIALECT.write({**PAPER, "penalty": {**form, "log_ratio_clamp": 20.0}}, VERSION)
    assert written["kl_loss_type"] == "low_var_kl"


def test_keys_without_a_name_are_slimes() -> None:
    """Hunts a tie: Miles reads what slime reads, and only a name tells them apart."""
    settings = dict.fromkeys(("eps_clip_high", "use_opsm", "n_samples_per_prompt", "advantage_estimator", "use_tis"), 1)
    assert recognised([], settings)[0] == "slime"
    assert recognised(["import miles.utils.external_utils.command_utils as U"], settings)[0] == "miles"
    assert recognised(["cd /src/miles && python train.py"], settings)[0] == "miles"


def test_the_source_is_a_checkout() -> None:
    assert choose("miles").version.commit.startswith(VERSION)
    assert choose("miles").version.source.endswith("radixark/miles")


def test_row_factors_of_the_real_loss() -> None:
    modes = ("sequence_mean_token_mean", "token_mean")
    aggregations = ({"mode": mode, "count": "all", "constant": 1.0} for mode in modes)
    found = row_factors("miles", *aggregations, dtype="float32")
    np.testing.assert_allclose(found, [np.ones(6), LENGTHS * 6 / LENGTHS.sum()], rtol=1e-6)


def test_row_factors_of_the_default() -> None:
    found = row_factors("miles:default", PAPER["aggregation"], dtype="float32")
    np.testing.assert_allclose(found[0], np.ones(6), rtol=1e-6)


def test_uneven_groups_stay_groups() -> None:
    """Where slime makes one of them (slime issue 1414)."""
    inputs = {"rewards": np.array([0.2, 1, 0, 0, 1], np.float32), "groups": np.array([0, 0, 0, 1, 1])}
    (found,) = answers("miles", Case("group_advantages", {}, inputs, outputs=("advantages",)))
    np.testing.assert_allclose(found["advantages"].array, [-0.378, 1.1339, -0.7559, -0.7071, 0.7071], atol=1e-4)


def test_nan_between_counted_tokens_takes_the_gradient_of_its_response() -> None:
    """The mean log-ratio is NaN, which is then set to 0: the ratio of that response is 1 and constant."""
    logp = np.array([[-1.0, np.nan, -1.2], [-1.0, -1.0, -1.2]], np.float32)
    old, mask = np.full((2, 3), -1.1, np.float32), np.array([[1, 0, 1], [1, 1, 1]])
    inputs = {"logp": logp, "old_logp": old, "advantages": np.array([1.0, -1.0], np.float32), "mask": mask}
    objective = {**PAPER, "surrogate": {**CLIP, "low": 0.2, "high": 0.2}}
    (found,) = answers("miles", Case("policy_loss", {"objective": objective}, inputs, outputs=("loss", "gradient")))
    gradient = found["gradient"].array
    assert not gradient[0].any()
    assert gradient[1].all()
    assert np.isfinite(found["loss"].array)
