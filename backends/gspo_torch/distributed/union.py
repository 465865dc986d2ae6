"""The normaliser of a union of responses, over micro-batches and ranks, and the weights it gives to a part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from gspo_core.aggregation import Aggregation, Weights

from .ranks import gather, gather_uneven


class Part(NamedTuple):
    """The lengths T `[num_sequences]` of the responses of a micro-batch, and the group of each (None: one group)."""

    lengths: Tensor
    groups: Tensor | None


class Totals(NamedTuple):
    """Of the whole union: S, how many responses are not empty, Σ T, and the sorted ids and lengths behind the groups."""

    sequences: Tensor
    non_empty: Tensor
    tokens: Tensor
    groups: tuple[Tensor, Tensor] | None


def totals_of(
    parts: Iterable[Part], aggregations: Iterable[Aggregation], data: dist.ProcessGroup, like: Tensor
) -> Totals:
    """The totals over `parts` and over the ranks of `data`: one exchange of three numbers, and of ids where groups weigh."""
    parts = list(parts)
    lengths = torch.cat([like.new_zeros(0, dtype=torch.float64), *(part.lengths.double() for part in parts)])
    local = torch.stack([torch.ones_like(lengths).sum(), (lengths > 0).double().sum(), lengths.sum()])
    whole = gather(local, data, "the normaliser").sum(0)
    by_group = any(aggregation.mode == "group_token_mean" for aggregation in aggregations)
    return Totals(whole[0], whole[1], whole[2], _group_table(parts, lengths, data) if by_group else None)


def same(part: Part, other: Part, by_group: bool) -> bool:
    """Whether two parts have the same lengths, and the same groups where those weigh."""
    lengths, others = part.lengths.double(), other.lengths.double()
    return torch.equal(lengths, others) and (not by_group or torch.equal(_ids(part), _ids(other)))


def weights_of(aggregation: Aggregation, part: Part, totals: Totals) -> Weights:
    """ω of the responses of `part` and M, as the one call on the whole union would have them (GSPO-AGG-8)."""
    lengths, mode = part.lengths, aggregation.mode
    if mode == "group_token_mean":
        omega = _group_shares(part, totals)
    elif mode == "sequence_mean_token_mean":
        omega = (lengths > 0) / lengths.clamp(min=1)
    elif mode == "token_mean":
        omega = torch.ones_like(lengths)
    else:
        omega = torch.full_like(lengths, 1 / aggregation.constant)
    return Weights(omega.to(lengths.dtype), normalizer_of(aggregation, totals).to(lengths.dtype), lengths)


def normalizer_of(aggregation: Aggregation, totals: Totals) -> Tensor:
    """M of the union."""
    if aggregation.mode == "group_token_mean":
        return _group_count(aggregation, totals)
    if aggregation.mode == "token_mean":
        return totals.tokens
    if aggregation.mode == "token_sum":
        return torch.ones_like(totals.tokens)
    return totals.non_empty if aggregation.count == "non_empty" else totals.sequences


def _group_table(parts: list[Part], lengths: Tensor, data: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Ids of all responses, sorted, and how many tokens come before each: a group's total is a difference of integers."""
    ids = torch.cat([lengths.new_zeros(0, dtype=torch.int64), *(_ids(part) for part in parts)])
    everyone = [torch.cat(gather_uneven(values, data, "the groups")) for values in (ids, lengths)]
    ids, order = torch.sort(everyone[0])
    running = torch.cumsum(everyone[1][order], 0)
    return ids, torch.cat([running.new_zeros(1), running])


def _ids(part: Part) -> Tensor:
    return torch.zeros_like(part.lengths, dtype=torch.int64) if part.groups is None else part.groups.long()


def _group_shares(part: Part, totals: Totals) -> Tensor:
    assert totals.groups is not None
    tokens, _ = _members(*totals.groups, _ids(part))
    return (tokens > 0) / tokens.clamp(min=1)


def _group_count(aggregation: Aggregation, totals: Totals) -> Tensor:
    assert totals.groups is not None
    tokens, members = _members(*totals.groups, totals.groups[0])
    kept = (tokens > 0) if aggregation.count == "non_empty" else torch.ones_like(tokens, dtype=torch.bool)
    return torch.round((kept / members).sum())


def _members(ids: Tensor, running: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Σ T over the group of each wanted id, and the number of its members."""
    first, last = torch.searchsorted(ids, wanted), torch.searchsorted(ids, wanted, right=True)
    return running[last] - running[first], last - first
