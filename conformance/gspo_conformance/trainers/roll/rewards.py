"""How ROLL lays out rewards: prompt after prompt, every prompt with the same number of responses."""

from __future__ import annotations

import numpy as np

from ...target import Case, Skip
from ...tensors import NumPyArray


def rows_of_groups(case: Case) -> tuple[NumPyArray, int]:
    """The rows in the order of their groups, and how many each group has."""
    if "groups" not in case.inputs:
        return np.arange(case.inputs["rewards"].shape[0]), 1
    groups = case.inputs["groups"]
    _, sizes = np.unique(groups, return_counts=True)
    if len(set(sizes)) > 1:
        raise Skip("every prompt has the same number of responses")
    return np.argsort(groups, kind="stable"), int(sizes[0])
