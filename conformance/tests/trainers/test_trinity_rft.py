"""Trinity-RFT: its dialect, which of two keys aggregates, its real loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.detection import recognised
from gspo_conformance.lint.rules import findings
from gspo_conformance.target import Case
from gspo_conformance.trainers.dialect import PAPER, Inexpressible
from gspo_conformance.trainers.trinity_rft.dialect import ARGUMENTS, DIALECT

from . import real

VERSION = "0.6.0"
GSPO, MODE, RANGE = {"algorithm.algorithm_type": "gspo"}, "algorithm.loss_agg_mode", {ARGUMENTS + "clip_range": 0.2}
OWN = ARGUMENTS + "loss_agg_mode"
WEIGHTS = "algorithm.rollout_correction."
RECIPE = {
    **GSPO,
    MODE: "seq-mean-token-mean",
    "algorithm.kl_loss_fn": "none",
    "algorithm.repeat_times": 8,
    "algorithm.bypass_old_logprobs": False,
    "buffer.batch_size": 64,
    "buffer.train_batch_size": 128,
    "synchronizer.trainer_sync_interval": 4,
}
TOKEN_MEAN, PAPERS = "token_mean", "sequence_mean_token_mean"


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """GSPO is read in its token form; who counts is not a choice, nor is the clamp; a KL term of coefficient 0 is none."""
    ratio = (
        "gspo_token"
        if objective["surrogate"]["kind"] == "clip" and objective["ratio"] == "sequence"
        else objective["ratio"]
    )
    kept = objective["penalty"] if real.has_penalty(objective) else None
    aggregation = {**objective["aggregation"], "count": ""}
    return {**objective, "ratio": ratio, "penalty": kept, "aggregation": aggregation, "log_ratio_cap": None}


def test_what_is_written_is_read_again() -> None:
    real.check_read_again(DIALECT, VERSION, 50, _plain)


def test_the_recipe_is_the_papers_in_its_token_form() -> None:
    reading = DIALECT.read(RECIPE, VERSION)
    assert reading.objective == {**PAPER, "ratio": "gspo_token"}
    assert reading.updates_per_rollout == 4
    assert {(one.rule, one.severity) for one in findings(reading)} == {("micro-batches-add", "note")}


@pytest.mark.parametrize(
    ("settings", "mode", "ignored"),
    [
        ({}, TOKEN_MEAN, None),
        (RANGE, PAPERS, None),
        ({**RANGE, OWN: "seq-mean-token-mean"}, TOKEN_MEAN, OWN),
        ({MODE: "seq-mean-token-mean"}, PAPERS, None),
        ({**RANGE, OWN: "token-mean", MODE: "seq-mean-token-mean"}, PAPERS, OWN),
        ({**RANGE, MODE: "seq-mean-token-sum"}, PAPERS, MODE),
    ],
)
def test_two_keys_aggregate(settings: dict[str, Any], mode: str, ignored: str | None) -> None:
    """What `AlgorithmConfigValidator` makes of them; the key that is without effect is told."""
    reading = DIALECT.read({**GSPO, **settings}, VERSION)
    assert reading.objective["aggregation"]["mode"] == mode
    assert [one.key for one in reading.findings if one.rule == "key-ignored"] == ([ignored] if ignored else [])


def test_the_kl_term_keeps_the_other_aggregation() -> None:
    penalty = DIALECT.read({**GSPO, **RANGE}, VERSION).objective["penalty"]
    assert (penalty["estimator"], penalty["coefficient"], penalty["aggregation"]["mode"]) == ("k2", 0.001, TOKEN_MEAN)
    assert DIALECT.read(GSPO, VERSION).objective["penalty"]["aggregation"] is None


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"algorithm.repeat_times": 1}, "group-size"),
        ({OWN: "seq-mean-token-mean"}, "refused"),
        ({"algorithm.kl_penalty_fn": "k1"}, "kl-ignored"),
        ({"algorithm.kl_loss_fn": None}, "penalty"),
        ({"algorithm.bypass_old_logprobs": True}, "old-policy"),
        ({WEIGHTS + "rollout_is": "token"}, "key-ignored"),
        ({WEIGHTS + "rollout_is": None, WEIGHTS + "rollout_rs": "token_k1"}, "key-ignored"),
        ({"algorithm.advantage_fn_args.rank_penalty": 0.1}, "rank-penalty"),
        ({"algorithm.advantage_fn_args.std_threshold": 0.0001}, "dynamic-sampling"),
        ({"algorithm.advantage_fn_args.std_cal_level": "batch"}, "scale"),
        ({"algorithm.entropy_loss_fn_args.entropy_coef": 0.01}, "entropy-bonus"),
        ({"algorithm.policy_loss_fn": "ppo", **RANGE, ARGUMENTS + "enable_sequence_masking": True}, "sequence-mask"),
        ({"algorithm.policy_loss_fn": "sapo"}, "gate-value"),
        ({"buffer.train_batch_size": None, "synchronizer.trainer_sync_interval": None}, "one-update"),
        ({"synchronizer.trainer_sync_interval": None}, "backlog"),
        ({"buffer.train_batch_size": 512}, "backlog"),
    ],
)
def test_findings(settings: dict[str, Any], rule: str) -> None:
    assert rule not in {one.rule for one in findings(DIALECT.read(RECIPE, VERSION))}
    assert rule in {one.rule for one in findings(DIALECT.read({**RECIPE, **settings}, VERSION))}


def test_an_interval_of_synchronisations_makes_the_ratio_real() -> None:
    assert DIALECT.read(GSPO, VERSION).updates_per_rollout == 1
    assert DIALECT.read({**GSPO, "synchronizer.sync_interval": 4}, VERSION).updates_per_rollout == 4
    assert DIALECT.read({**GSPO, "synchronizer.sync_offset": 1}, VERSION).updates_per_rollout is None


def test_a_part_of_the_responses_per_step_is_a_backlog_unless_the_trainer_synchronises_less() -> None:
    """Hunts updates counted from the sizes alone: at one interval for both sides the weights are handed over after every step."""
    alone = {key: value for key, value in RECIPE.items() if "sync_interval" not in key}
    reading = DIALECT.read(alone, VERSION)
    assert reading.updates_per_rollout is None
    (found,) = (one for one in reading.findings if one.rule == "backlog")
    assert "makes 512 responses and the trainer takes 128" in found.message
    assert found.fix == "synchronizer.trainer_sync_interval: 4"
    assert DIALECT.read({**alone, "synchronizer.sync_interval": 4}, VERSION).updates_per_rollout is None


def test_what_it_cannot_express() -> None:
    with pytest.raises(Inexpressible, match="counting non_empty"):
        DIALECT.write({**PAPER, "aggregation": {**PAPER["aggregation"], "count": "non_empty"}}, VERSION)
    with pytest.raises(Inexpressible, match="no correction weights"):
        DIALECT.write({**PAPER, "correction": [{}]}, VERSION)
    with pytest.raises(Inexpressible, match="not of this family"):
        DIALECT.read({"algorithm.algorithm_type": "sft"}, VERSION)
    with pytest.raises(Inexpressible, match=r"kl_loss_fn 'mine\.Kl'"):
        DIALECT.read({**GSPO, "algorithm.kl_loss_fn": "mine.Kl"}, VERSION)


def test_arguments_that_are_null_are_not_given() -> None:
    """Hunts an alarm about keys that the trainer has, and arguments that would replace all others."""
    null = {f"algorithm.{name}_args": None for name in ("policy_loss_fn", "advantage_fn", "kl_loss_fn")}
    reading = DIALECT.read({**GSPO, **null}, VERSION)
    assert reading.given >= null.keys()
    assert reading.objective == DIALECT.read(GSPO, VERSION).objective


def test_its_configurations_are_recognised() -> None:
    assert recognised(["  algorithm_type: gspo"], GSPO)[0] == "trinity_rft"
    assert recognised([], RECIPE)[0] == "trinity_rft"


def test_row_factors_of_the_real_loss() -> None:
    modes = (PAPERS, TOKEN_MEAN, "sequence_mean_token_sum")
    found = real.row_factors("trinity_rft", *({"mode": mode, "count": "all", "constant": 1.0} for mode in modes))
    np.testing.assert_allclose(found, [np.ones(6), real.LENGTHS * 6 / real.LENGTHS.sum(), real.LENGTHS], rtol=1e-8)


def test_the_gradient_of_the_default_is_that_of_a_token_mean_unless_a_range_is_given() -> None:
    """The same key twice: with the paper's range no argument is given, and the aggregation is another."""
    old = np.full((2, 4), -1.5)
    mask = np.array([[1, 1, 1, 1], [1, 0, 0, 0]])
    inputs = {"logp": old, "old_logp": old, "advantages": np.array([1.0, -1.0]), "mask": mask}
    wide = real.wide(PAPER)
    cases = [Case("policy_loss", {"objective": one}, inputs, "float64", ("loss", "gradient")) for one in (PAPER, wide)]
    papers, ranged = (one["gradient"].array for one in real.answers("trinity_rft:default", *cases))
    np.testing.assert_allclose(papers[:, 0], [-1 / 5, 1 / 5], rtol=1e-8)
    np.testing.assert_allclose(ranged[:, 0], [-1 / 8, 1 / 2], rtol=1e-8)


def test_micro_batches_add() -> None:
    """The number of the facts: hunts a step that grows with the number of its micro-batches."""
    old = np.full((1, 2), -1.5)
    part = {"logp": old, "old_logp": old, "advantages": np.ones(1), "mask": np.ones((1, 2), np.int64)}
    outputs = ("loss", *(f"gradient.{i}" for i in range(5)))
    case = Case("step", {"objective": PAPER, "normalizer": 5.0}, {"parts": [part] * 5}, "float64", outputs)
    (found,) = real.answers("trinity_rft", case)
    np.testing.assert_allclose(found["loss"].array, -5.0, rtol=1e-7)
    np.testing.assert_allclose(found["gradient.4"].array, 5 * np.full((1, 2), -1 / 10), rtol=1e-7)
