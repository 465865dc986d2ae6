"""Answers that are no answers, over every golden vector: none of them gets an operation past the suite."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gspo_conformance.applicability import case_of
from gspo_conformance.formats import Vector, load_vectors
from gspo_conformance.judge import judge
from gspo_conformance.target import Capabilities, Case

EVERYTHING = Capabilities.everything()
VECTORS = [vector for vector in load_vectors() if vector.refuses is None]
Answer = Callable[[Vector, Case], dict[str, Any]]


def _filled(number: float) -> Answer:
    return lambda vector, case: {
        name: np.full(vector.expected[name].shape, number, case.dtype) for name in case.outputs
    }


def _changed(change: Callable[[np.ndarray], Any]) -> Answer:
    return lambda vector, case: {name: change(vector.expected[name].value.astype(case.dtype)) for name in case.outputs}


def _echo(vector: Vector, case: Case) -> dict[str, Any]:
    """The first input that has the shape of the output, or any input."""
    part = case.inputs["parts"][0] if "parts" in case.inputs else case.inputs
    arrays = [array for array in part.values() if isinstance(array, np.ndarray)]

    def fitting(shape: tuple[int, ...]) -> np.ndarray:
        return next((array for array in arrays if array.shape == shape), arrays[0])

    return {name: fitting(vector.expected[name].shape) for name in case.outputs}


NEVER: dict[str, Answer] = {
    "nothing": lambda vector, case: {},
    "NaN": _filled(np.nan),
    "infinity": _filled(np.inf),
    "an axis more": _changed(lambda truth: truth[None]),
    "one too few": _changed(lambda truth: truth.ravel()[:-1] if truth.size > 1 else truth[None][:0]),
    "float16": _changed(lambda truth: np.clip(truth, -6e4, 6e4).astype(np.float16)),
    "words": _changed(str),
}
SELDOM: dict[str, Answer] = {
    "zeros": _filled(0.0),
    "ones": _filled(1.0),
    "the input": _echo,
    "with the sign turned": _changed(lambda truth: -truth),
}


def passes(answer: Answer, vector: Vector) -> bool:
    case = case_of(vector, vector.dtype[0], EVERYTHING)
    return all(item.ok for item in judge(vector, case, answer(vector, case)))


def whole_numbers(vector: Vector) -> bool:
    """Whether the dtype is left open: decisions and counts alone."""
    return all(name == "keep" or name.startswith("metrics.") for name in vector.outputs)


@pytest.mark.parametrize("name", NEVER)
def test_no_vector_takes_it_for_an_answer(name: str) -> None:
    chosen = [vector for vector in VECTORS if not (name == "float16" and whole_numbers(vector))]
    assert not [vector.id for vector in chosen if passes(NEVER[name], vector)]


@pytest.mark.parametrize("name", SELDOM)
def test_it_may_be_the_truth_of_a_vector_but_of_no_operation(name: str) -> None:
    verdicts: dict[str, set[bool]] = defaultdict(set)
    for vector in VECTORS:
        if vector.level == "MUST":
            verdicts[vector.operation].add(passes(SELDOM[name], vector))
    got_through = {operation for operation, found in verdicts.items() if False not in found}
    assert not got_through


def test_the_truth_itself_passes() -> None:
    assert not [vector.id for vector in VECTORS if not passes(_changed(lambda truth: truth), vector)]
