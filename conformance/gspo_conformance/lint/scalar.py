"""What one word of a configuration says: a number, a truth value, nothing, or itself."""

from __future__ import annotations

import re
from typing import Any

_NUMBER = re.compile(r"^[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?$")


def parse_value(text: str) -> Any:
    """Numbers, booleans and null as YAML would read them, scientific notation without a dot included; else the string."""
    plain = text.strip().strip("\"'")
    words = {"true": True, "false": False, "null": None, "~": None, "": None}
    if plain == "None":
        return None
    if plain.lower() in words:
        return words[plain.lower()]
    if _NUMBER.match(plain):
        number = plain.replace("_", "")
        return int(number) if re.fullmatch(r"[+-]?\d+", number) else float(number)
    return plain
