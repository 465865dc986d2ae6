"""Faults that have a number, and arrays of the wrong kind, are named with the number and the array."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import gspo_core as gspo
from gspo_conformance.audit import audit_trace

from .test_readings import GSPO, Arrays, as_it_is, error, recorded
from .test_right_runs import Calls, batch, compute, write


def _sampled(spread: float) -> Callable[[Arrays, int, int], Arrays]:
    """What the sampler says of the tokens."""

    def more(arrays: Arrays, step: int, at: int) -> Arrays:
        noise = np.random.default_rng(100 * step + at).normal(size=arrays["logp"].shape)
        return {"behavior_logp": np.minimum(arrays["old_logp"] + spread * noise, 0).astype(np.float32)}

    return more


def _rewarded(change: Callable[..., object]) -> Callable[[Arrays, int, int], Arrays]:
    """Other advantages, of the recorded ones and of |y|."""

    def wrong(arrays: Arrays, step: int, at: int) -> Arrays:
        made = change(arrays["advantages"], arrays["mask"].sum(axis=1))
        return arrays | {"advantages": np.asarray(made, np.float32)}

    return wrong


def _clamped(low: float, high: float) -> Callable[[Arrays, int, int], Arrays]:
    """Log-ratios of tokens inside bounds."""

    def wrong(arrays: Arrays, step: int, at: int) -> Arrays:
        d = np.clip(arrays["logp"] - arrays["old_logp"], low, high)
        return arrays | {"logp": arrays["old_logp"] + d}

    return wrong


def _smaller(arrays: Arrays, step: int, at: int) -> Arrays:
    return arrays | {"old_logp": np.minimum(arrays["old_logp"], arrays["behavior_logp"])}


def _sampler(arrays: Arrays, step: int, at: int) -> Arrays:
    """The sampler in the denominator, and π_old / μ the weight it is."""
    sampler = arrays["behavior_logp"]
    return arrays | {"old_logp": sampler, "behavior_logp": 2 * sampler - arrays["old_logp"]}


def _flipped(arrays: Arrays, step: int, at: int) -> Arrays:
    return arrays | {"mask": arrays["mask"][:, ::-1]}


def _ended(arrays: Arrays, step: int, at: int) -> Arrays:
    width, lengths = arrays["mask"].shape[1], arrays["mask"].sum(axis=1)
    return arrays | {"mask": np.arange(width) >= (width - lengths)[:, None]}


def _capped(high: float, action: str = "clamp") -> gspo.Objective:
    return GSPO.replace(correction=(gspo.Correction("token", high=high, action=action),))


CASES: dict[str, tuple[Callable[[Arrays, int, int], Arrays], str, str]] = {
    "over |y|": (_rewarded(lambda a, n: a / n), "advantage.length", "the recorded advantages over |y| of"),
    "discounted": (_rewarded(lambda a, n: a * 0.99**n), "advantage.length", "advantages times 0.99^|y|"),
    "discounted less": (_rewarded(lambda a, n: a * 0.97 ** (n - 1)), "advantage.length", "times 0.97^(|y| - 1)"),
    "float16": (_rewarded(lambda a, n: a.astype(np.float16)), "low-precision", "advantages, rounded to float16"),
    "held": (_rewarded(lambda a, n: np.clip(a, -1.3, 1.3)), "advantage.clamped", "clamped to ±1.3"),
    "clamp": (_clamped(-0.005, 0.005), "ratio-clamped", "of every token is clamped to ±0.005"),
    "cap": (_clamped(-9.0, 0.008), "ratio-clamped", "of every token is held at 0.008"),
    "smaller": (_smaller, "sampler-as-old", "the smaller of old_logp and behavior_logp"),
    "flipped": (_flipped, "mask-flipped", "rows read from their other end"),
    "ended": (_ended, "mask-flipped", "counted at the end of its row"),
}


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_fault_of_an_array_is_named_with_its_number(name: str, gradient: bool, tmp_path: Path) -> None:
    """Hunts "no known deviation gives these numbers"."""
    wrong, rule, words = CASES[name]
    found = recorded(tmp_path, wrong, gradient=gradient, more=_sampled(0.02))
    told = found.errors[0]
    assert told.rule == rule
    assert words in told.message


CAPS = [(2.0, 1.87, "clamp"), (2.0, 1.01, "clamp"), (1.2, 1.212, "clamp"), (2.0, 1.4, "mask"), (1.2, 1.212, "mask")]


@pytest.mark.parametrize(("claimed", "used", "action"), CAPS)
def test_the_cap_of_a_correction_is_found(claimed: float, used: float, action: str, tmp_path: Path) -> None:
    """Hunts a cap that is off by little and is named only where it is a round number."""
    found = recorded(
        tmp_path, as_it_is, claimed=_capped(claimed, action), used=_capped(used, action), more=_sampled(0.3)
    )
    told = error(found)
    assert told.rule == "objective"
    assert f"where {claimed:g} is claimed" in told.message
    number = float(told.message.partition("bounded above by ")[2].split()[0])
    assert number == pytest.approx(used, rel=0.02 if action == "mask" else 1e-3)


def test_the_sampler_in_the_ratio_of_a_loss_that_corrects_for_it_is_named(tmp_path: Path) -> None:
    told = error(recorded(tmp_path, _sampler, claimed=_capped(2.0), more=_sampled(0.02)))
    assert told.rule == "sampler-as-old"
    assert "the weights of the correction are in the loss as well" in told.message


@pytest.mark.parametrize("unit", ["step", "micro-batch"])
def test_metrics_of_the_call_before_are_told_once(unit: str, tmp_path: Path) -> None:
    """Hunts nine findings that say nothing, of a logger that lies one step behind."""
    steps: list[Calls] = []
    before: dict[int, dict[str, float]] = {}
    for step in range(5):
        calls: Calls = []
        for at in range(2):
            arrays = batch(6, 10 * step + at)
            loss, metrics = compute(GSPO, arrays, normalizer=np.float32(12))
            key = at if unit == "step" else 0
            calls.append((arrays, {"loss": loss, "normalizer": 12.0, "metrics": before.get(key, metrics)}))
            before[key] = metrics
        steps.append(calls)
    told = error(audit_trace(write(tmp_path, steps, objective=GSPO.to_dict())))
    assert told.rule == "metric-of-before"
    assert f"It is that of the {unit} before" in told.message
    assert "and 5 more too" in told.message


MADE: dict[str, tuple[Callable[..., object], str, str]] = {
    "over |y|": (lambda a, n: a / n, "advantage.length", "the right advantages over |y| of their response"),
    "over √|y|": (lambda a, n: a / n**0.5, "advantage.length", "the right advantages over |y|^0.5 of"),
    "discounted": (lambda a, n: a * 0.9 ** (n - 1), "advantage.length", "advantages times 0.9^(|y| - 1)"),
    "float16": (lambda a, n: a.astype(np.float16), "low-precision", "the right advantages, rounded to float16"),
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", MADE)
def test_recorded_advantages_are_named_by_what_was_done_to_the_right_ones(
    name: str, whole: bool, tmp_path: Path
) -> None:
    """Hunts "no known deviation" where the advantages themselves are recorded wrong: all of them, or those that the loss was handed."""
    change, rule, words = MADE[name]
    stream, steps = np.random.default_rng(0), list[Calls]()
    for rollout in range(3):
        rewards, groups = stream.normal(size=12).astype(np.float32), np.arange(12) // 4
        right = np.asarray(gspo.group_advantages(rewards, groups, ddof=1, eps=1e-6), np.float32)
        arrays = batch(12, rollout, moved=0.0) | {"rewards": rewards, "groups": groups}
        arrays["advantages"] = np.asarray(change(right, arrays["mask"].sum(axis=1)), np.float32)
        loss = compute(GSPO, {key: values for key, values in arrays.items() if key != "groups"})[0]
        place = {"rollout": rollout, "minibatch": 0}
        record = ({"rewards": rewards, "groups": groups, "advantages": right}, {**place, "kind": "rollout"})
        steps.append([*([record] if whole else []), (arrays, {"loss": loss, **place})])
    made = {"scale": "std", "ddof": 1, "eps": 1e-6}
    told = error(audit_trace(write(tmp_path, steps, objective=GSPO.to_dict(), advantages=made, group_size=4)))
    assert told.rule == rule
    assert words in told.message
