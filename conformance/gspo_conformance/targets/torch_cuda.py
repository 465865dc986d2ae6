"""The targets `torch` and `torch:fused` with every array on a GPU, where no check may read a value."""

from __future__ import annotations

import torch

import gspo_torch

from ..words import HarnessError
from .core import CoreTarget
from .torch import Torch
from .torch_fused import fused


def target() -> CoreTarget:
    """The built-in target `torch:cuda`."""
    return CoreTarget("torch:cuda", Torch(_device("torch:cuda")), gspo_torch, traced=True)


def fused_target() -> CoreTarget:
    """The built-in target `torch:cuda-fused`."""
    return fused("torch:cuda-fused", _device("torch:cuda-fused"), traced=True)


def _device(name: str) -> str:
    if not torch.cuda.is_available():
        raise HarnessError(f"target {name!r}: expected a GPU, PyTorch {torch.__version__} finds none here")
    return "cuda"
