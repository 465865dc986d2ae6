"""Recomputes a real run from its trace, and says where its own numbers differ from what it claims, and why.

    gspo audit trace/
    gspo audit trace/ --config grpo.py
    gspo audit trace/ --objective gspo --format html --out report/

A trace is a folder that gspo_torch.record, gspo_jax.record or any writer of the format (docs/audit.md)
wrote. The claim is the objective that the trace itself names unless you name another. Exit code: 0
where the run agrees with its claim, 1 where it does not or nothing could be compared, 2 usage.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..files import write_whole
from ..reports import prepare

FORMATS = ("text", "json", "html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gspo audit`."""
    parser.add_argument("trace", type=Path, metavar="TRACE", help="the folder of a trace, or one of its files")
    parser.add_argument(
        "--config", action="append", metavar="FILE", help="the trainer's configuration; may be repeated"
    )
    parser.add_argument("--dialect", metavar="NAME", help="whose configuration that is, where it cannot be recognised")
    parser.add_argument("--objective", metavar="NAME", help="a preset such as gspo, a file of JSON, or JSON")
    parser.add_argument("--format", choices=FORMATS, default="text", help="how to report")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write audit.<format> there instead of to stdout")
    parser.add_argument("-v", "--verbose", action="store_true", help="every finding, and all that was not checked")


def run(arguments: argparse.Namespace) -> int:
    """Reads, recomputes, reports."""
    from ..audit import audit_trace
    from ..audit.report import render

    options = {"objective": arguments.objective, "config": arguments.config, "dialect": arguments.dialect}
    found = audit_trace(arguments.trace, **options)
    report = render(found, arguments.format, verbose=arguments.verbose)
    if arguments.out is None:
        print(report, end="")
    else:
        _write(arguments.out, arguments.format, report)
        if arguments.format != "text":
            print(render(found, "text"), end="")
    return found.exit_code


def _write(folder: Path, form: str, report: str) -> None:
    path = folder / f"audit.{'txt' if form == 'text' else form}"
    prepare(folder)
    write_whole(path, report)
    print(f"wrote {path}", file=sys.stderr)
