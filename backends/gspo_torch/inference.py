"""Tensors that were made in inference mode, as rollouts are, which autograd refuses to keep for the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor


def keepable(values: Tensor) -> Tensor:
    """`values`, or a copy that autograd keeps."""
    if torch.compiler.is_compiling() or not values.is_inference():
        return values
    return values.clone()
