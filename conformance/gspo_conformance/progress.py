"""A live line while a run goes on: on a terminal only, on stderr only, gone when the run is over."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator

from .run import BAD, Result

_INTERVAL = 0.05


@contextlib.contextmanager
def live_line() -> Iterator[Callable[[str], None] | None]:
    """A function that writes the line anew, or None where nobody looks."""
    stream = sys.stderr
    if not stream.isatty():
        yield None
        return

    def write(text: str) -> None:
        stream.write(f"\r\x1b[2K{text}")
        stream.flush()

    try:
        yield write
    finally:
        write("")


@contextlib.contextmanager
def progress_line(name: str) -> Iterator[Callable[[int, int, Result], None] | None]:
    """A function to call after each result, or None where nobody looks."""
    last, bad = 0.0, 0
    with live_line() as write:

        def show(done: int, total: int, result: Result) -> None:
            nonlocal last, bad
            bad += result.verdict in BAD
            if write and (done == total or time.monotonic() - last > _INTERVAL):
                last = time.monotonic()
                write(_line(name, done, total, bad, result.id))

        yield show if write else None


def _line(name: str, done: int, total: int, bad: int, current: str) -> str:
    width = shutil.get_terminal_size().columns - 1
    filled = round(20 * done / total)
    bar = "█" * filled + "░" * (20 - filled)
    wrong = f"  {bad} failing" if bad else ""
    return f"{name}  {bar}  {done}/{total}{wrong}  {current}"[:width]
