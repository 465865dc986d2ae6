"""Other arithmetic: pure Python with exact sums, chunks with compensation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gspo_conformance.target import Capabilities, Case, FunctionTarget

CLIPPED = [
    {"ratio": ratio, "surrogate": {"kind": "clip", "dual": None}, "penalty": None, "correction": [], "log_ratio_cap": None, "aggregation": {"mode": "sequence_mean_token_mean"}}
    for ratio in ("sequence", "gspo_token", "token")
]  # fmt: skip


def pure_python(case: Case) -> dict[str, Any]:
    """GSPO, GSPO-token and GRPO in Python floats: fsum for every sum, gradients in closed form, no arrays inside."""
    objective = case.parameters["objective"]
    clip, ratio = objective["surrogate"], objective["ratio"]
    if ratio == "sequence" and case.inputs["advantages"].ndim == 2:
        raise ValueError("advantages: expected one per response")
    arrays = {name: value.tolist() for name, value in case.inputs.items() if name != "groups"}
    rows = [[t for t, counted in enumerate(row) if counted] for row in arrays["mask"]]
    filled = sum(1 for row in rows if row)
    count = case.parameters.get("normalizer") or (len(rows) if objective["aggregation"]["count"] == "all" else filled)
    losses: list[float] = []
    gradient = np.zeros(case.inputs["mask"].shape)
    for i, at in enumerate(rows):
        moved = [arrays["logp"][i][t] - arrays["old_logp"][i][t] for t in at]
        mean = math.fsum(moved) / len(moved) if moved else 0.0
        for place, t in enumerate(at):
            a = arrays["advantages"][i]
            a = a[t] if isinstance(a, list) else a
            value, slope = _unit(moved[place] if ratio == "token" else mean, a, clip)
            losses.append(-value / len(at) / count)
            gradient[i, t] = -slope / len(at) / count
    return {"loss": np.asarray(math.fsum(losses), case.dtype), "gradient": gradient.astype(case.dtype)}


def _unit(log_ratio: float, a: float, clip: dict[str, Any]) -> tuple[float, float]:
    """J and dJ/dℓ of one unit."""
    if a == 0:
        return 0.0, 0.0
    bound = math.log1p(clip["high"]) if a > 0 else math.log1p(-clip["low"]) if clip["low"] < 1 else -math.inf
    if a > 0 and log_ratio > bound:
        return (1 + clip["high"]) * a, 0.0
    if a < 0 and log_ratio < bound:
        return (1 - clip["low"]) * a, 0.0
    return math.exp(log_ratio) * a, math.exp(log_ratio) * a


def chunked(case: Case) -> dict[str, Any]:
    """The sequence ratio from chunks of five tokens, each added with compensation, in the dtype of the case."""
    logp, old, mask = (case.inputs[name] for name in ("logp", "old_logp", "mask"))
    moved = np.where(mask, logp, 0) - np.where(mask, old, 0)
    total, lost = np.zeros(len(moved), moved.dtype), np.zeros(len(moved), moved.dtype)
    for start in range(0, moved.shape[1], 5):
        term = moved[:, start : start + 5].sum(axis=1, dtype=moved.dtype) - lost
        grown = total + term
        lost, total = (grown - total) - term, grown
    lengths = np.maximum(mask.sum(axis=1), 1).astype(moved.dtype)
    ratio = np.exp(total / lengths)
    return {
        "ratio": ratio if case.parameters["kind"] == "sequence" else np.where(mask, ratio[:, None], moved.dtype.type(1))
    }


def by_matrix(case: Case) -> dict[str, Any]:
    """Aggregation as one product with a matrix of weights."""
    values, mask, mode = case.inputs["values"].astype(np.float64), case.inputs["mask"], case.parameters["mode"]
    lengths = mask.sum(axis=1)
    weights = {
        "sequence_mean_token_mean": mask / np.maximum(lengths, 1)[:, None],
        "sequence_mean_token_sum": mask / mode["constant"],
        "token_sum": mask / mode["constant"],
        "token_mean": mask.astype(float),
    }[mode["mode"]]
    responses = len(mask) if mode["count"] == "all" else np.count_nonzero(lengths)
    own = {"token_mean": lengths.sum(), "token_sum": 1.0}.get(mode["mode"], responses)
    total = np.tensordot(np.where(mask, values, 0.0), weights, 2) / (case.parameters.get("normalizer") or own or 1.0)
    return {"value": total.astype(case.dtype)}


def _ungrouped(case: Case) -> dict[str, Any]:
    from gspo_conformance.target import Skip

    if case.parameters["mode"]["mode"] == "group_token_mean":
        raise Skip("no groups here")
    return by_matrix(case)


def _two_kinds(case: Case) -> dict[str, Any]:
    from gspo_conformance.target import Skip

    if case.parameters["kind"] not in ("sequence", "gspo_token"):
        raise Skip("sequence ratios alone")
    return chunked(case)


def _only(operation: str, **fields: Any) -> Capabilities:
    given = {"operations": {operation}, "layouts": {"padded"}, "metrics": (), "input_dtypes": ()}
    return Capabilities.everything(**(given | fields))


VARIANTS = (
    FunctionTarget("pure-python", pure_python, _only("policy_loss", objectives=CLIPPED)),
    FunctionTarget("chunked", _two_kinds, _only("ratio")),
    FunctionTarget("matrix", _ungrouped, _only("aggregate")),
)
