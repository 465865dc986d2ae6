"""Reports of runs: one file per format, each with `render(runs) -> str`. A new format is a new file and one line here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ..files import write_whole
from ..run import Run
from ..words import UsageError

EXTENSIONS = {"text": "txt", "json": "jsonl", "md": "md", "junit": "xml", "html": "html"}
FORMATS = tuple(EXTENSIONS)


def render(runs: Sequence[Run], format: str, **options: Any) -> str:
    """The report on `runs`, as text in that format."""
    return import_module(f".{format}", __name__).render(runs, **options)


def write(runs: Sequence[Run], folder: Path, format: str) -> list[Path]:
    """`report.<format>` on all runs, and `<target>.jsonl`, the record of each, into `folder`."""
    prepare(folder)
    paths: list[Path] = []
    for run in runs:
        path = folder / f"{file_name(run.target)}.jsonl"
        paths.append(path if path not in paths else path.with_stem(f"{path.stem}-{len(paths) + 1}"))
        write_whole(paths[-1], render([run], "json"))
    if format != "json":
        paths.append(folder / f"report.{EXTENSIONS[format]}")
        write_whole(paths[-1], render(runs, format))
    return paths


def prepare(folder: Path) -> None:
    """Makes `folder`; raises `UsageError` where no report can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder}: {error.strerror or error}") from None
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--out {folder}: expected a folder that can be written")


def file_name(target: str) -> str:
    """A target's name without what file systems dislike."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in target).strip("-")[:80]
