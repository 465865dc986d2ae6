"""Eq. 6 leaves ddof and eps open: every usual choice conforms, and what is no group-normalised advantage does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gspo_conformance import Capabilities, FunctionTarget, check
from gspo_conformance.targets.numpy import target

CORE = target()

Rule = Callable[[Any], Any]
RIGHT: dict[str, Rule] = {
    "population": lambda r: (r - r.mean()) / r.std(),
    "population, 1e-8": lambda r: (r - r.mean()) / (r.std() + 1e-8),
    "sample, 1e-4": lambda r: (r - r.mean()) / (r.std(ddof=1) + 1e-4),
    "sample, 1e-6 under the root": lambda r: (r - r.mean()) / np.sqrt(r.var(ddof=1) + 1e-6),
}
WRONG: dict[str, Rule] = {
    "half": lambda r: 0.5 * (r - r.mean()) / r.std(),
    "the largest as baseline": lambda r: (r - r.max()) / r.std(),
    "undivided": lambda r: r - r.mean(),
    "divided by the variance": lambda r: (r - r.mean()) / r.var(),
    "the first left out": lambda r: np.concatenate([[0.0], (r[1:] - r[1:].mean()) / r[1:].std()]),
    "negated": lambda r: (r.mean() - r) / r.std(),
}


def _target(name: str, rule: Rule) -> FunctionTarget:
    def answer(case: Any) -> dict[str, Any]:
        rewards, groups = case.inputs["rewards"].astype(case.dtype), case.inputs["groups"]
        found = np.zeros_like(rewards)
        for group in np.unique(groups):
            if np.ptp(members := rewards[groups == group]):
                found[groups == group] = rule(members)
        return {"advantages": found}

    claims = {"operations": {"group_advantages"}, "dtypes": {"float32", "float64"}, "inputs": {"rewards", "groups"}}
    return FunctionTarget(name, answer, Capabilities(**claims))


@pytest.mark.parametrize("name", RIGHT)
def test_every_convention_conforms(name: str) -> None:
    run = check(_target(name, RIGHT[name]), "advantage/any-convention-float*", "advantage/two-groups")
    assert run.conforming
    assert run.counts["pass"] >= 2
    assert run.k < 16


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_normalised_advantage_does_not(name: str) -> None:
    run = check(_target(name, WRONG[name]), "advantage/any-convention-float*")
    assert not run.conforming
    assert run.counts == {"fail": 2}


@pytest.mark.parametrize("choice", [{"ddof": 0, "eps": 1e-8}, {"ddof": 0, "eps": 1e-4}, {"ddof": 1, "eps": 1e-4}])
def test_every_spread_conforms_whatever_its_convention(choice: dict[str, float]) -> None:
    """Of the batch, of the others, running: the vectors that are MUST leave ddof and eps open."""

    def answer(case: Any) -> dict[str, Any]:
        return CORE.run(replace(case, parameters={**case.parameters, **choice}))

    claims = Capabilities.everything(operations={"group_advantages", "normalize_rewards"}, metrics=())
    run = check(FunctionTarget("chosen", answer, claims), "*/any-convention*")
    assert run.counts == {"pass": 12}
