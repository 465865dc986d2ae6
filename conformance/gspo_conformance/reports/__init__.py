"""Reports of runs: one file per format, each with `render(runs) -> str`. A new format is a new file and one line here."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ..run import Run

EXTENSIONS = {"text": "txt", "json": "jsonl", "md": "md", "junit": "xml", "html": "html"}
FORMATS = tuple(EXTENSIONS)


def render(runs: Sequence[Run], format: str, **options: Any) -> str:
    """The report on `runs`, as text in that format."""
    return import_module(f".{format}", __name__).render(runs, **options)


def write(runs: Sequence[Run], folder: Path, format: str) -> list[Path]:
    """`report.<format>` on all runs, and `<target>.jsonl`, the record of each, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for run in runs:
        paths.append(folder / f"{file_name(run.target)}.jsonl")
        paths[-1].write_text(render([run], "json"), encoding="utf-8")
    if format != "json":
        paths.append(folder / f"report.{EXTENSIONS[format]}")
        paths[-1].write_text(render(runs, format), encoding="utf-8")
    return paths


def file_name(target: str) -> str:
    """A target's name without what file systems dislike."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in target).strip("-")[:80]
