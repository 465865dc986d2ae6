"""The clauses of the specification, read from its text: id, title, level, whether a program can test it, the words.

    for clause in clauses().values():
        clause.id, clause.title, clause.level, clause.testable, clause.text, clause.code

From a checkout the text lies in `docs/spec`, in an installed package beside this file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_INSIDE = Path(__file__).resolve().parent / "spec"
_CHECKOUT = Path(__file__).resolve().parents[2] / "docs" / "spec"
_HEADING = re.compile(r"^### (?P<id>GSPO-[A-Z]+-\d+) — (?P<title>.+?) \{#(?P<anchor>GSPO-[A-Z]+-\d+)\}$")
_LEVEL = re.compile(r"^\*\*(?P<level>MUST|SHOULD|MAY)\*\* · (?P<testable>testable|not testable)$")
_NAME = re.compile(r"`([^`]+)`")
_FENCE = "```"


@dataclass(frozen=True)
class Clause:
    """One numbered clause. `code` names what carries it in the core; `page` is the file of the specification."""

    id: str
    title: str
    level: str
    testable: bool
    code: tuple[str, ...]
    text: str
    page: str


def specification() -> Path:
    """The folder with the text of the specification."""
    folder = _INSIDE if _INSIDE.is_dir() else _CHECKOUT
    if not folder.is_dir():
        raise FileNotFoundError(f"the specification: expected it in {_INSIDE} or {_CHECKOUT}")
    return folder


@cache
def clauses(folder: Path | None = None) -> dict[str, Clause]:
    """Every clause by id, in the order of the pages and of the text."""
    found = [clause for page in sorted((folder or specification()).glob("*.md")) for clause in read_clauses(page)]
    ids = [clause.id for clause in found]
    repeated = sorted({id_ for id_ in ids if ids.count(id_) > 1})
    if repeated:
        raise ValueError(f"specification: expected every clause once, got {', '.join(repeated)} more than once")
    return {clause.id: clause for clause in found}


def read_clauses(page: Path) -> list[Clause]:
    """The clauses of one page: from a heading with an id to the next heading or code block."""
    sections: list[tuple[re.Match[str], list[str]]] = []
    inside = fenced = False
    for line in page.read_text(encoding="utf-8").splitlines():
        heading = None if fenced else _HEADING.match(line)
        if heading:
            sections.append((heading, []))
        fenced ^= line.startswith(_FENCE)
        inside = bool(heading) or (inside and not fenced and not line.startswith("#"))
        if inside and not heading and not line.startswith(_FENCE):
            sections[-1][1].append(line)
    return [_clause(heading, body, page.name) for heading, body in sections]


def _clause(heading: re.Match[str], body: list[str], page: str) -> Clause:
    where = f"{page}, {heading['id']}"
    if heading["anchor"] != heading["id"]:
        raise ValueError(f"{where}: expected the anchor {heading['id']}, got {heading['anchor']}")
    level = _LEVEL.match(body[0]) if body else None
    if level is None:
        raise ValueError(f"{where}: expected a line such as '**MUST** · testable' under the heading, got {body[:1]}")
    code = [line for line in body if line.startswith("Code:")]
    text = [line for line in body[1:] if not line.startswith("Code:")]
    return Clause(
        id=heading["id"],
        title=heading["title"],
        level=level["level"],
        testable=level["testable"] == "testable",
        code=tuple(name for line in code for name in _NAME.findall(line) if name.startswith("gspo_core.")),
        text="\n".join(text).strip(),
        page=page,
    )
