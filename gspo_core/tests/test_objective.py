"""Objectives: JSON round trip, equality, hashing, presets, axes that combine or refuse to."""

from __future__ import annotations

import json

import pytest

import gspo_core as gspo
from gspo_core.objective import PRESETS

from .batches import axes, preset


@pytest.mark.parametrize("objective", [pytest.param(objective, id=name) for name, objective in axes().items()])
def test_json_round_trip(objective: gspo.Objective) -> None:
    text = objective.to_json()
    assert gspo.Objective.from_json(text) == objective
    assert hash(gspo.Objective.from_json(text)) == hash(objective)
    assert json.loads(text) == objective.to_dict()


def test_every_preset_differs_from_every_other() -> None:
    """grpo and ppo differ in their range alone."""
    built = [preset(name) for name in PRESETS]
    assert len(set(built)) == len(built)


def test_the_paper() -> None:
    assert gspo.Objective.gspo().to_dict() == {
        "ratio": "sequence",
        "surrogate": {"kind": "clip", "low": 0.0003, "high": 0.0004, "dual": None},
        "aggregation": {"mode": "sequence_mean_token_mean", "count": "all", "constant": 1.0},
        "penalty": None,
        "correction": [],
        "log_ratio_cap": None,
    }


def test_replace_accepts_short_forms() -> None:
    objective = gspo.Objective.gspo().replace(aggregation="token_mean", correction=gspo.Correction(high=2.0))
    assert objective.aggregation == gspo.Aggregation("token_mean")
    assert objective.correction == (gspo.Correction(high=2.0),)


def test_from_json_names_what_is_unknown_or_missing() -> None:
    with pytest.raises(ValueError, match="surrogate kind: expected one of 'clip'"):
        gspo.Objective.from_json('{"ratio": "token", "surrogate": {"kind": "ppo"}}')
    with pytest.raises(ValueError, match="objective field: expected 'ratio', which is missing"):
        gspo.Objective.from_json('{"surrogate": {"kind": "unclipped"}}')
    with pytest.raises(TypeError, match="objective: expected a JSON object, got list"):
        gspo.Objective.from_json("[]")
