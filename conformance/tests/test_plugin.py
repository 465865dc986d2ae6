"""`pytest --gspo-target`, and `verify` in a parametrized test: one test per vector, under the vector's id."""

from __future__ import annotations

from pathlib import Path

import pytest

from gspo_conformance import load_vectors

pytest_plugins = ["pytester"]
OPTIONS = ("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:hypothesispytest", "--assert=plain")

SUBJECT = """
import numpy as np
from gspo_conformance import loss_target

def loss(logp, old_logp, advantages, mask):
    n = np.maximum(mask.sum(1), 1)
    s = np.exp(np.where(mask, np.where(mask, logp, 0) - np.where(mask, old_logp, 0), 0).sum(1) / n)
    j = np.minimum(s * advantages, np.clip(s, 1 - 3e-4, 1 + {high}) * advantages)
    return -np.where(mask.any(1), j, 0).mean()

target = loss_target(loss, framework="numpy")
"""


@pytest.fixture
def subject(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(subject=SUBJECT.format(high="4e-4"), wrong=SUBJECT.format(high="3e-4"))
    pytester.syspathinsert()
    return pytester


def test_there_is_a_test_for_every_vector_under_its_id(subject: pytest.Pytester) -> None:
    found = subject.runpytest(*OPTIONS, "--gspo-target", "numpy", "--collect-only", "-q")
    for vector in load_vectors():
        assert f"gspo::{vector.id}" in found.outlines


def test_without_the_option_nothing_is_collected(subject: pytest.Pytester) -> None:
    assert "gspo::" not in subject.runpytest(*OPTIONS, "--collect-only", "-q").stdout.str()


def test_a_right_target_passes_and_is_skipped_where_it_claims_nothing(subject: pytest.Pytester) -> None:
    chosen = [vector for vector in load_vectors() if vector.area in ("surrogate", "ratio")]
    found = subject.runpytest(*OPTIONS, "--gspo-target", "subject:target", "-m", "gspo", "-k", "surrogate/ or ratio/")
    outcomes = found.parseoutcomes()
    assert outcomes.get("failed", 0) == outcomes.get("errors", 0) == 0
    assert outcomes["passed"] >= 9
    assert outcomes["passed"] + outcomes["skipped"] + outcomes.get("xfailed", 0) == len(chosen)


def test_a_wrong_target_fails_with_a_reason_and_not_with_a_traceback(subject: pytest.Pytester) -> None:
    found = subject.runpytest(*OPTIONS, "--gspo-target", "wrong:target", "-k", "surrogate/paper-above-positive-gspo")
    assert found.parseoutcomes()["failed"] == 1
    found.stdout.fnmatch_lines(
        [
            "fail surrogate/paper-above-positive-gspo[[]float32]*GSPO-SURR*",
            "*units, 16 allowed*",
            "gspo explain surrogate/*",
        ]
    )
    assert "Traceback" not in found.stdout.str()
    assert "pytest_plugin.py" not in found.stdout.str()


def test_known_failures_are_expected_and_their_end_fails(subject: pytest.Pytester) -> None:
    known = subject.path / "known.txt"
    known.write_text("surrogate/paper-above-positive-gspo\n", encoding="utf-8")
    chosen = (*OPTIONS, "-k", "surrogate/paper-above-positive-gspo and not token", "--gspo-known", str(known))
    expected = subject.runpytest(*chosen, "--gspo-target", "wrong:target").parseoutcomes()
    mended = subject.runpytest(*chosen, "--gspo-target", "subject:target").parseoutcomes()
    assert (expected["xfailed"], mended["failed"]) == (1, 1)


def test_a_target_that_does_not_load_says_so(subject: pytest.Pytester) -> None:
    found = subject.runpytest(*OPTIONS, "--gspo-target", "subject:tarfet", "-k", "ratio/one-token")
    found.stdout.fnmatch_lines(["*unknown attribute 'tarfet', did you mean 'target'?"])
    assert found.ret != 0


def test_a_target_that_does_not_start_is_tried_once(subject: pytest.Pytester) -> None:
    subject.makepyfile(counted="open('starts', 'a').write('.')\nraise RuntimeError('no such device')")
    found = subject.runpytest(*OPTIONS, "--gspo-target", "counted:target", "-k", "ratio/sequence-")
    assert found.parseoutcomes()["failed"] > 1
    assert (subject.path / "starts").read_text() == "."
    found.stdout.fnmatch_lines(["*no such device*"])


def test_vectors_can_be_parametrized_by_hand(subject: pytest.Pytester) -> None:
    subject.makepyfile(
        test_mine="""
        import pytest
        from gspo_conformance import vectors, verify
        from subject import target
        from wrong import target as wrong

        @pytest.mark.parametrize("vector", vectors("surrogate/paper-*-gspo", "ratio/one-token"), ids=lambda v: v.id)
        def test_vector(vector):
            assert all(result.verdict != "fail" for result in verify(target, vector))

        def test_wrong():
            (vector,) = vectors("surrogate/paper-above-positive-gspo")
            with pytest.raises(AssertionError, match="loss: got"):
                verify(wrong, vector)
        """
    )
    found = subject.runpytest(*OPTIONS, "-v", "test_mine.py")
    outcomes = found.parseoutcomes()
    assert outcomes["skipped"] == 1
    assert outcomes["passed"] > 5
    assert "failed" not in outcomes
    assert "test_vector[surrogate/paper-inside-both-gspo] PASSED" in found.stdout.str()


def test_the_plugin_is_light(pytester: pytest.Pytester) -> None:
    code = "import sys, gspo_conformance.pytest_plugin; print('numpy' in sys.modules)"
    assert pytester.runpython_c(code).outlines == ["False"]


def test_the_plugin_is_declared_for_pytest() -> None:
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points.pytest11]\ngspo = "gspo_conformance.pytest_plugin"' in pyproject
