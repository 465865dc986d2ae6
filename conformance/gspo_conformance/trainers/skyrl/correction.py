"""`off_policy_correction` as weights: importance weights cut above, masks of tokens, masks of responses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .. import parts
from ..dialect import Inexpressible

CORRECTION = "off_policy_correction."
DEFAULTS: dict[str, Any] = {
    "tis_ratio_type": None,
    "token_tis_ratio_clip_high": 2.0,
    "sequence_tis_ratio_clip_high": 5.0,
    "sequence_mask_metric": None,
    "geo_mask_low": 0.99,
    "geo_mask_high": 1.01,
    "product_mask_low": 0.5,
    "product_mask_high": 2.0,
    "outlier_token_is_threshold_low": None,
    "outlier_token_is_threshold_high": None,
    "token_mask_is_threshold_low": None,
    "token_mask_is_threshold_high": None,
}
METRICS = {"geometric": ("geometric", "geo_mask"), "product": ("sequence", "product_mask")}


def read_correction(own: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The weights that these settings put on a token, outliers left to a finding; a mask and a weight with the same upper bound are one `mask`."""
    keys = {name: own[CORRECTION + name] for name in DEFAULTS}
    found = [*_token_mask(keys), *_sequence_mask(keys)]
    level = keys["tis_ratio_type"]
    if level is None:
        return found
    high = _bound(keys[f"{level}_tis_ratio_clip_high"])
    if len(found) == 1 and (found[0]["level"], found[0]["high"]) == (level, high):
        return [found[0] | {"action": "mask"}]
    return [parts.weight(level, "clamp", high=high), *found]


def _token_mask(keys: Mapping[str, Any]) -> list[dict[str, Any]]:
    low, high = keys["token_mask_is_threshold_low"], keys["token_mask_is_threshold_high"]
    return [] if low is None or high is None else [_reject("token", low, high)]


def _sequence_mask(keys: Mapping[str, Any]) -> list[dict[str, Any]]:
    if keys["sequence_mask_metric"] is None:
        return []
    level, bounds = METRICS[keys["sequence_mask_metric"]]
    return [_reject(level, keys[f"{bounds}_low"], keys[f"{bounds}_high"])]


def _reject(level: str, low: float, high: float) -> dict[str, Any]:
    return parts.weight(level, "reject", low or None, _bound(high))


def _bound(value: float) -> float | None:
    return None if math.isinf(value) else value


def write_correction(corrections: Any) -> dict[str, Any]:
    """The settings for these weights."""
    if len(corrections) > 1:
        raise Inexpressible("SkyRL's weights of responses leave out the tokens that its other masks drop")
    if not corrections:
        return {}
    one = corrections[0]
    if one["numerator"] != "old" or one["negative_only"]:
        raise Inexpressible("SkyRL's weights are those of the old policy, whatever the sign of the advantage")
    level, low, high = one["level"], one["low"], one["high"]
    if one["action"] == "clamp":
        return _weight(level, low, high)
    keys = _weight(level, None, high) if one["action"] == "mask" else {}
    return keys | _mask(level, 0.0 if low is None else low, math.inf if high is None else high)


def _weight(level: str, low: float | None, high: float | None) -> dict[str, Any]:
    if level == "geometric" or low is not None:
        raise Inexpressible("SkyRL's weights are those of tokens or their products, with an upper bound alone")
    return {"tis_ratio_type": level, f"{level}_tis_ratio_clip_high": math.inf if high is None else high}


def _mask(level: str, low: float, high: float) -> dict[str, Any]:
    if level == "token":
        return {"token_mask_is_threshold_low": low, "token_mask_is_threshold_high": high}
    metric = next(name for name, (own, _) in METRICS.items() if own == level)
    bounds = METRICS[metric][1]
    return {"sequence_mask_metric": metric, f"{bounds}_low": low, f"{bounds}_high": high}
