"""The commands of `gspo`: each file has `add_arguments(parser)` and `run(arguments) -> exit code`."""

from __future__ import annotations

from argparse import ArgumentTypeError


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
