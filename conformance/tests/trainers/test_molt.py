"""Molt: its dialect, what its command line leaves to no setting, its real training step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.configuration import read_configuration
from gspo_conformance.lint.detection import recognised
from gspo_conformance.lint.rules import findings
from gspo_conformance.target import Case
from gspo_conformance.trainers import parts
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.molt.dialect import DIALECT

from . import real

VERSION = "2d626085"
LEVEL, MODE, ESTIMATOR = (f"algo.advantage.{key}" for key in ("is_correction_level", "is_correction_mode", "estimator"))
RECIPE = {
    "actor.loss_mode": "gspo",
    "actor.eps_clip_low_high": (3e-4, 4e-4),
    ESTIMATOR: "grpo",
    "algo.kl.init_coef": 0.0,
    "rollout.batch_size": 64,
    "rollout.n_samples_per_prompt": 8,
}
TOKENS = parts.aggregation("token_mean")


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """Who counts, the cap of a token's log-ratio, the name of the ratio and the mean of the KL term are no choices."""
    ratio = objective["ratio"].replace("gspo_token", "sequence")
    penalty = objective["penalty"] if real.has_penalty(objective) else None
    own = penalty and {**penalty, "aggregation": None}
    return {**real.uncounted(objective), "ratio": ratio, "penalty": own, "log_ratio_cap": None}


def _rules(**settings: Any) -> set[str]:
    """Of the recipe with these settings over it, None for one that is left out."""
    given = {key: value for key, value in {**RECIPE, **settings}.items() if value is not None}
    return {one.rule for one in findings(DIALECT.read(given, VERSION))}


def test_what_is_written_is_read_again() -> None:
    real.check_read_again(DIALECT, VERSION, 12, _plain)


@pytest.mark.parametrize("mode", ["ppo", "gspo", "cispo"])
@pytest.mark.parametrize(
    ("level", "action"),
    [("token", "mask"), ("token", "clip"), ("token", "trunc"), ("off", "mask"), ("seq", "mask"), ("geo", "mask")],
)
def test_what_is_read_is_written_again(mode: str, level: str, action: str) -> None:
    """Hunts a weight, a bound or an estimator that only one direction knows."""
    own = {"actor.loss_mode": mode, "actor.eps_clip_low_high": (0.25, 1.5), LEVEL: level, MODE: action}
    for estimator in ("k1", "k2", "k3"):
        kl = {"algo.kl.use_loss": True, "algo.kl.init_coef": 0.5, "algo.kl.estimator": estimator}
        objective = DIALECT.read({**own, **kl}, VERSION).objective
        assert DIALECT.read(DIALECT.write(objective, VERSION), VERSION).objective == objective


def test_the_recipe_is_the_papers_but_for_the_mean() -> None:
    reading = DIALECT.read(RECIPE, VERSION)
    assert reading.objective == {**PAPER, "ratio": "gspo_token", "aggregation": TOKENS}
    assert reading.updates_per_rollout == 4
    assert _rules() == {"aggregation", "eps", "tiny-eps"}


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"actor.dual_clip": 3.0}, "refused"),
        ({"actor.loss_mode": "cispo"}, "refused"),
        ({LEVEL: "geo", MODE: "clip"}, "refused"),
        ({"train.async_queue_size": 2}, "refused"),
        ({"train.partial_rollout_enable": True}, "refused"),
        ({LEVEL: "token", "rollout.top_p": 0.9}, "refused"),
        ({"train.force_on_policy": True, "train.max_epochs": 2}, "refused"),
        ({"actor.loss_agg_mode": "seq-mean-token-mean"}, "refused"),
        ({ESTIMATOR: "group_norm"}, "refused"),
        ({"train.force_on_policy": True}, "one-update"),
        ({"actor.loss_mode": "ppo"}, "ratio"),
        ({"actor.eps_clip_low_high": None}, "inherited-clip-range"),
        ({"algo.kl.init_coef": None}, "kl-ignored"),
        ({"algo.kl.init_coef": None, ESTIMATOR: "reinforce"}, "kl-in-reward"),
        ({"algo.kl.init_coef": 0.1, "algo.kl.use_loss": True}, "penalty"),
        ({"algo.kl.init_coef": 0.1, "algo.kl.use_loss": True, "algo.kl.target": 6.0}, "kl-schedule"),
        ({ESTIMATOR: "reinforce_baseline"}, "whitening"),
        ({ESTIMATOR: "on_policy_distill"}, "advantages"),
        ({ESTIMATOR: "dr_grpo", "algo.advantage.no_whiten": True}, "key-ignored"),
        ({"actor.entropy_coef": 0.01}, "entropy-bonus"),
        ({"algo.dynamic_filtering_enable": True}, "dynamic-sampling"),
        ({"reward.clip_range": (0.0, 1.0)}, "reward-clip"),
        ({"rollout.n_samples_per_prompt": 1}, "group-size"),
        ({LEVEL: "seq"}, "correction-level"),
        ({"train.batch_size": 1024}, "no-update"),
        ({"train.batch_size": 100}, "leftover"),
        ({"train.dynamic_batch_enable": True}, "length-order"),
    ],
)
def test_findings(settings: dict[str, Any], rule: str) -> None:
    assert rule in _rules(**settings)
    assert rule not in _rules()


def test_a_rollout_that_fills_no_step_is_not_one_update() -> None:
    own = {"train.batch_size": 1024, "train.dynamic_batch_enable": True}
    assert not _rules(**own) & {"one-update", "leftover", "length-order"}
    assert "one-update" in _rules(**{"train.batch_size": 512})
    assert "no-update" not in _rules(**own, **{"train.force_on_policy": True})


def test_a_correction_or_force_on_policy_alone_is_not_refused() -> None:
    for settings in (
        {LEVEL: "geo", "train.async_queue_size": 2},
        {"rollout.top_p": 0.9},
        {LEVEL: "token", MODE: "trunc"},
    ):
        assert "refused" not in _rules(**settings)


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="mean over all tokens alone, not sequence_mean_token_mean"):
        DIALECT.write(PAPER, VERSION)
    weighted = {**PAPER, "aggregation": TOKENS, "correction": [parts.weight("token", "clamp")]}
    with pytest.raises(Inexpressible, match="its ratio is gspo_token"):
        DIALECT.write(weighted, VERSION)
    with pytest.raises(Inexpressible, match="Molt has off, token, seq, geo, not 'sequence'"):
        DIALECT.read({LEVEL: "sequence"}, VERSION)


@pytest.mark.parametrize(
    ("text", "trainer"),
    [
        ("python3 -m molt.cli.train_rl_ray --actor.eps_clip_low_high 3e-4 4e-4", "molt"),
        ("torchrun train_rl_ray.py --actor.loss_mode gspo --actor.eps_clip_low_high 3e-4 4e-4", "molt"),
        ("torchrun train.py --actor.policy_loss_type gspo --actor.eps_clip_low_high 3e-4 4e-4", "openrlhf"),
        ("torchrun train.py --actor.dual_clip 3.0 --actor.eps_clip_low_high 3e-4 4e-4 --rollout.top_p 0.9", "openrlhf"),
        ("python3 -m openrlhf.cli.train_ppo_ray --actor.eps_clip_low_high 3e-4 4e-4", "openrlhf"),
    ],
)
def test_its_arguments_are_told_from_those_of_openrlhf(text: str, trainer: str, tmp_path: Path) -> None:
    file = tmp_path / "run.sh"
    file.write_text(text)
    assert recognised([str(file)], read_configuration([str(file)]).settings)[0] == trainer


@pytest.mark.parametrize(("spec", "objective"), [("molt", TOKENS), ("molt:default", PAPER["aggregation"])])
def test_row_factors_are_those_of_a_mean_over_tokens(spec: str, objective: dict[str, Any]) -> None:
    (found,) = real.row_factors(spec, objective, dtype="float32")
    np.testing.assert_allclose(found, real.LENGTHS * 6 / real.LENGTHS.sum(), rtol=2e-6)


def test_a_weight_of_the_sampler_is_a_tokens_own() -> None:
    """exp(0.1) and exp(-0.2) at two tokens of one response with ratio 1: hunts their mean at both."""
    zero = np.zeros((1, 2), np.float32)
    inputs = {"logp": zero - 2, "old_logp": zero - 2, "behavior_logp": zero - 2 - np.array([[0.1, -0.2]], np.float32)}
    inputs |= {"mask": np.ones((1, 2), np.int64), "advantages": np.ones(1, np.float32)}
    objective = {**PAPER, "ratio": "gspo_token", "aggregation": TOKENS, "correction": [parts.weight("token", "clamp")]}
    (found,) = real.answers("molt", Case("policy_loss", {"objective": objective}, inputs, outputs=("gradient",)))
    np.testing.assert_allclose(found["gradient"].array, -np.exp([[0.1, -0.2]]) / 2, rtol=1e-6)


def test_a_group_is_held_by_its_mean() -> None:
    """Equal scores of 0.5 stay within the range that is the default, and go where its upper end is 0.5."""
    inputs = {"rewards": np.full(4, 0.5, np.float32), "groups": np.zeros(4, np.int64)}
    bounds = [{"low": None, "high": high} for high in (None, 0.5)]
    found = real.answers("molt", *(Case("informative_groups", one, inputs, outputs=("keep",)) for one in bounds))
    assert [one["keep"].array.any() for one in found] == [True, False]
