"""Settings that a dialect reads and never writes: what the real loss does under them, in the words of an objective or of a finding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_conformance.trainers.dialect import Inexpressible
from gspo_conformance.trainers.room import find_room

RATIOS = np.linspace(0.1, 4.0, 118)


def _read(name: str, version: str = "", **settings: Any) -> Any:
    room = find_room(name)
    return room.dialect.read(settings, version or room.default)


def _rules(name: str, version: str = "", **settings: Any) -> set[str]:
    return {one.rule for one in _read(name, version, **settings).findings}


def _clip(surrogate: dict[str, Any], advantage: float) -> np.ndarray:
    """min(x A, clip(x) A), and for A < 0 at least dual·A."""
    held = np.clip(RATIOS, 1 - surrogate["low"], 1 + surrogate["high"])
    value = np.minimum(RATIOS * advantage, held * advantage)
    dual = surrogate["dual"]
    return value if dual is None or advantage > 0 else np.maximum(value, dual * advantage)


@pytest.mark.parametrize("name", ["trl", "ms_swift", "unsloth", "liger", "stateset_agents"])
@pytest.mark.parametrize("bound", [1.1, 1.3, 2.5])
def test_a_bound_of_every_ratio_inside_the_clip_range_ends_it(name: str, bound: float) -> None:
    """min(x, bound) stands beside clip(x): positive advantages stop at the bound, negative ones at the end of the range."""
    prefix = "objective_overrides." if name == "stateset_agents" else ""
    low, high = ("clip_low", "clip_high") if prefix else ("epsilon" + "_low" * (name == "liger"), "epsilon_high")
    settings = {"loss_type": "grpo"} if not prefix else {}
    settings |= {prefix + low: 0.2, prefix + high: 0.5, prefix + "delta": bound}
    reading = _read(name, **settings)
    for advantage in (1.5, -0.5):
        held = np.minimum(RATIOS, bound)
        real = np.minimum(held * advantage, np.clip(RATIOS, 0.8, 1.5) * advantage)
        np.testing.assert_allclose(_clip(reading.objective["surrogate"], advantage), real, atol=1e-12)
    assert ("bound-inside-range" in {one.rule for one in reading.findings}) == (bound < 1.5)


def test_the_cap_of_art_is_below_both_terms() -> None:
    """The ratio itself is held before it is clipped."""
    cap = {"max_negative_advantage_importance_sampling_weight": 1.3}
    surrogate = _read("art", loss_fn="ppo", epsilon=0.2, epsilon_high=0.5, **cap).objective["surrogate"]
    held = np.minimum(RATIOS, 1.3)
    for advantage in (1.5, -0.5):
        real = np.minimum(held * advantage, np.clip(held, 0.8, 1.5) * advantage)
        np.testing.assert_allclose(_clip(surrogate, advantage), real, atol=1e-12)


@pytest.mark.parametrize("name", ["trl", "liger", "stateset_agents"])
def test_a_dual_clip_inside_the_range_is_not_written(name: str) -> None:
    dialect, version = find_room(name).dialect, find_room(name).default
    objective = dict(dialect.read({}, version).objective)
    objective |= {"surrogate": {"kind": "clip", "low": 0.2, "high": 0.5, "dual": 1.3}, "penalty": None}
    objective |= {"ratio": "sequence", "correction": [], "log_ratio_cap": None}
    with pytest.raises(Inexpressible, match="bounds positive advantages too"):
        dialect.write(objective, version)


ACTOR, ROLLOUT = "actor_rollout_ref.actor.", "algorithm.rollout_correction."


@pytest.mark.parametrize(
    ("version", "mode"), [("0.9.0", "gspo"), ("0.9.0", "sapo"), ("0.9.1", "sapo"), ("0.9.1", "geo_mean")]
)
def test_the_kl_term_of_verl_obeys_the_aggregation_that_the_loss_ignores(version: str, mode: str) -> None:
    keys = {ACTOR + "policy_loss.loss_mode": mode, ACTOR + "use_kl_loss": True}
    objective = _read("verl", version, **keys).objective
    assert objective["aggregation"]["mode"] == "sequence_mean_token_mean"
    assert objective["penalty"]["aggregation"]["mode"] == "token_mean"
    same = _read("verl", version, **keys, **{ACTOR + "loss_agg_mode": "seq-mean-token-mean"}).objective
    assert same["penalty"]["aggregation"] is None


def test_a_straight_through_kl_of_verl_is_not_cut_by_its_clamps() -> None:
    """The value of k3+ is held at 10, its gradient is that of k2 everywhere."""
    penalty = _read("verl", **{ACTOR + "use_kl_loss": True, ACTOR + "kl_loss_type": "low_var_kl+"}).objective["penalty"]
    assert (penalty["estimator"], penalty["log_ratio_clamp"], penalty["value_clamp"]) == ("k3_plus", None, None)


@pytest.mark.parametrize(
    ("kind", "estimator"), [("mse+", "k2"), ("k2+", "k2"), ("kl+", ""), ("abs+", ""), ("full", "")]
)
def test_every_kl_of_verl_is_read_or_refused(kind: str, estimator: str) -> None:
    keys = {ACTOR + "use_kl_loss": True, ACTOR + "kl_loss_type": kind}
    if estimator:
        assert _read("verl", **keys).objective["penalty"]["estimator"] == estimator
    else:
        with pytest.raises(Inexpressible, match="kl_loss_type"):
            _read("verl", **keys)


def test_weights_of_verl_without_a_bound_are_not_computed_and_normalised_ones_are_told() -> None:
    level = {ROLLOUT + "rollout_is": "token"}
    assert not _read("verl", **level, **{ROLLOUT + "rollout_is_threshold": None}).objective["correction"]
    assert "normalised-weights" in _rules("verl", **level, **{ROLLOUT + "rollout_is_batch_normalize": True})
    with pytest.raises(Inexpressible, match="geometric mean of the weights"):
        _read("verl", **level, **{ACTOR + "policy_loss.loss_mode": "geo_mean"})


def test_a_side_of_verls_range_that_is_null_falls_back_on_clip_ratio() -> None:
    keys = {ACTOR + "clip_ratio": 3e-4, ACTOR + "clip_ratio_low": None, ACTOR + "clip_ratio_high": None}
    reading = _read("verl", **keys)
    assert (reading.objective["surrogate"]["low"], reading.objective["surrogate"]["high"]) == (3e-4, 3e-4)
    assert "clip-range-ignored" not in {one.rule for one in reading.findings}
    del keys[ACTOR + "clip_ratio_low"]
    assert "clip-range-ignored" in _rules("verl", **keys)


@pytest.mark.parametrize(("mode", "cap"), [("vanilla", 20.0), ("sapo", 20.0), ("cispo", 20.0), ("gpg", None)])
def test_the_log_ratio_of_a_token_is_capped_by_verl(mode: str, cap: float | None) -> None:
    assert _read("verl", **{ACTOR + "policy_loss.loss_mode": mode}).objective["log_ratio_cap"] == cap


def test_weights_of_ms_swift_act_on_its_kl_term_and_reinforce_pp_divides_by_a_centred_spread() -> None:
    weighted = {"rollout_importance_sampling_mode": "token_truncate"}
    assert "weighted-penalty" in _rules("ms_swift", **weighted)
    assert "weighted-penalty" not in _rules("ms_swift", **weighted, beta=0.0)
    assert "masked-count" in _rules("ms_swift", loss_type="bnpo", off_policy_sequence_mask_delta=0.1)
    assert "centred-spread" in _rules("ms_swift", advantage_estimator="reinforce_plus_plus")
    assert "centred-spread" not in _rules("ms_swift", advantage_estimator="rloo", scale_rewards="batch")


def test_overrides_of_stateset_agents_that_no_objective_has() -> None:
    key = "objective_overrides."
    assert _read("stateset_agents", **{key + "clip": "cispo", key + "is_cap": 0.5}).objective["surrogate"]["high"] == 0
    assert "cispo-bound" in _rules("stateset_agents", **{key + "clip": "cispo", key + "is_cap": 0.5})
    with pytest.raises(Inexpressible, match="max_completion_length"):
        _read("stateset_agents", **{key + "aggregate": "seq_sum_const", key + "max_completion_length": None})
    weighted = {key + "ratio": "sequence_token", key + "kl": "k3_token", key + "kl_coef": 0.1}
    with pytest.raises(Inexpressible, match="weighted by the ratio of GSPO-token"):
        _read("stateset_agents", **weighted, **{key + "kl_bias_correction": True})
