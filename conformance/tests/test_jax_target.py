"""The target `jax`: what it compiles for a case, and what it keeps."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import jax
import numpy as np
import pytest

from gspo_conformance.target import Case
from gspo_conformance.targets.jax import jit_target, target

mlir = import_module("jax._src.interpreters.mlir")


def clipping(size: int, dtype: str = "float32", bound: float = 1.0) -> Case:
    """Advantages from -2 to 2, clipped; no other test has arrays of these sizes."""
    values = np.linspace(-2, 2, size).astype(dtype)
    return Case("clip_advantages", {"bound": bound}, {"advantages": values}, dtype, ("advantages",))


def test_programs_share_one_context_and_jax_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hunts a megabyte per compiled operation."""
    made: list[Any] = []
    real = mlir.make_ir_context
    monkeypatch.setattr(mlir, "make_ir_context", lambda: made.append(1) or real())
    ours, subject = mlir.make_ir_context, target()
    for size in (1021, 1031):
        assert subject.run(clipping(size))["advantages"].max() == 1
        assert mlir.make_ir_context is ours
    assert made == [1]


def test_a_jax_that_makes_its_contexts_elsewhere_is_checked_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mlir, "make_ir_context")
    subject = target()
    monkeypatch.undo()
    assert subject.run(clipping(1033))["advantages"].min() == -1


def test_what_was_compiled_for_another_shape_is_let_go_of_after_many_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hunts memory that grows with the number of vectors, and caches that are dropped while a shape is still asked."""
    cleared: list[int] = []
    monkeypatch.setattr("gspo_conformance.targets.jax._CASES_KEPT", 3)
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(1))
    subject = target()
    for _ in range(5):
        subject.run(clipping(5))
    assert not cleared
    for size in (6, 5, 6, 5):
        subject.run(clipping(size))
    assert cleared == [1]


def test_of_one_shape_the_programs_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hunts two megabytes per objective, and a program that is compiled again although it was just used."""
    monkeypatch.setattr("gspo_conformance.targets.jax._PROGRAMS_KEPT", 2)
    compiled: list[str] = []
    real = jax.jit
    monkeypatch.setattr(
        jax, "jit", lambda function: compiled.append(function.args[0].parameters["bound"]) or real(function)
    )
    subject = jit_target()
    for bound in (0.25, 0.5, 0.25, 0.75, 0.25, 0.5):
        assert subject.run(clipping(9, bound=bound))["advantages"].max() == bound
    assert compiled == [0.25, 0.5, 0.75, 0.5]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_answers_have_the_precision_that_the_case_names(dtype: str) -> None:
    assert target().run(clipping(7, dtype))["advantages"].dtype == dtype
