"""A loss function on NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

VERSION = np.__version__


def run(fn: Any, gradient: Any, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The loss, and the gradient where there is a function for it."""
    found = {"loss": fn(*arrays.values())}
    return found if gradient is None else found | {"gradient": gradient(*arrays.values())}
