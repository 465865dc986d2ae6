"""A few questions are asked once more: a target that answers them otherwise keeps something, or leaves it to chance."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gspo_conformance import load_vectors
from gspo_conformance.asking import AGAIN, SHARE
from gspo_conformance.connection import InProcess
from gspo_conformance.formats import Vector
from gspo_conformance.reports import render
from gspo_conformance.reports.reading import read
from gspo_conformance.reports.record import lines, merge
from gspo_conformance.run import Run
from gspo_conformance.runner import Options, run_vectors
from gspo_conformance.suite import checked
from gspo_conformance.target import Capabilities, Case, FunctionTarget, Skip

VECTORS = [
    vector
    for vector in load_vectors("aggregation")
    if vector.operation == "policy_loss" and vector.level == "MUST" and not vector.refuses
]
TRUTH = {vector.id: vector.expected for vector in VECTORS}
TOLD = "got another answer when asked again: something is kept between calls, or left to chance"
Asked = list[str]


def right(case: Case, factor: float = 1.0) -> dict[str, Any]:
    return {name: np.asarray(factor * TRUTH[case.id][name].value).astype(case.dtype) for name in case.outputs}


def once(asked: Asked, again: Any) -> Any:
    """The right answer, and `again` to what was asked before."""

    def answer(case: Case) -> Any:
        asked.append(f"{case.id}[{case.dtype}]")
        return again(case) if asked.count(asked[-1]) > 1 else right(case)

    return answer


def run(*functions: Any, vectors: Sequence[Vector] = VECTORS, **options: Any) -> Run:
    targets = [InProcess(FunctionTarget("subject", each, Capabilities.everything())) for each in functions]
    return checked(run_vectors(targets, vectors, Options(**options)), vectors)


def test_a_target_that_answers_alike_is_asked_little_more_and_nothing_is_said() -> None:
    asked: Asked = []
    found = run(once(asked, lambda case: right(case, 1 + 1e-7)))
    assert len(asked) == len(found.results) + AGAIN
    assert list(found.again.values()) == [True] * AGAIN
    assert found.diagnosis is None


def test_another_answer_is_told_beside_the_verdict_and_changes_none() -> None:
    found = run(once([], lambda case: right(case, 1.001)))
    assert (found.verdict, found.exit_code) == ("conforming", 0)
    assert (found.unsteady, found.diagnosis) == (f"8 of 8 questions {TOLD}", None)
    assert "  unsteady    8 of 8 questions got another answer" in render([found], "text")
    assert "8 of 8 questions got another answer" in render([found], "md")
    assert "8 of 8 questions got another answer" in render([found], "html")


def test_another_answer_comes_before_what_the_wrong_ones_look_like() -> None:
    calls: Asked = []

    def warming(case: Case) -> Any:
        calls.append(case.id)
        return right(case, min(1.0, len(calls) / 50))

    found = run(warming)
    text = render([found], "text")
    assert 0 < text.index("  unsteady    8 of 8 questions") < text.index("  diagnosis   unknown deviation; ")


@pytest.mark.parametrize("far", [1e-6, 1e-3])
def test_what_is_left_to_chance_is_not_called_rounding(far: float) -> None:
    noise = np.random.default_rng(0)
    found = run(lambda case: right(case, 1 + far * noise.choice([-1, 1]) * noise.uniform(0.5, 1)))
    assert found.unsteady
    assert "rounding" not in (found.diagnosis or {"sentence": ""})["sentence"]


def test_parts_of_a_run_that_answer_otherwise_are_joined_with_what_they_said(tmp_path: Path) -> None:
    parts = [
        run(once([], right), vectors=VECTORS[::2]),
        run(once([], lambda case: right(case, 1.001)), vectors=VECTORS[1::2]),
    ]
    for i, part in enumerate(parts):
        (tmp_path / f"{i}.jsonl").write_text("".join(lines(part)), encoding="utf-8")
    (joined,) = merge([read(tmp_path / "0.jsonl"), read(tmp_path / "1.jsonl")])
    assert joined.unsteady == f"{len(parts[1].again)} of {len(joined.again)} questions {TOLD}"


def test_wrong_answers_are_asked_again_first_and_the_last_of_them_before_the_others() -> None:
    asked: Asked = []
    bad = [vector.id for vector in VECTORS][-3:]

    def answer(case: Case) -> Any:
        asked.append(case.id)
        return right(case, 2.0 if case.id in bad else 1.0)

    found = run(answer)
    again = asked[len(found.results) :]
    assert len({*again}) == len(again) == AGAIN
    assert {*again[-3:]} == {*bad}


@pytest.mark.parametrize("failure", ["raises", "skips", "another shape", "nothing"])
def test_no_answer_is_another_answer(failure: str) -> None:
    def again(case: Case) -> Any:
        if failure == "raises":
            raise RuntimeError("closed")
        if failure == "skips":
            raise Skip("asked before")
        return {} if failure == "nothing" else {name: np.ones((2, 7, 2)) for name in case.outputs}

    assert list(run(once([], again)).again.values()) == [False] * AGAIN


def test_a_target_that_hangs_when_asked_again_costs_one_limit_and_no_result() -> None:
    found = run(once([], lambda case: time.sleep(60)), limit=0.2)
    assert list(found.again.values()) == [False]
    assert (found.exit_code, found.failure) == (0, "")


def test_breaking_down_as_before_is_no_other_answer() -> None:
    asked: Asked = []
    vectors = VECTORS[:15]
    once_each = sum(len(vector.dtype) for vector in vectors)

    def answer(case: Case) -> Any:
        asked.append(case.id)
        if len(asked) in (3, once_each + 1):
            time.sleep(60)
        return right(case)

    found = run(answer, vectors=vectors, limit=0.2)
    assert found.counts["error"] == 1
    assert len(asked) > once_each
    assert not found.unsteady


def test_connections_share_what_is_asked_again_each_its_own() -> None:
    asked: list[Asked] = [[], []]
    found = run(*(once(seen, right) for seen in asked))
    assert len(found.again) == AGAIN
    assert sum(map(len, asked)) == len(found.results) + AGAIN
    assert all(len(seen) - len({*seen}) == AGAIN // 2 for seen in asked)


def test_few_questions_are_asked_once() -> None:
    asked: Asked = []
    target = FunctionTarget("subject", once(asked, right), Capabilities.everything())
    assert run_vectors(InProcess(target), VECTORS[:4]).again == {}
    assert len(asked) == len({*asked}) < SHARE
