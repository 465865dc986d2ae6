"""How many times ours another path takes, round by round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def ratios(other: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """The median ratio, and the quartiles, of times taken in the same rounds."""
    found = sorted(mine / own for mine, own in zip(other, ours, strict=True))
    quarter = len(found) // 4
    return {"ratio": statistics.median(found), "quartiles": [found[quarter], found[-1 - quarter]]}
