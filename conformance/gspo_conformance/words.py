"""Errors that teach: what was found, what was expected, and the word that was probably meant."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\ufffe\uffff]"
)
# More words than these are not listed.
MOST_WORDS = 60


def columns(most: int) -> int:
    """How wide a paragraph is: `most`, or what a narrower terminal shows; a pipe and a file have no width."""
    from shutil import get_terminal_size

    return min(most, max(40, get_terminal_size((most, 24)).columns)) if sys.stdout.isatty() else most


def near(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` most resembles, if any does."""
    from difflib import get_close_matches

    found = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def choices(word: str, known: Iterable[str], noun: str = "") -> str:
    """`unknown 'pakced'; did you mean 'packed'?`, or the list of known words."""
    words = sorted(known)
    guess = near(word, words)
    few = ", ".join(words if len(words) <= MOST_WORDS else [*words[:MOST_WORDS], f"{len(words) - MOST_WORDS} more"])
    hint = f"did you mean {guess!r}?" if guess else f"expected one of {few}"
    return f"unknown {noun + ' ' if noun else ''}{cut(word)!r}; {hint}"


def cut(text: str, length: int = 60) -> str:
    """The beginning of a long text."""
    return text if len(text) <= length else f"{text[:length]}..."


def plural(count: int, noun: str, many: str | None = None) -> str:
    """`1 vector`, `2 vectors`."""
    return f"{count} {noun if count == 1 else many or noun + 's'}"


def uncapitalised(sentence: str) -> str:
    """`sentence` to go on with after a colon: `The mean` as `the mean`; `NaN`, `CISPO` and the `A` of a formula as they are."""
    first, _, rest = sentence.partition(" ")
    article = first == "A" and rest[:1] not in tuple("<>=")
    plain = first[:1].isascii() and first[1:].islower()
    return sentence[:1].lower() + sentence[1:] if article or plain else sentence


def printable(words: str) -> str:
    """`words` without control characters: no terminal and no parser is to obey them, no reader to see them in another order."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", words)


def json_text(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """JSON for people too: letters as they are, what a terminal would obey by its number."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=default)
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def read_json(text: str | bytes) -> Any:
    """What JSON says, without NaN and infinities, which it has no numbers for: not even those that a long exponent or many digits make.

    A name that stands twice in an object is refused: others would read the other value.
    """
    return json.loads(text, parse_constant=_no_number, parse_float=_finite, parse_int=_whole, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{cut(twice)!r} stands twice in one object")
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f'{word} is not JSON; write "nan", "inf" or "-inf"')


def _finite(word: str) -> float:
    value = float(word)
    if math.isinf(value):
        raise ValueError(f'{cut(word)} is beyond every float; write "inf" or "-inf"')
    return value


def _whole(word: str) -> int:
    if len(word) > 300:
        _finite(word)
    return int(word)


class UsageError(Exception):
    """The command was asked for something that does not exist: exit code 2."""


class HarnessError(Exception):
    """The adapter between suite and implementation does not work: exit code 3."""
