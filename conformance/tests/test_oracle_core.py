"""Core against oracle: two programs from one text, on hundreds of random questions for every operation."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from gspo_conformance.build.recipe import aggregation, gspo, penalty
from gspo_conformance.oracle import OUTPUTS, truth
from gspo_conformance.oracle.differences import flattened
from gspo_conformance.target import Case
from gspo_conformance.targets.numpy import target

from .oracle_cases import QUESTIONS, SURROGATES, UNIT, Question, batch, distance, policy_loss

LIMIT = 8.0  # half of what a target is granted
CLEAR = 1e-5  # kink margins below this are decided by float32's rounding
TARGET = target()


def _cast(inputs: Any, dtype: str) -> Any:
    if isinstance(inputs, list):
        return [_cast(part, dtype) for part in inputs]
    if isinstance(inputs, dict):
        return {name: _cast(value, dtype) for name, value in inputs.items()}
    return inputs.astype(dtype) if inputs.dtype.kind == "f" else inputs


def _answers(question: Question, dtype: str, outputs: Any) -> dict[str, Any]:
    operation, parameters, inputs = question
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return TARGET.run(Case(operation, parameters, _cast(inputs, dtype), dtype, tuple(outputs)))


def _decided(name: str) -> bool:
    """Outputs that jump where a decision flips."""
    return name.startswith(("gradient", "metrics.clip_fraction", "keep"))


def _far(question: Question) -> list[str]:
    """What lies farther from the truth than `LIMIT`, and everything that one of the two does not return."""
    found = truth(*question)
    far = []
    for dtype in UNIT:
        got = _answers(question, dtype, found.outputs)
        far += [f"{name} is missing" for name in found.outputs if name not in got and name not in ("sum", "count")]
        for name, value in got.items():
            if found.kink_margin >= CLEAR or not _decided(name):
                units = distance(value, found, name, dtype)
                far += [f"{name} in {dtype}: {units:.3g} units"] if units > LIMIT else []
    return far


@pytest.mark.parametrize("operation", [name for name in QUESTIONS if name not in ("policy_loss", "step", "pipeline")])
def test_every_operation(operation: str) -> None:
    for seed in range(120):
        question = QUESTIONS[operation](np.random.default_rng([seed, 1]))
        assert not _far(question), (seed, question)


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda one: "-".join(map(str, one.values())))
def test_losses_gradients_and_metrics(surrogate: dict[str, Any]) -> None:
    for seed in range(30):
        question = policy_loss(np.random.default_rng([seed, 2]), surrogate)
        assert not _far(question), (seed, question)


def test_a_penalty_that_names_the_aggregation_of_the_objective() -> None:
    for seed in range(10):
        operation, parameters, inputs = policy_loss(np.random.default_rng([seed, 4]), SURROGATES[0])
        same = aggregation("token_mean")
        objective = parameters["objective"] | {"aggregation": same, "penalty": penalty("k2", 0.5, aggregation=same)}
        inputs = inputs | {"ref_logp": inputs["old_logp"]}
        assert not _far((operation, parameters | {"objective": objective, "normalizer": 7.0}, inputs)), seed


@pytest.mark.parametrize("operation", ["step", "pipeline"])
def test_steps_and_pipelines(operation: str) -> None:
    for seed in range(50):
        question = QUESTIONS[operation](np.random.default_rng([seed, 3]))
        assert not _far(question), (seed, question)


def test_the_range_of_the_paper() -> None:
    """Log-ratios as small as the clip range, 3e-4 and 4e-4: some responses are clipped, most are not."""
    paper, clipped = gspo(), []
    for seed in range(40):
        inputs = batch(np.random.default_rng([seed, 4]), paper, per_token=False, spread=6e-4)
        question = "policy_loss", {"objective": paper}, inputs
        assert not _far(question), seed
        clipped.append(float(truth(*question).outputs["metrics.clip_fraction"].value))
    assert 0.02 < np.mean(clipped) < 0.5


def test_every_operation_is_asked_and_answered() -> None:
    assert set(QUESTIONS) == set(OUTPUTS)
    for operation, names in OUTPUTS.items():
        found = truth(*QUESTIONS[operation](np.random.default_rng(5))).outputs
        patterns = {name.split(".")[0] + ".*" if "." in name else name for name in found}
        assert patterns == set(names), operation


def test_no_scale_hides_a_slip_of_one_in_a_thousand() -> None:
    """Scales are as tight as they are safe: a gradient 0.1% too large is far outside of any tolerance in float32."""
    margins = []
    for seed in range(100):
        operation, parameters, inputs = policy_loss(np.random.default_rng([seed, 6]))
        parameters["objective"]["penalty"] = None
        gradient = truth(operation, parameters, inputs).outputs["gradient"]
        pairs = zip(flattened(gradient.value), flattened(gradient.scale))
        margins += [abs(value) * 1e-3 / (UNIT["float32"] * scale) for value, scale in pairs if scale]
    assert len(margins) > 500
    assert min(margins) > 160  # ten tolerances


def test_exactness_is_owed_to_what_is_clipped_uncounted_or_without_advantage() -> None:
    owed = 0
    for seed in range(60):
        operation, parameters, inputs = policy_loss(np.random.default_rng([seed, 7]), SURROGATES[0])
        parameters["objective"]["penalty"] = None
        gradient = truth(operation, parameters, inputs).outputs["gradient"]
        pairs = list(zip(flattened(gradient.value), flattened(gradient.scale)))
        assert all((value == 0) == (scale == 0) for value, scale in pairs)
        owed += sum(scale == 0 for _, scale in pairs)
    assert owed > 100
