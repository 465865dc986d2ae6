"""Every public name of gspo_core with its signature, as text: `python -m gspo_core.tests.signatures` writes signatures.txt."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import gspo_core

FILE = Path(__file__).with_name("signatures.txt")


def signatures() -> str:
    """One line per function, class, field, property and method, in the order of the names."""
    lines = "".join(f"{line}\n" for name in gspo_core.__all__ for line in _lines(name, getattr(gspo_core, name)))
    # Before Python 3.14 the fields of a named tuple hold their annotations in this.
    return re.sub(r"ForwardRef\('([^']*)'\)", r"\1", lines)


def _lines(name: str, value: Any) -> Iterator[str]:
    if not inspect.isclass(value):
        yield f"{name}{inspect.signature(value)}"
        return
    yield f"class {name}{inspect.signature(value)}"
    names = {field.name for field in fields(value)} if is_dataclass(value) else set(getattr(value, "_fields", ()))
    for member in sorted(names | {member for member in vars(value) if not member.startswith("_")}):
        found = inspect.getattr_static(value, member, None)
        if isinstance(found, (classmethod, staticmethod)):
            yield f"    {type(found).__name__} {member}{inspect.signature(found.__func__)}"
        elif inspect.isfunction(found):
            yield f"    {member}{inspect.signature(found)}"
        else:
            yield f"    {member}"


if __name__ == "__main__":
    FILE.write_text(signatures(), encoding="utf-8")
