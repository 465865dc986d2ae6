"""Faults with a number in them, or of one response alone, are named with that number and that response."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gspo_core as gspo
from gspo_conformance.audit import audit_trace
from gspo_conformance.audit.differences import Difference, Series
from gspo_conformance.spec_numbers import round_to
from gspo_conformance.tensors import NumPyArray

from .test_right_runs import batch, compute, gradient_of, write

Arrays = dict[str, NumPyArray]
ADVANTAGES = {"ddof": 1, "eps": 1e-6}
GSPO = gspo.Objective.gspo()
PENALTY = GSPO.replace(penalty=gspo.Penalty("k3", coefficient=0.04))
CISPO = gspo.Objective.cispo().replace(aggregation=gspo.Aggregation("token_mean"))
WEAK = GSPO.replace(penalty=gspo.Penalty("k3", coefficient=0.01))


def _clip(high: float, low: float) -> gspo.Objective:
    return gspo.Objective.gspo(gspo.Clip(low, high))


def _rows(arrays: Arrays, rows: Any) -> Arrays:
    return {name: values[rows] for name, values in arrays.items()}


def _rounded(arrays: Arrays) -> Arrays:
    d = np.asarray(round_to(arrays["logp"] - arrays["old_logp"], "bfloat16"), np.float32)
    return arrays | {"logp": d, "old_logp": 0 * d}


def _rounded_old(arrays: Arrays) -> Arrays:
    return arrays | {"old_logp": np.asarray(round_to(arrays["old_logp"], "bfloat16"), np.float32)}


def _longer(arrays: Arrays) -> Arrays:
    n = arrays["mask"].sum(axis=1, keepdims=True)
    d = (arrays["logp"] - arrays["old_logp"]) * (n / (n + 1))
    return arrays | {"logp": d.astype(np.float32), "old_logp": np.zeros(d.shape, np.float32)}


def _behind(arrays: Arrays) -> Arrays:
    return arrays | {"mask": np.maximum.accumulate(arrays["mask"], axis=1)}


def _rounded_ratio(arrays: Arrays) -> Arrays:
    d, mask = np.where(arrays["mask"], arrays["logp"] - arrays["old_logp"], 0), arrays["mask"]
    s = np.exp(d.sum(1, keepdims=True) / mask.sum(1, keepdims=True))
    logp = np.asarray(np.log(np.asarray(round_to(s, "bfloat16"), np.float64)) * np.ones(d.shape), np.float32)
    return arrays | {"logp": logp, "old_logp": 0 * logp}


def _loss(objective: gspo.Objective, arrays: Arrays, change: Callable[[Arrays], Arrays]) -> float:
    return compute(objective, change(arrays), normalizer=np.float32(6))[0]


CASES: dict[str, tuple[gspo.Objective, gspo.Objective, Callable[[Arrays], Arrays], str, str]] = {
    "both": (_clip(4e-3, 3e-3), _clip(1.2e-3, 1.2e-3), lambda a: a, "objective", "ε = 0.0012 on both sides"),
    "high": (_clip(4e-3, 3e-3), _clip(7e-3, 3e-3), lambda a: a, "objective", "ε_high = 0.007 where 0.004 is claimed"),
    "ten times": (GSPO, _clip(4e-3, 3e-3), lambda a: a, "objective", "ε_high = 0.004 where 0.0004 is"),
    "length": (GSPO, GSPO, _longer, "ratio-length", "divided by |y| + 1"),
    "weight": (
        CISPO,
        CISPO.replace(surrogate=gspo.Cispo(0.1, 0.1)),
        lambda a: a,
        "objective",
        "Cispo(low=0.1, high=0.1)",
    ),
    "padding": (GSPO, GSPO, _behind, "padding-counted", "padding behind it too"),
    "rolled": (GSPO, GSPO, lambda a: a | {"mask": np.roll(a["mask"], 1, axis=1)}, "mask.shifted", "place to the right"),
    "dropped": (
        GSPO,
        GSPO,
        lambda a: _rows(a, slice(0, -1)),
        "dropped-response",
        "response 5 of step 0, rank 0, micro-batch 0",
    ),
    "twice": (GSPO, GSPO, lambda a: _rows(a, [0, 1, 2, 2, 3, 4, 5]), "repeated-response", "response 2 of step 0"),
    "rounded": (GSPO, GSPO, _rounded, "low-precision", "log-ratios rounded to bfloat16"),
    "ratio rounded": (GSPO, GSPO, _rounded_ratio, "low-precision", "the ratios rounded to bfloat16"),
    "old rounded": (GSPO, GSPO, _rounded_old, "low-precision", "the old log-probabilities alone rounded to bfloat16"),
    "coefficient": (PENALTY, WEAK, lambda a: a, "penalty", "is 0.01 times the estimator, where 0.04 is claimed"),
    "old": (PENALTY, PENALTY, lambda a: a | {"ref_logp": a["old_logp"]}, "penalty", "of the old policy in place"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_named_with_its_number(name: str, tmp_path: Path) -> None:
    claimed, used, change, rule, words = CASES[name]
    moved = 0.3 if name in ("old", "weight") else 0.01
    steps = [[batch(6, 10 * step + at, moved=moved) for at in range(2)] for step in range(3)]
    calls = [[(one, {"loss": _loss(used, one, change), "normalizer": 6.0}) for one in ones] for ones in steps]
    found = audit_trace(write(tmp_path, calls, objective=claimed.to_dict()))
    assert found.errors[0].rule == rule
    assert words in found.errors[0].message


def test_what_gives_the_loss_and_another_gradient_is_no_explanation(tmp_path: Path) -> None:
    """Hunts `nothing is clipped` of token ratios, whose loss is the same where tokens have hardly moved."""
    calls = [[(batch(6, step, moved=1e-3), {"normalizer": 6.0})] for step in range(4)]
    for ((arrays, fields),) in calls:
        fields["loss"] = compute(gspo.Objective.grpo(), arrays, normalizer=np.float32(6))[0]
        arrays["gradient"] = gradient_of(gspo.Objective.grpo(), arrays)
    found = audit_trace(write(tmp_path, calls, objective="gspo"))
    assert [one.rule for one in found.errors] == ["objective"]
    assert "the loss with grpo()" in found.errors[0].message


def test_losses_that_no_number_divides_alike_are_of_no_other_objective(tmp_path: Path) -> None:
    """Hunts `each micro-batch of a step divided by the same number (8.0003)` of losses that are off by a little each."""
    calls = [[(batch(6, 10 * step + at), {"normalizer": 12.0}) for at in range(2)] for step in range(3)]
    for at, (arrays, fields) in enumerate(one for ones in calls for one in ones):
        right = compute(GSPO, arrays, normalizer=np.float32(12))[0]
        fields["loss"] = right * (1 + 3e-5 * float(np.cos(at)))
    found = audit_trace(write(tmp_path, calls, objective="gspo"))
    assert [one.rule for one in found.errors] == ["loss-differs"]


def test_the_advantages_of_another_batch_are_recognised(tmp_path: Path) -> None:
    steps = [batch(6, step) for step in range(4)]
    before = [steps[0], *steps]
    calls = [
        [(one, {"loss": compute(GSPO, one | {"advantages": other["advantages"]})[0]})]
        for one, other in zip(steps, before, strict=False)
    ]
    found = audit_trace(write(tmp_path, calls, objective="gspo"))
    assert [one.rule for one in found.errors] == ["advantage.batch"]
    assert "since step 1" in found.errors[0].message
    assert "The loss is that of the advantages of the step before" in found.errors[0].message


def test_the_advantages_of_the_call_before_are_recognised_over_the_ends_of_steps(tmp_path: Path) -> None:
    ones = [batch(6, seed) for seed in range(8)]
    calls = []
    for at, (one, other) in enumerate(zip(ones, [ones[0], *ones], strict=False)):
        wrong = one | {"advantages": other["advantages"]}
        loss, _ = compute(GSPO, wrong, normalizer=np.float32(12))
        calls += [[]] if at % 2 == 0 else []
        calls[-1].append((one, {"loss": loss, "normalizer": 12.0}))
    found = audit_trace(write(tmp_path, calls, objective="gspo"))
    assert [one.rule for one in found.errors] == ["advantage.batch"]
    assert "the micro-batch before" in found.errors[0].message


def test_a_loss_scaler_that_overflows_is_no_factor(tmp_path: Path) -> None:
    """Hunts "between 1 and inf times"."""
    calls = []
    for step in range(3):
        arrays = batch(6, step, moved=1e-5)
        gradient, loss = gradient_of(GSPO, arrays), compute(GSPO, arrays)[0]
        with np.errstate(all="ignore"):
            calls.append([(arrays | {"gradient": gradient * np.float32(np.inf if step == 1 else 1)}, {"loss": loss})])
        calls[-1][0][0]["gradient"][~arrays["mask"]] = 0
    found = audit_trace(write(tmp_path, calls, objective="gspo"))
    assert not [one for one in found.findings if "inf times" in one.message]


def test_a_loss_that_is_not_a_number_is_no_multiple_of_another(tmp_path: Path) -> None:
    """Hunts "every loss is nan times what is claimed"."""
    steps = [batch(6, step) for step in range(4)]
    calls = [[(one, {"loss": "nan" if at == 2 else compute(GSPO, one)[0]})] for at, one in enumerate(steps)]
    found = audit_trace(write(tmp_path, calls, objective="gspo"))
    assert [one.rule for one in found.errors] == ["not-finite"]
    assert "since step 2, in 1 of 4" in found.errors[0].message


def test_a_log_probability_that_is_not_a_number_is_located(tmp_path: Path) -> None:
    steps = [batch(6, step) for step in range(3)]
    steps[1]["mask"][4, 1] = True
    calls = [[(one, {"loss": compute(GSPO, one)[0]})] for one in steps]
    steps[1]["logp"][4, 1] = np.nan
    found = audit_trace(write(tmp_path, calls, objective="gspo"))
    assert [one.rule for one in found.errors] == ["not-finite"]
    assert "first at step 1, rank 0, micro-batch 0, response 4" in found.errors[0].message


def test_responses_of_later_epochs_are_no_new_ones(tmp_path: Path) -> None:
    """Hunts "the advantages differ" said of a run that scores `old_logp` anew for every mini-batch."""
    first = batch(6, 0)
    rewards, groups = np.arange(6, dtype=np.float32) ** 2, np.repeat([0, 1], 3)
    first |= {"rewards": rewards, "groups": groups}
    first["advantages"] = np.asarray(gspo.group_advantages(rewards, groups), np.float32)
    calls = []
    for step in range(3):
        arrays = first | {"old_logp": first["old_logp"] + np.float32(0.01 * step)}
        given = {name: arrays[name] for name in ("logp", "old_logp", "advantages", "mask")}
        fields = {"loss": compute(GSPO, given)[0], "rollout": 0, "minibatch": step}
        calls.append([(arrays, fields)])
    found = audit_trace(write(tmp_path, calls, objective="gspo", group_size=3, advantages=ADVANTAGES))
    assert not [one for one in found.errors if "advantage" in one.message]
    assert found.ledger.series["advantages"].compared == 1


@pytest.mark.parametrize("recorded", [True, False])
def test_groups_that_go_on_in_another_micro_batch_tell_the_loss_of_the_step_alone(
    recorded: bool, tmp_path: Path
) -> None:
    """Hunts a difference in each micro-batch of a right union; without ids all responses are one group, as the loss takes them."""
    objective = GSPO.replace(aggregation="group_token_mean")
    groups = np.array([0, 0, 1, 1, 1, 2, 2, 2]) if recorded else np.zeros(8, np.int64)
    calls = []
    for step in range(2):
        whole, parts = batch(8, step), []
        for rows in (slice(0, 4), slice(4, 8)):
            others = np.ones(8, bool)
            others[rows] = False
            mine = whole | {"advantages": np.where(others, 0, whole["advantages"]).astype(np.float32)}
            loss, _ = compute(objective, mine, groups=groups)
            part = _rows(whole, rows) | ({"groups": groups[rows]} if recorded else {})
            parts.append((part, {"loss": loss}))
        calls.append(parts)
    found = audit_trace(write(tmp_path, calls, objective=objective.to_dict(), micro_batches="sum"))
    assert found.verdict == "agrees"
    assert found.compared == 2


def test_advantages_of_each_rank_alone_are_named(tmp_path: Path) -> None:
    rewards, groups = np.array([1, 0, 2, 5, 3, 1, 0, 4], np.float32), np.array([0, 0, 0, 1, 0, 1, 1, 1])
    calls = []
    for step in range(2):
        parts = []
        for rows in (slice(0, 5), slice(5, 8)):
            own = np.asarray(gspo.group_advantages(rewards[rows], groups[rows]), np.float32)
            arrays = _rows(batch(8, step), rows) | {"advantages": own}
            loss, _ = compute(GSPO, arrays, normalizer=np.float32(8))
            arrays |= {"rewards": rewards[rows], "groups": groups[rows]}
            parts.append((arrays, {"loss": loss, "normalizer": 8.0}))
        calls.append(parts)
    found = audit_trace(write(tmp_path, calls, objective="gspo", group_size=4, advantages=ADVANTAGES))
    assert [one.rule for one in found.errors] == ["distribution.local-statistics"]


def test_a_mask_over_segments_that_is_wrong_by_one_place_is_named(tmp_path: Path) -> None:
    """Hunts a mask that is judged in padded arrays alone."""
    calls = []
    for step in range(3):
        whole = batch(6, step)
        whole["mask"][:, :3] = [False, False, True]
        wrong = whole["mask"] | np.roll(whole["mask"], -1, axis=1)
        loss, _ = compute(GSPO, whole | {"mask": wrong})
        ends = [int(row.nonzero()[0].max()) + 1 for row in whole["mask"]]
        names = ("logp", "old_logp", "mask")
        packed = {n: np.concatenate([row[:end] for row, end in zip(whole[n], ends, strict=True)]) for n in names}
        packed |= {"offsets": np.append(0, np.cumsum(ends)), "advantages": whole["advantages"]}
        calls.append([(packed, {"loss": loss})])
    found = audit_trace(write(tmp_path, calls, objective="gspo"))
    assert [one.rule for one in found.errors] == ["token-before-counted"]


@pytest.mark.parametrize("behind", [False, True])
def test_a_mask_that_begins_in_the_prompt_is_seen_where_the_sampler_scored(behind: bool, tmp_path: Path) -> None:
    """Hunts a recorded mask that is wrong itself: the loss under it is right. What is not scored at the end may be the engine's."""
    calls = []
    for step in range(2):
        arrays = batch(6, step)
        arrays["mask"][:, 1:4] = True
        ends = [int(row.nonzero()[0].max()) for row in arrays["mask"]]
        sampled = np.where(arrays["mask"], arrays["old_logp"], np.nan)
        sampled[np.arange(6), ends if behind else 1] = np.nan
        loss, _ = compute(GSPO, arrays)
        calls.append([(arrays | {"behavior_logp": sampled.astype(np.float32)}, {"loss": loss})])
    found = audit_trace(write(tmp_path, calls, objective="gspo"))
    assert [one.rule for one in found.errors] == ([] if behind else ["mask.prompt-counted"])


PLACES: list[tuple[Callable[[int, int, int], bool], str]] = [
    (lambda step, rank, at: rank == 1, ", all at rank 1"),
    (lambda step, rank, at: at == 0, ", all at micro-batch 0"),
    (lambda step, rank, at: step == 1, ", all at step 1"),
    (lambda step, rank, at: step == 1 and rank == 0, ", all at step 1"),
    (lambda step, rank, at: step == 2, ""),
    (lambda step, rank, at: rank == at, ""),
]


@pytest.mark.parametrize(("wrong", "words"), PLACES)
def test_the_one_place_of_all_differences_is_known(wrong: Callable[[int, int, int], bool], words: str) -> None:
    series = Series("loss")
    for step, rank, at in product(range(3), range(2), range(2)):
        series.add(Difference("loss", step, 1.0 + wrong(step, rank, at), 1.0, 0.1, rank, at))
    assert series.only == words


def test_a_fault_of_one_micro_batch_is_told_as_one(tmp_path: Path) -> None:
    """Hunts a fault of one rank or micro-batch told as one of the whole run."""
    steps = [[batch(6, 10 * step + at) for at in range(2)] for step in range(3)]
    calls = [
        [
            (one, {"loss": _loss(GSPO, one, change), "normalizer": 6.0})
            for one, change in zip(ones, (dict, _behind), strict=True)
        ]
        for ones in steps
    ]
    (error,) = audit_trace(write(tmp_path, calls, objective=GSPO.to_dict())).errors
    assert error.rule == "padding-counted"
    assert "since step 0, in 3 of 6 comparisons, all at micro-batch 1 (step loss too)" in error.message


@pytest.mark.parametrize(("factor", "words"), [(100.0, "is 100 times what is due"), (-1.0, "is -1 times what is due")])
def test_a_metric_in_another_unit_or_sign_is_named(factor: float, words: str, tmp_path: Path) -> None:
    """Hunts a percentage that nothing explains."""
    calls = [[(batch(6, step, moved=0.3), {"loss": 0.0})] for step in range(4)]
    for ((arrays, fields),) in calls:
        fields["loss"], metrics = compute(GSPO, arrays)
        fields["metrics"] = {"approx_kl": factor * metrics["approx_kl"]}
    (error,) = audit_trace(write(tmp_path, calls, objective="gspo")).errors
    assert error.rule == "metric-factor"
    assert words in error.message


@pytest.mark.parametrize(
    "claimed", [gspo.Objective.gspo(gspo.Clip(3e-3, 4e-3)), gspo.Objective.grpo(gspo.Clip(3e-3, 4e-3))]
)
def test_tokens_outside_the_range_counted_whatever_the_advantage_are_named(
    claimed: gspo.Objective, tmp_path: Path
) -> None:
    """Hunts a clip fraction of |w - 1| > ε that nothing explains, because responses without a signal are in it too."""
    calls = [[(batch(6, step), {})] for step in range(4)]
    for ((arrays, fields),) in calls:
        arrays["advantages"][:2] = 0
        d, mask = np.where(arrays["mask"], arrays["logp"] - arrays["old_logp"], 0), arrays["mask"]
        s = np.exp(d if claimed.ratio == "token" else d.sum(1, keepdims=True) / mask.sum(1, keepdims=True))
        outside = ((s < 1 - 3e-3) | (s > 1 + 4e-3)) & mask
        fields |= {"loss": compute(claimed, arrays)[0], "metrics": {"clip_fraction": outside.sum() / mask.sum()}}
    (error,) = audit_trace(write(tmp_path, calls, objective=claimed.to_dict())).errors
    assert error.rule == "metrics.clip-two-sided"


def test_a_mask_rolled_around_the_end_of_its_rows_is_not_denied_its_gradients(tmp_path: Path) -> None:
    """Hunts `its gradients are not those recorded` of np.roll, because the mutant of that name does not roll."""
    calls = [[(batch(6, step), {})] for step in range(4)]
    for ((arrays, fields),) in calls:
        arrays["mask"][0] = True
        rolled = arrays | {"mask": np.roll(arrays["mask"], 1, axis=1)}
        fields["loss"], _ = compute(GSPO, rolled)
        arrays["gradient"] = gradient_of(GSPO, rolled)
    error = audit_trace(write(tmp_path, calls, objective="gspo")).errors[0]
    assert error.rule == "mask.shifted"
    assert "its gradients" not in error.message


def test_a_lost_end_is_told_before_a_mask_one_place_to_the_left(tmp_path: Path) -> None:
    """Hunts `one before it is counted` where responses begin at the first place, and no token is before them."""
    calls = [
        [({name: values[:, 1:].copy() if values.ndim > 1 else values for name, values in batch(6, step).items()}, {})]
        for step in range(4)
    ]
    for ((arrays, fields),) in calls:
        counted = arrays["mask"].cumsum(axis=1)
        fields["loss"], _ = compute(GSPO, arrays | {"mask": arrays["mask"] & (counted < counted[:, -1:])})
    error = audit_trace(write(tmp_path, calls, objective=GSPO.to_dict())).errors[0]
    assert error.rule == "mask.eos-dropped"
