"""A panel: an SVG with two axes that reads at 330 and at 550 pixels, in the colours of the page, light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .markup import Markup, element

WIDTH, HEIGHT = 460, 290
LEFT, RIGHT, TOP, BOTTOM = 62, 10, 12, 40


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, linear or logarithmic, and the ticks with their words."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    label: str = ""
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """0 at the low end, 1 at the high end; values beyond are held at the ends."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 1e-300))
        return min(1.0, max(0.0, (value - low) / (high - low)))


@dataclass
class Panel:
    """Shapes in the coordinates of two axes; `title` is read to those who cannot see it."""

    x: Axis
    y: Axis
    title: str
    shapes: list[Markup] = field(default_factory=list)

    def px(self, value: float) -> float:
        """Pixels from the left."""
        return round(LEFT + self.x.at(value) * (WIDTH - LEFT - RIGHT), 1)

    def py(self, value: float) -> float:
        """Pixels from the top."""
        return round(HEIGHT - BOTTOM - self.y.at(value) * (HEIGHT - TOP - BOTTOM), 1)

    def box(self, x0: float, x1: float, y0: float, y1: float, kind: str, **more: Any) -> None:
        """A rectangle between two corners; nothing where it has no area."""
        left, right = sorted((self.px(x0), self.px(x1)))
        top, bottom = sorted((self.py(y0), self.py(y1)))
        if right > left and bottom > top:
            size = {"width": round(right - left, 1), "height": round(bottom - top, 1)}
            self.shapes.append(element("rect", x=left, y=top, **size, class_=kind, **more))

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line through points."""
        path = " ".join(f"{self.px(x)},{self.py(y)}" for x, y in points)
        self.shapes.append(element("polyline", points=path, class_=kind))

    def dot(self, x: float, y: float, kind: str, r: float = 3.0) -> None:
        """A point."""
        self.shapes.append(element("circle", cx=self.px(x), cy=self.py(y), r=r, class_=kind))

    def words(self, x: float, y: float, text: str, *, up: float = 0.0, anchor: str = "middle") -> None:
        """A label at a point, `up` pixels above it."""
        place = {"x": self.px(x), "y": round(self.py(y) - up, 1)}
        self.shapes.append(element("text", text, **place, text_anchor=anchor))

    def draw(self) -> Markup:
        """The panel."""
        attributes = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img"}
        return element("svg", element("title", self.title), self._axes(), self.shapes, **attributes, class_="panel")

    def _axes(self) -> list[Markup]:
        base, end = HEIGHT - BOTTOM, WIDTH - RIGHT
        lines = [
            element("line", x1=LEFT, x2=end, y1=self.py(value), y2=self.py(value), class_="grid")
            for value, _ in self.y.ticks
        ]
        lines.append(element("line", x1=LEFT, x2=end, y1=base, y2=base, class_="axis"))
        for value, words in self.y.ticks:
            lines.append(element("text", words, x=LEFT - 6, y=self.py(value) + 4, text_anchor="end"))
        for value, words in self.x.ticks:
            lines.append(element("text", words, x=self.px(value), y=base + 16, text_anchor="middle"))
        return [*lines, element("text", self.x.label, x=(LEFT + end) / 2, y=HEIGHT - 5, text_anchor="middle")]


def linear(low: float, high: float, words: Callable[[float], str], count: int = 5) -> list[tuple[float, str]]:
    """About `count` round values between two ends."""
    step = (high - low) / count
    power = 10.0 ** math.floor(math.log10(step))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [(i * step, words(i * step)) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float, words: Callable[[float], str]) -> list[tuple[float, str]]:
    """Powers of ten, with 2 and 5 between them where there are few, that lie between two ends."""
    factors = (1,) if high / low > 300 else (1, 3) if high / low > 30 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**power for power in powers for factor in factors]
    return [(value, words(value)) for value in found if low <= value * 1.0001 and value <= high * 1.0001]
