"""The runner: every vector ends in one verdict, whatever the target does; known failures are strict both ways."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gspo_conformance
from gspo_conformance import run as verdicts
from gspo_conformance.connection import InProcess
from gspo_conformance.formats import Vector, load_vectors
from gspo_conformance.known import KnownFailure, KnownFailures, read_known
from gspo_conformance.reports import render
from gspo_conformance.run import ERROR, EXPECTED_FAILURE, FAIL, PASS, SKIPPED, UNEXPECTED_PASS, UNSUPPORTED, Run
from gspo_conformance.runner import Options, run_vectors, select
from gspo_conformance.smoke import easiest, form, report
from gspo_conformance.suite import checked
from gspo_conformance.target import Capabilities, Case, FunctionTarget, Skip
from gspo_conformance.words import UsageError, uncapitalised

from .small import loss_vector, small_suite

SUITE = small_suite()
TRUTH = {vector.id: vector.expected for vector in SUITE}
EVERYTHING = Capabilities.everything()


def right(case: Case) -> dict[str, Any]:
    return {name: expected.value.astype(case.dtype) for name, expected in TRUTH[case.id].items()}


def wrong(*ids: str) -> Any:
    def answer(case: Case) -> dict[str, Any]:
        answers = right(case)
        return {name: value + 0.5 for name, value in answers.items()} if case.id in ids else answers

    return answer


def run(
    function: Any = right, capabilities: Capabilities = EVERYTHING, vectors: list[Vector] = SUITE, **options: Any
) -> Run:
    return run_vectors(InProcess(FunctionTarget("subject", function, capabilities)), vectors, Options(**options))


def test_every_vector_is_put_in_every_dtype_once() -> None:
    found = run()
    assert Counter(result.key for result in found.results) == Counter(
        f"{vector.id}[{dtype}]" for vector in SUITE for dtype in vector.dtype
    )
    assert found.verdict == "conforming"
    assert (found.exit_code, found.complete) == (0, True)
    assert [result.dtype for result in run(dtypes=("float64",)).results] == ["float64"] * 6


@pytest.mark.parametrize(
    ("level", "ids", "code"),
    [
        ("MUST", ["gradient/convention", "ratio/optional"], 0),
        ("SHOULD", ["ratio/optional"], 0),
        ("SHOULD", ["gradient/convention"], 1),
        ("MAY", ["ratio/optional"], 1),
        ("MUST", ["aggregation/unequal"], 1),
    ],
)
def test_only_levels_that_count_decide_the_exit_code_but_all_are_reported(
    level: str, ids: list[str], code: int
) -> None:
    found = run(wrong(*ids), level=level)
    assert found.exit_code == code
    assert {result.id for result in (*found.offences, *found.remarks)} == set(ids)


HOSTILE = {
    "nothing": lambda case: {},
    "None": lambda case: None,
    "NaN": lambda case: {name: np.full_like(value, np.nan) for name, value in right(case).items()},
    "zeros": lambda case: {name: np.zeros_like(value) for name, value in right(case).items()},
    "shape": lambda case: {name: value[None] for name, value in right(case).items()},
    "too few": lambda case: {name: value.ravel()[:-1] for name, value in right(case).items()},
    "half": lambda case: {name: value.astype("f2") for name, value in right(case).items()},
    "echo": lambda case: {name: next(iter(case.inputs.values())) for name in right(case)},
    "raises": lambda case: 1 // 0,
    "exits": lambda case: sys.exit(0),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_an_answer_that_is_none_never_passes(fault: str) -> None:
    vectors = [vector for vector in SUITE if vector.operation != "informative_groups"]
    found = run(HOSTILE[fault], vectors=vectors)
    assert {result.verdict for result in found.results} <= {FAIL, ERROR}
    assert found.exit_code in (1, 3)


def test_a_target_that_hangs_in_this_process_is_interrupted() -> None:
    begin = time.perf_counter()
    found = run(lambda case: time.sleep(60), limit=0.05)
    assert time.perf_counter() - begin < 5
    assert found.results[0].reason == "no answer within 0.05 s"
    assert "time.sleep(60)" in found.results[0].detail
    assert found.exit_code == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_limit_that_is_reached_while_an_object_is_cleared_away_is_reached_again() -> None:
    class Slow:
        def __del__(self) -> None:
            time.sleep(0.2)  # what is raised here, Python prints and drops

    def endless(case: Case) -> Any:
        Slow()
        time.sleep(60)

    found = run(endless, limit=0.1)
    assert found.results[0].reason == "no answer within 0.1 s"


@pytest.mark.parametrize(
    ("capabilities", "missing"),
    [
        ({"operations": {"ratio"}}, "operation policy_loss"),
        ({"dtypes": {"float32"}}, "dtype float64"),
        ({"layouts": {"packed"}}, "layout padded"),
        ({"gradient": False}, "output gradient"),
        ({"objectives": [{"ratio": "token"}]}, "this objective"),
        ({"inputs": {"logp", "mask", "rewards", "groups"}}, "input old_logp"),
        ({"parameters": {"kind"}}, "parameter objective"),
    ],
)
def test_what_a_target_does_not_claim_is_not_asked(capabilities: dict[str, Any], missing: str) -> None:
    asked: set[str] = set()
    found = run(lambda case: asked.add(case.id + case.dtype) or right(case), Capabilities.everything(**capabilities))
    assert missing in {result.reason for result in found.results if result.verdict == UNSUPPORTED}
    assert len(asked) == found.answered < len(SUITE) * 2
    assert found.exit_code == 0


def test_narrow_inputs_and_advantages_per_token_are_asked_of_those_who_claim_them() -> None:
    narrow = loss_vector("numerics/narrow", input_dtype="bfloat16")
    plain = Capabilities.everything(input_dtypes=(), token_advantages=False)
    assert run(right, plain, [narrow]).results[0].reason == "input dtype bfloat16"


def test_no_applicable_vector_is_an_error_never_green() -> None:
    for found in (run(capabilities=Capabilities.everything(operations={"whiten"})), run(vectors=[])):
        assert found.exit_code == 3
        assert found.verdict == "nothing tested"


def test_a_target_that_skips_all_is_told_its_own_reason_and_not_that_it_claims_too_little() -> None:
    def skip(case: Case) -> Any:
        raise Skip("no GPU here")

    found = run(skip)
    assert found.exit_code == 3
    assert "it skips every vector that applies: no GPU here" in render([found], "text")


def test_a_skip_has_its_reason_and_is_not_a_pass() -> None:
    def skip(case: Case) -> Any:
        raise Skip("too slow here", "https://example.org/1")

    found = run(skip)
    assert {(r.verdict, r.reason, r.url) for r in found.results} == {
        (SKIPPED, "too slow here", "https://example.org/1")
    }
    assert found.exit_code == 3


def known(*patterns: str) -> KnownFailures:
    return KnownFailures(tuple(KnownFailure(pattern, "reason") for pattern in patterns))


def test_known_failures_are_expected_and_their_end_is_noticed() -> None:
    failing = wrong("ratio/sequence")
    assert run(failing, known=known("ratio/sequence")).exit_code == 0
    assert {r.verdict for r in run(failing, known=known("ratio/sequence")).results if r.id == "ratio/sequence"} == {
        EXPECTED_FAILURE
    }
    mended = run(known=known("ratio/sequence"))
    assert mended.exit_code == 1
    assert {result.verdict for result in mended.offences} == {UNEXPECTED_PASS}
    assert mended.stale == ("ratio/sequence",)


def test_a_known_failure_can_name_one_dtype() -> None:
    def single(case: Case) -> Any:
        return (
            {"ratio": right(case)["ratio"] * 2}
            if case.operation == "ratio" and case.dtype == "float64"
            else right(case)
        )

    assert run(single, known=known("ratio/*[float64]")).exit_code == 0
    assert run(single, known=known("ratio/*")).exit_code == 1
    assert run(single, known=known("ratio/*[float32]")).exit_code == 1


def test_a_known_failure_of_a_vector_that_was_not_run_is_not_stale() -> None:
    assert run(vectors=SUITE[:1], known=known("ratio/sequence")).exit_code == 0


def test_a_file_of_known_failures_is_checked_against_the_suite(tmp_path: Path) -> None:
    path = tmp_path / "known.txt"
    ids = [vector.id for vector in SUITE]
    path.write_text("# why\n\nratio/*[float64]  # computes in float32\ngradient/clipped\n", encoding="utf-8")
    assert [(entry.pattern, entry.reason) for entry in read_known(path, ids).entries] == [
        ("ratio/*[float64]", "computes in float32"),
        ("gradient/clipped", ""),
    ]
    path.write_text("gradient/cliped\n", encoding="utf-8")
    with pytest.raises(UsageError, match=re.escape("did you mean 'gradient/clipped'?")):
        read_known(path, ids)
    with pytest.raises(UsageError, match="No such file"):
        read_known(tmp_path / "absent", ids)


@pytest.mark.parametrize(
    ("patterns", "count"),
    [
        ((), 6),
        (("ratio",), 2),
        (("ratio/sequence",), 1),
        (("ratio/s",), 1),
        (("gradient/*",), 2),
        (("GSPO-GRAD-*",), 2),
        (("clipped",), 1),
        (("zzz",), 0),
    ],
)
def test_vectors_are_chosen_by_id_area_and_clause(patterns: tuple[str, ...], count: int) -> None:
    assert len(select(SUITE, patterns)) == count


def test_an_interrupted_run_keeps_what_it_has_and_does_not_conform() -> None:
    def answer(case: Case) -> Any:
        if case.id == "gradient/convention":
            raise KeyboardInterrupt
        return right(case)

    found = run(answer)
    assert len(found.results) == 4
    assert (found.failure, found.exit_code, found.complete) == ("interrupted", 3, False)


def test_several_connections_share_the_work_and_lose_nothing() -> None:
    asked: list[set[str]] = [set(), set(), set()]

    def target(seen: set[str]) -> InProcess:
        return InProcess(FunctionTarget("subject", lambda case: seen.add(case.dtype) or right(case), EVERYTHING))

    two = run_vectors([target(asked[0]), target(asked[1])], SUITE)
    assert asked[:2] == [{"float32"}, {"float64"}]
    assert [result.key for result in two.results] == [result.key for result in run().results]
    assert run_vectors([target(seen) for seen in asked], SUITE).exit_code == 0


def test_questions_of_one_shape_are_asked_together() -> None:
    """Hunts an order in which a target compiles again what it has let go of."""
    asked: list[list[Any]] = [[], []]

    def target(seen: list[Any]) -> InProcess:
        def answer(case: Case) -> Any:
            parts = case.inputs.get("parts", [case.inputs])
            seen.append((case.dtype, max(array.size for part in parts for array in part.values())))
            raise Skip("nothing is computed here")

        return InProcess(FunctionTarget("subject", answer, EVERYTHING))

    run_vectors([target(seen) for seen in asked], load_vectors("distribution") + load_vectors("packing"))
    for seen in asked:
        assert len(seen) > 50
        assert len(list(groupby(seen))) == len(set(seen)) > 4


def test_a_target_cannot_write_into_the_suite() -> None:
    before = {name: value.copy() for name, value in SUITE[0].inputs.items()}

    def vandal(case: Case) -> Any:
        for value in case.inputs.values():
            value[...] = 0
        return right(case)

    run(vandal)
    assert all((SUITE[0].inputs[name] == value).all() for name, value in before.items())


def test_a_vector_whose_right_answer_is_an_error() -> None:
    (refusing,) = [loss_vector("numerics/refuses", level="SHOULD", refuses={"argument": "mask", "outputs": ["loss"]})]

    def raising(message: str) -> Any:
        def answer(case: Case) -> Any:
            raise ValueError(message)

        return answer

    assert run(raising("mask: expected booleans"), vectors=[refusing]).results[0].verdict == PASS
    other = run(raising("division by zero"), vectors=[refusing]).results[0]
    assert (other.verdict, other.reason) == (
        FAIL,
        "expected an error that names `mask`, got ValueError: division by zero",
    )
    silent = run(lambda case: {"loss": 0.0}, vectors=[refusing]).results[0]
    assert (silent.verdict, silent.reason) == (FAIL, "expected an error about `mask`, got an answer")


def test_smoke_says_whether_the_adapter_is_right_not_whether_the_numbers_are() -> None:
    chosen = easiest(SUITE, EVERYTHING)
    assert {vector.operation for vector in chosen} == {"policy_loss", "ratio", "informative_groups"}
    off = run(wrong("aggregation/unequal", "ratio/sequence"), vectors=chosen)
    assert form(off) == []
    assert "the adapter is right" in report(off)
    assert "is wrong" in report(off)
    for fault in ("nothing", "NaN", "shape", "too few", "half", "raises"):
        assert form(run(HOSTILE[fault], vectors=chosen)), fault
    assert form(run(capabilities=Capabilities.everything(operations={"whiten"}), vectors=chosen))


def test_smoke_asks_of_the_easiest_what_the_target_has() -> None:
    wide = {"objective": {**loss_vector("a").parameters["objective"], "ratio": "token"}}
    other, below, own = loss_vector("a", parameters=wide), loss_vector("b", level="MAY"), loss_vector("c")
    sequence = Capabilities(operations={"policy_loss"}, objectives=({"ratio": "sequence"},))
    assert easiest([other, below, own], sequence) == [own]
    assert easiest([other], sequence) == []
    assert easiest([own, other], Capabilities(operations={"policy_loss"}, objectives=({"ratio": "token"},))) == [other]


def test_a_diagnosis_that_fails_takes_no_result_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gspo_conformance.diagnosis.diagnose", lambda run, vectors: 1 // 0)
    found = checked(run(wrong("ratio/sequence")), SUITE)
    assert len(found.offences) == 2
    assert found.diagnosis is not None
    assert "ZeroDivisionError" in found.diagnosis["sentence"]


def test_the_verdicts_are_the_seven_of_the_documentation() -> None:
    assert len(verdicts.VERDICTS) == 7
    assert set(verdicts.VERDICTS) == {PASS, FAIL, ERROR, UNSUPPORTED, SKIPPED, EXPECTED_FAILURE, UNEXPECTED_PASS}


def test_the_public_names_are_there_and_no_others() -> None:
    assert sorted(gspo_conformance.__all__) == gspo_conformance.__all__
    for name in gspo_conformance.__all__:
        assert getattr(gspo_conformance, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'chek'"):
        _ = gspo_conformance.chek


def test_errors_alone_are_the_fault_of_the_adapter_although_refusals_fail() -> None:
    def broken(case: Case) -> dict[str, Any]:
        raise TypeError("no subtraction with booleans")

    refusing = loss_vector("numerics/refuses", level="SHOULD", refuses={"argument": "mask", "outputs": ["loss"]})
    run = run_vectors(InProcess(FunctionTarget("broken", broken)), [loss_vector("aggregation/unequal"), refusing])
    assert {result.verdict for result in run.results} >= {ERROR, FAIL}
    assert (run.verdict, run.exit_code) == ("not one answer", 3)


def test_a_failure_below_the_level_alone_is_no_conformance() -> None:
    below = loss_vector("aggregation/unequal", level="SHOULD")
    found = run(wrong(below.id), vectors=[below])
    assert (found.verdict, found.exit_code) == ("nothing of level MUST tested", 3)
    assert run(vectors=[below]).conforming
    assert run(wrong(below.id), vectors=[below], level="SHOULD").exit_code == 1


def test_a_sentence_goes_on_in_lower_case_except_for_names_and_formulas() -> None:
    kept = ("NaN is accepted", "CISPO's weight", "A < 0 is never clipped", "Σx² / (Σx)²", "V not added", "|y| - 1")
    assert [uncapitalised(text) for text in kept] == list(kept)
    assert uncapitalised("A |y| that counts") == "a |y| that counts"
    assert uncapitalised("Log-probabilities rounded") == "log-probabilities rounded"
