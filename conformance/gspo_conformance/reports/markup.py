"""Markup that escapes everything it is not told to trust."""

from __future__ import annotations

from html import escape
from typing import Any

from ..words import printable

_LINKS = ("https://", "http://", "#")
_VOID = frozenset({"br", "col", "hr", "img", "input", "link", "meta"})


class Markup(str):
    """Text that is markup already; every other string is escaped."""

    __slots__ = ()


def text(value: Any) -> Markup:
    """`value` as text; characters that XML and HTML forbid are shown by their number."""
    if isinstance(value, Markup):
        return value
    return Markup(escape(printable(str(value))))


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """`<name ...>children</name>`; `class_` is `class`, an attribute that is None or False is left out, `a_b` is `a-b`.

    A link to anything but a page or a place in this one is left out too: `javascript:` is an address as well.
    """
    if not str(attributes.get("href", "#")).startswith(_LINKS):
        del attributes["href"]
    written = "".join(_attribute(key, value) for key, value in attributes.items() if value not in (None, False))
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def prose(words: str) -> Markup:
    """A sentence with its `code` set as code."""
    pieces = words.split("`")
    return join([element("code", piece) if i % 2 else piece for i, piece in enumerate(pieces)])


def join(children: Any) -> Markup:
    """Children one after the other; lists are taken apart, None is nothing."""
    if isinstance(children, (list, tuple)):
        return Markup("".join(join(child) for child in children))
    return Markup("") if children is None else text(children)


def _attribute(key: str, value: Any) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{text(value)}"'
