"""Where tokens live: padded rows with a mask, ragged rows, or one flat row with offsets, all become one list per response."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpmath import mpf

from .exact import exact

PerToken = list[list[mpf]]


@dataclass(frozen=True)
class Layout:
    """counted[i] = the positions (row, column) of the counted tokens of response i, in order (GSPO-DATA-1, GSPO-PACK-1)."""

    widths: tuple[int, ...]
    packed: bool
    counted: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def lengths(self) -> list[int]:
        """T_i: the number of counted tokens of each response (GSPO-RATIO-4)."""
        return [len(positions) for positions in self.counted]

    def gather(self, values: Sequence[Any]) -> PerToken:
        """The counted tokens of each response; whatever the other positions hold is never read (GSPO-DATA-2)."""
        rows = [values] if self.packed else values
        if [len(row) for row in rows] != list(self.widths):
            raise ValueError(f"token values have rows of {[len(row) for row in rows]}, expected {list(self.widths)}")
        return [[exact(rows[row][column]) for row, column in positions] for positions in self.counted]

    def scatter(self, values: Sequence[Sequence[Any]], fill: Any = None) -> list[Any]:
        """One list per response -> the layout the inputs came in, `fill` at the uncounted positions."""
        rows = [[fill] * width for width in self.widths]
        for positions, tokens in zip(self.counted, values, strict=True):
            for (row, column), value in zip(positions, tokens, strict=True):
                rows[row][column] = value
        return rows[0] if self.packed else rows

    def is_per_token(self, values: Sequence[Any]) -> bool:
        """Whether values have the shape of the tokens; one number per response wins where both would fit."""
        if not self.packed:
            return bool(values) and isinstance(values[0], list | tuple)
        return len(values) != len(self.counted) and len(values) == self.widths[0]

    def spread(self, values: Sequence[Any]) -> PerToken:
        """One number per response, or one per token -> one per counted token (GSPO-ADV-14)."""
        if self.is_per_token(values):
            return self.gather(values)
        if len(values) != len(self.counted):
            raise ValueError(f"{len(values)} values for {len(self.counted)} responses")
        return [[exact(value)] * length if length else [] for value, length in zip(values, self.lengths, strict=True)]


def layout_of(values: Sequence[Any], *, mask: Any = None, offsets: Sequence[int] | None = None) -> Layout:
    """The layout of token values: packed when offsets are given, else one row per response (GSPO-PACK-3)."""
    return _rows(values, mask) if offsets is None else _packed(len(values), offsets, mask)


def _rows(values: Sequence[Sequence[Any]], mask: Any) -> Layout:
    """Row i is response i; its counted tokens are where the mask is true, or all."""
    widths = tuple(len(row) for row in values)
    mask = [[True] * width for width in widths] if mask is None else mask
    if tuple(len(row) for row in mask) != widths:
        raise ValueError("the mask does not have the shape of the tokens")
    counted = tuple(tuple((i, t) for t, keep in enumerate(row) if keep) for i, row in enumerate(mask))
    return Layout(widths, False, counted)


def _packed(size: int, offsets: Sequence[int], mask: Any) -> Layout:
    """Response i is offsets[i] <= n < offsets[i+1] of one flat row; what follows the last offset is padding."""
    ordered = all(left <= right for left, right in itertools.pairwise(offsets))
    if offsets[0] != 0 or offsets[-1] > size or not ordered:
        raise ValueError(f"offsets must rise from 0 to at most {size}: {list(offsets)}")
    mask = [True] * size if mask is None else mask
    if len(mask) != size:
        raise ValueError("the mask does not have the shape of the tokens")
    spans = itertools.pairwise(offsets)
    counted = tuple(tuple((0, n) for n in range(start, stop) if mask[n]) for start, stop in spans)
    return Layout((size,), True, counted)
