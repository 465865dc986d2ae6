"""Where tokens live, for mutants: both layouts as one flat row of tokens, cut into sequences by offsets.

Row i of a padded batch is simply the segment from i W to (i + 1) W. `counted` says which tokens count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from ..tensors import NumPyArray
from .tape import make, value_of


@dataclass(frozen=True, eq=False)
class Sequences:
    """`offsets` `[S + 1]`, `counted` `[N]`, and the shape that the tokens came in."""

    offsets: NumPyArray
    counted: NumPyArray
    shape: tuple[int, ...]

    @property
    def packed(self) -> bool:
        """Whether the tokens came as one row of segments."""
        return len(self.shape) == 1

    @property
    def number(self) -> int:
        """S, the number of sequences."""
        return len(self.offsets) - 1

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """First position and end of each sequence."""
        return [(int(start), int(end)) for start, end in pairwise(self.offsets)]

    @cached_property
    def owner(self) -> NumPyArray:
        """The sequence of each token; S for tokens behind the last one."""
        return np.searchsorted(self.offsets[1:], np.arange(self.counted.size), side="right")

    def sum(self, values: Any) -> Any:
        """Σ over all tokens of each sequence, counted or not; the caller selects."""
        return make(self._sum(value_of(values)), (values, self._spread))

    def spread(self, per_sequence: Any) -> Any:
        """v_i at every token of sequence i, 0 behind the last."""
        return make(self._spread(value_of(per_sequence)), (per_sequence, self._sum))

    def _sum(self, values: NumPyArray) -> NumPyArray:
        if not self.packed and values.size:
            return values.reshape(self.shape).sum(axis=1)
        return np.array([values[start:end].sum() for start, end in self.spans], dtype=values.dtype)

    def _spread(self, values: NumPyArray) -> NumPyArray:
        if not self.packed:
            return np.repeat(values, self.shape[1])
        return np.append(values, np.zeros(1, values.dtype))[self.owner]

    @cached_property
    def lengths(self) -> NumPyArray:
        """The number of counted tokens of each sequence."""
        return self._sum(self.counted.astype(float))

    def tokens(self, i: int) -> NumPyArray:
        """Positions of the counted tokens of sequence i, in order."""
        start, end = self.spans[i]
        return start + np.flatnonzero(self.counted[start:end])

    def with_counted(self, rule: Callable[[NumPyArray], NumPyArray]) -> Sequences:
        """The same with the mask of each sequence, a boolean row, put through `rule`."""
        counted = self.counted.copy()
        for start, end in self.spans:
            counted[start:end] = rule(self.counted[start:end])
        return replace(self, counted=counted)


def sequences_of(arrays: Mapping[str, Any]) -> Sequences:
    """The sequences that `mask` or `offsets` describe."""
    mask = arrays.get("mask")
    if "offsets" not in arrays:
        mask = np.asarray(mask, dtype=bool)
        return Sequences(np.arange(mask.shape[0] + 1) * mask.shape[1], mask.ravel(), mask.shape)
    offsets, size = np.asarray(arrays["offsets"]), token_count(arrays)
    inside = np.arange(size) < offsets[-1]
    return Sequences(offsets, inside if mask is None else inside & np.asarray(mask, dtype=bool), (size,))


def token_count(arrays: Mapping[str, Any]) -> int:
    """N, the number of tokens of a packed row."""
    return next(np.shape(arrays[name])[0] for name in TOKEN_ARRAYS if name in arrays)


# In this order: rewards and advantages have one entry per token only where nothing before them is there.
TOKEN_ARRAYS = ("logp", "values", "token_rewards", "rewards", "advantages")
