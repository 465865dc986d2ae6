"""How the runner reaches a target: in this process, or behind JSON lines (`program.py`). Both speak the same four words."""

from __future__ import annotations

import contextlib
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .target import Capabilities, Case, Skip, Target

CALLED = "called with"


@dataclass(frozen=True)
class Hello:
    """What a target says of itself at the start."""

    implementation: Mapping[str, Any]
    capabilities: Capabilities


@dataclass(frozen=True)
class Outputs:
    """An answer."""

    values: Any


@dataclass(frozen=True)
class Skipped:
    """The target chose not to answer."""

    reason: str
    url: str | None = None


@dataclass(frozen=True)
class Broken:
    """No answer. `fatal`: the program died, hung or spoke garbage, and has to be started again."""

    reason: str
    detail: str = ""
    fatal: bool = field(default=False)


Reply = Outputs | Skipped | Broken


class Connection(Protocol):
    """A target that can be asked."""

    name: str

    def start(self) -> Hello:
        """Loads the target; raises `HarnessError` where that fails."""
        ...

    def ask(self, case: Case, limit: float) -> Reply:
        """The reply within `limit` seconds."""
        ...

    def stop(self) -> None:
        """Lets the target go."""
        ...


class InProcess:
    """A target object in this process: fast; a crash of the interpreter takes the run with it."""

    def __init__(self, target: Target, name: str = "") -> None:
        self.target = target
        self.name = name or target.name

    def start(self) -> Hello:
        """What the object declares."""
        return Hello(dict(self.target.version), self.target.capabilities)

    def ask(self, case: Case, limit: float) -> Reply:
        """Calls `run`; whatever it raises becomes the reply."""
        try:
            with _time_limit(limit):
                return Outputs(self.target.run(case))
        except Skip as skip:
            return Skipped(skip.reason, skip.url)
        except _TimeLimit:
            return Broken(f"no answer within {limit:g} s", traceback.format_exc(), fatal=True)
        except (Exception, SystemExit) as error:
            return Broken(describe(error), traceback.format_exc())

    def stop(self) -> None:
        """Nothing to let go."""


def describe(error: BaseException) -> str:
    """`ValueError: message`, on one line; behind it the note of what it was called with, where `loss_target` left one."""
    notes = (note for note in getattr(error, "__notes__", ()) if note.startswith(CALLED))
    text = "; ".join(" ".join(str(part).split()) for part in (error, *notes) if str(part))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


_AGAIN = 0.5


class _TimeLimit(BaseException):
    """Not an Exception, so that the target's own `except Exception` does not swallow it."""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises in Python code that takes too long; only signals can, so only in the main thread and where they exist."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: Any) -> None:
        raise _TimeLimit

    before = signal.signal(signal.SIGALRM, ring)
    # Python drops what is raised while it clears away an object, so the bell rings until it is heard.
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
