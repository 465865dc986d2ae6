"""Every test that asks for `xp` runs on NumPy, array-api-strict, PyTorch and JAX; a missing one is an error."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest


class Framework:
    """A namespace under test, and the way there and back for NumPy arrays."""

    def __init__(self, name: str) -> None:
        self.name = name
        if name == "numpy":
            self.namespace: Any = np
        elif name == "strict":
            import array_api_strict

            # The floor that is claimed, and nothing whose shape depends on values.
            array_api_strict.set_array_api_strict_flags(
                api_version="2024.12", boolean_indexing=False, data_dependent_shapes=False
            )
            self.namespace = array_api_strict
        elif name == "torch":
            import torch

            self.namespace = torch
        else:
            import jax

            self.namespace = jax.numpy

    def __call__(self, values: Any, dtype: str | None = None) -> Any:
        """An array of this framework; floats are float64 unless `dtype` says otherwise."""
        array = np.array(values, dtype=dtype)
        if self.name == "torch":
            return self.namespace.from_numpy(array)
        return self.namespace.asarray(array)

    def numpy(self, array: Any) -> np.ndarray:
        """Back to NumPy."""
        if self.name == "torch":
            return array.detach().numpy()
        return np.from_dlpack(array) if self.name == "strict" else np.asarray(array)


@pytest.fixture(scope="package", autouse=True)
def strict_jax() -> Iterator[None]:
    """float64 and no promotion, here alone: tests of other packages may share the process, and some run without JAX."""
    if find_spec("jax") is None:
        yield
        return
    import jax

    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(params=["numpy", "strict", "torch", "jax"])
def xp(request: pytest.FixtureRequest) -> Framework:
    return Framework(request.param)
