"""Runs the conformance suite against one or more targets.

A TARGET is a built-in name (numpy, torch, jax), a trainer (trl, verl@0.9.0, verl:default), module:attribute,
or cmd:PROGRAM ARGS, a program that speaks JSON lines. Exit code: 0 as expected, 1 non-conforming (a stale known failure included),
2 usage, 3 the harness itself failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..reports import FORMATS, render, write
from ..run import LEVELS, Run
from ..words import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gspo check`."""
    parser.add_argument("targets", nargs="+", metavar="TARGET", help="what to check")
    parser.add_argument(
        "-k", dest="patterns", action="append", default=[], metavar="GLOB", help="only these vectors, areas or clauses"
    )
    parser.add_argument("--dtype", action="append", default=[], choices=("float32", "float64"), help="only this dtype")
    parser.add_argument(
        "--level", choices=LEVELS, default="MUST", help="the levels up to this one decide the exit code"
    )
    parser.add_argument("--known", type=Path, metavar="FILE", help="failures that are expected, strict both ways")
    parser.add_argument("--format", choices=FORMATS, default="text", help="how to report")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the report and the record of each run there")
    parser.add_argument("--smoke", action="store_true", help="a few easy vectors: is the adapter itself right?")
    parser.add_argument("--timeout", type=float, default=20.0, metavar="SECONDS", help="for one answer (20)")
    parser.add_argument(
        "--in-process", action="store_true", help="run module:attribute in this process, for a debugger"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="every failing vector, with its traceback")


def run(arguments: argparse.Namespace) -> int:
    """Checks every target, reports, and returns the worst exit code."""
    from ..formats import load_vectors
    from ..runner import select

    everything = load_vectors()
    vectors = select(everything, arguments.patterns)
    if not vectors:
        raise UsageError(_nothing_selected(arguments.patterns, everything))
    runs = [_check(spec, vectors, everything, arguments) for spec in arguments.targets]
    print(render(runs, arguments.format, verbose=arguments.verbose), end="")
    if arguments.out is not None:
        for path in write(runs, arguments.out, arguments.format):
            print(f"wrote {path}", file=sys.stderr)
    return max(run.exit_code for run in runs)


def _check(spec: str, vectors: Any, everything: Any, arguments: argparse.Namespace) -> Run:
    from ..progress import progress_line
    from ..resolve import connect
    from ..runner import Options, run_vectors

    connection = connect(spec, isolate=not arguments.in_process)
    options = Options(
        dtypes=tuple(arguments.dtype) or None,
        level=arguments.level,
        limit=arguments.timeout,
        known=_known(spec, arguments.known, everything),
    )
    with progress_line(spec) as progress:
        return run_vectors(connection, vectors, options, progress)


def _known(spec: str, named: Path | None, everything: Any) -> Any:
    """The failures that are expected: those of the file that was named, else those that the room of a trainer lists."""
    from ..known import KnownFailures, read_known
    from ..trainers.room import choose, is_trainer

    path = named or (choose(spec).known if is_trainer(spec) else None)
    return read_known(path, [v.id for v in everything]) if path else KnownFailures()


def _nothing_selected(patterns: list[str], everything: Any) -> str:
    from ..words import near

    if not patterns:
        return "the suite has no vectors: `gspo vectors regen` writes them"
    names = {v.id for v in everything} | {v.area for v in everything} | {c for v in everything for c in v.clauses}
    guess = near(patterns[0], names)
    return f"no vector matches -k {' '.join(patterns)}" + (f"; did you mean {guess!r}?" if guess else "")
