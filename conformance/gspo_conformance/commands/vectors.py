"""Lists, shows, lints or regenerates the golden vectors.

No vector is edited by hand: a recipe states the case, the oracle the truth. `regen` writes the files,
`regen --check` recomputes them all and fails where one differs in a byte, `trace` does the same for
the table of clauses and vectors.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ..formats import VECTORS, Vector, load_vectors
from ..words import UsageError, choices, plural
from . import counted, processes

Command = Callable[[argparse.Namespace], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands of `gspo vectors`."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="list|show|lint|regen|trace")
    listing = commands.add_parser("list", help="one line per vector")
    listing.add_argument("patterns", nargs="*", metavar="GLOB", help="ids, areas, clauses or flags")
    showing = commands.add_parser("show", help="one vector as it stands in its file")
    showing.add_argument("id", metavar="ID")
    commands.add_parser("lint", help="everything that must hold besides the numbers")
    add_regen_arguments(commands.add_parser("regen", help="write every vector from its recipe"))
    tracing = commands.add_parser("trace", help="write the table of clauses, vectors and core functions")
    tracing.add_argument("--check", action="store_true", help="write nothing; fail where the table differs")


def add_regen_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gspo vectors regen`."""
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file differs in a byte")
    parser.add_argument("--jobs", type=processes, default=2, metavar="N", help="processes (2)")


def run(arguments: argparse.Namespace) -> int:
    """Runs one of the commands."""
    actions: dict[str, Command] = {"list": listing, "show": show, "lint": lint, "regen": regen, "trace": trace}
    return actions[arguments.action](arguments)


def listing(arguments: argparse.Namespace) -> int:
    """One line per vector, and how many there are of each level."""
    from ..runner import select

    known = load_vectors()
    chosen = known if not arguments.patterns else select(known, arguments.patterns)
    chosen = chosen or [vector for vector in known if set(arguments.patterns) & set(vector.flags)]
    if not chosen:
        raise UsageError(f"no vector matches {' '.join(arguments.patterns)}")
    for vector in chosen:
        print(f"{vector.level:6}  {vector.id:50}  {vector.title}")
    levels = Counter(vector.level for vector in chosen)
    print(
        f"{plural(len(chosen), 'vector')}: {', '.join(f'{count} {level}' for level, count in sorted(levels.items()))}"
    )
    return 0


def show(arguments: argparse.Namespace) -> int:
    """The file of one vector."""
    print(path_of(arguments.id).read_text(encoding="utf-8"), end="")
    return 0


def path_of(id_: str) -> Path:
    """Where a vector lies; an unknown id is an error that names the near one."""
    known: dict[str, Vector] = {vector.id: vector for vector in load_vectors()}
    if id_ not in known:
        raise UsageError(choices(id_, known, "vector"))
    return VECTORS / f"{id_}.json"


def lint(arguments: argparse.Namespace) -> int:
    """Prints what is wrong; 1 where anything is."""
    from ..build.lint import lint as problems

    found = problems()
    print("\n".join(found) if found else f"{plural(len(load_vectors()), 'vector')}, nothing to say")
    return 1 if found else 0


def regen(arguments: argparse.Namespace) -> int:
    """Writes the vectors, or with `--check` says which differ; 1 where any does."""
    from ..build.regenerate import check, regenerate

    with counted("vector") as progress:
        changed = (check if arguments.check else regenerate)(progress=progress, jobs=arguments.jobs)
    for name in changed:
        print(f"{'differs' if arguments.check else 'wrote'}: {name}")
    if arguments.check and changed:
        print(f"{plural(len(changed), 'file')} not what the recipes make: run `gspo vectors regen`", file=sys.stderr)
    elif not changed:
        print("every file is what its recipe makes")
    return 1 if arguments.check and changed else 0


def trace(arguments: argparse.Namespace) -> int:
    """Writes the traceability table, or with `--check` fails where it differs."""
    from ..traceability import PAGE, page

    if not PAGE.parent.is_dir():
        raise UsageError(f"trace writes {PAGE.name} of a checkout, and {PAGE.parent} is not there")
    text = page()
    same = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
    if same:
        print(f"{PAGE.name} is up to date")
        return 0
    if arguments.check:
        print(f"{PAGE.name} differs: run `gspo vectors trace`", file=sys.stderr)
        return 1
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote {PAGE.name}")
    return 0
