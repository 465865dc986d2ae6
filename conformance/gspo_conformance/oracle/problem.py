"""One problem: an objective with its defaults written out, and the inputs as one list of exact numbers per response."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpmath import mpf

from .exact import exact, exact_parameters
from .layout import Layout, PerToken, layout_of
from .surrogate import PER_TOKEN_SURROGATES

RATIOS = ("token", "sequence", "gspo_token", "product")
SURROGATES: dict[str, dict[str, Any]] = {
    "clip": {"low": None, "high": None, "dual": None},
    "unclipped": {},
    "reinforce": {"gate": None},
    "cispo": {"low": None, "high": 4.0},
    "gmpo": {"low": 0.4, "high": 0.4},
    "sapo": {"tau_pos": 1.0, "tau_neg": 1.05},
    "vespo": {"k_pos": 2, "lam_pos": 3, "k_neg": 3, "lam_neg": 2},
}
AGGREGATION = {"mode": "sequence_mean_token_mean", "count": "all", "constant": 1.0}
PENALTY = {"estimator": "k3", "importance": None, "aggregation": None, "log_ratio_clamp": None, "value_clamp": None}
CORRECTION = {"low": None, "high": None, "numerator": "old", "negative_only": False}


@dataclass(frozen=True)
class Problem:
    """A batch and what is asked of it: logp[i][k] is the k-th counted token of response i.

    `advantage_scales` are 0 for advantages that are inputs, and their scales where they were computed from rewards.
    """

    objective: dict[str, Any]
    layout: Layout
    logp: PerToken
    old_logp: PerToken
    advantages: PerToken
    advantage_scales: PerToken
    ref_logp: PerToken | None
    behavior_logp: PerToken | None
    groups: list[Any] | None
    normalizer: mpf | None

    @property
    def unit_is_sequence(self) -> bool:
        """Whether one surrogate value stands for a whole response (GSPO-SURR-1, GSPO-SURR-9)."""
        kind, ratio = self.objective["surrogate"]["kind"], self.objective["ratio"]
        return kind == "gmpo" or (ratio in ("sequence", "product") and kind not in PER_TOKEN_SURROGATES)


def read_problem(objective: Mapping[str, Any] | str, inputs: Mapping[str, Any]) -> Problem:
    """JSON in, exact numbers out; refuses what the contract forbids (GSPO-ADV-14)."""
    layout = layout_of(inputs["logp"], mask=inputs.get("mask"), offsets=inputs.get("offsets"))
    optional = {name: _gather(layout, inputs.get(name)) for name in ("ref_logp", "behavior_logp")}
    normalizer = inputs.get("normalizer")
    groups = inputs.get("groups")
    problem = Problem(
        objective=read_objective(objective),
        layout=layout,
        logp=layout.gather(inputs["logp"]),
        old_logp=layout.gather(inputs["old_logp"]),
        advantages=layout.spread(inputs["advantages"]),
        advantage_scales=layout.spread(inputs.get("advantage_scales") or [0] * len(layout.counted)),
        groups=None if groups is None else list(groups),
        normalizer=None if normalizer is None else exact(normalizer),
        **optional,
    )
    _check(problem, per_token=layout.is_per_token(inputs["advantages"]))
    return problem


def _gather(layout: Layout, values: Sequence[Any] | None) -> PerToken | None:
    return None if values is None else layout.gather(values)


def _check(problem: Problem, *, per_token: bool) -> None:
    """Refuse an input that the objective needs and lacks, or has and cannot use."""
    objective = problem.objective
    if objective["penalty"] is not None and problem.ref_logp is None:
        raise ValueError("a penalty needs ref_logp")
    if objective["correction"] and problem.behavior_logp is None:
        raise ValueError("a correction needs behavior_logp")
    if per_token and problem.unit_is_sequence:
        raise ValueError("this objective takes one advantage per response")
    if problem.groups is not None and len(problem.groups) != len(problem.logp):
        raise ValueError("one group per response")


def read_objective(objective: Mapping[str, Any] | str) -> dict[str, Any]:
    """The JSON form of an objective -> the same with every default written out and every number exact."""
    given = json.loads(objective) if isinstance(objective, str) else dict(objective)
    full = {"penalty": None, "correction": [], "log_ratio_cap": None, "aggregation": {}} | given
    kind = full["surrogate"]["kind"]
    full["surrogate"] = SURROGATES[kind] | full["surrogate"]
    full["aggregation"] = AGGREGATION | full["aggregation"]
    full["penalty"] = None if full["penalty"] is None else _penalty(full["penalty"])
    full["correction"] = [CORRECTION | correction for correction in full["correction"]]
    if full["ratio"] not in RATIOS or (kind == "gmpo" and full["ratio"] != "token"):
        raise ValueError(f"no objective has ratio {full['ratio']!r} with surrogate {kind!r}")
    return exact_parameters(full)


def _penalty(penalty: Mapping[str, Any]) -> dict[str, Any]:
    full = PENALTY | dict(penalty)
    if full["aggregation"] is not None:
        full["aggregation"] = AGGREGATION | full["aggregation"]
    return full
