"""The records of the runs, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..run import Run
from .record import lines


def render(runs: Sequence[Run], **options: Any) -> str:
    """JSON lines."""
    return "".join(line for run in runs for line in lines(run))
