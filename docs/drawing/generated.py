"""Files that a script writes: written anew, or held against what is there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]


def settle(files: Mapping[str, str], check: bool) -> int:
    """Writes every file below docs/, or with `check` names those that differ; the exit code."""
    stale = [name for name, content in files.items() if _read(DOCS / name) != content]
    for name in [] if check else stale:
        (DOCS / name).parent.mkdir(parents=True, exist_ok=True)
        (DOCS / name).write_text(files[name], encoding="utf-8")
    if check and stale:
        sys.stderr.write(f"not what {Path(sys.argv[0]).name} writes: {', '.join(stale)}\n")
    return 1 if check and stale else 0


def asked_to_check(words: str | None) -> bool:
    """Whether the command line has --check."""
    parser = argparse.ArgumentParser(description=words)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file differs")
    return parser.parse_args().check


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
