"""A second opinion on the truth: differences at high precision, and everything again at twice the digits."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from mpmath import mp, mpf

from gspo_conformance.oracle import Disagreement, Output, along, differentiate, evaluate, truth, verify, verify_gradient
from gspo_conformance.oracle.differences import flattened
from gspo_conformance.oracle.operations import plain

from .oracle_cases import ESTIMATORS, MODES, PER_TOKEN, QUESTIONS, RATIOS, SURROGATES, Question, batch, policy_loss

PLAIN: dict[str, Any] = {
    "ratio": "token",
    "surrogate": {"kind": "clip", "low": 0.1, "high": 0.15, "dual": 1.25},
    "aggregation": {"mode": "sequence_mean_token_mean", "count": "all", "constant": 7.0},
    "penalty": None,
    "correction": [],
    "log_ratio_cap": None,
}
PAIRS = [(r, s) for r, s in itertools.product(RATIOS, SURROGATES) if r == "token" or s["kind"] != "gmpo"]


def _agrees(objective: dict[str, Any], seed: int, *, per_token: bool = False) -> None:
    """The closed form along a random direction against central differences."""
    rng = np.random.default_rng([seed, 11])
    inputs = plain(batch(rng, objective, per_token=per_token))
    result = evaluate(objective, inputs)
    assert result.kink_margin > 1e-12
    direction = plain(rng.normal(size=np.shape(inputs["logp"])).round(3))
    slope = differentiate(objective, inputs, direction=direction)
    with mp.workdps(60):
        size = along(result.gradient.scale, _sizes(direction))
        assert abs(slope - along(result.gradient.value, direction)) <= mpf(10) ** -30 * size


def _sizes(tree: Any) -> Any:
    return [_sizes(branch) for branch in tree] if isinstance(tree, list) else abs(tree)


@pytest.mark.parametrize("ratio", RATIOS)
def test_every_ratio_with_every_surrogate_and_aggregation(ratio: str) -> None:
    for surrogate, mode in itertools.product(SURROGATES, MODES):
        if (ratio, surrogate) in PAIRS:
            wanted = PLAIN | {"ratio": ratio, "surrogate": surrogate, "aggregation": {"mode": mode, "constant": 7.0}}
            _agrees(wanted, seed=len(mode))


@pytest.mark.parametrize("ratio", RATIOS)
def test_advantages_by_token(ratio: str) -> None:
    for surrogate in SURROGATES:
        if surrogate["kind"] in PER_TOKEN or (ratio in ("token", "gspo_token") and surrogate["kind"] != "gmpo"):
            _agrees(PLAIN | {"ratio": ratio, "surrogate": surrogate}, seed=3, per_token=True)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_penalty(estimator: str) -> None:
    clamps = ({}, {"log_ratio_clamp": 0.1}, {"value_clamp": 0.05}, {"log_ratio_clamp": 0.2, "value_clamp": 0.015})
    own = ({}, {"aggregation": {"mode": "token_mean"}})
    for importance, clamp, aggregation in itertools.product((None, "token", "sequence"), clamps, own):
        penalty = {"estimator": estimator, "coefficient": 0.3, "importance": importance} | clamp | aggregation
        _agrees(PLAIN | {"ratio": "sequence", "penalty": penalty}, seed=5)


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_every_correction(level: str) -> None:
    for action, numerator, ratio, only in itertools.product(
        ("clamp", "mask", "reject"), ("old", "current"), ("token", "sequence"), (False, True)
    ):
        correction = {"level": level, "action": action, "low": 0.9, "high": 1.1, "numerator": numerator}
        _agrees(PLAIN | {"ratio": ratio, "correction": [correction | {"negative_only": only}]}, seed=7)


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_cap_stops_the_gradient(ratio: str) -> None:
    for surrogate in SURROGATES:
        if (ratio, surrogate) in PAIRS:
            _agrees(PLAIN | {"ratio": ratio, "surrogate": surrogate, "log_ratio_cap": 0.05}, seed=9)


def _clear(seed: int) -> Question:
    """A question that is not at a kink, where a derivative exists."""
    for more in itertools.count():
        question = policy_loss(np.random.default_rng([seed, more, 12]))
        if truth(*question).kink_margin > 1e-9:
            return question
    raise AssertionError


@pytest.mark.parametrize("seed", range(8))
def test_every_single_token_of_random_objectives(seed: int) -> None:
    _, parameters, inputs = _clear(seed)
    given = plain(inputs) | {"normalizer": parameters.get("normalizer")}
    verify_gradient(parameters["objective"], given, evaluate(parameters["objective"], given))


def test_a_wrong_gradient_is_noticed() -> None:
    _, parameters, inputs = _clear(1)
    given = plain(inputs)
    result = evaluate(parameters["objective"], given)
    shape = np.array(result.gradient.scale, dtype=object)
    wrong = Output((np.array(result.gradient.value, dtype=object) + mpf("1e-25") * shape).tolist(), shape.tolist())
    assert any(flattened(wrong.scale))
    object.__setattr__(result, "gradient", wrong)
    with pytest.raises(Disagreement, match="gradient"):
        verify_gradient(parameters["objective"], given, result)


@pytest.mark.parametrize("operation", list(QUESTIONS))
def test_twice_the_digits_change_nothing(operation: str) -> None:
    for seed in range(12):
        verify(truth, *QUESTIONS[operation](np.random.default_rng([seed, 13])))
