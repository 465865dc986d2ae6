"""`gspo_core` on NumPy; gradients in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np

import gspo_core as gspo

from ..target import Case
from ..tensors import NumPyArray
from .core import Arrays, CoreTarget


class NumPy:
    """NumPy arrays as they are; it has no narrow floats, so bfloat16 arrives as the float32 that holds it."""

    version = {"numpy": np.__version__}

    def array(self, values: NumPyArray, storage: str | None) -> NumPyArray:
        """The array itself."""
        return values

    def numpy(self, values: Any) -> NumPyArray:
        """The array itself."""
        return np.asarray(values)

    def loss_and_gradient(self, objective: gspo.Objective, arguments: Arrays) -> tuple[gspo.PolicyLoss, Any]:
        """`policy_loss` and `policy_gradient`."""
        return gspo.policy_loss(objective, **arguments), gspo.policy_gradient(objective, **arguments)


class NumPyTarget(CoreTarget):
    """The core on NumPy, whose warnings about overflow say nothing that the answers do not."""

    def run(self, case: Case) -> dict[str, Any]:
        """The outputs of the case."""
        with np.errstate(all="ignore"):
            return super().run(case)


def target() -> CoreTarget:
    """The built-in target `numpy`."""
    return NumPyTarget("numpy", NumPy())
