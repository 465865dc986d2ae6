"""The text of the specification held against itself and against the code: ids, references, names, numbers."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import reduce

import pytest

import gspo_core

from .repository import ROOT

PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "spec").glob("*.md"))}
CLAUSE = re.compile(
    r"^### (GSPO-[A-Z]+-\d+) — (.+?) \{#(GSPO-[A-Z]+-\d+)\}\n\*\*(MUST|SHOULD|MAY)\*\* · (testable|not testable)$", re.M
)
HEADINGS = re.compile(r"^### .*GSPO-.*$", re.M)
DEFINED = [match[1] for text in PAGES.values() for match in CLAUSE.finditer(text)]
ROOMS = ("DATA", "RATIO", "SURR", "AGG", "ADV", "REWARD", "KL", "CORR", "GRAD", "NUM", "PACK", "DIST", "METRIC")


def _resolve(name: str) -> object:
    """The object behind `gspo_core.X.y`, `X.y`, or a name that an argument of the public functions has."""
    return reduce(getattr, name.removeprefix("gspo_core.").split("."), gspo_core)


def test_every_clause_has_the_form_that_tools_read() -> None:
    assert sum(len(HEADINGS.findall(text)) for text in PAGES.values()) == len(DEFINED)
    for text in PAGES.values():
        assert all(match[1] == match[3] for match in CLAUSE.finditer(text))


def test_ids_are_unique_and_count_from_one() -> None:
    assert len(set(DEFINED)) == len(DEFINED)
    for room in ROOMS:
        numbers = [int(one.rsplit("-", 1)[1]) for one in DEFINED if one.startswith(f"GSPO-{room}-")]
        assert sorted(numbers) == list(range(1, len(numbers) + 1)), room
    assert {one.split("-")[1] for one in DEFINED} == set(ROOMS)


def test_every_clause_that_is_named_anywhere_exists() -> None:
    files = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "gspo_core").rglob("*.py"), *(ROOT / "backends").rglob("*.py")]
    named = {one for path in files for one in re.findall(r"GSPO-[A-Z]+-\d+", path.read_text(encoding="utf-8"))}
    assert named - set(DEFINED) == set()


@pytest.mark.parametrize("page", PAGES)
def test_the_code_that_a_clause_points_to_exists(page: str) -> None:
    for line in re.findall(r"^Code: (.+)$", PAGES[page], re.M):
        for name in re.findall(r"`(gspo_core\.[\w.]+)`", line):
            assert _resolve(name) is not None, name


def test_every_symbol_has_a_name_in_code() -> None:
    table = PAGES["notation"].split("## Symbols")[1].split("\n## ")[0]
    rows = [row.split(" | ") for row in table.splitlines() if row.startswith("| $")]
    assert len(rows) > 20
    named = [name for row in rows for name in re.findall(r"`([\w.]+)`", row[2])]
    annotated = {
        argument for name in gspo_core.__all__ for argument in getattr(getattr(gspo_core, name), "__annotations__", {})
    }
    for name in named:
        if not (name in annotated or name in {"num_sequences"}):
            fields = getattr(_resolve(name.rsplit(".", 1)[0]), "__annotations__", {}) if "." in name else {}
            assert name.rsplit(".", 1)[-1] in fields or _resolve(name) is not None, name


def test_the_numbers_of_the_numerics_page_are_fresh() -> None:
    command = [sys.executable, "-m", "gspo_conformance.spec_numbers", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
