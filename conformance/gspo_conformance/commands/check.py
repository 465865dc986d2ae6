"""Runs the conformance suite against one or more targets.

A TARGET is a built-in name (numpy, torch, jax), a trainer (trl, verl@0.9.0, verl:default, or trl@path/to/environment
for the one that is installed there), module:attribute, file.py:attribute, or cmd:PROGRAM ARGS, a program that speaks
JSON lines.
Exit code: 0 as expected, 1 non-conforming (a stale known failure included), 2 usage, 3 the harness itself failed.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..reports import FORMATS, prepare, render, write
from ..run import AS_EXPECTED, HARNESS, INTERRUPTED, LEVELS, Run
from . import processes, seconds


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
    parser.add_argument(
        "--known",
        metavar="FILE",
        help="failures that are expected, strict both ways: a file, or a trainer whose list it is (a trainer's own, unless given)",
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="how to report")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the report and the record of each run there")
    parser.add_argument("--smoke", action="store_true", help="a few easy vectors: is the adapter itself right?")
    parser.add_argument("--timeout", type=seconds, default=20.0, metavar="SECONDS", help="for one answer (20)")
    parser.add_argument(
        "--jobs",
        type=processes,
        metavar="N",
        help="processes that share the work (jax: one per core, 2 to 8; others: 1)",
    )
    parser.add_argument(
        "--in-process", action="store_true", help="run module:attribute in this process, for a debugger"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="every failing vector, with its traceback")


def run(arguments: argparse.Namespace) -> int:
    """Checks every target, reports, and returns the worst exit code."""
    from ..suite import known_failures, vectors

    if arguments.out is not None:
        prepare(arguments.out)
    chosen = vectors(*arguments.patterns)
    if arguments.smoke:
        return _smoke(chosen, arguments)
    known = [known_failures(arguments.known, spec) for spec in arguments.targets]
    runs: list[Run] = []
    with _termination_as_interrupt():
        for spec, one in zip(arguments.targets, known, strict=True):
            runs.append(_diagnosed(_run(spec, chosen, one, arguments), chosen))
            if runs[-1].failure == INTERRUPTED:
                break
    shown = arguments.format if arguments.out is None else "text"
    print(render(runs, shown, verbose=arguments.verbose), end="")
    if arguments.out is not None:
        for path in write(runs, arguments.out, arguments.format):
            print(f"wrote {path}", file=sys.stderr)
    return max(run.exit_code for run in runs)


def _diagnosed(run: Run, chosen: Any) -> Run:
    """Ctrl-C during the diagnosis costs the diagnosis, and says so."""
    from ..suite import checked

    try:
        return checked(run, chosen)
    except KeyboardInterrupt:
        run.failure = INTERRUPTED
        return run


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: with a report of what there is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _smoke(chosen: Any, arguments: argparse.Namespace) -> int:
    from ..known import KnownFailures
    from ..smoke import easiest, form, report

    runs = [_run(spec, chosen, KnownFailures(), arguments, easiest) for spec in arguments.targets]
    print("".join(map(report, runs)), end="")
    return HARNESS if any(form(run) for run in runs) else AS_EXPECTED


def _run(spec: str, chosen: Any, known: Any, arguments: argparse.Namespace, choose: Any = None) -> Run:
    from ..progress import progress_line
    from ..resolve import connections
    from ..runner import Options, run_vectors

    found = connections(spec, jobs=arguments.jobs, isolate=not arguments.in_process)
    options = Options(tuple(arguments.dtype) or None, arguments.level, arguments.timeout, known, choose)
    with progress_line(spec) as progress:
        return run_vectors(found, chosen, options, progress)
