"""Of several readings of the same numbers the simplest is told, and what is said is true of the run at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gspo_core as gspo
from gspo_conformance.audit import audit_trace
from gspo_conformance.audit.judgement import Audit
from gspo_conformance.tensors import NumPyArray
from gspo_conformance.trainers.dialect import Finding

from .test_right_runs import Calls, batch, gradient_of, write

Arrays = dict[str, NumPyArray]
GSPO = gspo.Objective.gspo(gspo.Clip(3e-3, 4e-3))
RESPONSES = 6


def recorded(
    folder: Path,
    wrong: Callable[[Arrays, int, int], Arrays],
    *,
    claimed: gspo.Objective = GSPO,
    used: gspo.Objective | None = None,
    factor: Callable[[int, int], float] = lambda step, at: 1.0,
    own: bool = False,
    moved: float = 0.01,
    parts: int = 2,
    gradient: bool = False,
    more: Callable[[Arrays, int, int], Arrays] = lambda arrays, step, at: {},
    **run: Any,
) -> Audit:
    """The audit of five steps whose losses are of `wrong` arrays, under the objective `used`, times a factor; `own` where a micro-batch
    divides by its own count though the step's is recorded.
    """
    used, steps = used or claimed, []
    for step in range(5):
        calls: Calls = []
        for at in range(parts):
            arrays = batch(RESPONSES, 10 * step + at, moved=moved)
            arrays |= more(arrays, step, at)
            given = wrong(dict(arrays), step, at)
            total = float(RESPONSES * parts)
            divided = {} if own else {"normalizer": np.float32(total)}
            loss = _loss(used, given, **divided)
            if gradient:
                arrays["gradient"] = np.float32(factor(step, at)) * gradient_of(used, given, **divided)
            calls.append((arrays, {"loss": loss * factor(step, at), "normalizer": total}))
        steps.append(calls)
    return audit_trace(write(folder, steps, objective=claimed.to_dict(), **run))


def _loss(objective: gspo.Objective, given: Arrays, **more: Any) -> float:
    names = ("logp", "old_logp", "advantages", "groups")
    names += ("behavior_logp",) if objective.correction else ()
    arrays = {name: given[name] for name in names if name in given}
    return float(gspo.policy_loss(objective, **arrays, sequences=given["mask"], **more).loss)


def error(found: Audit) -> Finding:
    """The one error."""
    (one,) = found.errors
    return one


def as_it_is(arrays: Arrays, step: int, at: int) -> Arrays:
    """No fault in the arrays."""
    return arrays


@pytest.mark.parametrize(
    ("preset", "moved", "words"),
    [("gspo", 0.01, "nothing is clipped in the 9"), ("gspo", 0.5, "33 % of the tokens"), ("grpo", 0.2, "12 % of the")],
)
def test_a_default_range_that_clips_is_not_said_to_clip_nothing(
    preset: str, moved: float, words: str, tmp_path: Path
) -> None:
    """Hunts "nothing is clipped" of a run with GRPO's 0.2 in which it clips."""
    make = getattr(gspo.Objective, preset)
    used, claimed = make(gspo.Clip(0.2, 0.2)), make(gspo.Clip(0.1, 0.1) if preset == "grpo" else gspo.Clip(3e-3, 4e-3))
    told = error(recorded(tmp_path, as_it_is, claimed=claimed, used=used, moved=moved))
    assert told.rule == "clip.default-range"
    assert f"in place of the one asked for: {words}" in told.message
    assert ("never fires" in told.consequence) is ("nothing" in words)


PLACES: list[tuple[Callable[[int, int], bool], float, str]] = [
    (lambda step, at: (step, at) == (2, 1), 2.0, "This one loss is 2 times what is claimed"),
    (lambda step, at: at == 1, 2.0, "Every loss that differs is 2 times what is claimed"),
    (lambda step, at: step == 2, 1.7, "Every loss that differs is 1.7 times what is claimed"),
]


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(("wrong", "factor", "words"), PLACES)
def test_a_factor_where_others_are_right_is_no_setting_of_the_run(
    wrong: Callable[[int, int], bool], factor: float, words: str, gradient: bool, tmp_path: Path
) -> None:
    """Hunts `normalizer-ignored` of twice one loss, nothing of 1.7 times, and gradients told apart from the losses they are of."""

    def times(step: int, at: int) -> float:
        return factor if wrong(step, at) else 1.0

    told = error(recorded(tmp_path, as_it_is, factor=times, gradient=gradient))
    assert told.rule == "factor"
    assert f"{words}, where others are right" in told.message


def test_a_normalizer_that_is_ignored_from_a_step_on_is_still_named(tmp_path: Path) -> None:
    """Hunts `factor` of a fault of the whole run that began with its third step."""
    told = error(recorded(tmp_path, as_it_is, factor=lambda step, at: 1.0 + (step > 1)))
    assert told.rule == "aggregation.normalizer-ignored"


STILL: list[tuple[float | None, str, tuple[str, str]]] = [
    (0.0, "", ("note", "the learning rate is 0, and no step before them moves the policy")),
    (
        None,
        "",
        ("error", "the detached new policy [ratio.always-one], or no step moves the policy (a learning rate of 0)"),
    ),
    (1e-6, "", ("error", "or no step moves the policy, though the learning rate is 1e-06")),
    (
        None,
        "kept",
        ("warning", "no step moves the policy: old_logp is kept, and logp of the same responses is what it was"),
    ),
    (1e-6, "kept", ("error", "no step moves the policy, though the learning rate is 1e-06: old_logp is kept")),
    (1e-6, "rescored", ("error", "another one whenever the same responses come again")),
]


@pytest.mark.parametrize(("rate", "again", "said"), STILL)
def test_ratios_of_1_are_no_fault_where_nothing_moves_the_policy(
    rate: float | None, again: str, said: tuple[str, str], tmp_path: Path
) -> None:
    """Hunts `frozen-ratio` of a warm-up, and one reading told where the trace decides, or two where it does not."""
    steps: list[Calls] = []
    for step in range(6):
        rollout, minibatch = divmod(step, 3)
        arrays = batch(8, 10 * rollout if again else step) | {"rewards": np.ones(8, np.float32)}
        arrays["logp"] = arrays["old_logp"] = arrays["old_logp"] - np.float32(0.01 * minibatch * (again == "rescored"))
        arrays |= {"behavior_logp": arrays["ref_logp"]} if again else {}
        metrics = {} if rate is None else {"learning_rate": rate}
        fields = {"loss": _loss(GSPO, arrays), "rollout": rollout, "minibatch": minibatch, "metrics": metrics}
        steps.append([(arrays, fields)])
    found = audit_trace(write(tmp_path, steps, objective=GSPO.to_dict()))
    (told,) = [one for one in found.findings if "ratio is exactly 1" in one.message]
    assert (told.rule, told.severity) == ("frozen-ratio", said[0])
    assert said[1] in told.message
    assert not [reason for reason in found.ledger.missing if "learning_rate" in reason]


def _sampled(arrays: Arrays, step: int, at: int) -> Arrays:
    noise = np.random.default_rng(100 * step + at).normal(size=arrays["logp"].shape)
    return {"behavior_logp": np.minimum(arrays["old_logp"] + 0.02 * noise, 0).astype(np.float32)}


MASKED = GSPO.replace(correction=(gspo.Correction("token", action="mask", low=0.5, high=2.0),))


def test_a_correction_that_no_weight_tells_from_none_is_called_ignored(tmp_path: Path) -> None:
    """Hunts `mask-unweighted` of a loop without any correction, whose band holds every weight."""
    told = error(recorded(tmp_path, as_it_is, claimed=MASKED, used=GSPO, more=_sampled))
    assert told.rule == "correction.ignored"
    assert "the same as correction.mask-unweighted" in told.message


def test_a_token_mean_is_told_before_one_of_each_group(tmp_path: Path) -> None:
    """Hunts `by-group` of a token mean over a batch of one group, because its normaliser is nearer the responses."""
    used = GSPO.replace(aggregation="token_mean")
    told = error(recorded(tmp_path, as_it_is, used=used, own=True, parts=1))
    assert told.rule == "aggregation.token-mean"
    assert "the same as aggregation.by-group" in told.message


def test_advantages_that_were_recorded_in_fewer_bits_are_the_right_ones(tmp_path: Path) -> None:
    """Hunts wrong advantages, and `ratio.logarithm` of losses that are 0, in a right run whose advantages were written in float16."""
    stream, steps = np.random.default_rng(0), list[Calls]()
    for rollout in range(3):
        rewards, groups = stream.normal(size=12).astype(np.float32), np.arange(12) // 4
        right = np.asarray(gspo.group_advantages(rewards, groups, ddof=1, eps=1e-6), np.float32)
        arrays = batch(12, rollout, moved=0.0) | {"rewards": rewards, "groups": groups, "advantages": right}
        fields = {"loss": _loss(GSPO, arrays), "rollout": rollout, "minibatch": 0}
        steps.append([(arrays | {"advantages": right.astype(np.float16)}, fields)])
    made = {"scale": "std", "ddof": 1, "eps": 1e-6}
    told = error(audit_trace(write(tmp_path, steps, objective=GSPO.to_dict(), advantages=made, group_size=4)))
    assert told.rule == "coarse-record"
    assert "float16, in which advantages were recorded" in told.message


def _without_last(arrays: Arrays) -> Arrays:
    counted = arrays["mask"].cumsum(axis=1)
    return arrays | {"mask": arrays["mask"] & (counted < counted[:, -1:])}


def _two_faults(arrays: Arrays, step: int, at: int) -> Arrays:
    rounded = arrays["advantages"].astype(np.float16).astype(np.float32)
    return _without_last(arrays) | {"advantages": rounded}


def _two_units(arrays: Arrays, step: int, at: int) -> Arrays:
    return arrays | {"advantages": (-2 * arrays["advantages"]).astype(np.float16).astype(np.float32)}


def _noise(arrays: Arrays, step: int, at: int) -> Arrays:
    noise = np.random.default_rng(step + 10 * at).normal(size=RESPONSES)
    return arrays | {"advantages": (arrays["advantages"] + 0.3 * noise).astype(np.float32)}


LIKE: list[tuple[Callable[[Arrays, int, int], Arrays], str]] = [
    (_two_faults, "; they resemble mask.eos-dropped, which makes up for"),
    (_two_units, "; they resemble -2 times what is claimed, which makes up for"),
    (_noise, ""),
]


@pytest.mark.parametrize(("wrong", "words"), LIKE)
def test_of_two_faults_the_larger_is_what_a_loss_resembles(
    wrong: Callable[[Arrays, int, int], Arrays], words: str, tmp_path: Path
) -> None:
    """Hunts silence on a fault that makes up for nearly everything; chance resembles nothing, and nothing is called what it resembles."""
    told = error(recorded(tmp_path, wrong))
    assert told.rule == "loss-differs"
    assert told.consequence.partition("no known deviation gives these numbers")[2].startswith(words)
    assert words or "resemble" not in told.consequence
    assert "gives this" not in told.message
