"""Arrays as tables: rows and columns with their numbers, the wrong ones marked, large ones cut."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..tensors import NumPyArray
from .markup import Markup, element

_ROWS, _COLUMNS = 8, 12


def array(values: NumPyArray, **marked: NumPyArray | None) -> Markup:
    """A table of `values`; the elements of the mask `marked["bad"]` get that class, and so on."""
    table = np.atleast_2d(values) if values.ndim < 3 else values.reshape(values.shape[0], -1)
    marks = {kind: _like(mask, values, table) for kind, mask in marked.items()}
    if table.size == 0:
        return element("p", f"empty, shape {list(values.shape)}", class_="quiet")
    rows = [_row(table, i, marks) for i in range(min(len(table), _ROWS))]
    cut = table.shape[0] > _ROWS or table.shape[1] > _COLUMNS
    note = element("p", f"shape {list(values.shape)}, the first rows and columns", class_="quiet") if cut else None
    return element("div", element("table", rows, class_="array"), note, class_="scroll")


def _like(mask: NumPyArray | None, values: NumPyArray, table: NumPyArray) -> NumPyArray:
    fits = mask is not None and mask.shape == values.shape
    return mask.reshape(table.shape) if fits and mask is not None else np.zeros(table.shape, bool)


def _row(table: NumPyArray, i: int, marks: dict[str, NumPyArray]) -> Markup:
    cells = []
    for j in range(min(table.shape[1], _COLUMNS)):
        kinds = " ".join(kind for kind, mask in marks.items() if mask[i, j])
        cells.append(element("td", number(table[i, j]), class_=kinds or None))
    if table.shape[1] > _COLUMNS:
        cells.append(element("td", "…", class_="faint"))
    return element("tr", cells)


def number(value: Any) -> str:
    """Seven digits; whole numbers and truth values as they are."""
    if isinstance(value, (bool, np.bool_)):
        return "1" if value else "0"
    if isinstance(value, (int, np.integer)):
        return str(value)
    return f"{float(value):.7g}"
