"""Lists the trainers that the suite knows, and makes the environments in which it runs their real code.

    gspo trainers list
    gspo trainers setup verl@0.9.0
    gspo trainers setup roll --source path/to/checkout
    gspo check verl@0.9.0 verl:default

Environments are virtual environments of their own, with pinned packages, in $GSPO_TRAINERS or
~/.cache/gspo/trainers. Nothing is installed into the environment that gspo runs in.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from ..trainers.environment import Environment
from ..trainers.room import VARIANTS, choose, rooms


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gspo trainers`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="the trainers, their versions, and which are set up")
    setup = actions.add_parser("setup", help="make the environments of trainers")
    setup.add_argument("names", nargs="+", metavar="NAME[@VERSION]")
    setup.add_argument("--source", type=Path, metavar="DIR", help="the checkout of a trainer that is not a package")
    setup.add_argument("--force", action="store_true", help="make it anew")
    remove = actions.add_parser("remove", help="delete the environments of trainers")
    remove.add_argument("names", nargs="+", metavar="NAME[@VERSION]")


def run(arguments: argparse.Namespace) -> int:
    """Carries out one action."""
    if arguments.action == "list":
        print(_listing())
        return 0
    for name in arguments.names:
        choice = choose(name)
        environment = Environment(choice.room, choice.version)
        if arguments.action == "remove":
            shutil.rmtree(environment.folder, ignore_errors=True)
            continue
        began = time.monotonic()
        environment.set_up(
            lambda text: print(text, file=sys.stderr, flush=True), arguments.source, force=arguments.force
        )
        print(f"{name} is ready after {time.monotonic() - began:.0f} s: gspo check {name}")
    return 0


def _listing() -> str:
    rows = [("trainer", "versions (* ready)", "framework", "what")]
    for room in rooms().values():
        ready = [v.name + "*" * Environment(room, v).ready for v in room.versions.values()]
        rows.append((room.name, " ".join(ready), room.framework, room.title + " (from a checkout)" * bool(room.source)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
    variants = [f"  NAME{':' + name if name else '':9} {text}" for name, text in VARIANTS.items()]
    return "\n".join([*lines, "", "gspo check NAME[@VERSION][:VARIANT]:", *variants])
