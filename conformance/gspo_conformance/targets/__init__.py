"""Built-in targets by name. A new one is a new file here (or anywhere) and one line in `BUILT_IN`.

A name is `backend` or `backend:variant`; its value says where the target object, or a function that
makes it, lives. Nothing is imported before a name is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

BUILT_IN: dict[str, str] = {
    "numpy": "gspo_conformance.targets.numpy:target",
    "torch": "gspo_conformance.targets.torch:target",
    "jax": "gspo_conformance.targets.jax:target",
    "jax:jit": "gspo_conformance.targets.jax:jit_target",
}


def built_in(name: str) -> Any:
    """The built-in target of that name; a KeyError where there is none, an ImportError where its framework is missing."""
    module, _, attribute = BUILT_IN[name].partition(":")
    made = getattr(import_module(module), attribute)
    return made() if callable(made) and not hasattr(made, "run") else made
