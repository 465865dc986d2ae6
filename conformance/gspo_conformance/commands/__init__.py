"""The commands of `gspo`: each file has `add_arguments(parser)` and `run(arguments) -> exit code`."""

from __future__ import annotations

import contextlib
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int, str], None]


def seconds(word: str) -> float:
    """A time limit: above 0, and no longer than a clock counts."""
    if not 0 < (value := float(word)) <= 1e6:
        raise ArgumentTypeError(f"expected seconds above 0, got {word}")
    return value


def processes(word: str) -> int:
    """A number of processes."""
    if not 1 <= (value := int(word)) <= 256:
        raise ArgumentTypeError(f"expected 1 to 256 processes, got {word}")
    return value


@contextlib.contextmanager
def counted(noun: str) -> Iterator[Progress | None]:
    """A function that says on a live line how many are done, of how many, and which was the last; None where nobody looks."""
    from ..progress import live_line
    from ..words import plural

    with live_line() as write:

        def show(done: int, total: int, name: str) -> None:
            if write:
                write(f"{done}/{plural(total, noun)}  {name}"[:95])

        yield show if write else None
