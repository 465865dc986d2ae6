"""From what the user typed to a connection: a built-in name, `module:attribute`, or `cmd:PROGRAM ARGS`."""

from __future__ import annotations

import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from .connection import Connection, InProcess
from .target import Target
from .targets import BUILT_IN, built_in
from .trainers.room import choose, is_trainer, rooms
from .words import HarnessError, UsageError, near

FORMS = "a built-in name, module:attribute, or cmd:PROGRAM ARGS"


def connect(spec: str, *, isolate: bool = True) -> Connection:
    """A connection to the target that `spec` names. `isolate`: `module:attribute` runs in a process of its own."""
    if spec.startswith("cmd:"):
        return _program(spec, shlex.split(spec.removeprefix("cmd:")))
    if spec in BUILT_IN:
        return InProcess(_load_built_in(spec))
    if is_trainer(spec):
        return _trainer(spec)
    _check_spelling(spec)
    if isolate:
        return _program(spec, [sys.executable, "-m", "gspo_conformance.serve", spec])
    return InProcess(load(spec))


def _program(spec: str, words: list[str]) -> Connection:
    from .program import Program

    if not words:
        raise UsageError(f"target {spec!r}: expected a program after cmd:")
    return Program(spec, words)


def _trainer(spec: str) -> Connection:
    from .program import Program
    from .trainers.environment import environment_of

    choice = choose(spec)
    environment = environment_of(choice)
    return Program(spec, environment.command(choice.attribute), variables=environment.variables())


def _check_spelling(spec: str) -> None:
    root, colon, _ = spec.partition(":")
    if colon and root not in BUILT_IN:
        return
    known = [*BUILT_IN, *rooms()]
    guess = near(spec, known)
    hint = f"did you mean {guess!r}?" if guess else f"expected {FORMS}; the built-in names are {', '.join(known)}"
    raise UsageError(f"unknown target {spec!r}; {hint}")


def _load_built_in(name: str) -> Target:
    try:
        return built_in(name)
    except ImportError as error:
        raise HarnessError(f"target {name!r} needs a package that is not here: {error}") from error


def load(spec: str) -> Target:
    """The target object at `module:attribute`; a class or a function without arguments is called."""
    module_name, _, attribute = spec.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = import_module(module_name)
        for name in attribute.split("."):
            found = getattr(found, name)
        made = found() if isinstance(found, type) or (callable(found) and not hasattr(found, "run")) else found
    except Exception as error:
        raise HarnessError(f"target {spec!r} does not load: {type(error).__name__}: {error}") from error
    return check_target(made, spec)


def check_target(found: Any, spec: str) -> Target:
    """`found`, if it has what the suite asks of a target."""
    missing = [name for name in ("name", "version", "capabilities", "run") if not hasattr(found, name)]
    if missing:
        raise HarnessError(
            f"target {spec!r} is a {type(found).__name__} without {', '.join(missing)}; "
            "wrap a loss function with gspo_conformance.loss_target(fn, framework=...)"
        )
    return found
