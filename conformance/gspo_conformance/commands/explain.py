"""Explains a name of the suite in words and numbers.

ID is a clause (GSPO-AGG-1, or agg-1), a vector (aggregation/lengths-1-3-gspo), a flag (token-mean) or a
mutant (aggregation.token-mean).
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gspo explain`."""
    parser.add_argument("names", nargs="+", metavar="ID", help="what to explain")


def run(arguments: argparse.Namespace) -> int:
    """Prints one explanation after the other."""
    from ..explain import explain

    print("\n".join([explain(name) for name in arguments.names]), end="")
    return 0
