"""`gspo_core` on NumPy; gradients in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np

import gspo_core as gspo

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


def target() -> CoreTarget:
    """The built-in target `numpy`."""
    return CoreTarget("numpy", NumPy())
