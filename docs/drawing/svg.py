"""Lines, bars and words as SVG that reads on a light and on a dark page: enough for the figures, and small."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from math import isfinite, log10

STYLE = """
text{font:12px ui-sans-serif,system-ui,"Segoe UI",Helvetica,Arial,sans-serif;fill:#333}
.title{font-weight:600;font-size:13px}.small{font-size:11px;fill:#666}.axis{stroke:#999;fill:none}.grid{stroke:#000;stroke-opacity:.09}
.one{--c:#3949ab}.two{--c:#c2570c}.three{--c:#00796b}.wrong{--c:#c62828}.soft{--c:#888}
.line{stroke:var(--c);fill:none;stroke-width:2;stroke-linejoin:round}.dash{stroke-dasharray:5 4;stroke-width:1.5}
.fill{fill:var(--c)}.area{fill:var(--c);fill-opacity:.13}text.one,text.two,text.three,text.wrong{fill:var(--c)}
@media (prefers-color-scheme:dark){text{fill:#ddd}.small{fill:#aaa}.axis{stroke:#888}.grid{stroke:#fff;stroke-opacity:.12}
.one{--c:#9fa8ff}.two{--c:#ffa657}.three{--c:#56d4bc}.wrong{--c:#ff8a80}.soft{--c:#999}}
""".replace("\n", "")


def drawing(width: int, height: int, words: str, parts: Iterable[str]) -> str:
    """A whole SVG file; `words` says what it shows."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
    return "\n".join([head, f"<title>{escape(words)}</title>", f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start", turn: float = 0) -> str:
    """Words at a point of the picture."""
    turned = f' transform="rotate({turn:g} {_n(x)} {_n(y)})"' if turn else ""
    kinds = f' class="{kind}"' if kind else ""
    return f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}"{kinds}{turned}>{escape(words)}</text>'


def rectangle(x: float, y: float, width: float, height: float, kind: str) -> str:
    """A rectangle in the picture."""
    return f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" class="{kind}"/>'


@dataclass
class Panel:
    """A pair of axes; positions are numbers of the axes. Out of range is drawn at the edge."""

    box: tuple[float, float, float, float]
    x: tuple[float, float]
    y: tuple[float, float]
    log: str = ""
    parts: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A point in the picture."""
        left, top, width, height = self.box
        return (
            left + width * self._share(x, self.x, "x" in self.log),
            top + height * (1 - self._share(y, self.y, "y" in self.log)),
        )

    def _share(self, value: float, ends: tuple[float, float], logarithmic: bool) -> float:
        low, high = ends
        if logarithmic:
            value, low, high = log10(value), log10(low), log10(high)
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def ticks(
        self, x: Iterable[tuple[float, str]] = (), y: Iterable[tuple[float, str]] = (), across: str = "", up: str = ""
    ) -> Panel:
        """Axes with labelled ticks and names."""
        left, top, width, height = self.box
        for value, words in x:
            place = self.at(value, self.y[0])
            self._rule((value, self.y[0]), (value, self.y[1]), "grid")
            self.parts.append(text(place[0], place[1] + 16, _signed(words), "small", "middle"))
        for value, words in y:
            place = self.at(self.x[0], value)
            self._rule((self.x[0], value), (self.x[1], value), "grid")
            self.parts.append(text(place[0] - 6, place[1] + 4, _signed(words), "small", "end"))
        self.parts.append(rectangle(left, top, width, height, "axis"))
        if across:
            self.parts.append(text(left + width / 2, top + height + 34, across, "", "middle"))
        if up:
            self.parts.append(text(left - 44, top + height / 2, up, "", "middle", -90))
        return self

    def title(self, words: str) -> Panel:
        """Words above the panel."""
        self.parts.append(text(self.box[0], self.box[1] - 8, words, "title"))
        return self

    def line(self, xs: Sequence[float], ys: Sequence[float], kind: str) -> Panel:
        """A line through points."""
        points = " ".join(",".join(map(_n, self.at(x, y))) for x, y in zip(xs, ys, strict=True) if isfinite(y))
        self.parts.append(f'<polyline points="{points}" class="line {kind}"/>')
        return self

    def dots(self, xs: Sequence[float], ys: Sequence[float], kind: str, radius: float = 3.5) -> Panel:
        """Points."""
        for x, y in zip(xs, ys, strict=True):
            cx, cy = self.at(x, y)
            self.parts.append(f'<circle cx="{_n(cx)}" cy="{_n(cy)}" r="{radius:g}" class="fill {kind}"/>')
        return self

    def span(self, low: tuple[float, float], high: tuple[float, float], kind: str) -> Panel:
        """A filled rectangle between two corners."""
        (x0, y0), (x1, y1) = self.at(*low), self.at(*high)
        self.parts.append(rectangle(min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0), kind))
        return self

    def word(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start", lift: float = 0) -> Panel:
        """Words at a point of the axes, `lift` pixels above it."""
        place = self.at(x, y)
        self.parts.append(text(place[0], place[1] - lift, words, kind, anchor))
        return self

    def _rule(self, start: tuple[float, float], end: tuple[float, float], kind: str) -> None:
        (x0, y0), (x1, y1) = self.at(*start), self.at(*end)
        self.parts.append(f'<line x1="{_n(x0)}" y1="{_n(y0)}" x2="{_n(x1)}" y2="{_n(y1)}" class="{kind}"/>')


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _signed(words: str) -> str:
    return words.replace("-", "−")
