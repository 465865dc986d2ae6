"""Context parallelism: which tokens of each sequence a rank holds, and the way there and back."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gspo_core import Packed, Padded
from gspo_core.validation import check_choice

from .ranks import gather, process_group

ORDERS = ("zigzag", "contiguous")


class ContextSplit:
    """Every sequence cut over the ranks of `group`, so that each holds a part of each. Clause GSPO-DIST-3.

        split = distributed.ContextSplit(sequences, group=mesh["cp"])
        hidden = model(split.shard(tokens), positions=split.positions)
        out = gspo.policy_loss(objective, logp=logp, old_logp=split.shard(old_logp), advantages=advantages,
                               sequences=split.sequences)

    "zigzag" cuts a sequence into 2R pieces and gives rank r the pieces r and 2R - 1 - r, which balances
    causal attention; "contiguous" cuts it into R. Pieces differ by one token at most, so no length has
    to be divisible by anything. Padded rows are cut as rows of T tokens, packed ones segment by segment.

    Attributes: `sequences` of this rank, which know the group; `positions` of its tokens along the token axis.
    """

    def __init__(self, sequences: Padded | Packed | Tensor, *, group: Any = None, order: str = "zigzag") -> None:
        check_choice("order", order, ORDERS)
        sequences = sequences if isinstance(sequences, (Padded, Packed)) else Padded(sequences)
        if sequences.context is not None:
            raise ValueError("sequences: expected whole sequences, got some that are split over a context group")
        self._group = process_group("group", group)
        self._whole, self._order = sequences, order
        self._axis = 1 if isinstance(sequences, Padded) else 0
        self.positions = self._positions(self._group.rank())
        self.sequences = self._local(group if group is not None else self._group)

    def shard(self, values: Tensor) -> Tensor:
        """This rank's tokens of `values` `[B, T, ..]` or `[N, ..]`; differentiable."""
        if values.ndim <= self._axis or values.shape[self._axis] != self._length(values):
            raise ValueError(
                f"values: expected {self._length(values)} tokens along dimension {self._axis}, got shape "
                f"{tuple(values.shape)}"
            )
        return values.index_select(self._axis, self.positions)

    def unshard(self, values: Tensor, length: int | None = None) -> Tensor:
        """The whole of what every rank's `values` are a part of, on every rank, without gradient.

        `length`, along the token axis, is that of the sequences where None; tokens of no rank are 0.
        """
        parts = [self._positions(rank) for rank in range(self._group.size())]
        longest = max(part.shape[0] for part in parts)
        tokens = values.detach().movedim(self._axis, 0)
        padded = tokens.new_zeros((longest, *tokens.shape[1:]))
        padded[: tokens.shape[0]] = tokens
        whole = tokens.new_zeros((length or self._end(), *tokens.shape[1:]))
        for part, found in zip(parts, gather(padded, self._group, "the tokens of a context group"), strict=True):
            whole[part] = found[: part.shape[0]]
        return whole.movedim(0, self._axis)

    def _bounds(self) -> list[int]:
        """Where sequences begin and end along the token axis; padded rows are all alike."""
        return [0, self._whole.mask.shape[1]] if self._axis else self._whole.offsets.tolist()

    def _end(self) -> int:
        return self._bounds()[-1]

    def _length(self, values: Tensor) -> int:
        """Packed tokens may end in padding that belongs to no sequence."""
        mask = self._whole.mask
        if self._axis:
            return mask.shape[1]
        return mask.shape[0] if mask is not None else max(self._end(), values.shape[0])

    def _spans(self, rank: int) -> list[list[tuple[int, int]]]:
        return [_pieces(low, high, rank, self._group.size(), self._order) for low, high in pairwise(self._bounds())]

    def _positions(self, rank: int) -> Tensor:
        like = self._whole.mask if self._axis else self._whole.offsets
        ranges = [torch.arange(low, high) for spans in self._spans(rank) for low, high in spans]
        return torch.cat(ranges).to(like.device)

    def _local(self, context: Any) -> Padded | Packed:
        mask = self._whole.mask
        mask = mask if mask is None else mask.index_select(self._axis, self.positions)
        if self._axis:
            return Padded(mask, context=context)
        sizes = [sum(high - low for low, high in spans) for spans in self._spans(self._group.rank())]
        offsets = torch.tensor([0, *sizes]).cumsum(0).to(self._whole.offsets)
        return Packed(offsets, mask=mask, max_length=max(sizes), context=context)


def _pieces(low: int, high: int, rank: int, size: int, order: str) -> list[tuple[int, int]]:
    """The spans of low..high that belong to `rank`, in order."""
    count = 2 * size if order == "zigzag" else size
    edges = [low + (high - low) * piece // count for piece in range(count + 1)]
    chosen = (rank, count - 1 - rank) if order == "zigzag" else (rank,)
    return [(edges[piece], edges[piece + 1]) for piece in chosen]
