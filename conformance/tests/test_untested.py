"""Why nothing was tested: in words that lead to what would be."""

from __future__ import annotations

import re
from typing import Any

import pytest

import gspo_core
from gspo_conformance import check
from gspo_conformance.reports import render
from gspo_conformance.reports.untested import NOTHING, SETTING, more, unasked, why
from gspo_conformance.target import Capabilities, FunctionTarget
from gspo_conformance.targets import numpy
from gspo_conformance.wrap import loss_target


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clip": (3e-3, 4e-3)}, "has surrogate.low 0.0003 for 0.003, surrogate.high 0.0004 for 0.004"),
        ({"objective": "grpo", "clip": (0.3, 0.27)}, "has surrogate.low 0.2 for 0.3"),
        (
            {"objective": gspo_core.Objective.gspo().replace(penalty=gspo_core.Penalty("k3", 0.0))},
            "need the input ref_logp",
        ),
    ],
)
def test_the_nearest_objective_or_the_missing_input_is_named(options: dict[str, Any], words: str) -> None:
    target = loss_target(lambda logp, old_logp, advantages, mask: logp.sum(), "numpy", **options)
    assert words in why(target.capabilities.to_dict())


def test_a_range_that_few_vectors_have_is_no_reason_to_be_content() -> None:
    def loss(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        return logp.sum()

    told = more(loss_target(loss, "numpy", clip=(0.2, 0.2)).capabilities.to_dict())
    assert told.startswith("few vectors have its clip range: ")
    assert told.endswith(f"have low 0.0003 and high 0.0004; {SETTING}")
    assert more(loss_target(loss, "numpy").capabilities.to_dict()) == ""
    assert more(loss_target(loss, "numpy", objective="sapo").capabilities.to_dict()) == ""
    seldom = more(loss_target(loss, "numpy", objective="dapo", clip=(0.2, 0.27)).capabilities.to_dict())
    assert seldom.endswith(f"have high 0.2; {SETTING}")
    assert more(Capabilities().to_dict()) == ""
    assert SETTING in why(loss_target(loss, "numpy", clip=(5e-4, 5e-4)).capabilities.to_dict())


def test_a_surrogate_of_another_kind_is_farther_away_than_any_range() -> None:
    target = loss_target(lambda logp, old_logp, advantages, mask: logp.sum(), "numpy", clip=(0.123, 0.456))
    assert "surrogate.low" in why(target.capabilities.to_dict())


def test_where_objectives_say_nothing_the_capabilities_are_to_be_looked_at() -> None:
    assert why(Capabilities(operations=frozenset({"policy_loss"})).to_dict()) == NOTHING


def test_functions_that_are_claimed_and_never_asked_for_are_told_with_what_they_lack() -> None:
    claimed = Capabilities(
        operations={"group_advantages", "whiten", "clip_rewards"},
        inputs={"rewards", "groups", "values"},
        parameters={"center", "low", "high"},
    )
    target = FunctionTarget("half", lambda case: numpy.target().run(case), claimed)
    found = check(target)
    assert found.conforming
    assert [re.sub(r"\d+", "#", told) for told in unasked(found)] == [
        "nothing is asked of `group_advantages`: its questions need parameter scale (# of #)",
        "nothing is asked of `whiten`: its questions need input mask (# of #)",
    ]
    assert "  nothing is asked of `whiten`: " in render([found], "text")
    assert unasked(check(target, "advantage/whiten", "reward/clip")) == []
