"""Advantages that the loss was handed and that are not those of the rollout its responses are of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import gspo_core as gspo
from gspo_conformance.audit import audit_trace
from gspo_conformance.tensors import NumPyArray

from .test_right_runs import Calls, batch, compute, write

Change = Callable[[list[NumPyArray]], NumPyArray]
RULES: dict[str, Change] = {
    "agrees": lambda rollouts: rollouts[-1],
    "advantage.order": lambda rollouts: np.roll(rollouts[-1], 4),
    "advantage.batch": lambda rollouts: rollouts[-2],
    "advantage.clamped": lambda rollouts: np.clip(rollouts[-1], -1.0, 1.0),
    "advantage.factor": lambda rollouts: 0.5 * rollouts[-1],
    "advantages-differs": lambda rollouts: np.where(np.arange(8) == 2, 7.0, rollouts[-1]),
}


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_what_the_loss_was_handed_is_held_against_the_rollout(rule: str, per_token: bool, tmp_path: Path) -> None:
    """Hunts a rollout with right advantages whose losses get those of others, which nothing but both together shows."""
    stream, rollouts, steps = np.random.default_rng(0), [], list[Calls]()
    for rollout in range(3):
        rewards, groups = stream.normal(size=8).astype(np.float32), np.arange(8) // 4 + 2 * rollout
        rollouts.append(np.asarray(gspo.group_advantages(rewards, groups, ddof=1, eps=1e-6)))
        given = (RULES[rule](rollouts) if rollout else rollouts[0]).astype(np.float32)
        whole = {"rewards": rewards, "groups": groups, "advantages": rollouts[-1].astype(np.float32)}
        for minibatch in range(4):  # Two epochs of two mini-batches.
            rows = slice(4 * (minibatch % 2), 4 * (minibatch % 2) + 4)
            arrays = batch(8, rollout, moved=1e-3 * minibatch)
            arrays = {name: values[rows] for name, values in (arrays | whole | {"advantages": given}).items()}
            loss, _ = compute(gspo.Objective.gspo(), arrays)
            if per_token:
                arrays["advantages"] = np.where(arrays["mask"], arrays["advantages"][:, None], np.float32(0))
            place = {"rollout": rollout, "minibatch": minibatch}
            record = [(whole, {**place, "kind": "rollout"})] if minibatch == 0 else []
            steps.append([*record, (arrays, {"loss": loss, **place, "microbatch": 0})])
    made = {"scale": "std", "ddof": 1, "eps": 1e-6}
    found = audit_trace(write(tmp_path, steps, objective="gspo", advantages=made, group_size=4))
    assert [one.rule for one in found.errors] == ([] if rule == "agrees" else [rule])
    assert rule == "agrees" or "since step 4" in found.errors[0].message


@pytest.mark.parametrize("ddof", [0, 1])
def test_centred_by_group_and_scaled_over_the_rollout_is_named(ddof: int, tmp_path: Path) -> None:
    """Hunts "no known deviation" said of REINFORCE++ with a baseline, whose spread is that of the centred rewards."""
    stream, steps = np.random.default_rng(0), list[Calls]()
    for rollout in range(3):
        rewards, groups = stream.normal(size=16).astype(np.float32), np.arange(16) // 4
        centred = np.asarray(gspo.group_advantages(rewards, groups, scale="none"))
        arrays = batch(16, rollout, moved=0.0) | {"rewards": rewards, "groups": groups}
        arrays["advantages"] = (centred / (centred.std(ddof=ddof) + 1e-6)).astype(np.float32)
        loss, _ = compute(gspo.Objective.gspo(), arrays)
        steps.append([(arrays, {"loss": loss, "rollout": rollout, "minibatch": 0})])
    made = {"scale": "std", "ddof": 1, "eps": 1e-6}
    found = audit_trace(write(tmp_path, steps, objective="gspo", advantages=made, group_size=4))
    assert [one.rule for one in found.errors] == ["advantage.scale"]
    assert f"in the whole rollout (ddof {ddof})" in found.errors[0].message


@pytest.mark.parametrize(
    ("what", "places", "words"),
    [
        ("rewards", 1, "the rewards of other responses: one place further"),
        ("rewards", -1, "the rewards of other responses: one place back"),
        ("groups", 1, "the groups of other responses: one place further"),
    ],
)
def test_advantages_of_the_rewards_or_groups_of_neighbours_are_named(
    what: str, places: int, words: str, tmp_path: Path
) -> None:
    """Hunts "no known deviation" said of rewards that lie one place beside their responses, which changes what groups hold."""
    stream, steps = np.random.default_rng(0), list[Calls]()
    for rollout in range(3):
        right = {"rewards": stream.normal(size=16).astype(np.float32), "groups": np.arange(16) // 4}
        wrong = right | {what: np.roll(right[what], places)}
        arrays = batch(16, rollout, moved=0.0) | right
        arrays["advantages"] = np.asarray(gspo.group_advantages(wrong["rewards"], wrong["groups"], ddof=1, eps=1e-6))
        loss, _ = compute(gspo.Objective.gspo(), arrays)
        steps.append([(arrays, {"loss": loss, "rollout": rollout, "minibatch": 0})])
    made = {"scale": "std", "ddof": 1, "eps": 1e-6}
    (error,) = audit_trace(write(tmp_path, steps, objective="gspo", advantages=made, group_size=4)).errors
    assert error.rule == "advantage.order"
    assert words in error.message


@pytest.mark.parametrize("scale", ["std", "none"])
def test_advantages_of_groups_that_were_shuffled_are_named(scale: str, tmp_path: Path) -> None:
    """Hunts "no known deviation" said of group ids that were not taken through the shuffle of their responses."""
    stream, steps, made = np.random.default_rng(0), list[Calls](), {"scale": scale, "ddof": 1, "eps": 1e-6}
    for rollout in range(3):
        rewards, groups = stream.normal(size=16).astype(np.float32), np.arange(16) // 4
        others = np.roll(groups[[0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15]], rollout)
        arrays = batch(16, rollout, moved=0.0) | {"rewards": rewards, "groups": groups}
        arrays["advantages"] = np.asarray(gspo.group_advantages(rewards, others, **made))
        loss, _ = compute(gspo.Objective.gspo(), arrays)
        steps.append([(arrays, {"loss": loss, "rollout": rollout, "minibatch": 0})])
    (error,) = audit_trace(write(tmp_path, steps, objective="gspo", advantages=made, group_size=4)).errors
    assert error.rule == "advantage.order"
    assert "responses 0, 1, 8, 9 of rollout 0 are one group (counted from 0)" in error.message
