"""From what was typed to a target, and the errors that teach what should have been typed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from gspo_conformance.connection import InProcess
from gspo_conformance.formats import Vector, load_vectors
from gspo_conformance.program import Program
from gspo_conformance.resolve import connect, load
from gspo_conformance.target import Case, Skip
from gspo_conformance.targets.core import CoreTarget
from gspo_conformance.targets.numpy import NumPy
from gspo_conformance.words import HarnessError, UsageError

SUBJECT = """
from gspo_conformance.target import Capabilities, FunctionTarget
target = FunctionTarget("mine", lambda case: {})
class Made:
    name, version, capabilities = "made", {}, Capabilities()
    def run(self, case): return {}
def factory(): return target
def loss(logp, old_logp, advantages, mask): return 0.0
def failing(): raise RuntimeError("no device")
number = 3
class Nested:
    inner = target
"""


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of a module in the working directory, unlike that of any other test."""
    name = "subject_" + re.sub(r"\W", "_", request.node.name)
    (tmp_path / f"{name}.py").write_text(SUBJECT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.mark.parametrize(
    ("attribute", "name"), [("target", "mine"), ("Made", "made"), ("factory", "mine"), ("Nested.inner", "mine")]
)
def test_an_object_a_class_and_a_function_without_arguments_are_targets(
    subject: str, attribute: str, name: str
) -> None:
    assert load(f"{subject}:{attribute}").name == name


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "jax:jit"])
def test_built_in_names_lead_to_their_target(name: str) -> None:
    assert load(name).name == name


def test_a_mutant_is_a_target() -> None:
    assert connect("mutant:aggregation.token-mean").name == "mutant:aggregation.token-mean"


def test_a_python_target_has_a_process_of_its_own_unless_a_debugger_wants_it_here(subject: str) -> None:
    assert isinstance(connect(f"{subject}:target"), Program)
    assert isinstance(connect(f"{subject}:target", isolate=False), InProcess)
    assert isinstance(connect("cmd:node harness.js"), Program)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nunpy", "unknown target 'nunpy'; did you mean 'numpy'?"),
        ("toch:compile", "unknown target 'toch:compile'; did you mean 'torch"),
        (
            "whatever",
            "expected a built-in name, module:attribute, file.py:attribute, or cmd:PROGRAM ARGS; the built-in names are",
        ),
        ("cmd:", "expected a program after cmd:"),
        ("mutant:aggregation.token-maen", "did you mean 'aggregation.token-mean'?"),
    ],
)
def test_what_cannot_be_a_target_is_a_mistake_of_usage(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        connect(spec)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("tarfet", "has unknown attribute 'tarfet', did you mean 'target'?"),
        ("loss", 'target = loss_target(loss, framework="torch")'),
        ("number", "is a int without name, version, capabilities, run"),
        ("failing", "calling it raises RuntimeError: no device"),
    ],
)
def test_an_attribute_that_is_no_target_says_what_is_missing(subject: str, attribute: str, message: str) -> None:
    with pytest.raises(HarnessError, match=re.escape(message)):
        load(f"{subject}:{attribute}")


def test_a_module_that_is_not_there_or_does_not_import_says_so(subject: str, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=re.escape(f"did you mean {subject!r}?")):
        load(f"{subject}x:target")
    (tmp_path / "needy.py").write_text("import nonexistent_framework", encoding="utf-8")
    with pytest.raises(HarnessError, match="needy imports 'nonexistent_framework', which is not installed"):
        load("needy:target")
    (tmp_path / "broken.py").write_text("1 / 0", encoding="utf-8")
    with pytest.raises(HarnessError, match="importing broken raises ZeroDivisionError"):
        load("broken:target")


def test_a_file_is_a_module_wherever_it_lies(subject: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-loss.py").write_text(f"from {subject} import *", encoding="utf-8")
    monkeypatch.chdir("/")
    assert load(f"{tmp_path / 'my-loss.py'}:target").name == "mine"
    with pytest.raises(HarnessError, match=r"there is no file .*nowhere\.py, seen from /"):
        load(f"{tmp_path / 'nowhere.py'}:target")


def test_under_a_trace_only_what_reading_values_could_refuse_is_skipped() -> None:
    target = CoreTarget("traced", NumPy(), traced=True)
    skipped: list[Vector] = []
    for vector in load_vectors():
        case = Case(vector.operation, vector.parameters, vector.inputs, vector.dtype[0], vector.outputs)
        try:
            with np.errstate(all="ignore"):
                target.run(case)
        except Skip:
            skipped.append(vector)
        except (TypeError, ValueError):
            assert vector.refuses, vector.id
    assert {vector.id for vector in skipped} >= {v.id for v in load_vectors() if "GSPO-NUM-6" in v.clauses}
    assert all(vector.refuses and vector.level != "MUST" for vector in skipped)


def test_the_folder_where_one_stands_is_for_the_process_of_the_target_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(tmp_path)])
    with pytest.raises(UsageError, match="did you mean 'torch'"):
        connect("torhc:target")
    (tmp_path / "torhc.py").write_text(SUBJECT, encoding="utf-8")
    assert isinstance(connect("torhc:target"), Program)
    assert str(tmp_path) not in sys.path
