"""Advantages by the standard library: exact fractions for group statistics, double sums for returns."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from gspo_conformance.target import Capabilities, Case, FunctionTarget, Skip

DEFAULTS = {"center": "mean", "scale": "std", "ddof": 1, "eps": 1e-6, "eps_placement": "std"}


def by_fractions(case: Case) -> dict[str, Any]:
    """Eq. 6 in exact fractions, up to the one square root."""
    settings = DEFAULTS | dict(case.parameters)
    if settings["scale"] not in ("std", "none") or settings["center"] not in ("mean", "none") or "valid" in case.inputs:
        raise Skip("plain groups alone")
    rewards = [Fraction(float(reward)) for reward in case.inputs["rewards"]]
    groups = case.inputs["groups"].tolist()
    found = [_advantage(reward, [r for r, g in zip(rewards, groups, strict=True) if g == group], settings) for reward, group in zip(rewards, groups, strict=True)]  # fmt: skip
    return {"advantages": np.array(found, case.dtype)}


def _advantage(reward: Fraction, group: list[Fraction], settings: dict[str, Any]) -> float:
    mean = sum(group, Fraction(0)) / len(group)
    centred = float(reward - (mean if settings["center"] == "mean" else 0))
    freedom = len(group) - settings["ddof"]
    if settings["scale"] == "none" or freedom <= 0:
        return centred
    variance = float(sum((r - mean) ** 2 for r in group) / Fraction(freedom))
    eps = settings["eps"]
    divisor = math.sqrt(variance) + eps if settings["eps_placement"] == "std" else math.sqrt(variance + eps)
    return centred / divisor if divisor else centred


def by_double_sums(case: Case) -> dict[str, Any]:
    """Returns and GAE as sums over everything that follows, each term with its power."""
    arrays, mask = case.inputs, case.inputs["mask"]
    gamma, lam = (case.parameters.get(name, 1.0) for name in ("gamma", "lam"))
    gae = case.operation == "gae_advantages"
    found = np.zeros(mask.shape)
    for i, row in enumerate(mask):
        at = np.flatnonzero(row)
        terms = [float(arrays["rewards"][i, t]) for t in at]
        if gae:
            values = [float(arrays["values"][i, t]) for t in at]
            after = [*values[1:], float(arrays["bootstrap"][i]) if "bootstrap" in arrays else 0.0]
            terms = [r + gamma * n - v for r, n, v in zip(terms, after, values)]
        factor = gamma * lam if gae else gamma
        for place, t in enumerate(at):
            found[i, t] = math.fsum(factor**k * term for k, term in enumerate(terms[place:]))
    if not gae:
        return {"returns": found.astype(case.dtype)}
    returns = np.where(mask, found + np.where(mask, arrays["values"], 0.0), 0.0)
    return {"advantages": found.astype(case.dtype), "returns": returns.astype(case.dtype)}


VARIANTS = (
    FunctionTarget("fractions", by_fractions, Capabilities.everything(operations={"group_advantages"})),
    FunctionTarget(
        "double-sums",
        by_double_sums,
        Capabilities.everything(operations={"gae_advantages", "reinforce_returns"}, layouts={"padded"}),
    ),
)
