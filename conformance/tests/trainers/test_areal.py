"""AReaL: its dialect in both versions, the configurations that it documents, its real loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_conformance.lint.rules import findings
from gspo_conformance.trainers.areal.dialect import DIALECT, MERGED, WHEEL
from gspo_conformance.trainers.dialect import PAPER, Inexpressible

from .real import LENGTHS, check_read_again, row_factors

EXAMPLE = {
    "gconfig.n_samples": 4,
    "actor.importance_sampling_level": "sequence",
    "actor.eps_clip": 0.4,
    "actor.reward_scaling": 10.0,
    "actor.reward_bias": -0.5,
    "actor.kl_ctl": 0.0,
    "actor.ppo_n_minibatches": 1,
    "actor.recompute_logprob": True,
    "actor.use_decoupled_loss": True,
    "actor.reward_norm.mean_level": "group",
    "actor.reward_norm.std_level": "group",
    "actor.reward_norm.group_size": "${gconfig.n_samples}",
    "actor.adv_norm.mean_level": "batch",
    "actor.adv_norm.std_level": "batch",
}
BOUNDED = {"actor.rejection_sampling.metric": "ratio", "actor.rejection_sampling.upper": 5.0}


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """A weight without a bound is the same whether it would clamp or mask, and above every bound that is finite."""
    bounds = [{**one, "high": None if one["high"] == float("inf") else one["high"]} for one in objective["correction"]]
    free = [{**one, "action": ""} if (one["low"], one["high"]) == (None, None) else one for one in bounds]
    return {**objective, "correction": free}


@pytest.mark.parametrize("version", DIALECT.versions)
def test_what_is_written_is_read_again(version: str) -> None:
    check_read_again(DIALECT, version, 6, _plain)


def test_the_example_of_the_merge() -> None:
    """Its cap drops tokens, its ratio is 1 with one mini-batch, its normalisation is done twice."""
    reading = DIALECT.read({**EXAMPLE, "actor.behav_imp_weight_cap": 5.0}, MERGED)
    # An eps of 1e-5 beside the spread of rewards that are ten times as large.
    assert reading.advantages == {"center": "mean", "scale": "std", "ddof": 1, "eps": pytest.approx(1e-6)}
    assert reading.whiten
    assert reading.objective["correction"][0]["action"] == "mask"
    rules = {one.rule for one in findings(reading)}
    assert {"aggregation", "clip-range", "one-update", "whitening", "decoupled-denominator", "behaviour-cap"} <= rules


def test_the_example_of_the_package() -> None:
    reading = DIALECT.read({**EXAMPLE, **BOUNDED}, WHEEL)
    assert reading.objective["correction"][0]["high"] == 5.0
    assert "filter" in {one.rule for one in findings(reading)}


def test_a_decoupled_loss_of_the_package_has_no_weight_unless_one_is_set() -> None:
    """Hunts the default that changed with #1088: the cap of 5 became none at all."""
    assert not DIALECT.read(EXAMPLE, WHEEL).objective["correction"]
    assert DIALECT.read(EXAMPLE, MERGED).objective["correction"]


def test_a_denominator_that_is_interpolated_is_no_recomputed_policy() -> None:
    told = {
        method: next(one.message for one in findings(DIALECT.read(EXAMPLE | {"actor.prox_logp_method": method}, WHEEL)) if one.rule == "decoupled-denominator")
        for method in ("recompute", "loglinear")
    }  # fmt: skip
    assert "recomputed before the update" in told["recompute"]
    assert "divided by how many versions ago it was sampled" in told["loglinear"]


def test_a_nested_configuration_brings_its_defaults() -> None:
    reading = DIALECT.read({"actor.reward_norm.mean_level": "group"}, WHEEL)
    assert reading.advantages is not None
    assert reading.advantages["scale"] == "batch_std"
    assert "group-size" in {one.rule for one in findings(reading)}
    assert not DIALECT.read({"actor.reward_norm": None}, WHEEL).settings["actor.reward_norm"]


def test_keys_without_the_prefix_of_the_actor() -> None:
    assert DIALECT.read({"eps_clip": 3e-4}, WHEEL).objective["surrogate"]["low"] == 3e-4


def test_the_mean_of_the_paper_cannot_be_written() -> None:
    with pytest.raises(Inexpressible, match="issue 1423"):
        DIALECT.write(PAPER, WHEEL)


@pytest.mark.parametrize("version", DIALECT.versions)
def test_row_factors_of_the_real_loss(version: str) -> None:
    """A response of 11 tokens weighs 1.65 times what the paper gives it, one of 3 tokens 0.45 times."""
    (found,) = row_factors(f"areal@{version}:default", PAPER["aggregation"])
    np.testing.assert_allclose(found, LENGTHS * 6 / LENGTHS.sum(), rtol=1e-12)
