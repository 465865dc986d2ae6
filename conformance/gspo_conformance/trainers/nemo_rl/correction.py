"""`use_importance_sampling_correction`: weights of tokens, or of responses as products where the ratio is the sequence's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .. import parts
from ..dialect import Inexpressible

TYPE, HIGH, LOW = (f"truncated_importance_sampling_{name}" for name in ("type", "ratio", "ratio_min"))
PLAIN = {"numerator": "old", "negative_only": False}


def read_correction(own: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The weights that these settings put on a token."""
    if not own["use_importance_sampling_correction"]:
        return []
    level = "sequence" if own["sequence_level_importance_ratios"] else "token"
    kind = own[TYPE]
    if kind is None:
        return [parts.weight(level, "clamp")]
    bounds = own[LOW] or None, None if own[HIGH] is None or math.isinf(own[HIGH]) else own[HIGH]
    if kind == "seq-mask-tis":
        return [parts.weight("token", "clamp"), parts.weight("geometric", "reject", *bounds)]
    return [parts.weight(level, {"tis": "clamp", "icepop": "mask"}[kind], *bounds)]


def write_correction(corrections: Any, *, sequence: bool) -> dict[str, Any]:
    """The settings for these weights."""
    if not corrections:
        return {"use_importance_sampling_correction": False}
    weights = [dict(one) for one in corrections]
    if any({name: one[name] for name in PLAIN} != PLAIN for one in weights):
        raise Inexpressible("NeMo-RL's weights are those of the old policy, whatever the sign of the advantage")
    return {"use_importance_sampling_correction": True, **_written(weights, "sequence" if sequence else "token")}


def _written(weights: list[dict[str, Any]], level: str) -> dict[str, Any]:
    one = weights[-1]
    bounds = {LOW: one["low"] or 0.0, HIGH: math.inf if one["high"] is None else one["high"]}
    masked = level == "token" and (one["level"], one["action"]) == ("geometric", "reject")
    if len(weights) == 2 and weights[0] == parts.weight("token", "clamp") and masked:
        return {TYPE: "seq-mask-tis", **bounds}
    if len(weights) == 1 and one["level"] == level and one["action"] in ("clamp", "mask"):
        whole = one["action"] == "clamp" and one["low"] is None and one["high"] is None
        return {TYPE: None} if whole else {TYPE: {"clamp": "tis", "mask": "icepop"}[one["action"]], **bounds}
    raise Inexpressible(f"with the ratio of a {level} NeMo-RL's weights are those of a {level}, clamped or masked")
