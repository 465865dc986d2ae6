"""What gradients say of ratios and responses that the record has not; constants, gradients and arrays that are others than claimed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gspo_core as gspo
from gspo_conformance.audit import audit_trace
from gspo_conformance.tensors import NumPyArray
from gspo_conformance.trainers.room import find_room

from .test_right_runs import Calls, batch, compute, gradient_of, write

Arrays = dict[str, NumPyArray]
GSPO = gspo.Objective.gspo(gspo.Clip(3e-3, 4e-3))
GRPO = gspo.Objective.grpo(gspo.Clip(0.02, 0.03))
PENALISED = GSPO.replace(penalty=gspo.Penalty("k3", coefficient=0.05))
M = np.float32(10)


def _steps(used: gspo.Objective, given: Callable[[Arrays], Arrays], **options: Any) -> Iterator[Calls]:
    """Three steps of two micro-batches, with losses and gradients of what the loss was `given`."""
    for step in range(3):
        calls: Calls = []
        for at in range(2):
            one = batch(5, 10 * step + at, **options)
            arrays = given(one)
            loss = compute(used, arrays, normalizer=M)[0]
            gradient = 3 * gradient_of(used, arrays, normalizer=M)
            calls.append((one | {"gradient": gradient}, {"loss": loss, "normalizer": 10.0}))
        yield calls


def _as_it_is(one: Arrays) -> Arrays:
    return one


def _error(tmp_path: Path, steps: Iterator[Calls], claimed: gspo.Objective) -> tuple[str, str]:
    """The one error of a run."""
    (error,) = audit_trace(write(tmp_path, list(steps), objective=claimed.to_dict())).errors
    return error.rule, error.message


def _rescored(one: Arrays) -> Arrays:
    noise = 0.01 * np.random.default_rng(int(1e6 * abs(one["logp"][0, 0]))).normal(size=one["logp"].shape)
    return one | {"old_logp": (one["old_logp"] + noise).astype(np.float32)}


@pytest.mark.parametrize("objective", [GSPO, GRPO])
def test_ratios_of_another_old_policy_are_read_off_the_gradients(objective: gspo.Objective, tmp_path: Path) -> None:
    """Hunts "no known deviation" said of a loss that was given another old_logp than the trace has, where the range holds some."""
    rule, message = _error(tmp_path, _steps(objective, _rescored), objective)
    assert rule == "unrecorded-ratio"
    assert "where the recorded log-probabilities give" in message


@pytest.mark.parametrize("normalizer", [10.0, None])
def test_advantages_of_the_rollout_before_are_recognised_one_by_one(normalizer: float | None, tmp_path: Path) -> None:
    """Hunts "none that is recorded" said of shuffled advantages of the rollout before, or under another divisor."""
    steps: list[Calls] = []
    divisor: dict[str, Any] = {} if normalizer is None else {"normalizer": np.float32(normalizer)}
    for rollout in range(3):
        calls: Calls = []
        before = (
            np.concatenate([batch(5, 10 * (rollout - 1) + at)["advantages"] for at in range(2)]) if rollout else None
        )
        for at in range(2):
            one = batch(5, 10 * rollout + at, moved=1e-4)
            used = one if before is None else one | {"advantages": before[[3, 9, 1, 6, 0] if at else [8, 2, 5, 7, 4]]}
            fields = {"loss": compute(GSPO, used, **divisor)[0], "rollout": rollout, "minibatch": 0}
            gradient = gradient_of(GSPO, used, **divisor) / 2
            calls.append((one | {"gradient": gradient}, fields | ({"normalizer": normalizer} if normalizer else {})))
        steps.append(calls)
    found = audit_trace(write(tmp_path, steps, objective=GSPO.to_dict(), micro_batches="sum" if normalizer else "mean"))
    (error,) = found.errors
    assert error.rule == "advantage.batch"
    assert "that responses of the rollout before have" in error.message


def test_a_bound_that_moves_losses_little_is_no_number_of_micro_batches(tmp_path: Path) -> None:
    """Hunts "3.002 times what is claimed: the number of micro-batches" said of weights that are held lower than claimed."""
    claimed, used = _bounded(2.0), _bounded(1.02)
    steps: list[Calls] = []
    for step in range(3):
        calls: Calls = []
        for at in range(3):
            one = batch(6, 10 * step + at, moved=1e-3)
            noise = 0.01 * np.random.default_rng(100 + 10 * step + at).normal(size=one["logp"].shape)
            one["behavior_logp"] = (one["old_logp"] + noise).astype(np.float32)
            calls.append((one, {"loss": _weighted(used, one)}))
        steps.append(calls)
    (error,) = audit_trace(write(tmp_path, steps, objective=claimed.to_dict(), micro_batches="mean")).errors
    assert error.rule == "objective"
    assert "bounded above by 1.02 where 2 is claimed" in error.message


def _bounded(high: float) -> gspo.Objective:
    return GRPO.replace(correction=(gspo.Correction("token", high=high),))


def _weighted(objective: gspo.Objective, one: Arrays) -> float:
    names = ("logp", "old_logp", "advantages", "behavior_logp")
    return float(gspo.policy_loss(objective, **{name: one[name] for name in names}, sequences=one["mask"]).loss)


def _drifted(one: Arrays) -> Arrays:
    """Without responses of a negative advantage that became less likely, as an off-policy mask has it."""
    d = np.where(one["mask"], one["logp"] - one["old_logp"], 0.0).sum(1)
    return one | {"advantages": np.where((one["advantages"] < 0) & (d < 0), np.float32(0), one["advantages"])}


def test_responses_that_are_lost_are_told_from_those_that_the_range_holds(tmp_path: Path) -> None:
    """Hunts "clipped" taken for "in the loss": the gradient of both is 0, and the loss of one is not."""
    rule, message = _error(tmp_path, _steps(GSPO, _drifted), GSPO)
    assert rule == "dropped-response"
    assert "without 11 responses of 25" in message


@pytest.mark.parametrize(("masked", "verdict"), [(True, "agrees"), (False, "differs")])
def test_a_mask_of_responses_that_settings_announce_is_no_error(masked: bool, verdict: str, tmp_path: Path) -> None:
    settings = {"advantage_estimator": "gspo", "eps_clip": 3e-3, "eps_clip_high": 4e-3, "use_opsm": masked}
    trainer = {"name": "slime", "version": "624b824a", "settings": settings}
    assert audit_trace(write(tmp_path, list(_steps(GSPO, _drifted)), trainer=trainer)).verdict == verdict


@pytest.mark.parametrize(
    ("name", "move", "words"),
    [
        ("old_logp", lambda values: values[::-1], "old_logp with its responses in reverse order"),
        ("old_logp", lambda values: np.roll(values, -1, axis=0), "old_logp one response back"),
        ("ref_logp", lambda values: np.roll(values, -1, axis=1), "ref_logp one token back"),
        ("ref_logp", lambda values: np.roll(values, 1, axis=0), "ref_logp one response further"),
    ],
)
def test_arrays_that_were_moved_after_they_were_recorded_are_found(
    name: str, move: Callable[[NumPyArray], NumPyArray], words: str, tmp_path: Path
) -> None:
    rule, message = _error(tmp_path, _steps(PENALISED, lambda one: one | {name: move(one[name])}), PENALISED)
    assert rule == "misaligned-logp"
    assert words in message


def _as_a_reward() -> Iterator[Calls]:
    """The value of k3, and the gradient that it has where the sampled token's probability is differentiated too."""
    scored = PENALISED.replace(penalty=gspo.Penalty("k3", coefficient=0.05, importance="token"))
    for calls in _steps(PENALISED, _as_it_is):
        for arrays, _ in calls:
            at_itself = arrays | {"old_logp": arrays["logp"]}
            slopes = gradient_of(scored, at_itself, normalizer=M) - gradient_of(GSPO, at_itself, normalizer=M)
            arrays["gradient"] = 3 * (gradient_of(GSPO, arrays, normalizer=M) + slopes)
        yield calls


def test_a_kl_term_with_the_gradient_of_a_reward_is_named(tmp_path: Path) -> None:
    rule, message = _error(tmp_path, _as_a_reward(), PENALISED)
    assert rule == "penalty-gradient"
    assert "k3's and the gradient that of k3 and, its value being a reward" in message


def test_a_kl_term_whose_gradient_the_settings_announce_is_no_error(tmp_path: Path) -> None:
    settings = find_room("nemo_rl").dialect.write(PENALISED.to_dict(), "7ea279ab")
    trainer = {"name": "nemo_rl", "version": "7ea279ab", "settings": settings}
    found = audit_trace(write(tmp_path, list(_as_a_reward()), trainer=trainer))
    assert found.verdict == "agrees"
    assert ("penalty-gradient", "warning") in {(one.rule, one.severity) for one in found.findings}


@pytest.mark.parametrize(("name", "verdict"), [("trinity_rft", "agrees"), ("tunix", "differs")])
def test_means_of_micro_batches_are_no_error_where_the_trainer_is_known_for_them(
    name: str, verdict: str, tmp_path: Path
) -> None:
    """Hunts an error on every run of a trainer that averages each micro-batch on its own and says so."""
    dialect = find_room(name).dialect
    objective = gspo.Objective.gspo(gspo.Clip(3e-3, 4e-3)).replace(ratio="gspo_token") if name == "tunix" else GSPO
    settings = dialect.write(objective.to_dict(), dialect.versions[-1])
    steps: list[Calls] = []
    for step in range(3):
        ones = [batch(number, 10 * step + at, moved=1e-4) for at, number in enumerate((2, 5))]
        steps.append([(one | {"gradient": gradient_of(GSPO, one)}, {"loss": compute(GSPO, one)[0]}) for one in ones])
    trainer = {"name": name, "version": dialect.versions[-1], "settings": settings}
    found = audit_trace(write(tmp_path, steps, trainer=trainer))
    assert found.verdict == verdict
    assert "distribution.mean-of-means" in {one.rule for one in found.findings}


SAPO, VESPO = gspo.Objective.sapo(), gspo.Objective.vespo()


@pytest.mark.parametrize(
    ("claimed", "used", "words"),
    [
        (SAPO, gspo.Objective.sapo(gspo.Sapo(1.0, 1.3)), "tau_neg = 1.3 where 1.05 is claimed"),
        (VESPO, gspo.Objective.vespo(gspo.Vespo(k_pos=2.5)), "k_pos = 2.5 where 2 is claimed"),
        (GRPO, gspo.Objective.grpo(gspo.Clip(0.02, 0.03, dual=1.25)), "dual = 1.25 where none is claimed"),
    ],
)
def test_another_constant_of_the_surrogate_is_found(
    claimed: gspo.Objective, used: gspo.Objective, words: str, tmp_path: Path
) -> None:
    rule, message = _error(tmp_path, _steps(used, _as_it_is, moved=0.3), claimed)
    assert rule == "objective"
    assert words in message


def _corrected(action: str, low: float | None) -> gspo.Objective:
    return GRPO.replace(correction=(gspo.Correction("token", action=action, low=low, high=1.02),))


@pytest.mark.parametrize(
    ("claimed", "used", "words"),
    [
        (_corrected("clamp", None), _corrected("mask", 0.97), "weights set to 0 below 0.9"),
        (_corrected("mask", 0.97), _corrected("clamp", None), "weights outside their bounds held at them"),
    ],
)
def test_weights_that_are_set_to_0_where_they_are_to_be_held(
    claimed: gspo.Objective, used: gspo.Objective, words: str, tmp_path: Path
) -> None:
    """Hunts a band of weights, as IcePop has it, in place of truncated ones, and the other way round."""
    steps: list[Calls] = []
    for step in range(4):
        one = batch(8, step)
        noise = 0.02 * np.random.default_rng(100 + step).normal(size=one["logp"].shape)
        one["behavior_logp"] = (one["old_logp"] + noise).astype(np.float32)
        steps.append([(one, {"loss": _weighted(used, one)})])
    rule, message = _error(tmp_path, iter(steps), claimed)
    assert rule == "objective"
    assert words in message


def test_a_variance_that_cancels_in_float32_is_rounding(tmp_path: Path) -> None:
    """Hunts advantages called wrong whose standard deviation is the root of E[r²] - E[r]², as NeMo-RL has it."""
    steps: list[Calls] = []
    for step in range(4):
        rewards = (0.9 + 0.05 * np.random.default_rng(step).normal(size=(3, 4))).astype(np.float32)
        mean = rewards.mean(1, keepdims=True)
        variance = (np.square(rewards).mean(1, keepdims=True) - np.square(mean)) * np.float32(4 / 3)
        made = ((rewards - mean) / (np.sqrt(variance) + np.float32(1e-6))).ravel()
        one = batch(12, step) | {"advantages": made, "rewards": rewards.ravel(), "groups": np.repeat([0, 1, 2], 4)}
        given = {name: values for name, values in one.items() if name not in ("rewards", "groups")}
        steps.append([(one, {"loss": compute(GSPO, given)[0], "rollout": step})])
    claimed = {"objective": GSPO.to_dict(), "group_size": 4, "advantages": {"ddof": 1, "eps": 1e-6}}
    found = audit_trace(write(tmp_path, steps, **claimed))
    assert found.verdict == "agrees"


def test_advantages_added_up_token_by_token_are_rounding(tmp_path: Path) -> None:
    """Hunts a term of 7e-07 "found" in a loss whose float32 sums over 600 equal tokens are rounded alike 600 times."""
    stream = np.random.default_rng(0)
    steps: list[Calls] = []
    for _ in range(3):
        old = -stream.gamma(0.5, 1.0, (3, 600)).astype(np.float32)
        one = {"logp": old.copy(), "old_logp": old, "mask": np.ones((3, 600), bool)}
        one["advantages"] = stream.normal(size=3).astype(np.float32)
        summed = [np.add.accumulate(np.full(600, a, np.float32))[-1] / np.float32(600) for a in one["advantages"]]
        steps.append([(one, {"loss": float(-np.mean(summed, dtype=np.float32))})])
    found = audit_trace(write(tmp_path, steps, objective=GSPO.to_dict()))
    assert found.verdict == "agrees"
