"""Numbers that a page says in words are those of the table beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1]
MIB = 2**20


def _sizes() -> list[dict[str, dict[str, Any]]]:
    """The measured rows of every size in which no response is clipped, by path."""
    rows = json.loads((DOCS / "benchmarks" / "linear.json").read_text(encoding="utf-8"))["rows"]
    sizes: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        if "seconds" in row and not row["clipped"]:
            sizes.setdefault((row["vocabulary"], row["batch"], row["length"]), {})[row["path"]] = row
    return list(sizes.values())


def test_the_fused_page_says_the_ranges_of_its_table() -> None:
    """Hunts a table that was measured again under a text that was not."""
    page = " ".join((DOCS / "fused.md").read_text(encoding="utf-8").split())
    recomputed = [size["gspo recompute"] for size in _sizes()]
    for vocabulary, text in ((32_000, "{} to {} MiB beyond inputs"), (151_936, "{} or {} MiB at V = 151,936")):
        held = sorted(
            round((row["peak_bytes"] - row["gradient_bytes"]) / MIB)
            for row in recomputed
            if row["vocabulary"] == vocabulary
        )
        assert text.format(held[0], held[-1]) in page
    whole = [size for size in _sizes() if "naive" in size]
    for path, text in (
        ("gspo single pass", "({:.2f} to {:.2f} of it)"),
        ("gspo recompute", "recomputation {:.2f} to {:.2f};"),
    ):
        shares = [size[path]["processor_seconds"] / size["naive"]["processor_seconds"] for size in whole]
        assert text.format(min(shares), max(shares)) in page
    auto = max(size["gspo"]["processor_seconds"] / size["naive"]["processor_seconds"] for size in whole)
    assert f"it needs {auto:.2f} of it" in page
