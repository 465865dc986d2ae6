"""The judge: tolerance in units of u(dtype) scale, exactness where it is owed, and no way past shape, dtype and NaN."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pytest

from gspo_conformance.applicability import case_of
from gspo_conformance.formats import Vector
from gspo_conformance.judge import Judged, judge
from gspo_conformance.target import Capabilities

from .small import keep_vector, loss_vector, ratio_vector, vector

EVERYTHING = Capabilities.everything()
LOSS = loss_vector("aggregation/unequal")
RATIO = ratio_vector("ratio/sequence")


def judged(vector: Vector, answer: Any, dtype: str = "float32") -> dict[str, Judged]:
    return {item.output: item for item in judge(vector, case_of(vector, dtype, EVERYTHING), answer)}


def truth(vector: Vector, dtype: str = "float32") -> dict[str, Any]:
    return {name: expected.value.astype(dtype) for name, expected in vector.expected.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("subject", [LOSS, RATIO, keep_vector("sampling/keep")], ids=lambda v: v.id)
def test_truth_passes(subject: Vector, dtype: str) -> None:
    assert all(item.ok and item.k <= 1 for item in judged(subject, truth(subject, dtype), dtype).values())


@pytest.mark.parametrize(("units", "passes"), [(0, True), (8, True), (15, True), (17, False), (1e6, False)])
def test_the_tolerance_is_sixteen_units_of_roundoff_times_scale(units: float, passes: bool) -> None:
    value, scale = RATIO.expected["ratio"].value, RATIO.expected["ratio"].scale
    found = judged(RATIO, {"ratio": value + units * 2.0**-24 * scale})["ratio"]
    assert found.ok is passes
    assert found.k == pytest.approx(units, abs=1e-6)
    assert found.limit == 16


def test_float64_is_judged_by_digits_that_float64_does_not_hold() -> None:
    third = vector("ratio/third", "ratio", {"logp": [0.0]}, {"ratio": (1.0, "1")})
    third.expected["ratio"].raw["value"] = "0.33333333333333333333333333333333"
    k = judged(third, {"ratio": 1 / 3}, "float64")["ratio"].k
    assert 0.1 < k < 0.3


@pytest.mark.parametrize(("dtype", "digits"), [("float32", 8), ("float64", 15)])
def test_what_was_got_is_told_in_the_digits_of_its_dtype(dtype: str, digits: int) -> None:
    """Hunts nine digits of a float64, which look as if they were all that came."""
    value = RATIO.expected["ratio"].value * (1 + 1e-4) + 1 / 3e9
    told = judged(RATIO, {"ratio": value.astype(dtype)}, dtype)["ratio"].reason.split()[1]
    assert digits <= len(told.replace(".", "").lstrip("-0")) <= digits + 2, told


@pytest.mark.parametrize("stray", [1e-30, -1e-30, 5e-324])
def test_a_zero_that_is_owed_is_owed_exactly(stray: float) -> None:
    answer = truth(LOSS, "float64")
    answer["gradient"][0, 4] = stray
    found = judged(LOSS, answer, "float64")["gradient"]
    assert found.k == inf
    assert found.index == (0, 4)
    assert "exactness is owed" in found.reason


def test_minus_zero_is_zero() -> None:
    answer = truth(LOSS)
    answer["gradient"][answer["gradient"] == 0] = -0.0
    assert judged(LOSS, answer)["gradient"].ok


def test_where_the_scale_is_subnormal_flushing_to_zero_is_legal_but_a_value_is_not() -> None:
    tiny = vector("numerics/tiny", "ratio", {"logp": [0.0]}, {"ratio": ([1e-42, 1.0], ["1e-42", "1"])})
    assert judged(tiny, {"ratio": np.array([0, 1], "f4")})["ratio"].ok
    assert not judged(tiny, {"ratio": np.array([1e-30, 1], "f4")})["ratio"].ok


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "expected a mapping of outputs, got nothing"),
        (3.0, "expected a mapping of outputs, got a float"),
        ({}, "missing from the answer, which has nothing"),
        ({"loss": 1.0}, "missing from the answer, which has loss"),
        ({"ratio": None}, "missing"),
        ({"ratio": "1.0"}, "not an array of numbers"),
        ({"ratio": object()}, "not an array of numbers"),
        ({"ratio": [1.0, [2.0]]}, "not an array of numbers"),
        ({"ratio": np.array([1j, 1])}, "not an array of numbers"),
        ({"ratio": 1.0}, "expected shape (2,), got ()"),
        ({"ratio": [1.0]}, "expected shape (2,), got (1,)"),
        ({"ratio": [[1.0, 1.0]]}, "expected shape (2,), got (1, 2)"),
        ({"ratio": np.array([1.0, 1.0], "f2")}, "expected float32, got float16"),
        ({"ratio": np.array([1, 1])}, "expected float32, got int64"),
        ({"ratio": np.array([True, True])}, "expected float32, got bool"),
        ({"ratio": [np.nan, np.nan]}, "got nan at [0]"),
        ({"ratio": [np.inf, 1.0]}, "got inf at [0]"),
    ],
)
def test_what_is_not_an_answer_never_passes(answer: Any, reason: str) -> None:
    found = judged(RATIO, answer)["ratio"]
    assert not found.ok
    assert found.k == inf
    assert reason in found.reason


def test_float32_is_too_narrow_for_a_float64_case_and_float64_is_welcome_in_a_float32_case() -> None:
    assert "expected float64, got float32" in judged(RATIO, truth(RATIO, "float32"), "float64")["ratio"].reason
    assert judged(RATIO, truth(RATIO, "float64"), "float32")["ratio"].ok


def test_decisions_come_as_booleans_or_as_zeros_and_ones() -> None:
    keep = keep_vector("sampling/keep")
    for right in ([True, True, False, False], [1, 1, 0, 0]):
        assert judged(keep, {"keep": np.array(right)})["keep"].ok
    assert not judged(keep, {"keep": np.array([True, False, False, False])})["keep"].ok
    assert not judged(keep, {"keep": np.array([0.9, 1.0, 0.0, 0.0])})["keep"].ok


def test_the_input_sent_back_is_called_that() -> None:
    case = case_of(LOSS, "float32", EVERYTHING)
    found = judged(LOSS, {"loss": 0.0, "gradient": case.inputs["logp"]})["gradient"]
    assert "the input `logp` came back unchanged" in found.reason


def test_an_infinite_truth_wants_that_infinity() -> None:
    huge = vector("numerics/inf", "ratio", {"logp": [0.0]}, {"ratio": ([1.0, 2.0], ["1", "2"])})
    huge.expected["ratio"].raw["value"] = ["inf", "nan"]
    assert judged(huge, {"ratio": np.array([np.inf, np.nan])})["ratio"].ok
    assert not judged(huge, {"ratio": np.array([3e38, np.nan])})["ratio"].ok
    assert not judged(huge, {"ratio": np.array([-np.inf, np.nan])})["ratio"].ok
    assert not judged(huge, {"ratio": np.array([np.inf, 0.0])})["ratio"].ok


def test_a_gradient_stored_in_bfloat16_is_granted_one_rounding_and_no_more() -> None:
    subject = loss_vector("numerics/bf16", input_dtype="bfloat16")
    exact = subject.expected["gradient"].value
    assert judged(subject, {"loss": truth(subject)["loss"], "gradient": exact * (1 + 2.0**-9)})["gradient"].ok
    assert not judged(subject, {"loss": truth(subject)["loss"], "gradient": exact * (1 + 2.0**-7)})["gradient"].ok


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrow_tensor_passes_only_as_the_gradient_of_narrow_log_probabilities(dtype: str) -> None:
    import torch

    narrow = loss_vector("numerics/narrow", input_dtype=dtype)
    answer = {name: torch.tensor(value).to(getattr(torch, dtype)) for name, value in truth(narrow).items()}
    assert judged(narrow, answer)["gradient"].ok
    assert f"expected float32, got {dtype}" in judged(narrow, answer)["loss"].reason
    assert f"expected float32, got {dtype}" in judged(LOSS, answer)["gradient"].reason
