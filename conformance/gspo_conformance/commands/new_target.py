"""Writes the skeleton of an adapter: what the suite needs to ask your implementation.

NAME is the name of the file, without its ending. `--language python` (the default) wraps a loss function
in one line and shows what a larger target looks like; `--language node` writes a complete program
over JSON lines that needs nothing but Node; `--language any` writes the protocol, for any other language.
"""

from __future__ import annotations

import argparse
import shlex

LANGUAGES = ("python", "node", "any")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gspo new-target`."""
    parser.add_argument("name", metavar="NAME", help="the file to write, without its ending")
    parser.add_argument("--language", choices=LANGUAGES, default="python", help="of the adapter")
    parser.add_argument(
        "--framework", choices=("torch", "jax", "mlx", "numpy"), default="torch", help="of a loss in Python (torch)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the file")


def run(arguments: argparse.Namespace) -> int:
    """Writes the file and says what to do next."""
    from ..scaffold import importable, scaffold

    path, check = scaffold(arguments.name, arguments.language, arguments.framework, force=arguments.force)
    steps = [f"gspo check --smoke {check}", f"gspo check {check}"]
    if path.suffix == ".py" and not importable(path):
        steps.insert(0, f"cd {shlex.quote(str(path.parent))}")
    print("\n         ".join([f"wrote {path}\n\nnext     put your implementation in it, then", *steps]))
    return 0
