"""Errors in units of tolerance, drawn: SVG inside the page, on a logarithmic scale, the tolerance a line at 1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil, floor, inf, isinf, log10

import numpy as np

from ..run import BAD, Result
from ..tensors import NumPyArray
from .markup import Markup, element

_LOW, _HIGH, _MOST = -3.0, 9.0, 200
_TICKS = {-3: "1/1000", -2: "1/100", -1: "1/10", 0: "1", 1: "10", 2: "100", 3: "1000"}


def bars(units: NumPyArray, limit: float) -> Markup:
    """One bar per element of an output: its error in units of what is allowed; those beyond the line fail."""
    flat = np.atleast_1d(units).ravel()
    sizes = [_size(float(value), limit) for value in _thinned(flat)]
    top = max([1.0, *(ceil(size) for size in sizes if size != inf)])
    top += 1 if inf in sizes else 0
    width, height, left, base = max(90, 7 * len(sizes) + 4), 90, 46, 96

    def y(size: float) -> float:
        return round(base - (min(size, top) - _LOW) / (top - _LOW) * height, 1)

    shapes = [_bar(left + 2 + 7 * i, y(size), base, size) for i, size in enumerate(sizes)]
    line = element("line", x1=left, x2=left + width, y1=y(0), y2=y(0), class_="limit")
    labels = [_label(left - 4, y(tick) + 3, _tick(tick)) for tick in _ticks(top)]
    return _svg([labels, shapes, line], left + width + 2, base + 4, _words(flat, limit))


def gauge(k: float, limit: float) -> Markup:
    """The error of a single number on the same scale, lying down."""
    size = _size(k, limit)
    top = 4.0 if size == inf else max(1.0, ceil(size))
    left, scale, height = 4, 220 / (top - _LOW), 12

    def x(power: float) -> float:
        return round(left + (min(power, top) - _LOW) * scale, 1)

    shape = element("rect", x=left, y=4, width=max(x(size) - left, 2), height=height, class_=_kind(size))
    line = element("line", x1=x(0), x2=x(0), y1=0, y2=20, class_="limit")
    labels = [_label(x(tick), 33, _tick(tick), "middle") for tick in _ticks(top) if tick > _LOW]
    told = f"Error in units of the tolerance: {_tick_words(k, limit)}"
    return _svg([shape, line, labels], 250, 38, told)


def _tick_words(k: float, limit: float) -> str:
    return "exactness is owed" if isinf(k) or not limit else f"{k / limit:.3g}"


def _kind(size: float) -> str:
    return "bar bad" if size > 0 else "bar"


def _bar(x: float, y: float, base: float, size: float) -> Markup:
    return element("rect", x=x, y=y, width=5, height=round(max(base - y, 1.5), 1), class_=_kind(size))


def _thinned(flat: NumPyArray) -> NumPyArray:
    """At most `_MOST` bars: the worst of each stretch."""
    if flat.size <= _MOST:
        return flat
    return np.array([stretch.max() for stretch in np.array_split(flat, _MOST)])


def strip(areas: dict[str, list[Result]]) -> Markup:
    """Every number of a run: a row per area, a tick where errors lie, darker where many do; the line is the tolerance."""
    cells = {area: _cells(results) for area, results in areas.items()}
    columns = [column for counted in cells.values() for column, _ in counted]
    top = max(2.0, ceil(max([0.0, *(column for column in columns if column != inf)])))
    end = top + (1.6 if inf in columns else 0.4)

    def x(size: float) -> str:
        return f"{100 * (min(size, end - 0.5) - _LOW + 0.2) / (end - _LOW + 0.2):.2f}%"

    line = element("line", x1=x(0), x2=x(0), y1=0, y2=18, class_="limit")
    rows = [
        [element("span", area), _track([[_mark(x(at), bad, n) for (at, bad), n in counted.items()], line], area)]
        for area, counted in cells.items()
    ]
    ticks = [_label(x(tick), 11, _tick(tick), "middle") for tick in _ticks(top)]
    ticks += [_label(x(inf), 11, "∞", "middle")] if inf in columns else []
    return element("div", rows, element("span"), _track(ticks, "scale"), class_="strip")


def _track(shapes: Sequence[object], told: str) -> Markup:
    title = element("title", f"{told}: errors in units of the tolerance")
    return element("svg", title, shapes, width="100%", height=18, role="img")


def _cells(results: Sequence[Result]) -> Counter[tuple[float, bool]]:
    counted: Counter[tuple[float, bool]] = Counter()
    for result in results:
        for item in result.judged:
            size = _size(item.k, item.limit)
            column = size if isinf(size) else min(_HIGH, round(size * 8) / 8)
            counted[column, result.verdict in BAD and not item.ok] += 1
    return counted


def _mark(x: str, bad: bool, many: int) -> Markup:
    opacity = round(min(1.0, 0.3 + 0.14 * many), 2)
    return element("rect", x=x, y=3, width=5, height=12, class_="tick bad" if bad else "tick", opacity=opacity)


def _size(k: float, limit: float) -> float:
    """log10 of the error in units of tolerance; infinite where exactness is owed and missed."""
    if isinf(k) or (k > 0 and limit == 0):
        return inf
    return max(_LOW, log10(k / limit)) if k > 0 else _LOW


def _ticks(top: float) -> list[int]:
    step = max(1, ceil((top - _LOW) / 7))
    return [tick for tick in range(int(_LOW), floor(top) + 1) if tick % step == 0]


def _tick(power: int) -> str:
    return _TICKS.get(power, f"1e{power}")


def _label(x: float | str, y: float, words: str, anchor: str = "end") -> Markup:
    return element("text", words, x=x, y=y, text_anchor=anchor)


def _svg(shapes: list[object], width: float, height: float, told: str) -> Markup:
    return element(
        "svg", element("title", told), shapes, viewBox=f"0 0 {width} {height}", width=width, height=height, role="img"
    )


def _words(flat: NumPyArray, limit: float) -> str:
    wrong = int(np.count_nonzero(flat > limit))
    return f"Error of each of {flat.size} elements in units of the tolerance; {wrong} beyond it"
