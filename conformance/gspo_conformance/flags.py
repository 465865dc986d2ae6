"""The registry of flags: what bug class each hunts, what it does to training, where it was seen in public."""

from __future__ import annotations

import json
from typing import Any

from .formats import ROOT

FLAGS = ROOT / "flags.json"


def read_flags() -> dict[str, dict[str, Any]]:
    """Flag -> {title, hunts, effect, seen, clauses}."""
    return json.loads(FLAGS.read_text(encoding="utf-8"))
