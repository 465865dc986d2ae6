"""One clear error where a trainer is not installed."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any


def import_trainer(module: str, *, tested: str, command: str) -> Any:
    """The module of a trainer; an ImportError with the command that installs it where there is none."""
    root = module.split(".")[0]
    if find_spec(root) is None:
        raise ImportError(
            f"{root}: expected an installation (tested with {tested}), found none; install it with: {command}",
            name=root,
        )
    return import_module(module)
