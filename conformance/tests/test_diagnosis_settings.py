"""The diagnosis of what nobody knows: by how much each output is off, and with which parameters or inputs alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from gspo_conformance import check
from gspo_conformance.mutants import find
from gspo_conformance.target import Capabilities, Case, FunctionTarget
from gspo_conformance.targets.numpy import target as numpy_target

CORE = numpy_target()
Change = Callable[[str, Any, Case], Any]


def told(operations: str, change: Change, **fields: Any) -> list[str]:
    """What is observed of the core with its outputs put through a change."""

    def run(case: Case) -> dict[str, Any]:
        return {name: change(name, value, case) for name, value in CORE.run(case).items()}

    capabilities = Capabilities.everything(operations={*operations.split()}, metrics={"approx_kl"}, **fields)
    diagnosis = check(FunctionTarget("deviant", run, capabilities)).diagnosis
    assert diagnosis is not None
    assert diagnosis["mutants"] == []
    return diagnosis["observed"]


def scaled(by: float, where: Callable[[Mapping[str, Any]], bool] = lambda parameters: True) -> Change:
    return lambda name, value, case: value * by if where(case.parameters) else value


WHERE: dict[str, tuple[str, Change, str]] = {
    "a word": ("kl_penalty", scaled(1.5, lambda p: p["estimator"] == "k1"), "only where `estimator` is k1"),
    "a zero": ("gae_advantages", scaled(1.5, lambda p: p["lam"] == 0), "only where `lam` is 0"),
    "a switch": ("whiten", scaled(1.5, lambda p: p["ddof"] == 0), "only where `ddof` is 0"),
    "an option that is a number": (
        "clipped_surrogate",
        scaled(1.5, lambda p: p["clip"]["dual"] is not None),
        "only where `clip.dual` is given",
    ),
    "an input that another operation always has": (
        "reinforce_pp_advantages leave_one_out_advantages normalize_rewards",
        lambda name, value, case: value * 1.5 if {"token_rewards", "groups"} <= {*case.inputs} else value,
        "only where `groups` is given",
    ),
    "an input": (
        "gae_advantages",
        lambda name, value, case: value * 1.5 if "bootstrap" in case.inputs else value,
        "only where `bootstrap` is given",
    ),
}


@pytest.mark.parametrize("name", WHERE)
def test_what_alone_is_wrong_is_told_by_its_parameters(name: str) -> None:
    operations, change, words = WHERE[name]
    observed = told(operations, change)
    assert words in observed
    assert not any("hunt" in text for text in observed)


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        ("reinforce_returns", "returns 0.75x throughout"),
        ("normalize_rewards", "rewards 0.75x throughout"),
        ("kl_penalty", "value 0.75x throughout"),
        ("ratio", "ratio 0.75x throughout"),
    ],
)
def test_every_output_is_told_by_how_much_it_is_off(operation: str, words: str) -> None:
    assert words in told(operation, scaled(0.75))


def test_a_metric_is_told_by_how_much_it_is_off() -> None:
    in_bits = told("policy_loss", lambda name, value, case: value / np.log(2) if name == "metrics.approx_kl" else value)
    assert "approx_kl 1.44x throughout" in in_bits


def test_advantages_in_half_precision_are_not_taken_for_decimals() -> None:
    observed = told("gae_advantages", lambda name, value, case: value.astype(np.float16).astype(value.dtype))
    assert "every wrong advantage is a float16 number: it is computed or stored too narrowly" in observed
    assert not any("significant digits" in text for text in observed)


def test_sums_of_short_rewards_are_not_taken_for_half_precision() -> None:
    def unchanged(name: str, value: Any, case: Case) -> Any:
        return np.where(case.inputs.get("mask", value != 0), case.inputs["rewards"], 0)

    assert not any("too narrowly" in text for text in told("reinforce_returns", unchanged))


def test_an_output_by_another_name_is_not_called_rounding() -> None:
    def renamed(case: Case) -> dict[str, Any]:
        found = CORE.run(case)
        return {"advantage": found["advantages"], "returns": found["returns"]}

    diagnosis = check(FunctionTarget("renamed", renamed, Capabilities(operations={"gae_advantages"}))).diagnosis
    assert diagnosis is not None
    assert "rounding" not in diagnosis["sentence"]


def test_a_mistake_that_explains_a_part_is_told_with_what_all_wrong_answers_share() -> None:
    detached = find("penalty.importance-detached")

    def run(case: Case) -> Mapping[str, Any]:
        penalty = (case.objective or {}).get("penalty") or {}
        return detached.run(case) if penalty.get("importance") == "token" else CORE.run(case)

    capabilities = Capabilities.everything(operations={"policy_loss"}, metrics=())
    diagnosis = check(FunctionTarget("detached", run, capabilities), "penalty/*").diagnosis
    assert diagnosis is not None
    assert diagnosis["mutants"] == ["penalty.importance-detached"]
    assert diagnosis["sentence"].endswith("only where `penalty.importance` is token")


def test_what_more_right_answers_have_than_wrong_ones_is_not_told() -> None:
    def early(name: str, value: Any, case: Case) -> Any:
        """The reward at the place that the length alone tells."""
        mask = case.inputs["mask"]
        last = mask.shape[1] - 1 - np.flip(mask, 1).argmax(1)
        return np.where((last >= mask.sum(1))[:, None], value * 1.5, value)

    observed = told("token_kl_rewards", early, layouts={"padded"})
    assert "only where there are gaps or left padding in the mask" in observed
    assert not any("estimator" in text for text in observed)
