"""Reductions over the responses of one prompt, by group id: any integers, any order, unequal sizes.

Ids are sorted once (stably); reductions run over the sorted members, and results go back to the order
of the caller. Memory is proportional to the number of responses, even where one group holds half of
them and the others one each. No shape depends on data, so everything runs under `jax.jit`.

A group is what the caller passes. Where the responses of a prompt are spread over micro-batches or
ranks, gather `rewards` and `groups` first, and keep your own part of the result (GSPO-DIST-4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from .arrays import Array, Namespace, compute_dtype, gather, namespace_of
from .backend import backend_of, device_of
from .scan import add, merge_moments, segmented_scan
from .validation import (
    as_boolean,
    check_array,
    check_finite,
    check_floating,
    check_integer,
    check_number,
    check_same_namespace,
    check_shape,
    reads_values,
    seen,
)


class Over(Protocol):
    """A set of values to reduce over; every result broadcasts against the values."""

    def sum(self, values: Array) -> Array:
        """Σ v."""
        ...

    def extent(self, low: Array, high: Array) -> tuple[Array, Array]:
        """(min, max) of two copies of the values, filled where they do not count."""
        ...


class Whole:
    """All entries of an array as one set, in the order of the caller."""

    def sort(self, values: Array) -> Array:
        """`values` as they are."""
        return values

    def restore(self, values: Array) -> Array:
        """`values` as they are."""
        return values

    def sum(self, values: Array) -> Array:
        """Σ v, 0-d."""
        return namespace_of(values).sum(values, dtype=values.dtype)

    def extent(self, low: Array, high: Array) -> tuple[Array, Array]:
        """(min, max), 0-d; 0 of nothing."""
        xp = namespace_of(low)
        return (xp.min(low), xp.max(high)) if 0 not in low.shape else (self.sum(low), self.sum(high))


@dataclass(frozen=True, eq=False)
class GroupIndex:
    """Members sorted by group id; `before` and `behind` count the members on either side in the group.

    `order` and `rank` are None where the ids came sorted.
    """

    order: Array | None
    rank: Array | None
    before: Array
    behind: Array
    last: Array
    longest: int

    def sort(self, values: Array) -> Array:
        """`values` in the order of the sorted ids."""
        return values if self.order is None else gather(values, self.order)

    def restore(self, values: Array) -> Array:
        """Sorted `values` back in the order of the caller."""
        return values if self.rank is None else gather(values, self.rank)

    def sum(self, values: Array) -> Array:
        """Σ_{j in group(i)} v_j for every member i, sorted."""
        (total,) = segmented_scan(add, (values,), self.before, self.longest)
        return gather(total, self.last)

    def extent(self, low: Array, high: Array) -> tuple[Array, Array]:
        """(min, max) over the group of every member, sorted."""
        xp = namespace_of(low)
        low, high = segmented_scan(
            lambda a, b: (xp.minimum(a[0], b[0]), xp.maximum(a[1], b[1])), (low, high), self.before, self.longest
        )
        return gather(low, self.last), gather(high, self.last)


def index_groups(groups: Array) -> GroupIndex:
    """The sorted view of group ids `[n]`."""
    check_integer("groups", groups)
    groups = backend_of(groups).dense(groups)
    xp, size = namespace_of(groups), groups.shape[0]
    order = None if _is_sorted(groups) else xp.argsort(groups)
    ids = groups if order is None else gather(groups, order)
    first = xp.searchsorted(ids, ids, side="left")
    last = xp.searchsorted(ids, ids, side="right") - 1
    place = xp.arange(size, dtype=first.dtype, device=device_of(groups))
    before = place - first
    rank = None if order is None else xp.argsort(order)
    return GroupIndex(order, rank, before, last - place, last, longest_segment(before, size))


def longest_segment(reach: Array, bound: int) -> int:
    """One more than the greatest reach of a segmented scan where values may be read, else `bound`."""
    if not reads_values(reach):
        return bound
    reach = seen(reach)
    return int(namespace_of(reach).max(reach)) + 1


def _is_sorted(groups: Array) -> bool:
    """Whether the ids can be looked at and never fall, as where the responses of a prompt lie side by side."""
    if not backend_of(groups).can_inspect(groups):
        return False
    groups = seen(groups)
    return bool(namespace_of(groups).all(groups[1:] >= groups[:-1]))


class Moments(NamedTuple):
    """n, the mean, x - mean (0 where x does not count), and both ends of a set of values."""

    count: Array
    mean: Array
    deviation: Array
    low: Array
    high: Array

    @property
    def extent(self) -> Array:
        """max - min."""
        return self.high - self.low


def moments(values: Array, counted: Array, over: Over) -> Moments:
    """n, μ = Σx/n, x - μ, min and max over the counted values; equal values deviate by exactly 0 (GSPO-ADV-3).

    The rounded mean is held between min and max, so it equals equal values; what it still misses is
    the mean of the deviations, which is taken off a second time.
    """
    xp = namespace_of(values)
    zero = xp.zeros_like(values)
    count = over.sum(xp.astype(counted, values.dtype))
    members = at_least_one(count)
    low, high = over.extent(xp.where(counted, values, xp.inf), xp.where(counted, values, -xp.inf))
    low, high = xp.where(count > 0, low, 0.0), xp.where(count > 0, high, 0.0)
    mean = xp.maximum(xp.minimum(over.sum(xp.where(counted, values, zero)) / members, high), low)
    deviation = xp.where(counted, values - mean, zero)
    missed = over.sum(deviation) / members
    return Moments(count, mean + missed, xp.where(counted, deviation - missed, zero), low, high)


class Spread(NamedTuple):
    """σ = √(Σ(x - μ)² / freedom), and freedom = n - ddof; where that is not positive there is no σ."""

    std: Array
    freedom: Array


def spread_of(stats: Moments, over: Over, ddof: float) -> Spread:
    """σ over each set; its squares are in units of max - min, so none over- or underflows."""
    unit = _positive(stats.extent)
    z = stats.deviation / unit
    return _spread(unit, over.sum(z * z), stats.count - ddof)


def spread_of_others(values: Array, stats: Moments, index: GroupIndex, counted: Array, ddof: float) -> Spread:
    """σ over the other members of each group: those before i merged with those behind i, without cancellation.

    From the end that is nearer to the mean: beside one value far from all others, their own differences
    would be lost in a distance to the mean.
    """
    xp = namespace_of(values)
    unit = _positive(stats.extent)
    near = xp.where(stats.mean - stats.low <= stats.high - stats.mean, stats.low, stats.high)
    z = xp.where(counted, (values - near) / unit, 0.0)
    state = (xp.astype(counted, z.dtype), z, xp.zeros_like(z))
    sides: list[tuple[Array, ...]] = []
    for reach, backward in ((index.before, False), (index.behind, True)):
        ends = segmented_scan(merge_moments, state, reach, index.longest, backward=backward)
        shifted = (xp.roll(end, -1 if backward else 1, axis=0) for end in ends)
        sides.append(tuple(xp.where(reach > 0, end, 0.0) for end in shifted))
    count, _, squares = merge_moments(sides[0], sides[1])
    return _spread(unit, squares, count - ddof)


def at_least_one(count: Array) -> Array:
    """max(n, 1)."""
    return namespace_of(count).maximum(count, namespace_of(count).ones_like(count))


def divide_by_spread(values: Array, spread: Spread, eps: float, placement: str = "std") -> Array:
    """x / (σ + ε), or x / √(σ² + ε) for placement "variance"; x itself where there is no σ, or only 0 to divide by."""
    xp, std = namespace_of(values), spread.std
    padded = std + eps if placement == "std" else xp.hypot(std, xp.full_like(std, eps**0.5))
    return values / xp.where((spread.freedom > 0) & (padded > 0), padded, 1.0)


def informative_groups(
    rewards: Array,
    groups: Array,
    *,
    low: float | None = None,
    high: float | None = None,
    valid: Array | None = None,
) -> Array:
    """max_g r > min_g r, and low < mean_g r < high where bounds are given: DAPO's dynamic sampling.

    Clause GSPO-REWARD-6. A group that is not informative has advantage exactly 0 throughout.

    Args: `rewards` `[n]`; `groups` `[n]` integer ids; `valid` `[n]` members that count (all where None).
    Returns `[n]` booleans, the same for every valid member of a group and False for an invalid one.

    >>> import numpy as np
    >>> informative_groups(np.asarray([1.0, 1, 0, 1]), np.asarray([7, 7, 2, 2]))
    array([False, False,  True,  True])
    """
    rewards, counted = prepare(rewards, groups, valid)
    low = None if low is None else check_number("low", low)
    high = None if high is None else check_number("high", high, low=low)
    index = index_groups(groups)
    rewards, counted = index.sort(rewards), index.sort(counted)
    stats = moments(rewards, counted, index)
    keep = counted & (stats.extent > 0)
    # The quotient as it is: the mean of `moments` may leave a share of k/n on the wrong side of the bound k/n.
    mean = index.sum(rewards) / at_least_one(stats.count)
    keep = keep if low is None else keep & (mean > low)
    return index.restore(keep if high is None else keep & (mean < high))


def prepare(rewards: Array, groups: Array | None, valid: Array | None) -> tuple[Array, Array]:
    """Checked `rewards` as constants in the compute dtype, 0 where invalid, and which of them count."""
    xp = check_rewards(rewards)
    check_same_namespace(xp, rewards=rewards, groups=groups, valid=valid)
    if groups is not None:
        check_integer("groups", groups)
        check_shape("groups", groups, tuple(rewards.shape), "one id per response")
    counted = _valid(xp, rewards, valid)
    check_finite("rewards", rewards, counted)
    rewards = xp.astype(rewards, compute_dtype(rewards))
    rewards = xp.where(counted, rewards, 0.0)
    return backend_of(rewards).stop_gradient(rewards), counted


def check_rewards(rewards: Array) -> Namespace:
    """One real floating-point reward per response, and at least one response."""
    xp = check_array("rewards", rewards)
    check_floating("rewards", rewards)
    if rewards.ndim != 1 or rewards.shape[0] == 0:
        raise ValueError(f"rewards: expected shape [n] with at least one response, got {tuple(rewards.shape)}")
    return xp


def _valid(xp: Namespace, rewards: Array, valid: Array | None) -> Array:
    if valid is None:
        return xp.ones_like(rewards, dtype=xp.bool)
    check_shape("valid", valid, tuple(rewards.shape), "one flag per response")
    return as_boolean("valid", valid)


def _spread(unit: Array, squares: Array, freedom: Array) -> Spread:
    return Spread(unit * namespace_of(unit).sqrt(squares / _positive(freedom)), freedom)


def _positive(values: Array) -> Array:
    xp = namespace_of(values)
    return xp.where(values > 0, values, 1)
