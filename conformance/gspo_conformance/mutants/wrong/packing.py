"""Wrong packing: segments merged, shifted, or given another segment's advantage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ...tensors import NumPyArray
from ..registry import mutant
from ..sequences import Sequences
from ..whole import Reference


class _Packed(Reference):
    """A mutation of packed rows; padded batches are left as they are."""

    def layout(self, arrays: dict[str, Any]) -> Sequences:
        found = super().layout(arrays)
        return self.packed(found) if found.packed else found

    def packed(self, sequences: Sequences) -> Sequences:
        """The wrong segments."""
        return sequences


@mutant(
    "packing.one-ratio",
    "GSPO-PACK-2",
    effect="responses in one row share a ratio: each is clipped for what the others did",
    seen=("areal-project/AReaL#501", "google/tunix#1659"),
)
class OneRatio(Reference):
    """One ratio for the whole packed row: the segments are averaged together."""

    def sequence_log_ratio(self) -> Any:
        if not self.sequences.packed:
            return super().sequence_log_ratio()
        counted = max(float(self.lengths().sum()), 1.0)
        whole = Sequences(np.array([0, self.sequences.counted.size]), self.sequences.counted, self.sequences.shape)
        mean = whole.sum(self.clean(self.log_ratio())) / counted
        return self.sequences.sum(self._firsts() * whole.spread(mean))

    def _firsts(self) -> NumPyArray:
        """1 at the first position of each segment that has one."""
        found = np.zeros(self.sequences.counted.shape)
        found[[start for start, end in self.sequences.spans if end > start]] = 1.0
        return found


@mutant("packing.boundary-shifted", "GSPO-PACK-1", effect="one token of each response trains with another's advantage")
class BoundaryShifted(_Packed):
    """Segment boundaries one token late: the first token of each segment belongs to the one before."""

    def packed(self, sequences: Sequences) -> Sequences:
        inner = np.minimum(sequences.offsets[1:-1] + 1, sequences.offsets[-1])
        return replace(sequences, offsets=np.concatenate([sequences.offsets[:1], inner, sequences.offsets[-1:]]))


@mutant(
    "packing.equal-lengths",
    "GSPO-PACK-1",
    effect="tokens train with the advantage of other responses",
    seen=("modelscope/ms-swift#6548", "modelscope/ms-swift#5965"),
)
class EqualLengths(_Packed):
    """The row cut into segments of equal length: values are expanded to the wrong tokens.

    `repeat_interleave` with one length for all, or tokens split evenly over the episodes.
    """

    def packed(self, sequences: Sequences) -> Sequences:
        cuts = np.linspace(0, sequences.offsets[-1], sequences.number + 1).round().astype(int)
        return replace(sequences, offsets=cuts)


@mutant(
    "packing.short-merged",
    "GSPO-PACK-3",
    effect="a response of one token is taken for part of the one before",
    seen=("modelscope/ms-swift#9904",),
)
class ShortMerged(_Packed):
    """A segment of one token merged with the one before it: boundaries are sought where positions fall.

    `position_ids == 0`, differenced.
    """

    def packed(self, sequences: Sequences) -> Sequences:
        offsets = sequences.offsets.copy()
        for i in range(1, sequences.number):
            if offsets[i + 1] - offsets[i] == 1:
                offsets[i] = offsets[i + 1]
        return replace(sequences, offsets=offsets)


@mutant(
    "packing.trailing-counted",
    "GSPO-PACK-3",
    effect="padding behind the last response trains with its advantage",
    seen=("areal-project/AReaL#1103", "radixark/miles#381"),
)
class TrailingCounted(_Packed):
    """The padding behind the last segment counted with it."""

    def packed(self, sequences: Sequences) -> Sequences:
        size, end = sequences.counted.size, sequences.offsets[-1]
        offsets = np.append(sequences.offsets[:-1], size)
        return replace(sequences, offsets=offsets, counted=sequences.counted | (np.arange(size) >= end))


@mutant(
    "packing.trailing-as-sequence",
    "GSPO-PACK-3",
    effect="the mean over responses is taken over one too many",
    seen=("areal-project/AReaL#1103", "radixark/miles#381"),
)
class TrailingSequence(Reference):
    """The padding behind the last segment taken for a response of its own: the divisor is one too large."""

    def count(self, aggregation: Any) -> Any:
        found, sequences = super().count(aggregation), self.sequences
        trailing = sequences.packed and sequences.offsets[-1] < sequences.counted.size
        by_response = aggregation["mode"] in ("sequence_mean_token_mean", "sequence_mean_token_sum")
        return found + 1 if trailing and by_response else found

    def metric_num_sequences(self) -> Any:
        trailing = self.sequences.packed and self.sequences.offsets[-1] < self.sequences.counted.size
        return super().metric_num_sequences() + bool(trailing)


@mutant("packing.advantage-by-row", "GSPO-PACK-1", effect="all responses of a row train with the first one's advantage")
class AdvantageByRow(Reference):
    """The advantage of the first segment for the whole packed row."""

    def unit_advantages(self, advantages: NumPyArray) -> NumPyArray:
        one_each = advantages.ndim == 1 and advantages.size == self.sequences.number
        if self.sequences.packed and one_each:
            advantages = np.full_like(advantages, advantages[0])
        return super().unit_advantages(advantages)


@mutant(
    "packing.empty-skipped",
    "GSPO-PACK-3",
    effect="behind an empty segment every response has its neighbour's advantage",
)
class EmptySkipped(_Packed):
    """Empty segments dropped from the offsets: the advantages behind them move up by one."""

    def packed(self, sequences: Sequences) -> Sequences:
        kept = np.unique(sequences.offsets)
        missing = len(sequences.offsets) - len(kept)
        return replace(sequences, offsets=np.append(kept, np.full(missing, kept[-1])))


@mutant("packing.mask-ignored", "GSPO-PACK-1", effect="tool output inside a packed response trains")
class MaskIgnored(_Packed):
    """The mask of a packed row ignored: every token of a segment counts."""

    def packed(self, sequences: Sequences) -> Sequences:
        inside = np.arange(sequences.counted.size) < sequences.offsets[-1]
        return replace(sequences, counted=inside)


@mutant("packing.offsets-trusted", "GSPO-PACK-3", effect="a wrong boundary is trained on, unnoticed")
class OffsetsTrusted(Reference):
    """Offsets that cannot be are accepted: tokens belong to no response, or to two."""

    def check_offsets(self, offsets: NumPyArray, size: int) -> None:
        pass
