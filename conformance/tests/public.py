"""What people downstream write down besides the core: names with their arguments, commands with their options.

`python conformance/tests/public.py` writes public.txt.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import gspo_core
from gspo_conformance.cli import COMMANDS

FILE = Path(__file__).with_name("public.txt")
PACKAGES = ("gspo_torch", "gspo_torch.distributed", "gspo_jax", "gspo_conformance")


def public() -> str:
    """One line per name and per command."""
    return "".join(f"{line}\n" for line in (*_names(), *_commands()))


def _names() -> Iterator[str]:
    for package in map(import_module, PACKAGES):
        for name in sorted(package.__all__):
            value = getattr(package, name)
            if value is not getattr(gspo_core, name, None):
                yield f"{package.__name__}.{name}{_arguments(value)}"


def _arguments(value: Any) -> str:
    """The names of the arguments, `*` before those that have to be named, `=` behind those that may be left out."""
    if not callable(value):
        return ""
    words: list[str] = []
    for one in inspect.signature(value).parameters.values():
        if one.kind is one.KEYWORD_ONLY and not any(word.startswith("*") for word in words):
            words.append("*")
        stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        words.append(f"{stars}{one.name}{'' if one.default is one.empty else '='}")
    return f"({', '.join(words)})"


def _commands() -> Iterator[str]:
    for name, (file, _) in COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"gspo {name}")
        import_module(f"gspo_conformance.commands.{file}").add_arguments(parser)
        yield f"gspo {name} {' '.join(sorted(_options(parser)))}"


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Options and positional arguments, those of commands below it behind the name of the command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from (name, *(f"{name}:{option}" for option in _options(below)))
        elif not isinstance(action, argparse._HelpAction):
            yield from action.option_strings or [str(action.metavar or action.dest)]


if __name__ == "__main__":
    FILE.write_text(public(), encoding="utf-8")
