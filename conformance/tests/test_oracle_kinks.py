"""How near a question is to a decision: what flips, and what does not."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from mpmath import exp, mp, mpf

from gspo_conformance.oracle import truth

TOKENS = {"logp": [[-0.75]], "old_logp": [[-1.0]], "mask": [[1]], "ref_logp": [[-1.25]], "behavior_logp": [[-1.5]]}
CLIP = {"kind": "clip", "low": 0.25, "high": 0.5}


def margin(advantage: float = 1.0, surrogate: Any = None, **axes: Any) -> mpf:
    """The kink margin of one token with d = 1/4, z = 1/2 and e = 1/2."""
    objective = {"ratio": "token", "surrogate": surrogate or {"kind": "unclipped"}, **axes}
    return truth("policy_loss", {"objective": objective}, TOKENS | {"advantages": [advantage]}).kink_margin


def near(found: mpf, formula: Any) -> bool:
    """Equal to 40 digits."""
    with mp.workdps(50):
        return abs(found - formula(exp(mpf(1) / 4), exp(mpf(1) / 2))) < mpf(10) ** -40


def test_a_distance_is_measured_in_what_rounding_does_to_the_ratio() -> None:
    """|x - bound| / (x (1 + |d|)), to the one bound that the sign of A puts in reach."""
    assert near(margin(1.0, CLIP), lambda x, w: (mpf(3) / 2 - x) / (x * 5 / 4))
    assert near(margin(-1.0, CLIP), lambda x, w: (x - mpf(3) / 4) / (x * 5 / 4))
    assert near(margin(-1.0, CLIP | {"dual": 1.25}), lambda x, w: (x - mpf(5) / 4) / (x * 5 / 4))
    assert near(margin(1.0, {"kind": "reinforce", "gate": CLIP}), lambda x, w: (mpf(3) / 2 - x) / (x * 5 / 4))
    assert near(margin(-1.0, {"kind": "cispo", "low": 0.25, "high": 0.5}), lambda x, w: (mpf(3) / 2 - x) / (x * 5 / 4))


def test_log_space_bounds_and_caps_are_measured_in_log_space() -> None:
    assert near(margin(1.0, {"kind": "gmpo", "low": 1.0, "high": 0.5}), lambda x, w: mpf(1) / 4 / (mpf(3) / 4))
    assert near(margin(-1.0, {"kind": "gmpo", "low": 1.0, "high": 0.5}), lambda x, w: mpf(5) / 4 / (mpf(5) / 4))
    assert margin(1.0, {"kind": "gmpo", "low": 1.0, "high": 0.25}) == 0
    assert margin(1.0, log_ratio_cap=0.25) == 0
    assert near(margin(1.0, log_ratio_cap=0.125), lambda x, w: mpf(1) / 8 / (mpf(3) / 8))


def test_corrections_and_penalties_decide_too() -> None:
    correction = {"level": "token", "action": "mask", "high": 2.0}
    assert near(margin(1.0, correction=[correction]), lambda x, w: (2 - w) / (w * 3 / 2))
    assert margin(1.0, correction=[correction | {"negative_only": True}]) == inf
    k1 = {"estimator": "k1", "coefficient": 1}
    assert near(margin(penalty=k1 | {"log_ratio_clamp": 0.25}), lambda x, w: mpf(1) / 3)
    assert near(margin(penalty=k1 | {"value_clamp": 1.0}), lambda x, w: mpf(1) / 3)
    assert margin(penalty=k1 | {"value_clamp": 0.5}) == 0


def test_nothing_is_decided_without_an_advantage_or_a_bound() -> None:
    assert margin(0.0, CLIP) == inf
    assert margin(1.0) == margin(1.0, {"kind": "sapo"}) == margin(1.0, {"kind": "vespo"}) == inf


@pytest.mark.parametrize(("rewards", "wanted"), [([0.0, 0.5, 1.0], 0), ([1.0, 1.0, 1.0], inf)])
def test_a_computed_advantage_of_zero_has_no_sure_sign_unless_it_is_owed(rewards: list[float], wanted: float) -> None:
    tokens = {name: TOKENS[name] * 3 for name in ("logp", "old_logp", "mask")}
    objective = {"ratio": "sequence", "surrogate": CLIP}
    found = truth("pipeline", {"objective": objective}, tokens | {"rewards": rewards, "groups": [0, 0, 0]})
    assert found.kink_margin == wanted
