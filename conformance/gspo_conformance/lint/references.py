"""References inside configurations: `${a.b}`, `${.b}`, `${..b}`, `${oc.env:NAME,value}`, resolved where the files themselves say the value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .scalar import parse_value

_REFERENCE = re.compile(r"^\$\{\s*(\.*[\w.@/\-\[\]]+)\s*\}$")
_ENVIRONMENT = re.compile(r"^\$\{oc\.env:\s*\w+\s*,\s*([^{}]*)\}$")
_PRODUCT = re.compile(r"^\$\{(mul|div|add|sub):\s*(.*)\}$")
_DEPTH = 8


def resolved(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings whose values are known, and the keys of those that are computed elsewhere."""
    found, unknown = {}, []
    for key, value in settings.items():
        known = _value(value, key, settings, _DEPTH) if isinstance(value, str) and "$" in value else value
        if isinstance(known, str) and "$" in known:
            unknown.append(key)
        else:
            found[key] = known
    return found, unknown


def _value(value: Any, key: str, settings: Mapping[str, Any], depth: int) -> Any:
    if not isinstance(value, str) or "$" not in value or depth == 0 or len(value) > 1000:
        return value
    if match := _REFERENCE.match(value):
        name = _absolute(match[1], key)
        return _value(settings[name], name, settings, depth - 1) if name in settings else value
    if match := _ENVIRONMENT.match(value):
        return parse_value(match[1])
    if match := _PRODUCT.match(value):
        parts = [_value(parse_value(part), key, settings, depth - 1) for part in _split(match[2])]
        return _combined(match[1], parts, value)
    return value


def _absolute(name: str, key: str) -> str:
    """`..b` in `a.c.d` is `a.b`: one dot is the mapping of the key itself."""
    dots = len(name) - len(name.lstrip("."))
    if not dots:
        return name
    parents = key.split(".")[:-dots]
    return ".".join([*parents, name[dots:]])


def _split(text: str) -> list[str]:
    """At commas outside braces."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _combined(name: str, parts: list[Any], value: str) -> Any:
    numbers = [part for part in parts if isinstance(part, (int, float)) and abs(part) < 1e18]
    if len(numbers) != len(parts) or len(parts) != 2:
        return value
    left, right = numbers
    if name == "div":
        return (
            value if not right else left // right if isinstance(left, int) and isinstance(right, int) else left / right
        )
    return {"mul": left * right, "add": left + right, "sub": left - right}[name]
