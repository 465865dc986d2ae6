"""Lists the trainers that the suite knows, and makes the environments in which it runs their real code.

    gspo trainers list
    gspo trainers setup verl@0.9.0
    gspo trainers setup roll --source path/to/checkout
    gspo check verl@0.9.0 verl:default
    gspo check trl@path/to/environment
    gspo trainers record verl@0.9.0 verl
    gspo trainers pages --out docs/trainers

`record` runs both variants of a trainer and keeps what the pages about trainers are made of; `pages` writes these.
Environments are virtual environments of their own, with pinned packages, in $GSPO_TRAINERS or
~/.cache/gspo/trainers. Nothing is installed into the environment that gspo runs in, nor into one of yours that is named
after @, where a fork, a branch or another release is checked as it is.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from ..run import HARNESS
from ..trainers.environment import Environment
from ..trainers.room import VARIANTS, Choice, choose, rooms
from ..words import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gspo trainers`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="the trainers, their versions, and which are set up")
    setup = actions.add_parser("setup", help="make the environments of trainers")
    setup.add_argument("names", nargs="+", metavar="NAME[@VERSION]")
    setup.add_argument("--source", type=Path, metavar="DIR", help="the checkout of a trainer that is not a package")
    setup.add_argument("--force", action="store_true", help="make it anew")
    record = actions.add_parser("record", help="run trainers and keep the results for the pages about them")
    record.add_argument("names", nargs="*", metavar="NAME[@VERSION]", help="default: everything that is set up")
    pages = actions.add_parser("pages", help="write the pages about trainers and their badges, from the records")
    pages.add_argument("--out", type=Path, required=True, metavar="DIR")
    pages.add_argument("--check", action="store_true", help="write nothing; fail where a page is not what it would be")
    remove = actions.add_parser("remove", help="delete the environments of trainers")
    remove.add_argument("names", nargs="+", metavar="NAME[@VERSION]")


def run(arguments: argparse.Namespace) -> int:
    """Carries out one action."""
    if arguments.action == "list":
        print(_listing())
        return 0
    if arguments.action == "pages":
        return _pages(arguments.out, check=arguments.check)
    if arguments.action == "record":
        return max(map(_record, arguments.names or _ready()), default=0)
    for name in arguments.names:
        choice = _ours(name)
        environment = Environment(choice.room, choice.version)
        if arguments.action == "remove":
            shutil.rmtree(environment.folder, ignore_errors=True)
            continue
        began = time.monotonic()
        environment.set_up(
            lambda text: print(text, file=sys.stderr, flush=True), arguments.source, force=arguments.force
        )
        print(f"{name} is ready after {time.monotonic() - began:.0f} s: gspo check {name}")
        if environment.other:
            print(f"its checkout is {environment.other}: code of your own, of which no failure is expected")
    return 0


def _ours(name: str) -> Choice:
    """The trainer of that name, in an environment that this command made or makes."""
    choice = choose(name)
    if choice.python is not None:
        raise UsageError(
            f"{name}: expected NAME or NAME@VERSION, got an environment of yours; gspo check takes it as it is"
        )
    return choice


def _record(name: str) -> int:
    """Both variants, then the record; exit code 1 where a run did not go as the room says."""
    from ..progress import progress_line
    from ..resolve import connections
    from ..runner import Options, run_vectors
    from ..suite import checked, known_failures, vectors
    from ..trainers.records import write

    choice, runs, known, chosen = _ours(name), {}, {}, vectors()
    if other := Environment(choice.room, choice.version).other:
        raise UsageError(f"{name}: expected a checkout of {choice.room.title} at {choice.version.commit}, got {other}")
    for variant in ("claims", "default"):
        spec = name if variant == "claims" else f"{name}:{variant}"
        known[variant] = known_failures(None, spec)
        with progress_line(spec) as progress:
            run = run_vectors(connections(spec), chosen, Options(known=known[variant]), progress)
        runs[variant] = checked(run, chosen)
        print(f"{spec}: {run.verdict}, {dict(run.counts)}", flush=True)
    if any(run.exit_code == HARNESS for run in runs.values()):
        return HARNESS
    print(f"wrote {write(choice, runs['claims'], runs['default'], known)}", file=sys.stderr)
    return max(run.exit_code for run in runs.values())


def _ready() -> list[str]:
    every = [(room, version) for room in rooms().values() for version in room.versions.values()]
    return [f"{room.name}@{version.name}" for room, version in every if Environment(room, version).ready]


def _pages(folder: Path, *, check: bool) -> int:
    from ..trainers.pages import pages

    stale = 0
    for name, text in pages().items():
        path = folder / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if check:
            print(f"{path}: not what the records make of it", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    print(f"{folder}: {'up to date' if not stale else f'{stale} differ' if check else f'{stale} written'}")
    return int(check and stale > 0)


def _listing() -> str:
    rows = [("trainer", "versions (* ready)", "framework", "what")]
    for room in rooms().values():
        ready = [v.name + "*" * Environment(room, v).ready for v in room.versions.values()]
        rows.append((room.name, " ".join(ready), room.framework, room.title + " (from a checkout)" * bool(room.source)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
    variants = [f"  NAME{':' + name if name else '':9} {text}" for name, text in VARIANTS.items()]
    return "\n".join([*lines, "", "gspo check NAME[@VERSION][:VARIANT]:", *variants])
