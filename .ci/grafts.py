"""Puts a mutant into modules of gspo_core that are loaded, or into the next import of one."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

CORE = Path(__file__).resolve().parents[1] / "gspo_core"


def outer(module: str, qualname: str) -> str:
    """The name of a function or method, for itself and for all that is defined in it."""
    return f"{module}:{qualname.split('.<locals>')[0]}"


def run(module: str, source: bytes) -> dict[str, Any]:
    """The names of a module that `source` makes, beside the module that is loaded."""
    live = sys.modules[f"gspo_core.{module}"]
    made: dict[str, Any] = {name: getattr(live, name) for name in ("__name__", "__package__", "__file__")}
    exec(compile(source, str(CORE / f"{module}.py"), "exec", dont_inherit=True), made)
    return made


def graft(module: str, made: dict[str, Any]) -> None:
    """Gives the functions, classes and constants of the loaded module what `run` made; whoever imported them sees it."""
    live = sys.modules[f"gspo_core.{module}"]
    others = [one for name, one in list(sys.modules.items()) if name.startswith("gspo_") or "test_" in name]
    for name, value in made.items():
        before = live.__dict__.get(name)
        if name.startswith("__") or _regraft(before, value, module) or repr(before) == repr(value):
            continue
        for other in others:
            if other.__dict__.get(name) is before:
                setattr(other, name, value)


def _regraft(old: Any, new: Any, module: str) -> bool:
    """Whether a function or a class of the module was brought up to date in place."""
    if type(old) is not type(new) or getattr(old, "__module__", "") != f"gspo_core.{module}":
        return type(new) is type and new.__module__ != f"gspo_core.{module}"
    if isinstance(old, FunctionType):
        old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__
        return True
    if not isinstance(old, type):
        return False
    for name, value in vars(new).items():
        ours, theirs = (_function(vars(one).get(name)) for one in (old, new))
        if ours and theirs and theirs.__code__.co_filename.endswith(f"gspo_core/{module}.py"):
            _regraft(ours, theirs, module)
        elif name not in ("__dict__", "__weakref__", "__doc__", "_abc_impl"):
            setattr(old, name, value)
    return True


def _function(member: Any) -> FunctionType | None:
    """The function behind a member of a class."""
    found = getattr(member, "fget", None) or getattr(member, "__func__", member)
    return found if isinstance(found, FunctionType) else None


def swap(module: str, source: bytes) -> tuple[str, CodeType | None]:
    """The one function of a module that `source` changes, and its code; ("", None) where it changes more, or something else."""
    ours = _original(module)
    theirs = dict(_functions(compile(source, str(CORE / f"{module}.py"), "exec", dont_inherit=True)))
    changed = [name for name, code in theirs.items() if _shape(code) != ours.get(name)]
    if ours.keys() != theirs.keys() or len(changed) != 1:
        return "", None
    (name,) = changed
    return ("", None) if name.startswith("<") else (outer(module, name), theirs[name])


@functools.cache
def _original(module: str) -> dict[str, Any]:
    file = CORE / f"{module}.py"
    code = compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
    return {name: _shape(one) for name, one in _functions(code)}


def _functions(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    """The functions and methods of a module, and under "<...>" what runs at import."""
    yield f"<{code.co_qualname}>", code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_flags & inspect.CO_OPTIMIZED:
                yield inner.co_qualname, inner
            else:
                yield from _functions(inner)


def _shape(code: CodeType) -> Any:
    """What a code object does, wherever it stands in its file; of what runs at import, not the functions that it makes."""
    runs_at_import = not code.co_flags & inspect.CO_OPTIMIZED
    consts = [
        (None if runs_at_import else _shape(one)) if isinstance(one, CodeType) else repr((type(one), one))
        for one in code.co_consts
    ]
    return code.co_code, consts, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars


class _Mutated(SourceFileLoader):
    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002
        """From the mutant; nothing is cached."""
        return self.source_to_code(self._source, self.path)


class Finder:
    """Imports one module of the core with a mutant in it."""

    def __init__(self, module: str, source: bytes) -> None:
        self.name, self.source = f"gspo_core.{module}", source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:  # noqa: ARG002
        """The mutated module."""
        if name != self.name or not (found := PathFinder.find_spec(name, path)) or not found.origin:
            return None
        found.loader = _Mutated(name, found.origin, self.source)
        return found
