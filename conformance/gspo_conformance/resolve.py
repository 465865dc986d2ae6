"""From what the user typed to a connection: a built-in name, `module:attribute`, `file.py:attribute`, or `cmd:PROGRAM ARGS`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from .connection import Connection, InProcess, describe
from .target import Target
from .targets import BUILT_IN, Launch, built_in, launch
from .trainers.room import choose, is_trainer, rooms
from .words import HarnessError, UsageError, choices, near

MUTANT = "mutant:"
FORMS = "a built-in name, module:attribute, file.py:attribute, or cmd:PROGRAM ARGS"


def connections(spec: str, *, jobs: int | None = None, isolate: bool = True) -> list[Connection]:
    """As many connections to one target as `jobs` says; None: what suits it."""
    if spec in BUILT_IN and isolate and (jobs or 1) == 1 and launch(spec) is None:
        return [connect(spec)]
    if not isolate:
        return [connect(spec, isolate=False)]
    if spec in BUILT_IN:
        how = launch(spec) or Launch(1)
        return [_served(spec, how.variables) for _ in range(jobs or how.jobs)]
    return [connect(spec) for _ in range(jobs or 1)]


def connect(spec: str, *, isolate: bool = True) -> Connection:
    """A connection to the target that `spec` names. `isolate`: `module:attribute` runs in a process of its own."""
    if spec.startswith("cmd:"):
        return _program(spec, _words(spec))
    if spec in BUILT_IN or spec.startswith(MUTANT):
        return InProcess(load(spec), spec)
    if is_trainer(spec):
        return _trainer(spec)
    _check_spelling(spec)
    if isolate:
        return _served(spec)
    return InProcess(load(spec), spec)


def _served(spec: str, variables: Mapping[str, str] | None = None) -> Connection:
    from .program import Program

    return Program(spec, [sys.executable, "-m", "gspo_conformance.serve", spec], variables=variables)


def _words(spec: str) -> list[str]:
    try:
        return shlex.split(spec.removeprefix("cmd:"))
    except ValueError as error:
        raise UsageError(f"target {spec!r}: expected a command line as a shell reads it: {error}") from None


def _program(spec: str, words: list[str]) -> Connection:
    from .program import Program

    if not words:
        raise UsageError(f"target {spec!r}: expected a program after cmd:")
    return Program(spec, words)


def _trainer(spec: str) -> Connection:
    from .program import Program
    from .trainers.environment import environment_of

    choice = choose(spec)
    environment = environment_of(choice, spec)
    return Program(spec, environment.command(choice.attribute), variables=environment.variables())


def _check_spelling(spec: str) -> None:
    root, colon, _ = spec.partition(":")
    known = [*BUILT_IN, *rooms()]
    guess = near(spec, known) or near(root, known)
    if colon and root not in BUILT_IN and not (guess and _absent(root)):
        return
    hint = f"did you mean {guess!r}?" if guess else f"expected {FORMS}; the built-in names are {', '.join(known)}"
    raise UsageError(f"unknown target {spec!r}; {hint}")


def _absent(module: str) -> bool:
    """Looked for without a change of `sys.path`: what lies in a stranger's folder is for the process of the target alone."""
    root = module.partition(".")[0]
    return find_spec(root) is None and PathFinder.find_spec(root, [str(Path.cwd())]) is None


def _see_working_directory() -> None:
    if not sys.flags.safe_path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def load(spec: str) -> Target:
    """The target object that `spec` names, in this process."""
    if spec in BUILT_IN:
        return _load_built_in(spec)
    if spec.startswith(MUTANT):
        from .mutants import find

        return find(spec.removeprefix(MUTANT))
    module_name, _, attribute = spec.partition(":")
    _see_working_directory()
    return check_target(_made(_attribute(_module(module_name, spec), attribute, spec), spec), spec)


def _load_built_in(name: str) -> Target:
    try:
        return built_in(name)
    except ImportError as error:
        root = name.partition(":")[0]
        raise HarnessError(
            f"target {name!r} needs a package that is not here: {error}; `pip install 'gspo[{root}]'` brings it"
        ) from error


def _module(name: str, spec: str) -> Any:
    try:
        return _file(Path(name), spec) if name.endswith(".py") else import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise HarnessError(f"target {spec!r}: {name} imports {error.name!r}, which is not installed") from error
        guess = near(name, [path.stem for path in Path.cwd().glob("*.py")])
        hint = f"; did you mean {guess!r}?" if guess else f", neither in {Path.cwd()} nor installed"
        raise HarnessError(f"target {spec!r}: there is no module {error.name!r}{hint}") from error
    except HarnessError:
        raise
    except Exception as error:
        raise HarnessError(f"target {spec!r}: importing {name} raises {describe(error)}") from error


def _file(path: Path, spec: str) -> Any:
    """The module in a file, wherever it lies; what lies beside it can be imported."""
    if not path.is_file():
        raise HarnessError(f"target {spec!r}: there is no file {path}, seen from {Path.cwd()}")
    sys.path.insert(0, str(path.resolve().parent))
    found = spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = sys.modules[path.stem] = module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _attribute(module: Any, path: str, spec: str) -> Any:
    found = module
    for name in path.split("."):
        if not hasattr(found, name):
            public = [word for word in vars(found) if not word.startswith("_")]
            where = getattr(found, "__name__", type(found).__name__)
            raise HarnessError(f"target {spec!r}: {where} has {choices(name, public, 'attribute').replace('; ', ', ')}")
        found = getattr(found, name)
    return found


def _made(found: Any, spec: str) -> Any:
    """A class or a function without required arguments is called; a function with some is a loss that wants wrapping."""
    if isinstance(found, type) or (callable(found) and not hasattr(found, "run")):
        missing = _required(found)
        if missing:
            name = spec.partition(":")[2]
            raise HarnessError(
                f"target {spec!r} is a function of {', '.join(missing)}, not a target; write\n"
                f"    from gspo_conformance import loss_target\n"
                f'    target = loss_target({name}, framework="torch")\n'
                f"and check {spec.partition(':')[0]}:target"
            )
        try:
            return found()
        except Exception as error:
            raise HarnessError(f"target {spec!r}: calling it raises {describe(error)}") from error
    return found


def _required(function: Any) -> list[str]:
    try:
        parameters = signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    free = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return [one.name for one in parameters if one.default is Parameter.empty and one.kind in free]


def check_target(found: Any, spec: str) -> Target:
    """`found`, if it has what the suite asks of a target."""
    missing = [name for name in ("name", "version", "capabilities", "run") if not hasattr(found, name)]
    if missing:
        raise HarnessError(
            f"target {spec!r} is a {type(found).__name__} without {', '.join(missing)}; "
            "wrap a loss function with gspo_conformance.loss_target(fn, framework=...)"
        )
    return found
