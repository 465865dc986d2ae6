"""A trace: what the optimiser steps of a run saw, as its recorders wrote it, one folder per rank.

    trace = read_trace(Path("trace"))
    for step in trace.steps():
        step.index, step.minibatch, [part.loss for part in step.parts], step.tokens().logp

A part is one call of the loss: a micro-batch of one rank. Only headers are held; the arrays of a step
are read when the step is asked for and go with it. Everything that a run may not have recorded is
None where it is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..tensors import NumPyArray
from ..words import UsageError, plural
from .shards import KEY, STORED, TOKEN_ARRAYS, Broken, Shard, read_shard

MAX_FILES = 1_000_000


@dataclass(frozen=True, eq=False)
class Tokens:
    """The counted tokens of one or more parts, one after the other: sequence i owns `offsets[i]` to `offsets[i + 1]`.

    Token arrays have shape [N], `advantages` [S] or [N], `rewards` and `groups` [S].
    """

    offsets: NumPyArray
    logp: NumPyArray | None = None
    old_logp: NumPyArray | None = None
    behavior_logp: NumPyArray | None = None
    ref_logp: NumPyArray | None = None
    gradient: NumPyArray | None = None
    advantages: NumPyArray | None = None
    rewards: NumPyArray | None = None
    groups: NumPyArray | None = None

    @property
    def number(self) -> int:
        """S."""
        return len(self.offsets) - 1

    @property
    def count(self) -> int:
        """N."""
        return int(self.offsets[-1])

    @cached_property
    def lengths(self) -> NumPyArray:
        """|y_i|, `[S]`."""
        return np.diff(self.offsets)

    def sums(self, values: NumPyArray) -> NumPyArray:
        """Σ_t v_t per sequence, in float64; 0 for an empty one."""
        values = np.asarray(values, np.float64)
        if not self.count:
            return np.zeros(self.number)
        full = self.lengths > 0
        found = np.zeros(self.number)
        found[full] = np.add.reduceat(values, self.offsets[:-1][full])
        return found

    def means(self, values: NumPyArray) -> NumPyArray:
        """(1/|y_i|) Σ_t v_t per sequence, in float64; 0 for an empty one."""
        return self.sums(values) / np.maximum(self.lengths, 1)

    def spread(self, values: NumPyArray) -> NumPyArray:
        """v_i at every token of sequence i."""
        return np.repeat(values, self.lengths)


@dataclass(frozen=True, eq=False)
class Part:
    """One micro-batch on one rank: what its call of the loss was given, and what it returned.

    `kind` is "loss", or "rollout" for the rewards, groups and advantages of a whole rollout. `stored` names
    the dtype in which each array was stored. `array(name)` is as recorded, padding included.
    """

    shard: Shard = field(repr=False)
    at: int
    fields: Mapping[str, Any] = field(repr=False)

    @property
    def kind(self) -> str:
        """ "loss" or "rollout"."""
        return self.fields.get("kind", "loss")

    @property
    def step(self) -> int:
        """The optimiser step."""
        return self.fields["step"]

    @property
    def rank(self) -> int:
        """The rank that wrote it."""
        return self.shard.header.get("rank", 0)

    @property
    def microbatch(self) -> int:
        """Which micro-batch of the step on this rank; its place in the file where the run does not say."""
        return self.fields.get("microbatch", self.at)

    @property
    def minibatch(self) -> int | None:
        """Which optimiser step of its rollout: 0 is the first, where new and old policy are the same."""
        return self.fields.get("minibatch")

    @property
    def rollout(self) -> int | None:
        """Which rollout the responses are from."""
        return self.fields.get("rollout")

    @property
    def place(self) -> str:
        """`step 3, rank 1, micro-batch 0`."""
        return f"step {self.step}, rank {self.rank}, micro-batch {self.microbatch}"

    @property
    def loss(self) -> float | None:
        """What the run computed."""
        return _number(self.fields.get("loss"))

    @property
    def normalizer(self) -> float | None:
        """The M that the run divided by, where it was not the part's own."""
        return _number(self.fields.get("normalizer"))

    @property
    def metrics(self) -> dict[str, float]:
        """What the run reported beside the loss, under its own names."""
        return {name: float(value) for name, value in self.fields.get("metrics", {}).items()}

    @property
    def names(self) -> frozenset[str]:
        """The arrays that were recorded."""
        prefix = f"{self.at}."
        return frozenset(key[len(prefix) :] for key in self.shard.tensors if key.startswith(prefix))

    @property
    def stored(self) -> dict[str, str]:
        """The storage dtype of each floating array."""
        kinds = {name: self.shard.tensors[f"{self.at}.{name}"].dtype for name in self.names}
        return {name: STORED[kind] for name, kind in kinds.items() if kind in STORED}

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of its token arrays: [B, T] padded or [N] packed."""
        found = next((name for name in (*TOKEN_ARRAYS, "mask") if name in self.names), None)
        return None if found is None else self.shard.tensors[f"{self.at}.{found}"].shape

    def array(self, name: str) -> NumPyArray | None:
        """An array as it was recorded, or None."""
        key = f"{self.at}.{name}"
        return self.shard.array(key) if key in self.shard.tensors else None

    @cached_property
    def tokens(self) -> Tokens:
        """Its counted tokens; raises `Broken` where offsets make no sense."""
        offsets, mask = self.array("offsets"), self.array("mask")
        if offsets is not None:
            return self._packed(offsets, mask)
        if mask is None:
            return self._without_tokens()
        lengths = mask.sum(axis=1)
        arrays = {name: self._selected(name, mask) for name in TOKEN_ARRAYS}
        return Tokens(_offsets(lengths), **arrays, **self._per_response(mask, lengths))

    def _packed(self, offsets: NumPyArray, mask: NumPyArray | None) -> Tokens:
        size = (self.shape or (0,))[0]
        if offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any() or offsets[-1] > size:
            raise Broken(self.shard.path, f"part {self.at}: offsets: expected to rise from 0 to at most {size}")
        counted = np.ones(size, bool) if mask is None else mask.copy()
        counted[offsets[-1] :] = False
        lengths = np.diff(np.append(0, np.cumsum(counted))[offsets])
        arrays = {name: self._selected(name, counted) for name in TOKEN_ARRAYS}
        return Tokens(_offsets(lengths), **arrays, **self._per_response(counted, lengths))

    def _without_tokens(self) -> Tokens:
        found = {name: self.array(name) for name in ("rewards", "groups", "advantages")}
        number = max((len(values) for values in found.values() if values is not None), default=0)
        return Tokens(np.zeros(number + 1, np.int64), **found)

    def _selected(self, name: str, counted: NumPyArray) -> NumPyArray | None:
        values = self.array(name)
        return None if values is None else values[counted]

    def _per_response(self, counted: NumPyArray, lengths: NumPyArray) -> dict[str, NumPyArray | None]:
        advantages = self.array("advantages")
        if (
            advantages is not None
            and advantages.shape == counted.shape
            and (counted.ndim == 2 or self._by_token(advantages))
        ):
            advantages = _once_each(advantages[counted], lengths)
        return {"advantages": advantages, "rewards": self.array("rewards"), "groups": self.array("groups")}

    def _by_token(self, advantages: NumPyArray) -> bool:
        """Whether a row of advantages beside packed tokens has one per token; one per response wins where both fit."""
        return len(advantages) != self.shard.tensors[f"{self.at}.offsets"].shape[0] - 1


@dataclass(frozen=True, eq=False)
class Step:
    """One optimiser step: its parts over ranks and micro-batches, in this order."""

    index: int
    parts: tuple[Part, ...]
    rollouts: tuple[Part, ...] = ()

    @property
    def minibatch(self) -> int | None:
        """Which optimiser step of its rollout, where every part says the same."""
        return _common(part.minibatch for part in self.parts)

    @property
    def rollout(self) -> int | None:
        """The rollout of its responses, where every part says the same."""
        return _common(part.rollout for part in self.parts)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that recorded it."""
        return tuple(sorted({part.rank for part in self.parts}))

    def tokens(self) -> Tokens:
        """The union of its parts; an array that one of them lacks is None."""
        return joined([part.tokens for part in self.parts])


@dataclass(frozen=True, eq=False)
class Trace:
    """A recorded run. `run` is what its header claims; `broken` are files that could not be read, with the reason.

    `contradictions` are the claims that a later file makes otherwise than the first one, with that file.
    `ends` has what each rank wrote when it stopped: {"reason": "closed" | "budget" | "error", ...}; a rank
    that was killed has none.
    """

    path: Path
    run: Mapping[str, Any]
    shards: tuple[Shard, ...] = field(repr=False)
    broken: tuple[Broken, ...] = ()
    contradictions: Mapping[str, Path] = field(default_factory=dict)
    ends: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def objective(self) -> Mapping[str, Any] | None:
        """The objective that the run claims, as `Objective.to_dict` writes it."""
        return self.run.get("objective")

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that wrote anything."""
        return tuple(sorted({shard.header.get("rank", 0) for shard in self.shards}))

    @cached_property
    def _index(self) -> dict[int, dict[tuple[Any, ...], tuple[Shard, int]]]:
        """Where the parts of each step lie. A micro-batch or a rollout that was recorded twice, by a run that was resumed, counts once:
        that of the file whose path comes last.
        """
        found: dict[int, dict[tuple[Any, ...], tuple[Shard, int]]] = {}
        for number, shard in enumerate(self.shards):
            for at, fields in enumerate(shard.header["parts"]):
                if fields.get("kind") == "rollout":
                    place = (2, fields.get("rollout", 0), at)
                else:
                    place = (0, fields["microbatch"]) if "microbatch" in fields else (1, at, number)
                key = (shard.header.get("rank", 0), *place)
                found.setdefault(fields["step"], {})[key] = (shard, at)
        return found

    @property
    def indices(self) -> tuple[int, ...]:
        """The optimiser steps that were recorded, ascending."""
        return tuple(sorted(self._index))

    def step(self, index: int) -> Step:
        """One step, by its number."""
        entries = self._index[index]
        parts = [Part(shard, at, shard.header["parts"][at]) for shard, at in (entries[key] for key in sorted(entries))]
        losses = tuple(part for part in parts if part.kind == "loss")
        return Step(index, losses, tuple(part for part in parts if part.kind == "rollout"))

    def steps(self) -> Iterator[Step]:
        """Every step in turn; hold on to one and you hold its arrays."""
        return (self.step(index) for index in self.indices)


def read_trace(path: Path) -> Trace:
    """The trace in a folder (or in one file): every header is read and checked, no array."""
    shards: list[Shard] = []
    broken: list[Broken] = []
    for file in _files(path):
        try:
            shards.append(_sharing(read_shard(file), shards))
        except Broken as error:
            broken.append(error)
    if not shards:
        raise UsageError(f"{path}: {_nothing(broken)}")
    run: dict[str, Any] = {}
    contradictions: dict[str, Path] = {}
    for shard in shards:
        said = shard.header.get("run", {})
        if said is not run:
            contradictions |= {
                name: shard.path
                for name, value in said.items()
                if name not in contradictions and run.get(name, value) != value
            }
            run = {**said, **run}
    ends = {shard.header.get("rank", 0): shard.header["end"] for shard in shards if "end" in shard.header}
    return Trace(path, run, tuple(shards), tuple(broken), contradictions, ends)


def _nothing(broken: list[Broken]) -> str:
    """Why there is no trace: no files, or what is wrong with the first one that was meant as one."""
    meant = [one for one in broken if not one.other]
    if meant:
        more = f", nor can {plural(len(meant) - 1, 'other')}" if len(meant) > 1 else ""
        return f"{meant[0].path.name} cannot be read{more}: {meant[0].reason}"
    first = f"; {broken[0]}" if broken else ""
    return f"expected a trace, one or more .safetensors files with a {KEY} header{first}"


def _sharing(shard: Shard, before: list[Shard]) -> Shard:
    """The shard, holding the same `run` as the one before where they are equal: a long trace repeats it in every file."""
    last = before[-1].header.get("run") if before else None
    if last is None or shard.header.get("run") != last:
        return shard
    return replace(shard, header={**shard.header, "run": last})


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"{path}: no such trace")
    found = sorted(file for file in path.rglob("*.safetensors") if file.is_file())
    if len(found) > MAX_FILES:
        raise UsageError(f"{path}: expected at most {MAX_FILES} files, got {len(found)}")
    return found


def joined(tokens: list[Tokens]) -> Tokens:
    """The union of several, in order; an array that one of them lacks is None, advantages per token win over those per response."""
    if len(tokens) == 1:
        return tokens[0]
    lengths = [one.lengths for one in tokens]
    arrays = {name: _joined([getattr(one, name) for one in tokens]) for name in (*TOKEN_ARRAYS, "rewards", "groups")}
    advantages = [one.advantages for one in tokens]
    if any(values is not None and len(values) != one.number for values, one in zip(advantages, tokens, strict=True)):
        advantages = [_at_tokens(values, one) for values, one in zip(advantages, tokens, strict=True)]
    return Tokens(_offsets(np.concatenate(lengths)), advantages=_joined(advantages), **arrays)


def _at_tokens(values: NumPyArray | None, tokens: Tokens) -> NumPyArray | None:
    return values if values is None or len(values) != tokens.number else tokens.spread(values)


def _joined(arrays: list[NumPyArray | None]) -> NumPyArray | None:
    present = [values for values in arrays if values is not None]
    return np.concatenate(present) if present and len(present) == len(arrays) else None


def _once_each(values: NumPyArray, lengths: NumPyArray) -> NumPyArray:
    """One value per response where all its tokens have the same, 0 for an empty one; else as they are."""
    first = (np.cumsum(lengths) - lengths)[lengths > 0]
    found = np.zeros(len(lengths), values.dtype)
    found[lengths > 0] = values[first]
    return found if np.array_equal(np.repeat(found, lengths), values) else values


def _offsets(lengths: NumPyArray) -> NumPyArray:
    return np.append(0, np.cumsum(lengths)).astype(np.int64)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _common(values: Iterator[int | None]) -> int | None:
    found = set(values)
    return found.pop() if len(found) == 1 else None
