"""The figure of docs/noise.md, clip fraction of mismatch alone against length: `python -m gspo_conformance.noise.figure [--check]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from gspo_core import Clip

from ..reports.markup import Markup, element
from ..reports.panel import HEIGHT, WIDTH, Axis, Panel
from .model import Mismatch, clip_fraction

_FILE = Path(__file__).resolve().parents[3] / "docs" / "assets" / "noise.svg"
_PAPER = Clip(3e-4, 4e-4)
# Greys and hues that read on white and on black.
_STYLE = """
svg { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; }
text { fill: #808080; }
.grid { stroke: #808080; opacity: .25; }
.axis { stroke: #808080; }
polyline { fill: none; stroke-width: 2; stroke: var(--hue); }
.a { --hue: #e07b00; } .b { --hue: #2f7fd0; } .c { --hue: #1a9c6b; } .d { --hue: #9a6ad6; }
text.a, text.b, text.c, text.d { fill: var(--hue); }
"""
# class, mismatch, where its name stands, and what it is
CURVES = (
    ("a", Mismatch(0.05, -0.0015), (150, 0.505), "0.05, mean −0.0015"),
    ("b", Mismatch(0.055), (7600, 0.315), "0.055, mean 0"),
    ("c", Mismatch(0.01), (2900, 0.05), "0.01, mean 0"),
    ("d", Mismatch(0.01, -5e-4), (430, 0.305), "0.01, mean −0.0005"),
)


def draw() -> str:
    """The SVG."""
    x = Axis(
        64,
        98304,
        [(float(n), f"{n:,}") for n in (64, 256, 1024, 4096, 16384, 65536)],
        "tokens of a response",
        logarithmic=True,
    )
    y = Axis(0, 0.55, [(share / 10, f"{10 * share} %") for share in range(6)])
    panel = Panel(x, y, "Clip fraction that mismatch alone gives, against the length of responses, for four mismatches")
    grid = np.geomspace(64, 98304, 61)
    for kind, mismatch, place, words in CURVES:
        panel.line([(length, clip_fraction(mismatch, _PAPER, length)) for length in grid], kind)
        panel.shapes.append(
            element(
                "text",
                words,
                x=panel.px(place[0]),
                y=panel.py(place[1]),
                class_=kind,
                text_anchor="start",
            )
        )
    drawn = panel.draw()
    style = element("style", Markup(_STYLE))
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
    return drawn.replace("<svg ", opening, 1).replace("<title>", f"{style}<title>", 1) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Writes the figure, or compares it (`--check`); 1 where it differs."""
    parser = argparse.ArgumentParser(prog="python -m gspo_conformance.noise.figure", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--out", type=Path, default=_FILE, help="the figure")
    options = parser.parse_args(arguments)
    if not options.check:
        options.out.write_text(draw(), encoding="utf-8")
        return 0
    if options.out.read_text(encoding="utf-8") == draw():
        return 0
    print(f"{options.out.name} is stale; run without --check", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
