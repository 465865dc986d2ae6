"""What the tests of all trainers share: objectives of the suite, and the row factors of a real loss against the paper's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest

from gspo_conformance.connection import Outputs
from gspo_conformance.formats import load_vectors
from gspo_conformance.resolve import connect
from gspo_conformance.target import Case
from gspo_conformance.trainers.dialect import PAPER, Dialect, Inexpressible
from gspo_conformance.trainers.environment import Environment
from gspo_conformance.trainers.room import choose

LENGTHS = np.array([3, 11, 5, 8, 4, 9])
RATIOS = np.array([0.896, 1.0, 1.066, 1.1, 1.15, 0.95])
ADVANTAGES = np.array([1.2, -0.7, 0.9, -1.1, 0.4, -0.3])


@cache
def _objectives() -> tuple[str, ...]:
    found = {
        json.dumps(v.parameters["objective"], sort_keys=True) for v in load_vectors() if "objective" in v.parameters
    }
    return tuple(sorted(found))


def check_read_again(
    dialect: Dialect, version: str, at_least: int, plain: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """Of the objectives of the suite that the dialect can write, it reads what it wrote; `plain` is what the trainer leaves a choice about."""
    pairs = list(_expressible(dialect, version))
    assert len(pairs) >= at_least
    for objective, read in pairs:
        assert plain(read) == plain(objective), (objective, read)


def _expressible(dialect: Dialect, version: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every objective of the suite that the dialect can write, with what it reads of what it wrote."""
    for text in _objectives():
        objective = json.loads(text)
        try:
            settings = dialect.write(objective, version)
        except Inexpressible:
            continue
        yield objective, dict(dialect.read(settings, version).objective)


def same(objective: dict[str, Any]) -> dict[str, Any]:
    """The objective, whose KL term of coefficient 0 is none."""
    return {**objective, "penalty": objective["penalty"] if has_penalty(objective) else None}


def uncounted(objective: dict[str, Any]) -> dict[str, Any]:
    """The same, where who counts is not a choice."""
    return {**same(objective), "aggregation": {**objective["aggregation"], "count": ""}}


def has_penalty(objective: Mapping[str, Any]) -> bool:
    """Whether there is a KL term; one with the coefficient 0 is none."""
    return bool(objective["penalty"] and objective["penalty"]["coefficient"])


def wide(objective: Mapping[str, Any]) -> dict[str, Any]:
    """The objective with a clip range of 0.2 in which no row of `case` is clipped."""
    return {**objective, "surrogate": {"kind": "clip", "low": 0.2, "high": 0.2, "dual": None}}


def row_factors(
    spec: str,
    *aggregations: Mapping[str, Any],
    dtype: str = "float64",
    objective: Mapping[str, Any] = PAPER,
    ratios: np.ndarray = RATIOS,
) -> list[np.ndarray]:
    """Gradient of the real loss over the paper's, one number a response, under each aggregation; skipped where the trainer is not set up."""
    cases = [_case({**wide(objective), "aggregation": dict(one)}, dtype, ratios) for one in aggregations]
    return [_factors(values, ratios) for values in answers(spec, *cases)]


def answers(spec: str, *cases: Case) -> list[Mapping[str, Any]]:
    """What the trainer's real code returns; skipped where it is not set up."""
    choice = choose(spec)
    if not Environment(choice.room, choice.version).ready:
        pytest.skip(f"{spec} is not set up here: gspo trainers setup {spec.partition(':')[0]}")
    connection = connect(spec)
    connection.start()
    try:
        replies = [connection.ask(case, 60.0) for case in cases]
    finally:
        connection.stop()
    for reply in replies:
        assert isinstance(reply, Outputs), reply
    return [reply.values for reply in replies]


def _factors(values: Mapping[str, Any], ratios: np.ndarray) -> np.ndarray:
    gradient = values["gradient"].array
    paper = -ratios * ADVANTAGES / (len(LENGTHS) * LENGTHS)
    rows = [gradient[i, :length] / paper[i] for i, length in enumerate(LENGTHS)]
    spread = max(np.ptp(row) for row in rows)
    assert spread < (1e-9 if gradient.dtype == np.float64 else 2e-6), "the tokens of a response differ"
    return np.array([row.mean() for row in rows])


def _case(objective: Mapping[str, Any], dtype: str, ratios: np.ndarray) -> Case:
    """Six responses of different lengths with these ratios."""
    mask = np.arange(LENGTHS.max()) < LENGTHS[:, None]
    old = np.where(mask, -1.5, 0.0)
    logp = np.where(mask, old + np.log(ratios)[:, None], 0.0)
    inputs = {"logp": logp, "old_logp": old, "advantages": ADVANTAGES}
    inputs = {name: value.astype(dtype) for name, value in inputs.items()} | {"mask": mask.astype(np.int64)}
    return Case("policy_loss", {"objective": objective}, inputs, dtype, ("loss", "gradient"))
