"""The skeleton of an adapter, for Python, for Node, or as a protocol for any language."""

from __future__ import annotations

import re
import sys
from importlib.machinery import PathFinder
from keyword import iskeyword
from pathlib import Path

from .clauses import specification
from .files import write_whole
from .formats import ROOT
from .words import UsageError

_FOLDER = ROOT / "scaffolds"
_IMPORTS = {
    "torch": "import torch",
    "jax": "import jax.numpy as jnp",
    "mlx": "import mlx.core as mx",
    "numpy": "import numpy as np",
}


def scaffold(name: str, language: str = "python", framework: str = "torch", *, force: bool = False) -> tuple[Path, str]:
    """Writes the file; returns its path and the TARGET that `gspo check` knows it by."""
    if not Path(name).name.isidentifier():
        raise UsageError(f"NAME: expected a name that can be imported, got {Path(name).name!r}")
    path, content = _written(Path(name), language, framework)
    if language == "python" and not path.exists() and _taken(path.stem):
        raise UsageError(f"NAME: expected a name of its own, got {path.stem!r}, which Python has already")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; --force overwrites it")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    return path, _target(path, language)


def _taken(name: str) -> bool:
    """Whether a file of that name would hide a module, or cannot be imported at all."""
    installed = [place for place in sys.path if place not in ("", str(Path.cwd()))]
    return iskeyword(name) or name in sys.stdlib_module_names or PathFinder.find_spec(name, installed) is not None


def _written(path: Path, language: str, framework: str) -> tuple[Path, str]:
    if language == "node":
        harness = ROOT / "harnesses" / "node" / "harness.js"
        return path.with_suffix(".js"), harness.read_text(encoding="utf-8")
    if language == "any":
        return path.with_suffix(".md"), _at_large(_protocol().read_text(encoding="utf-8"))
    template = (_FOLDER / "python.txt").read_text(encoding="utf-8")
    body = (_FOLDER / f"{framework}.txt").read_text(encoding="utf-8").rstrip()
    text = template.format(name=path.name, framework=framework, imports=_IMPORTS[framework], body=body)
    return path.with_suffix(".py"), text


def _at_large(text: str) -> str:
    """The page where no other page lies beside it: links lead to the specification as it is installed, or nowhere."""
    led = text.replace("](spec/", f"]({specification().as_posix()}/")
    return re.sub(r"\[([^\]]*)\]\(\w+\.md[^)]*\)", r"\1", led)


def _protocol() -> Path:
    """In an installed package it lies beside this file, in a checkout with the documentation."""
    inside = ROOT / "protocol.md"
    return inside if inside.exists() else ROOT.parents[1] / "docs" / "protocol.md"


def _target(path: Path, language: str) -> str:
    if language == "node":
        return f"'cmd:node {path}'"
    if language == "any":
        return "'cmd:YOUR PROGRAM'"
    parts = path.with_suffix("").parts
    return f"{'.'.join(parts) if importable(path) else parts[-1]}:target"


def importable(path: Path) -> bool:
    """Whether Python finds the file by its name from this folder; otherwise only from its own."""
    return all(part.isidentifier() for part in path.with_suffix("").parts)
