"""What cannot be told because a setting is computed: nothing that hangs on it is called an error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ..trainers.dialect import Finding, Reading
from ..words import UsageError
from .bases import ABSENT
from .configuration import source_text

DOCUMENTS = (".md", ".rst", ".txt", ".html")
# A trainer or a configuration of this family is made: what it is not told, it has by default.
_CALL = re.compile(r"^(?!\s*class\b).*(G[RS]PO|CISPO|RLHF)\w*\(", re.M)


def counts(key: str, reading: Reading) -> bool:
    """Whether a computed setting has a part in the objective."""
    return key.startswith(ABSENT) or any(one == key or one.endswith(f".{key}") for one in reading.settings)


def is_file(key: str) -> bool:
    """Whether what could not be read is a whole file."""
    return key.startswith(ABSENT) and not key.startswith(f"{ABSENT}keywords of ")


def doubted(found: Sequence[Finding], unread: Iterable[str], reading: Reading) -> list[Finding]:
    """The findings, those that rest on the default of a setting which is computed turned into warnings that say so."""
    keys = [key for key in unread if counts(key, reading)]
    return [_doubted(one, _cause(one, keys, reading)) for one in found]


def unset(reading: Reading, unread: Iterable[str], words: Iterable[str]) -> list[Finding]:
    """A note where nothing is set and all is a default; an error where a program reads its settings from elsewhere, and for prose."""
    if reading.given or any(counts(key, reading) for key in unread):
        return []
    words = list(words)
    if all(map(_is_text, words)):
        what = "document" if words[0].endswith(DOCUMENTS) else "program"
        raise UsageError(f"no setting of {reading.trainer} in this {what}: give its configuration or its command line")
    told = f"nothing here sets what {reading.trainer} optimises: this is what it does by default"
    return [Finding("defaults", "note", "", told)]


def _is_text(word: str) -> bool:
    """Whether this is a document, or a program that makes no trainer: neither says that all is left as it comes."""
    program = word.endswith((".py", ".ipynb"))
    return word.endswith(DOCUMENTS) or (program and not _CALL.search(source_text(Path(word))))


def _cause(one: Finding, keys: Sequence[str], reading: Reading) -> str:
    """The computed setting on which a finding rests."""
    words = set(re.findall(r"[\w.]+", f"{one.key} {one.fix}"))
    named = {word for word in words if counts(word, reading)}
    ends = {word.rpartition(".")[2] for word in named}
    cause = next((key for key in keys if key in named or key.rpartition(".")[2] in ends), "")
    given = {key.rpartition(".")[2] for key in reading.given}
    several = next((key for key in keys if key.startswith(ABSENT)), "")
    needed = ends | {word.rpartition(".")[2] for word in re.findall(r"([\w.]+)=", one.fix)}
    return cause or (several if several and not needed <= given else "")


def _doubted(one: Finding, cause: str) -> Finding:
    if not cause:
        return one
    several = cause.startswith(ABSENT) and not is_file(cause)
    computed = "not read because they are computed" if several else "not read because it is computed"
    told = f"{'the ' * several}{cause.removeprefix(ABSENT)}, {'which is not here' if is_file(cause) else computed}"
    message = f"unless {told}, {'say' if several else 'says'} otherwise: {one.message}"
    return replace(one, severity="warning" if one.severity == "error" else one.severity, message=message)
