"""Examples in docstrings as blocks of code on the API page: Markdown takes `>>>` for a quotation in a quotation."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_BLOCK = re.compile(r"^( *)>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)


def fenced(text: str) -> str:
    """The text with a fence around every block that begins with `>>>`, up to the next empty line."""
    return _BLOCK.sub(lambda block: f"{block[1]}```pycon\n{block[0]}\n{block[1]}```", text)


class Doctests(Extension):
    """Fences the examples of every docstring that is collected."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """After an object was collected."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
