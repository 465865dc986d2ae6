"""Where tokens live: rows of a padded batch, or segments of a packed one.

Both layouts answer the same four questions: which tokens count, how many each sequence has, what a
sum or mean over a sequence's counted tokens is, and how a per-sequence value is laid back on tokens.
`T_i`, the length |y_i| of the paper, is the number of *counted* tokens (GSPO-DATA-1).
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeAlias

from .arrays import Array, Namespace, gather, namespace_of
from .backend import Backend, backend_of, device_of
from .validation import as_boolean, check_array, check_integer, check_shape, check_size, reads_values, seen


class Layout:
    """Sequences over an array of tokens; the two layouts differ in how they reduce and how they spread."""

    counted: Array
    context: Any
    num_sequences: int
    _lengths: Array = None

    @property
    def xp(self) -> Namespace:
        """The namespace of the arrays."""
        return namespace_of(self.counted)

    @property
    def backend(self) -> Backend:
        """The primitives that the namespace lacks."""
        return backend_of(self.counted)

    @property
    def token_shape(self) -> tuple[int, ...]:
        """`(B, T)` or `(N,)`."""
        return tuple(self.counted.shape)

    def _sum(self, values: Array) -> Array:
        raise NotImplementedError

    def _spread(self, per_sequence: Array) -> Array:
        raise NotImplementedError

    def spread(self, per_sequence: Array) -> Array:
        """v_i at every token of sequence i, in the shape of the tokens."""
        return self._spread(self.backend.vary(per_sequence, self.context))

    def clean(self, values: Array) -> Array:
        """v_t where the token counts, else 0: a selection, so that 0·NaN and 0·inf never arise (GSPO-NUM-5)."""
        return self.backend.select(values, self.counted)

    def sum_tokens(self, values: Array) -> Array:
        """Σ_t v_t over the counted tokens of each sequence, `[num_sequences]`."""
        return self.backend.all_reduce_sum(self._sum(self.clean(values)), self.context)

    def total(self, values: Array) -> Array:
        """Σ_i Σ_t v_{i,t} over all counted tokens, 0-d."""
        return self.backend.all_reduce_sum(self.xp.sum(self._sum(self.clean(values))), self.context)

    def count(self, flags: Array, dtype: Any) -> Array:
        """How many counted tokens have a flag, 0-d."""
        found = self.xp.sum(self.xp.astype(flags & self.counted, dtype))
        return self.backend.all_reduce_sum(found, self.context)

    def lengths(self, dtype: Any) -> Array:
        """T_i, the number of counted tokens of each sequence, as `dtype`; counted once."""
        if self._lengths is None or self._lengths.dtype != dtype:
            self._lengths = self.backend.all_reduce_sum(self._count(dtype), self.context)
        return self._lengths

    def divisors(self, dtype: Any) -> Array:
        """T_i, and 1 for an empty sequence."""
        return self.backend.held(self.lengths(dtype), 1.0)

    def _count(self, dtype: Any) -> Array:
        return self._sum(self.xp.astype(self.counted, dtype))

    def mean_tokens(self, values: Array) -> Array:
        """(1/T_i) Σ_t v_t over the counted tokens of each sequence; 0 for an empty sequence (GSPO-DATA-3)."""
        return self.sum_tokens(values) / self.divisors(values.dtype)


@dataclass(frozen=True, eq=False)
class Padded:
    """One sequence per row: `mask` `[B, T]` is true (or 1) at the tokens that count.

    `context` is the group of ranks that each hold a part of every row, for context parallelism: what
    the backend's `all_reduce_sum` understands.
    """

    mask: Array
    _: KW_ONLY
    context: Any = None

    def __post_init__(self) -> None:
        check_array("mask", self.mask)
        if self.mask.ndim != 2 or self.mask.shape[0] == 0:
            raise ValueError(f"mask: expected shape [B, T] with at least one sequence, got {tuple(self.mask.shape)}")
        object.__setattr__(self, "mask", as_boolean("mask", self.mask))

    def bind(self, token_shape: tuple[int, ...], name: str = "logp") -> _Rows:
        """These sequences over an array of `token_shape`; raises where the two do not fit."""
        if len(token_shape) != 2:
            raise ValueError(f"{name}: expected 2 dimensions [B, T] with padded sequences, got shape {token_shape}")
        if tuple(self.mask.shape) != token_shape:
            raise ValueError(f"mask: expected shape {token_shape} like {name}, got {tuple(self.mask.shape)}")
        return _Rows(self)


class _Rows(Layout):
    """`Padded` sequences over an array of tokens."""

    def __init__(self, padded: Padded) -> None:
        self.counted = padded.mask
        self.context = padded.context
        self.num_sequences = padded.mask.shape[0]

    def _sum(self, values: Array) -> Array:
        return self.xp.sum(values, axis=1, dtype=values.dtype)

    def _spread(self, per_sequence: Array) -> Array:
        return self.xp.broadcast_to(per_sequence[:, None], self.token_shape)


@dataclass(frozen=True, eq=False)
class Packed:
    """Sequences laid end to end in `[N]` tokens: sequence i owns `offsets[i]` to `offsets[i+1]`.

    Segments may be empty. Tokens past `offsets[-1]` are padding. `mask` `[N]` says which tokens of a
    segment count; all of them where it is None. `max_length` is a bound on the longest segment, a
    Python integer: needed where `offsets` cannot be read (under `jax.jit`), found out elsewhere.
    """

    offsets: Array
    _: KW_ONLY
    mask: Array | None = None
    max_length: int | None = None
    context: Any = None

    def __post_init__(self) -> None:
        check_array("offsets", self.offsets)
        check_integer("offsets", self.offsets)
        xp = namespace_of(self.offsets)
        if self.offsets.dtype in (xp.int8, xp.int16, xp.uint8, xp.uint16):
            # Positions are counted in the dtype of the offsets, and there may be more tokens than a narrow one holds.
            object.__setattr__(self, "offsets", xp.astype(self.offsets, xp.int32))
        elif self.offsets.dtype == xp.uint64:
            # NumPy before 2.2 takes no such index.
            object.__setattr__(self, "offsets", xp.astype(self.offsets, xp.int64))
        object.__setattr__(self, "offsets", backend_of(self.offsets).dense(self.offsets))
        if self.offsets.ndim != 1 or self.offsets.shape[0] < 2:
            raise ValueError(
                f"offsets: expected shape [num_sequences + 1] with at least one sequence, "
                f"got {tuple(self.offsets.shape)}"
            )
        if self.mask is not None:
            check_array("mask", self.mask)
            if self.mask.ndim != 1:
                raise ValueError(f"mask: expected 1 dimension [N], got shape {tuple(self.mask.shape)}")
            object.__setattr__(self, "mask", as_boolean("mask", self.mask))
        if self.max_length is not None:
            object.__setattr__(self, "max_length", check_size("max_length", self.max_length))
        if reads_values(self.offsets):
            self._check_offsets()

    def _check_offsets(self) -> None:
        offsets = seen(self.offsets)
        xp = namespace_of(offsets)
        if int(offsets[0]) != 0:
            raise ValueError(f"offsets: expected the first to be 0, got {int(offsets[0])}")
        falls = offsets[1:] < offsets[:-1]
        if bool(xp.any(falls)):
            at = int(xp.argmax(xp.astype(falls, xp.int32)))
            step = int(offsets[at + 1]) - int(offsets[at])
            raise ValueError(f"offsets: expected a non-decreasing sequence, got a step of {step}")
        longest = int(xp.max(offsets[1:] - offsets[:-1]))
        if self.max_length is not None and longest > self.max_length:
            raise ValueError(f"max_length: expected at least the longest segment, {longest}, got {self.max_length}")

    def bind(self, token_shape: tuple[int, ...], name: str = "logp") -> _Segments:
        """These sequences over an array of `token_shape`; raises where the two do not fit."""
        if len(token_shape) != 1:
            raise ValueError(f"{name}: expected 1 dimension [N] with packed sequences, got shape {token_shape}")
        if self.mask is not None:
            check_shape("mask", self.mask, token_shape, f"like {name}")
        if reads_values(self.offsets) and (last := int(seen(self.offsets)[-1])) > token_shape[0]:
            raise ValueError(
                f"offsets: expected the last to be at most {token_shape[0]}, the number of tokens in {name}, got {last}"
            )
        return _Segments(self, token_shape[0])


class _Segments(Layout):
    """`Packed` sequences over a known number of tokens."""

    def __init__(self, packed: Packed, num_tokens: int) -> None:
        self.offsets = packed.offsets
        self.context = packed.context
        self.num_sequences = packed.offsets.shape[0] - 1
        self.max_length = _longest(packed, num_tokens)
        self._num_tokens, self._inside = num_tokens, _inside(packed.offsets, num_tokens)
        self.counted = self._inside if packed.mask is None else self._inside & packed.mask
        self._masked = packed.mask is not None
        self._owner: Array = None

    def _owners(self) -> Array:
        """The segment of each token, found at the first use; 0 for trailing padding."""
        if self._owner is None:
            position = _positions(self.offsets, self._num_tokens)
            owner = self.xp.searchsorted(self.offsets[1:], position, side="right")
            self._owner = self.xp.where(self._inside, owner, 0)
        return self._owner

    def _count(self, dtype: Any) -> Array:
        if self._masked:
            return super()._count(dtype)
        return self.xp.astype(self.offsets[1:] - self.offsets[:-1], dtype)

    def _sum(self, values: Array) -> Array:
        return self.backend.segment_sum(values, self.offsets, self.max_length)

    def _spread(self, per_sequence: Array) -> Array:
        return gather(per_sequence, self._owners())


def _positions(offsets: Array, num_tokens: int) -> Array:
    return namespace_of(offsets).arange(num_tokens, dtype=offsets.dtype, device=device_of(offsets))


def _inside(offsets: Array, num_tokens: int) -> Array:
    """Where a token belongs to a segment: everywhere but behind the last."""
    if backend_of(offsets).can_inspect(offsets) and int(seen(offsets)[-1]) == num_tokens:
        xp = namespace_of(offsets)
        return xp.ones((num_tokens,), dtype=xp.bool, device=device_of(offsets))
    return _positions(offsets, num_tokens) < offsets[-1]


def _longest(packed: Packed, num_tokens: int) -> int:
    if packed.max_length is not None:
        return min(packed.max_length, num_tokens)
    if not backend_of(packed.offsets).can_inspect(packed.offsets):
        return num_tokens
    offsets = seen(packed.offsets)
    return int(namespace_of(offsets).max(offsets[1:] - offsets[:-1]))


Sequences: TypeAlias = Padded | Packed


def bind_sequences(sequences: Any, token_shape: tuple[int, ...], name: str = "logp") -> Layout:
    """`sequences`, or a plain `[B, T]` mask which means `Padded(mask)`, over an array of `token_shape`."""
    if not hasattr(sequences, "bind"):
        check_array("sequences", sequences)
        sequences = Padded(sequences)
    return sequences.bind(token_shape, name)
