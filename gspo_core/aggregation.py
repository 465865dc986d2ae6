"""From values per token to one number: L = (1/M) Σ_i ω_i Σ_t l_{i,t}.

The weight ω_i of a token of response i and the normaliser M are the whole difference between the
aggregations in use (GSPO-AGG-1 to GSPO-AGG-7). A value per response counts as that value at each of
its tokens. The numerator and M are available apart, so that the parts of a step add (GSPO-AGG-8).
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

from .arrays import Array, Namespace, compute_dtype, gather, namespace_of
from .backend import backend_of
from .sequences import Layout, Sequences, bind_sequences
from .validation import (
    check_array,
    check_choice,
    check_field,
    check_finite,
    check_floating,
    check_integer,
    check_number,
    check_same_namespace,
    check_shape,
    reads_values,
)

MODES = (
    "sequence_mean_token_mean",
    "sequence_mean_token_sum",
    "token_mean",
    "token_sum",
    "group_token_mean",
)
COUNTS = ("all", "non_empty", "given")


@dataclass(frozen=True)
class Aggregation:
    """How token losses become the loss: a mode, which responses (or groups) count in M, and a length constant.

    `mode`: "sequence_mean_token_mean" (GSPO), "sequence_mean_token_sum", "token_mean", "token_sum" or "group_token_mean".
    `count`: "all", "non_empty" or "given". `constant` divides token sums (`sequence_mean_token_sum`, `token_sum`). `count` "given" demands a
    `normalizer` from the caller.
    """

    mode: str = "sequence_mean_token_mean"
    count: str = "all"
    constant: float = 1.0

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        check_choice("count", self.count, COUNTS)
        check_field(self, "constant", low=0.0, strict=True)


class Weights(NamedTuple):
    """ω `[num_sequences]`, the normaliser M (0-d), and the lengths T `[num_sequences]`."""

    omega: Array
    count: Array
    lengths: Array


class AggregateSum(NamedTuple):
    """The numerator Σ ω l and the normaliser M of an aggregation; both add over the parts of a step."""

    sum: Array
    count: Array


def as_aggregation(mode: Any, name: str = "mode") -> Aggregation:
    """An `Aggregation`, or the name of its mode."""
    if isinstance(mode, Aggregation):
        return mode
    if not isinstance(mode, str):
        raise TypeError(f"{name}: expected an Aggregation or the name of a mode, got {type(mode).__name__}")
    check_choice(name, mode, MODES)
    return Aggregation(mode)


def token_weights(
    aggregation: Aggregation, layout: Layout, groups: Array | None, normalizer: Any, dtype: Any
) -> Weights:
    """ω and M for `aggregation` over `layout`; `normalizer` replaces M."""
    lengths, divisors = layout.lengths(dtype), layout.divisors(dtype)
    xp, nonempty = layout.xp, lengths / divisors
    if aggregation.mode == "sequence_mean_token_mean":
        omega, count = nonempty / divisors, _responses(xp, aggregation, nonempty)
    elif aggregation.mode == "sequence_mean_token_sum":
        omega, count = xp.ones_like(lengths) / aggregation.constant, _responses(xp, aggregation, nonempty)
    elif aggregation.mode == "token_mean":
        omega, count = xp.ones_like(lengths), xp.sum(lengths)
    elif aggregation.mode == "token_sum":
        omega, count = xp.ones_like(lengths) / aggregation.constant, xp.ones_like(lengths[0])
    else:
        omega, count = _group_weights(xp, aggregation, lengths, groups)
    if normalizer is not None or aggregation.count == "given":
        count = given_count(normalizer, count, lengths)
    return Weights(omega, count, lengths)


def divide(total: Array, count: Array) -> Array:
    """total / M, and 0 where M is 0, which happens only when nothing counts."""
    return total / _nonzero(count)


def aggregate_sum(
    values: Array,
    sequences: Sequences | Array,
    mode: str | Aggregation = "sequence_mean_token_mean",
    *,
    groups: Array | None = None,
    normalizer: Any = None,
) -> AggregateSum:
    """(Σ_i ω_i Σ_t l_{i,t}, M): the unreduced form of `aggregate`. Clause GSPO-AGG-8.

    The sums of the parts of a step add, and so do the counts, as long as no group is split for
    `group_token_mean`; total loss = sum of sums / sum of counts. The M of `token_sum` is 1 however many parts there are.
    """
    xp = check_array("values", values)
    check_floating("values", values)
    layout = bind_sequences(sequences, tuple(values.shape), "values")
    check_same_namespace(xp, values=values, sequences=layout.counted, groups=groups)
    check_groups(groups, layout)
    check_finite("values", values, layout.counted)
    values = layout.clean(xp.astype(values, compute_dtype(values)))
    weights = token_weights(as_aggregation(mode), layout, groups, normalizer, values.dtype)
    return AggregateSum(xp.sum(weights.omega * layout.sum_tokens(values)), weights.count)


def aggregate(
    values: Array,
    sequences: Sequences | Array,
    mode: str | Aggregation = "sequence_mean_token_mean",
    *,
    groups: Array | None = None,
    normalizer: Any = None,
) -> Array:
    """(1/M) Σ_i ω_i Σ_t l_{i,t} over counted tokens. Clauses GSPO-AGG-1 to GSPO-AGG-8.

    Args: `values` per token, `[B, T]` or `[N]`; `mode` an `Aggregation` or the name of a mode;
    `groups` `[num_sequences]` integer ids for `group_token_mean` (one group where None);
    `normalizer` replaces M.

    >>> import numpy as np
    >>> mask = np.asarray([[1, 0, 0], [1, 1, 1]])
    >>> values = np.asarray([[1.0, 9.0, 9.0], [4.0, 4.0, 4.0]])
    >>> float(aggregate(values, mask)), float(aggregate(values, mask, "token_mean"))
    (2.5, 3.25)
    """
    parts = aggregate_sum(values, sequences, mode, groups=groups, normalizer=normalizer)
    return divide(parts.sum, parts.count)


def check_groups(groups: Array | None, layout: Layout) -> None:
    """Integer ids, one per sequence."""
    if groups is not None:
        check_integer("groups", groups)
        check_shape("groups", groups, (layout.num_sequences,), "one id per sequence")


def _nonzero(values: Array) -> Array:
    xp = namespace_of(values)
    return xp.where(values > 0, values, 1)


def _responses(xp: Namespace, aggregation: Aggregation, nonempty: Array) -> Array:
    return xp.sum(nonempty if aggregation.count == "non_empty" else xp.ones_like(nonempty))


def given_count(normalizer: Any, count: Array, lengths: Array) -> Array:
    """The caller's M, like `count`; 0 is no M unless no token counts, as where the counts of a step are those of empty responses."""
    if normalizer is None:
        raise ValueError("normalizer: expected a number, since the aggregation counts as given, got None")
    if _is_number(normalizer, namespace_of(count)):
        return namespace_of(count).zeros_like(count) + check_number("normalizer", normalizer, low=0.0, strict=True)
    xp = check_array("normalizer", normalizer)
    check_same_namespace(namespace_of(count), normalizer=normalizer)
    check_shape("normalizer", normalizer, (), "one number")
    if not xp.isdtype(normalizer.dtype, "integral"):
        check_floating("normalizer", normalizer)
        check_finite("normalizer", normalizer)
    if reads_values(normalizer) and normalizer < 0:
        raise ValueError(f"normalizer: expected a number >= 0, got {normalizer}")
    if reads_values(normalizer) and normalizer == 0 and reads_values(lengths) and bool(xp.any(lengths > 0)):
        raise ValueError("normalizer: expected a number > 0 where tokens count, got 0")
    return xp.astype(backend_of(normalizer).stop_gradient(normalizer), count.dtype)


def _is_number(value: Any, xp: Namespace) -> bool:
    """A Python number, or a scalar of NumPy that is no array of `xp`."""
    if not isinstance(value, Real) or isinstance(value, (int, float)):
        return isinstance(value, Real)
    return not hasattr(value, "dtype") or namespace_of(value) is not xp


def _group_weights(
    xp: Namespace, aggregation: Aggregation, lengths: Array, groups: Array | None
) -> tuple[Array, Array]:
    if groups is None:
        groups = xp.astype(xp.zeros_like(lengths), xp.int32)
    groups = backend_of(groups).dense(groups)
    order = xp.argsort(groups)
    ids = gather(groups, order)
    # Integers: cumulative sums, and so their differences, are exact.
    counts = xp.astype(gather(lengths, order), xp.int32)
    running = backend_of(counts).running_sum(counts)
    first, last = xp.searchsorted(ids, groups, side="left"), xp.searchsorted(ids, groups, side="right")
    totals = xp.astype(gather(running, last) - gather(running, first), lengths.dtype)
    members = xp.astype(last - first, lengths.dtype)
    counted = xp.ones_like(totals) if aggregation.count != "non_empty" else xp.astype(totals > 0, lengths.dtype)
    return xp.astype(totals > 0, lengths.dtype) / _nonzero(totals), xp.round(xp.sum(counted / members))
