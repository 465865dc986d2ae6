"""Conformance suite of Group Sequence Policy Optimization.

from gspo_conformance import check, loss_target
run = check(loss_target(my_loss, framework="torch"))
assert run.conforming, run.offences[0].reason
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .formats import Vector, load_vectors
    from .reports import render
    from .run import Result, Run
    from .suite import check, vectors, verify
    from .target import Capabilities, Case, FunctionTarget, Skip, Target
    from .wrap import loss_target

_HOMES = {
    "Capabilities": "target",
    "Case": "target",
    "FunctionTarget": "target",
    "Result": "run",
    "Run": "run",
    "Skip": "target",
    "Target": "target",
    "Vector": "formats",
    "check": "suite",
    "load_vectors": "formats",
    "loss_target": "wrap",
    "render": "reports",
    "vectors": "suite",
    "verify": "suite",
}

__all__ = [
    "Capabilities",
    "Case",
    "FunctionTarget",
    "Result",
    "Run",
    "Skip",
    "Target",
    "Vector",
    "check",
    "load_vectors",
    "loss_target",
    "render",
    "vectors",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Public names are loaded when they are asked for, so that `gspo --help` needs no NumPy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
