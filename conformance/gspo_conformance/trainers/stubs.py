"""Stand-ins for packages that a trainer's modules import and its loss never calls: engines, servers, data loaders.

A stand-in can be imported, subclassed and used as a decorator; to call anything of it is an error, so
that no mathematics can hide behind it.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def stub(*packages: str) -> None:
    """Makes `import NAME` and `import NAME.anything` succeed for packages that are not installed."""
    absent = {name for name in packages if name not in sys.modules and not _installed(name)}
    if absent:
        sys.meta_path.append(_Finder(absent))


def names_only(*modules: str, root: str = "") -> None:
    """Stands in for modules of the trainer itself of which nothing but names is needed; with `root` those below them are real."""
    for name in modules:
        module = ModuleType(name)
        module.__getattr__ = _empty_class
        if root:
            module.__path__ = [f"{root}/{name.replace('.', '/')}"]
        sys.modules[name] = module


def holding(name: str, **attributes: Any) -> None:
    """Puts these names into a module of the trainer, made for them where nothing has loaded it."""
    vars(sys.modules.setdefault(name, ModuleType(name))).update(attributes)


def without_init(*packages: str) -> None:
    """Packages of the trainer, the outermost first, without their `__init__`, which import all of it; what lies below them is real."""
    for name in packages:
        top, _, below = name.partition(".")
        loaded = sys.modules.get(top)
        found = None if loaded else find_spec(top)
        places = loaded.__path__ if loaded else found.submodule_search_locations if found else None
        if not places:
            raise ModuleNotFoundError(f"No package named {top!r}", name=top)
        module = sys.modules[name] = ModuleType(name)
        module.__path__ = ["/".join([places[0], *filter(None, below.split("."))])]
        parent, _, own = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], own, module)


def compile_nothing(function: Any = None, **_: Any) -> Any:
    """`torch.compile` as a decorator that leaves the function alone."""
    return function if function is not None else lambda one: one


class Placeholder(type):
    """The class of everything that a stand-in holds: it has any attribute and refuses to be called."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(f"{cls.__name__}.{name}")

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        """A decorator hands back what it decorates; everything else is refused."""
        if len(arguments) == 1 and not options and callable(arguments[0]):
            return arguments[0]
        if not arguments and options:
            return lambda function: function
        raise RuntimeError(f"{cls.__name__} is a stand-in for a package that is not installed")


class _Stub(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(f"{self.__name__}.{name}")


class _Finder(MetaPathFinder, Loader):
    def __init__(self, packages: set[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        ours = name.partition(".")[0] in self.packages or any(name.startswith(one + ".") for one in self.packages)
        return ModuleSpec(name, self, is_package=True) if ours or name in self.packages else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        return None


def _empty_class(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


def _placeholder(name: str) -> Any:
    return Placeholder(name, (), {})


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False
