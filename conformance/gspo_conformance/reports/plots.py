"""Errors in units of tolerance, drawn: SVG inside the page, on a logarithmic scale, the tolerance a line at 1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil, floor, inf, isinf, log10

import numpy as np

from ..run import BAD, Result
from ..tensors import NumPyArray
from .markup import Markup, element

_LOW, _MOST = -3.0, 200
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


def _bar(x: float, y: float, base: float, size: float) -> Markup:
    kind = "bar bad" if size > 0 else "bar"
    return element("rect", x=x, y=y, width=5, height=round(max(base - y, 1.5), 1), class_=kind)


def _thinned(flat: NumPyArray) -> NumPyArray:
    """At most `_MOST` bars: the worst of each stretch."""
    if flat.size <= _MOST:
        return flat
    return np.array([stretch.max() for stretch in np.array_split(flat, _MOST)])


def strip(areas: dict[str, list[Result]]) -> Markup:
    """Every number of a run: a row per area, a tick where errors lie, darker where many do; the line is the tolerance."""
    cells = {area: _cells(results) for area, results in areas.items()}
    top = max([3, *(column for counted in cells.values() for column, _ in counted)]) + 1
    left, scale, row = 104, 58, 17
    width, base = round((top - _LOW) * scale), row * len(cells) + 4

    def x(size: float) -> float:
        return round(left + (size - _LOW) * scale, 1)

    marks = []
    for i, (area, counted) in enumerate(cells.items()):
        marks.append(_label(left - 8, row * i + 14, area))
        marks += [_mark(x(column), row * i + 4, bad, many) for (column, bad), many in counted.items()]
    line = element("line", x1=x(0), x2=x(0), y1=0, y2=base, class_="limit")
    ticks = [_label(x(tick), base + 13, _tick(tick), "middle") for tick in _ticks(top)]
    told = "Errors of all answers by area, in units of the tolerance"
    return _svg([marks, line, ticks], left + width + 8, base + 20, told)


def _cells(results: Sequence[Result]) -> Counter[tuple[float, bool]]:
    counted: Counter[tuple[float, bool]] = Counter()
    for result in results:
        for item in result.judged:
            size = _size(item.k, item.limit)
            column = 9.0 if isinf(size) else max(_LOW, min(9.0, round(size * 8) / 8))
            counted[column, result.verdict in BAD and not item.ok] += 1
    return counted


def _mark(x: float, y: float, bad: bool, many: int) -> Markup:
    opacity = round(min(1.0, 0.3 + 0.14 * many), 2)
    return element("rect", x=x, y=y, width=5, height=12, class_="tick bad" if bad else "tick", opacity=opacity)


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


def _label(x: float, y: float, words: str, anchor: str = "end") -> Markup:
    return element("text", words, x=x, y=y, text_anchor=anchor)


def _svg(shapes: list[object], width: float, height: float, told: str) -> Markup:
    return element(
        "svg", element("title", told), shapes, viewBox=f"0 0 {width} {height}", width=width, height=height, role="img"
    )


def _words(flat: NumPyArray, limit: float) -> str:
    wrong = int(np.count_nonzero(flat > limit))
    return f"Error of each of {flat.size} elements in units of the tolerance; {wrong} beyond it"
