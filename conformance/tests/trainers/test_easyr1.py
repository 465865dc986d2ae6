"""EasyR1: its dialect beside verl's, whose fork it is, its example of GSPO, and its real loss over micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.detection import recognised
from gspo_conformance.lint.rules import findings
from gspo_conformance.lint.spelling import misspelt
from gspo_conformance.target import Case
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.easyr1.dialect import ACTOR, ALGORITHM, BATCH, CAP, DIALECT, GROUP, NEIGHBOURS
from gspo_conformance.trainers.room import choose

from .real import ADVANTAGES, LENGTHS, RATIOS, answers, check_read_again, row_factors, wide

VERSION = "b44b311b"
CLIP = {"kind": "clip", "low": 3e-4, "high": 4e-4, "dual": None}
TOKEN_MEAN = {"mode": "token_mean", "count": "all", "constant": 1.0}
BY_TOKENS = LENGTHS * 6 / LENGTHS.sum()
RECIPE = {**DIALECT.write(PAPER, VERSION), BATCH: 512, ACTOR + "global_batch_size": 128, GROUP: 8}


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """Who counts, the cap and the clamps of the KL term are no choice."""
    plain = {**objective, "aggregation": {**objective["aggregation"], "count": ""}, "log_ratio_cap": None}
    if penalty := objective["penalty"]:
        plain["penalty"] = {**penalty, "log_ratio_clamp": None, "value_clamp": None}
    return plain


def _rules(settings: dict[str, Any]) -> set[str]:
    return {one.rule for one in findings(DIALECT.read(settings, VERSION))}


def test_what_is_written_is_read_again() -> None:
    check_read_again(DIALECT, VERSION, 12, _plain)


def test_the_recipe_is_the_paper_but_for_the_cap() -> None:
    assert DIALECT.read(RECIPE, VERSION).objective == {**PAPER, "log_ratio_cap": CAP}
    assert _rules(RECIPE) == {"micro-batches", "log-ratio-cap"}


def test_its_example_keeps_the_dual_clip() -> None:
    reading = DIALECT.read(DIALECT.gspo(CLIP, VERSION), VERSION)
    assert (reading.objective["ratio"], reading.objective["surrogate"]["dual"]) == ("gspo_token", 3.0)
    assert reading.objective["aggregation"] == PAPER["aggregation"]


def test_gspo_alone_inherits_the_rest() -> None:
    reading = DIALECT.read({ACTOR + "loss_type": "gspo"}, VERSION)
    assert reading.objective["aggregation"] == TOKEN_MEAN
    assert reading.objective["surrogate"] == {"kind": "clip", "low": 0.2, "high": 0.3, "dual": 3.0}
    rules = {one.rule for one in findings(reading)}
    assert {"aggregation", "inherited-clip-range", "dual-clip", "group-size", "kl-in-reward"} <= rules


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({ACTOR + "loss_type": "GSPO"}, "key-ignored"),
        ({ALGORITHM + "use_kl_loss": True}, "key-ignored"),
        ({ALGORITHM + "disable_kl": False}, "kl-in-reward"),
        ({ALGORITHM + "disable_kl": False, ALGORITHM + "use_kl_loss": True}, "penalty"),
        ({ALGORITHM + "adv_estimator": "gae"}, "refused"),
        ({ALGORITHM + "adv_estimator": "reinforce_plus_plus"}, "whitening"),
        ({ALGORITHM + "adv_estimator": "remax"}, "refused"),
        ({ALGORITHM + "adv_estimator": "grpo_passk"}, "advantages"),
        ({ALGORITHM + "adv_estimator": "rloo"}, "baseline"),
        ({ALGORITHM + "online_filtering": True}, "dynamic-sampling"),
        ({"worker.reward.reward_function_kwargs": '{"overlong_penalty_factor":1.0}'}, "overlong-penalty"),
        ({ACTOR + "global_batch_size": 512}, "one-update"),
        ({GROUP: 1}, "group-size"),
    ],
)
def test_findings(settings: dict[str, Any], rule: str) -> None:
    assert rule in _rules({**RECIPE, **settings})
    assert rule not in _rules(RECIPE)


def test_an_adaptive_controller_does_not_reach_the_loss() -> None:
    adaptive = {ALGORITHM + "disable_kl": False, ALGORITHM + "kl_type": "adaptive"}
    assert "key-ignored" not in _rules({**RECIPE, **adaptive})
    assert "key-ignored" in _rules({**RECIPE, **adaptive, ALGORITHM + "use_kl_loss": True})


@pytest.mark.parametrize(
    ("dynamic", "size", "severity"), [(False, 1, "error"), (True, 1, "warning"), (False, 4, "warning")]
)
def test_a_mean_over_micro_batches_of_one_is_a_mean_over_tokens(dynamic: bool, size: int, severity: str) -> None:
    own = {ACTOR + "dynamic_batching": dynamic, ACTOR + "micro_batch_size_per_device_for_update": size}
    found = {one.rule: one.severity for one in DIALECT.read({**RECIPE, **own}, VERSION).findings}
    assert found["micro-batches"] == severity


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="caps the log-ratio at 20"):
        DIALECT.write({**PAPER, "log_ratio_cap": 5.0}, VERSION)
    with pytest.raises(Inexpressible, match="does not aggregate by token_sum"):
        DIALECT.write({**PAPER, "aggregation": {**TOKEN_MEAN, "mode": "token_sum"}}, VERSION)
    with pytest.raises(Inexpressible, match="empty ones too"):
        DIALECT.write({**PAPER, "aggregation": {**PAPER["aggregation"], "count": "non_empty"}}, VERSION)
    with pytest.raises(Inexpressible, match="'full'"):
        DIALECT.read({ALGORITHM + "use_kl_loss": True, ALGORITHM + "kl_penalty": "full"}, VERSION)
    kept = {
        **RECIPE,
        ALGORITHM + "disable_kl": False,
        ALGORITHM + "use_kl_loss": True,
        ALGORITHM + "kl_penalty": "low_var_kl",
    }
    penalty = DIALECT.read(kept, VERSION).objective["penalty"]
    assert (penalty["log_ratio_clamp"], penalty["value_clamp"]) == (20.0, 10.0)


def test_its_files_are_told_from_those_of_verl(tmp_path: Path) -> None:
    """Hunts a fork that is taken for what it began as: half of the sections have the same names."""
    own = {"algorithm.adv_estimator": "grpo", "algorithm.disable_kl": True, "data.rollout_batch_size": 512}
    own |= {"worker.actor.loss_type": "gspo", "worker.actor.clip_ratio_low": 3e-4, "worker.actor.ppo_epochs": 1}
    file = tmp_path / "c.yaml"
    file.write_text("worker:\n  actor:\n    loss_type: gspo\n", encoding="utf-8")
    assert recognised([str(file)], own)[0] == "easyr1"
    assert recognised(["worker.actor.loss_type=gspo"], {})[0] == "easyr1"
    assert recognised(["python3 -m verl.trainer.main config=examples/config.yaml trainer.nnodes=1"], {})[0] == "easyr1"
    assert recognised(["python3 -m verl.trainer.main_ppo actor_rollout_ref.actor.clip_ratio_low=3e-4"], {})[0] == "verl"


@pytest.mark.parametrize("key", NEIGHBOURS)
def test_a_key_of_its_own_is_not_taken_for_a_misspelt_one(key: str) -> None:
    assert not misspelt({key: 1}, DIALECT.read({key: 1}, VERSION))


def test_the_source_is_a_checkout() -> None:
    assert choose("easyr1").version.commit.startswith(VERSION)
    assert choose("easyr1").version.source.endswith("hiyouga/EasyR1")


def test_row_factors_of_the_real_loss() -> None:
    found = row_factors("easyr1", PAPER["aggregation"], TOKEN_MEAN, dtype="float32")
    np.testing.assert_allclose(found, [np.ones(6), BY_TOKENS], rtol=2e-6)


@pytest.mark.parametrize(
    ("size", "expected"), [(6, np.ones(6)), (2, [1.05, 1.05, 0.975, 0.975, 0.975, 0.975]), (1, BY_TOKENS)]
)
def test_a_micro_batch_of_the_real_loss_weighs_by_its_tokens(size: int, expected: Any) -> None:
    reply = answers("easyr1", _step(size))[0]
    paper = -RATIOS * ADVANTAGES / (6 * LENGTHS)
    found = [reply[f"gradient.{i // size}"].array[i % size, 0] / paper[i] for i in range(6)]
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def _step(size: int) -> Case:
    """Six responses in micro-batches of `size`."""
    mask = np.arange(LENGTHS.max()) < LENGTHS[:, None]
    old = np.where(mask, -1.5, 0.0).astype(np.float32)
    logp = np.where(mask, old + np.log(RATIOS)[:, None], 0.0).astype(np.float32)
    whole = {"logp": logp, "old_logp": old, "advantages": ADVANTAGES.astype(np.float32), "mask": mask.astype(np.int64)}
    parts = [{name: value[i : i + size] for name, value in whole.items()} for i in range(0, 6, size)]
    parameters = {"objective": wide(PAPER), "normalizer": 6.0}
    outputs = ("loss", *(f"gradient.{i}" for i in range(len(parts))))
    return Case("step", parameters, {"parts": parts}, "float32", outputs)
