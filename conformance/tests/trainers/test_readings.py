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


def test_a_bound_inside_the_range_of_easydel_ends_it_for_positive_advantages() -> None:
    """Its negative advantages take the larger term, which no clip does, and which is told."""
    reading = _read("easydel", epsilon=0.2, epsilon_high=0.5, delta=1.3)
    real = np.minimum(np.minimum(RATIOS, 1.3), np.clip(RATIOS, 0.8, 1.5))
    np.testing.assert_allclose(_clip(reading.objective["surrogate"], 1.0), real, atol=1e-12)
    assert {"bound-inside-range", "clip-inverted"} <= {one.rule for one in reading.findings}


@pytest.mark.parametrize("name", ["trl", "liger", "stateset_agents", "easydel"])
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
    (free,) = _read("verl", **level, **{ROLLOUT + "rollout_is_threshold": "inf"}).objective["correction"]
    assert free["high"] is None
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


def test_terms_of_ms_swift_that_no_objective_shows() -> None:
    assert "extra-term" in _rules("ms_swift", chord_sft_dataset=["mathematics"])
    assert "extra-term" in _rules("ms_swift", sdar_loss_coef=0.1)
    assert "advantage-weights" in _rules("ms_swift", advantage_reweight="rlsd")
    assert not {"extra-term", "advantage-weights"} & _rules("ms_swift")


PG = {"actor_train.worker_cls": "roll.pipeline.rlvr.actor_pg_worker.ActorPGWorker"}


@pytest.mark.parametrize(
    ("settings", "surrogate"),
    [
        ({}, {"kind": "reinforce", "gate": None}),
        ({"pg_variant": "ppo"}, {"kind": "clip", "low": 0.2, "high": 0.2, "dual": None}),
        ({"pg_variant": "tis"}, {"kind": "cispo", "low": None, "high": 0.0}),
        ({"pg_variant": "tis", "tis_lower_bound": 0.5, "tis_upper_bound": 3.0}, {"kind": "cispo", "low": 0.5, "high": 2.0}),
        ({"pg_variant": "cispo"}, {"kind": "cispo", "low": 0.1, "high": 0.1}),
    ],
)  # fmt: skip
def test_variants_of_roll_that_are_of_this_family_are_read(settings: dict[str, Any], surrogate: dict[str, Any]) -> None:
    """Their workers never read importance_sampling: `seq` was said to be GSPO."""
    given = PG | {f"actor_train.{key}": value for key, value in settings.items()}
    objective = _read("roll", importance_sampling="seq", **given).objective
    assert (objective["ratio"], objective["surrogate"]) == ("token", surrogate)
    assert "key-ignored" in _rules("roll", importance_sampling="seq", **given)
    agents = {"actor_train.worker_cls": "roll.pipeline.agentic.agentic_actor_pg_worker.ActorWorker"}
    assert _read("roll", ratio_type="segment", **(given | agents)).objective["ratio"] == "sequence"


@pytest.mark.parametrize(
    "settings",
    [
        {"pg_variant": "topr"},
        {"pg_variant": "kimi15"},
        {"pg_variant": "cispo", "cispo_use_unified_mask": True},
        {"pg_variant": "tis", "tis_upper_bound": 0.5},
    ],
)
def test_variants_of_roll_that_are_none_of_this_family_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(Inexpressible, match="pg_variant"):
        _read("roll", **PG, **{f"actor_train.{key}": value for key, value in settings.items()})


def test_a_forced_ratio_of_roll_is_told() -> None:
    plain = {"actor_train.worker_cls": "roll.pipeline.rlvr.actor_worker.ActorWorker"}
    assert _read("roll", importance_sampling="seq", **plain).objective["ratio"] == "sequence"
    assert "ratio-forced" in _rules("roll", force_disable_old_logprobs_recompute=True)


def test_overrides_of_stateset_agents_that_no_objective_has() -> None:
    key = "objective_overrides."
    assert _read("stateset_agents", **{key + "clip": "cispo", key + "is_cap": 0.5}).objective["surrogate"]["high"] == 0
    assert "cispo-bound" in _rules("stateset_agents", **{key + "clip": "cispo", key + "is_cap": 0.5})
    with pytest.raises(Inexpressible, match="max_completion_length"):
        _read("stateset_agents", **{key + "aggregate": "seq_sum_const", key + "max_completion_length": None})
    weighted = {key + "ratio": "sequence_token", key + "kl": "k3_token", key + "kl_coef": 0.1}
    with pytest.raises(Inexpressible, match="weighted by the ratio of GSPO-token"):
        _read("stateset_agents", **weighted, **{key + "kl_bias_correction": True})


@pytest.mark.parametrize(
    ("name", "version", "settings"),
    [
        ("roll", "c0c0d2b1", {"adv_estimator": "reinforce", "reward_norm": "batch"}),
        ("roll", "8eb27cc2", {"adv_estimator": "reinforce", "norm_mean_type": "batch", "norm_std_type": "batch"}),
        ("areal", "1.0.4", {"actor.reward_norm.mean_level": "batch"}),
        ("areal", "981e3f68", {"actor.reward_norm.eps": 1e-6}),
    ],
)
def test_a_mean_over_the_batch_is_no_absent_baseline(name: str, version: str, settings: dict[str, Any]) -> None:
    """Rewards of 1 to 12 come out with the mean 0, where they were said to be their own advantages."""
    reading = _read(name, version, **settings)
    assert (reading.advantages, reading.estimator) == (None, "rewards less the mean of the batch")


def test_the_spread_of_areal_is_about_what_it_subtracts() -> None:
    group = {"actor.reward_norm.mean_level": "group", "actor.reward_norm.std_level": "group"}
    assert "spread-about" not in _rules("areal", **group)
    assert "spread-about" in _rules("areal", **group | {"actor.reward_norm.mean_leave1out": True})
    assert "spread-about" in _rules("areal", **group | {"actor.reward_norm.std_level": "batch"})


@pytest.mark.parametrize(
    ("gate", "forms"),
    [
        ({"metric": "kl_k2"}, [("token", "clamp", None, None)]),
        ({"metric": "kl_k1", "level": "sequence"}, [("token", "clamp", None, None)]),
        ({"level": "sequence"}, [("geometric", "mask", None, 5.0)]),
        ({"level": "sequence", "agg": "sum"}, [("geometric", "clamp", None, None), ("sequence", "reject", None, 5.0)]),
        ({"level": "sequence", "agg": "max"}, [("geometric", "clamp", None, None)]),
    ],
)
def test_the_gate_of_areal_is_not_always_the_weight(gate: dict[str, str], forms: list[tuple[Any, ...]]) -> None:
    """A divergence or the largest token drops responses by a number that bounds no weight."""
    keys = {f"actor.rejection_sampling.{key}": value for key, value in gate.items()}
    reading = _read("areal", **keys, **{"actor.use_decoupled_loss": True})
    found = [tuple(one[key] for key in ("level", "action", "low", "high")) for one in reading.objective["correction"]]
    assert found == forms
    told = any(one.key.endswith("rejection_sampling.metric") for one in reading.findings)
    assert told == (gate.get("metric", "ratio") != "ratio" or gate.get("agg") == "max")


def test_one_threshold_of_openrlhf_is_an_upper_bound() -> None:
    key = "algo.advantage.is_correction_"
    (one,) = _read("openrlhf", **{key + "level": "token", key + "threshold": [2.0]}).objective["correction"]
    assert (one["low"], one["high"]) == (None, 2.0)
    assert "centred-only" in _rules("openrlhf", **{"algo.advantage.no_std_norm": True})


@pytest.mark.parametrize(
    "settings",
    [
        {"truncated_importance_sampling_type": "tis", "use_importance_sampling_correction": True},
        {"truncated_importance_sampling_type": "tis", "truncated_importance_sampling_ratio": 2.0},
        {"use_cispo": True, "ratio_clip_c": 3.0},
    ],
)
def test_keys_of_nemo_rl_that_it_refuses_together_are_told(settings: dict[str, Any]) -> None:
    assert "refused" in _rules("nemo_rl", **settings)
    assert "refused" not in _rules("nemo_rl")


def test_what_nemo_rl_weighs_by_and_subtracts() -> None:
    assert "kl-sampler" in _rules("nemo_rl", use_on_policy_kl_approximation=True)
    plain = {"grpo.adv_estimator.name": "reinforce_plus_plus", "grpo.adv_estimator.minus_baseline": False}
    assert _read("nemo_rl", **plain).advantages["center"] == "none"


def test_what_acts_on_a_kl_term_beside_its_coefficient_is_told() -> None:
    assert "kl-clamp" in _rules("unsloth", beta=0.1)
    assert "kl-clamp" not in _rules("unsloth", beta=0.1, use_bias_correction_kl=False)
    weighted = {"use_kl_loss": True, "kl_loss_coef": 0.1, "use_unbiased_kl": True}
    for name in ("slime", "miles"):
        assert "kl-clamp" in _rules(name, **weighted, kl_loss_type="low_var_kl")
        assert "kl-clamp" not in _rules(name, **weighted, kl_loss_type="k3")


@pytest.mark.parametrize("name", ["slime", "miles"])
def test_code_in_the_place_of_the_normalisation_of_rewards_is_told(name: str) -> None:
    assert "custom-code" in _rules(name, custom_reward_post_process_path="mine.rewards.shape")


def test_losses_of_trinity_rft_that_are_scaled_or_masked_or_have_a_term_more() -> None:
    arguments = "algorithm.policy_loss_fn_args."
    assert "loss-scale" in _rules("trinity_rft", **{"algorithm.algorithm_type": "opmd"})
    assert "loss-scale" not in _rules("trinity_rft", **{"algorithm.algorithm_type": "opmd", arguments + "tau": 0.0})
    cispo = {"algorithm.algorithm_type": "cispo"}
    assert "clip-mask" in _rules("trinity_rft", **cispo, **{arguments + "enable_mask_clip": True})
    with pytest.raises(Inexpressible, match="takes numbers"):
        _read("trinity_rft", **cispo, **{arguments + "clip_range_low": None})
    with pytest.raises(Inexpressible, match="regularizer 'k2'"):
        _read("trinity_rft", **{"algorithm.algorithm_type": "rec", arguments + "regularizer": "k2"})


def test_a_range_of_skyrl_that_reaches_below_0_has_no_lower_bound() -> None:
    keys = {"policy_loss_type": "rollout_is", "eps_clip_low": 1.5, "eps_clip_high": 1.0}
    weight = _read("skyrl", **{f"trainer.algorithm.{key}": value for key, value in keys.items()}).objective[
        "correction"
    ]
    assert (weight[0]["low"], weight[0]["high"]) == (0.0, 2.0)


def test_terms_of_trl_that_no_objective_shows() -> None:
    vllm = {"use_vllm": True, "vllm_importance_sampling_mode": "token_truncate"}
    assert _read("trl", **vllm, vllm_importance_sampling_cap=2.0).objective["correction"][0]["high"] == 2.0
    vespo = _read("trl", **vllm, loss_type="vespo", vespo_lambda_neg=0.0)
    assert not vespo.objective["correction"], "the kernel has it"
    assert vespo.objective["surrogate"]["lam_neg"] == 1e-4
    assert "denominator" in {one.rule for one in vespo.findings}
    assert "refused" in _rules("trl", use_vllm=True, loss_type="vespo")
    assert "entropy-bonus" in _rules("trl", entropy_coef=0.01)
    assert "normalised-twice" in _rules("trl", multi_objective_aggregation="normalize_then_sum")
    assert "entropy-mask" in _rules("trl", top_entropy_quantile=0.2)


def test_advantages_of_trinity_rft_that_are_divided_shifted_or_not_from_a_mean() -> None:
    given = "algorithm.advantage_fn_args."
    rec = _read("trinity_rft", **{"algorithm.algorithm_type": "rec", given + "std_normalize": True})
    assert (rec.advantages["scale"], rec.advantages["ddof"]) == ("std", 0)
    opmd = {"algorithm.algorithm_type": "opmd", given + "opmd_baseline": "logavgexp"}
    assert _read("trinity_rft", **opmd).advantages is None
    assert "baseline-shift" in _rules("trinity_rft", **{"algorithm.algorithm_type": "asymre"})
    assert "baseline-shift" not in _rules("trinity_rft", **{"algorithm.algorithm_type": "opmd"})
