"""Numbers as people read them, and lines that fit a terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from textwrap import wrap

from ..words import columns

_BAR = " ▏▎▍▌▋▊▉█"


def number(value: float) -> str:
    """Two significant digits: 0.00078, 1.2, 3e-06; whole from ten on."""
    return f"{value:.2g}" if abs(value) < 10 else thousands(round(value, 1 - math.floor(math.log10(abs(value)))))


def percent(share: float) -> str:
    """A share as a percentage with as many digits as it deserves: 47 %, 0.8 %, 0 %; its space does not break."""
    if 0 < share < 1e-4:
        return "<\u00a00.01\u00a0%"
    if 0.9995 <= share < 1:
        return ">\u00a099.9\u00a0%"
    digits = 1 if 0 < share < 0.0095 or 0.9905 < share < 1 else 0
    return f"{100 * share:.{digits + (share < 9.5e-4 and share > 0)}f}\u00a0%"


def span(shares: Sequence[float]) -> str:
    """The least to the greatest of some shares: 45 % to 50 %, or one where they read the same."""
    ends = list(dict.fromkeys([percent(min(shares)), percent(max(shares))]))
    return " to ".join(ends)


def plain(sentence: str) -> str:
    """A sentence with ordinary spaces."""
    return sentence.replace("\u00a0", " ")


def thousands(value: float) -> str:
    """A whole number of tokens, two significant digits from a thousand on where it is not exact: 512, 9,400."""
    if value >= 1000 and value != math.floor(value):
        value = round(value, 1 - math.floor(math.log10(value)))
    return f"{value:,.0f}"


def bar(share: float, width: int = 12) -> str:
    """A share as a bar of block characters."""
    whole, part = divmod(round(share * width * 8), 8)
    return (_BAR[8] * whole + (_BAR[part] if part else "")) or _BAR[1]


def paragraph(head: str, sentences: list[str], *, numbered: bool = False, width: int = 100) -> list[str]:
    """Sentences one below the other, a word in the margin, wrapped."""
    lines: list[str] = []
    for i, sentence in enumerate(map(_together, sentences)):
        lead = f"{i + 1}. " if numbered and len(sentences) > 1 else ""
        pieces = wrap(sentence, columns(width) - 11 - len(lead), break_long_words=False, break_on_hyphens=False)
        lines += [f"{lead if j == 0 else ' ' * len(lead)}{piece}" for j, piece in enumerate(pieces)]
    return [plain(f"  {head if i == 0 else '':8} {line}") for i, line in enumerate(lines)]


def _together(sentence: str) -> str:
    """`A < 0` is not broken across lines."""
    return re.sub(r"A ([<>]) 0", "A\u00a0\\1\u00a00", sentence)
