"""Errors that teach: what was found, what was expected, and the word that was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def near(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` most resembles, if any does."""
    found = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def choices(word: str, known: Iterable[str], noun: str = "") -> str:
    """`unknown 'pakced'; did you mean 'packed'?`, or the list of known words."""
    words = sorted(known)
    guess = near(word, words)
    hint = f"did you mean {guess!r}?" if guess else f"expected one of {', '.join(words)}"
    return f"unknown {noun + ' ' if noun else ''}{word!r}; {hint}"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """`1 vector`, `2 vectors`."""
    return f"{count} {noun if count == 1 else many or noun + 's'}"


class UsageError(Exception):
    """The command was asked for something that does not exist: exit code 2."""


class HarnessError(Exception):
    """The adapter between suite and implementation does not work: exit code 3."""
