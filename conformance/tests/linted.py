"""`gspo lint` as its tests ask it: files written, records read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gspo_conformance.cli import main


def written(folder: Path, name: str, text: str) -> str:
    """A file to be linted."""
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def lint(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What the command prints for programs; `code` is how it ended."""
    code = main(["lint", *words, "--format", "json"])
    return {"code": code, **json.loads(capsys.readouterr().out)}


def rules(record: dict[str, Any], *severities: str) -> set[str]:
    """The rules of the findings, of all severities or of some."""
    return {one["rule"] for one in record["findings"] if not severities or one["severity"] in severities}
