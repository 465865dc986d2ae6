"""Merges the records of runs (`gspo check --out DIR` writes them) into one report.

Parts of one run, such as the shards of a CI job, are joined; other runs stand side by side. The exit
code is that of the worst run; a record that was cut short counts as a run that failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..files import write_whole
from ..reports import EXTENSIONS, FORMATS, render
from ..words import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gspo report`."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="records (.jsonl), or folders that hold some")
    parser.add_argument("--format", choices=FORMATS, default="text", help="how to report")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write it there instead of to stdout")
    parser.add_argument("-v", "--verbose", action="store_true", help="every failing vector")


def run(arguments: argparse.Namespace) -> int:
    """Reads, merges, writes."""
    from ..reports.reading import read
    from ..reports.record import merge

    runs = merge([read(path) for path in _records(arguments.runs)])
    report = render(runs, arguments.format, verbose=arguments.verbose)
    if arguments.out is None:
        print(report, end="")
    else:
        path = arguments.out / f"report.{EXTENSIONS[arguments.format]}" if arguments.out.is_dir() else arguments.out
        write_whole(path, report)
        print(f"wrote {path}", file=sys.stderr)
    return max(found.exit_code for found in runs)


def _records(paths: list[Path]) -> list[Path]:
    found = [record for path in paths for record in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    if not found:
        raise UsageError(f"no record (*.jsonl) in {', '.join(map(str, paths))}")
    return found
