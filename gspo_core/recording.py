"""Recorded runs: what optimiser steps saw, in files that `gspo audit` reads. Standard library alone.

A folder per rank, a safetensors file per optimiser step, written under another name and renamed, so that
a run that is killed leaves whole files. A backend says how its arrays become bytes; this module knows
steps, sampling, the budget and the format (docs/audit.md). Nothing here raises into a training loop:
the first failure is logged, written into the trace, and ends the recording.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from .sequences import Packed

VERSION = 1
BUNDLE = 1 << 28
_LOG = logging.getLogger("gspo.recording")
_COUNTED = ("step", "rollout", "minibatch", "microbatch")
_BUDGET = "budget"
_Method = TypeVar("_Method", bound=Callable[..., Any])


class Stored(NamedTuple):
    """An array as safetensors has it: `dtype` such as "F32", its shape, and its bytes in row-major order."""

    dtype: str
    shape: tuple[int, ...]
    content: Any

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return memoryview(self.content).nbytes


class Call(NamedTuple):
    """One call of the loss, not yet written: JSON fields, scalars and arrays, the last two still as the framework has them."""

    fields: dict[str, Any]
    scalars: dict[str, Any]
    arrays: dict[str, Any]


def shard_head(header: Mapping[str, Any], arrays: Mapping[str, Stored]) -> bytes:
    """What stands before the arrays in a file of a trace."""
    entries: dict[str, Any] = {"__metadata__": {"gspo_trace": json.dumps(header, allow_nan=False)}}
    start = 0
    for name, stored in arrays.items():
        end = start + stored.size
        entries[name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_shard(path: Path, header: Mapping[str, Any], arrays: Mapping[str, Stored]) -> None:
    """Writes one file of a trace; readers see the whole of it or nothing."""
    head = shard_head(header, arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        file.write(head)
        for stored in arrays.values():
            file.write(stored.content)
    unfinished.replace(path)


def json_number(value: float) -> float | str:
    """A number, or the name of one that JSON has not."""
    return value if math.isfinite(value) else "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def layout_arrays(sequences: Any) -> dict[str, Any]:
    """`sequences` as arrays of a trace: `mask`, or `offsets` and perhaps a mask."""
    if getattr(sequences, "context", None) is not None:
        raise ValueError("sequences: parts of responses, split over a context group, are not recorded")
    if isinstance(sequences, Packed):
        return {"offsets": sequences.offsets} | ({} if sequences.mask is None else {"mask": sequences.mask})
    return {"mask": getattr(sequences, "mask", sequences)}


def guarded(method: _Method) -> _Method:
    """A method of a recorder that never raises: its first failure ends the recording."""

    @functools.wraps(method)
    def safe(recorder: Recorder, *arguments: Any, **options: Any) -> Any:
        try:
            return method(recorder, *arguments, **options)
        except Exception as error:
            recorder.fail(error)
            return None

    return cast("_Method", safe)


def _fields_of(objective: Any) -> Any:
    """An objective as a header has it: its fields, or the name of a preset."""
    return objective.to_dict() if hasattr(objective, "to_dict") else objective


def _claimed(name: str, value: Any) -> Any:
    """What a run claims, as JSON has it."""
    value = _fields_of(value)
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected what JSON can hold, got {value!r}") from None
    return value


class Recorder:
    """The calls of the loss of one rank, gathered into optimiser steps and written as files.

    A backend subclasses it with `keep` (a copy that later changes in place do not reach, started without waiting),
    `store` and `scalar` (what `keep` returned, as bytes and as a number) and `ready` (whether that can be had without waiting).
    `every`: one rollout in so many is recorded where the run marks rollouts, else one step in so many.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        rank: int = 0,
        every: int = 1,
        max_bytes: int | None = None,
        first_step: int = 0,
        **run: Any,
    ) -> None:
        whole: dict[str, Any] = {"every": every, "max_bytes": max_bytes}
        for name, number in whole.items():
            if number is not None and (not isinstance(number, int) or number < 1):
                raise ValueError(f"{name}: expected a positive integer, got {number!r}")
        self.path, self.rank, self.every, self.max_bytes = Path(path) / f"rank-{rank}", rank, every, max_bytes
        if any(self.path.glob("*.safetensors")):
            raise FileExistsError(
                f"path: expected no trace of this rank yet, found one in {self.path}; "
                "a run that is resumed records with first_step= into another folder beside it"
            )
        self.run: dict[str, Any] = {"every": every} | {
            name: _claimed(name, value) for name, value in run.items() if value is not None
        }
        self.step_index, self.minibatch, self.rollout_index = first_step, 0, -1
        # A run that is resumed goes on with numbers that no rollout before it has.
        self._next_rollout = first_step
        self.written = 0
        self.ended = ""
        self._calls: list[Call] = []
        self._waiting: list[tuple[int, list[Call]]] = []
        self._beside: dict[str, Any] = {}
        self._seen = False
        self._whole: bool | None = None

    @property
    def recording(self) -> bool:
        """Whether the step that is running is recorded, the whole of it even where a rollout begins inside."""
        if self._whole is not None:
            return not self.ended and self._whole
        unit = self.step_index if self.rollout_index < 0 else self.rollout_index
        return not self.ended and unit % self.every == 0

    @guarded
    def rollout(self, *, rewards: Any = None, groups: Any = None, advantages: Any = None) -> None:
        """A new batch of responses begins: its optimiser steps count from 0. The arrays, `[n]`, are of all its responses on this rank."""
        self.rollout_index, self._next_rollout = self._next_rollout, self._next_rollout + 1
        self.minibatch = 0
        arrays = {"rewards": rewards, "groups": groups, "advantages": advantages}
        if self.recording and rewards is not None:
            self._add({"kind": "rollout"}, {}, arrays)

    @guarded
    def beside(self, **arrays: Any) -> None:
        """Arrays to record with the next call of the loss, such as `behavior_logp`, `rewards` and `groups`, which it is not given."""
        self._beside |= arrays

    @guarded
    def part(
        self,
        *,
        objective: Any = None,
        loss: Any = None,
        normalizer: Any = None,
        metrics: Mapping[str, Any] | None = None,
        **arrays: Any,
    ) -> None:
        """One call of the loss on one micro-batch.

        Args: `logp`, `old_logp`, `behavior_logp`, `ref_logp`, `gradient` (tokens), `sequences` (or `mask` or `offsets`), `advantages`,
        `rewards`, `groups`: what there is. `loss`, `normalizer`: scalars. `metrics`: scalars by name. `objective`: an `Objective`.
        """
        self._seen, self._whole = True, self.recording
        beside, self._beside = self._beside, {}
        if not self.recording:
            return
        sequences = arrays.pop("sequences", None)
        if sequences is not None:
            arrays |= layout_arrays(sequences)
        scalars: dict[str, Any] = {"loss": loss, "normalizer": normalizer} | {
            f"metrics.{name}": value for name, value in (metrics or {}).items()
        }
        self._add(self._claim(objective), scalars, beside | arrays)

    @guarded
    def step(self, **arguments: Any) -> None:
        """The optimiser step ends; with arguments, `part` first."""
        if arguments:
            self.part(**arguments)
        self.advance()

    @guarded
    def advance(self) -> None:
        """The optimiser step ends, if it had a call of the loss."""
        if not self._seen:
            return
        self._seen, self._whole = False, None
        if self._calls:
            self._waiting.append((self.step_index, self._calls))
        self._calls = []
        self.step_index += 1
        self.minibatch += 1
        self._write(wait=False)

    def close(self) -> None:
        """Writes what is left and the end mark; a trace without one was cut short."""
        if self.ended:
            return
        self._finish()
        self.end("closed")

    @guarded
    def _finish(self) -> None:
        if self._calls:
            self._waiting.append((self.step_index, self._calls))
            self._calls = []
        self._write(wait=True)

    def fail(self, error: Exception) -> None:
        """Ends the recording because of an error, which goes into the trace and the log, not into the caller."""
        if not self.ended:
            _LOG.warning("recording of %s ended at step %d: %r", self.path, self._first_missing, error)
            self.end("error", f"{type(error).__name__}: {error}"[:2000])

    def end(self, reason: str, message: str = "") -> None:
        """Writes why there is nothing more."""
        if self.ended:
            return
        self.ended = reason
        mark = {"reason": reason, "step": self._first_missing} | ({"message": message} if message else {})
        self._calls, self._waiting = [], []
        try:
            write_shard(self.path / "end.safetensors", self._header([]) | {"end": mark}, {})
        except (OSError, ValueError, TypeError) as error:
            _LOG.warning("the end mark of %s was not written: %r", self.path, error)

    @property
    def _first_missing(self) -> int:
        """The first step of which something is not written."""
        return self._waiting[0][0] if self._waiting else self.step_index

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def keep(self, name: str, array: Any) -> Any:
        """A copy of an array or a scalar, without waiting for it."""
        raise NotImplementedError

    def store(self, kept: Any) -> Stored:
        """What `keep` returned, as bytes."""
        raise NotImplementedError

    def scalar(self, kept: Any) -> float:
        """What `keep` returned of a scalar, as a number."""
        raise NotImplementedError

    def ready(self, kept: Iterable[Any]) -> bool:  # noqa: ARG002
        """Whether what `keep` returned can be had without waiting."""
        return True

    def _claim(self, objective: Any) -> dict[str, Any]:
        """The objective of a call, in the run's header at the first, in the part's where it is another."""
        if objective is None:
            return {}
        fields = _fields_of(objective)
        if self.run.setdefault("objective", fields) == fields:
            return {}
        return {"objective": fields}

    def _add(self, fields: dict[str, Any], scalars: dict[str, Any], arrays: dict[str, Any]) -> None:
        for name, value in arrays.items():
            if isinstance(value, (int, float, str)):
                counted = "; the recorder counts steps, rollouts and micro-batches" if name in _COUNTED else ""
                raise TypeError(f"{name}: expected an array, got {value!r}{counted}")
        place = {"step": self.step_index, "microbatch": sum("kind" not in call.fields for call in self._calls)}
        if self.rollout_index >= 0:
            place |= {"rollout": self.rollout_index, "minibatch": self.minibatch}
        self._calls.append(Call(place | fields, self._kept_of(scalars), self._kept_of(arrays)))

    def _kept_of(self, values: dict[str, Any]) -> dict[str, Any]:
        return {name: self.keep(name, value) for name, value in values.items() if value is not None}

    def _write(self, *, wait: bool) -> None:
        """The steps that wait: those whose copies have arrived, and the rest where there are many or `wait` says so."""
        while self._waiting and not self.ended:
            step, calls = self._waiting[0]
            copies = [kept for call in calls for kept in (*call.scalars.values(), *call.arrays.values())]
            if not wait and len(self._waiting) < 3 and not self.ready(copies):
                return
            self._write_step(step, calls)
            self._waiting = self._waiting[1:]

    def _write_step(self, step: int, calls: list[Call]) -> None:
        bundle: list[tuple[dict[str, Any], dict[str, Stored]]] = []
        size = pieces = 0
        for call in calls:
            part = self._fields(call), {name: self.store(kept) for name, kept in call.arrays.items()}
            size += sum(stored.size for stored in part[1].values())
            bundle.append(part)
            if size > BUNDLE:
                self._write_bundle(f"{step:09d}-{pieces}", bundle)
                bundle, size, pieces = [], 0, pieces + 1
        if bundle:
            self._write_bundle(f"{step:09d}-{pieces}" if pieces else f"{step:09d}", bundle)

    def _write_bundle(self, name: str, bundle: list[tuple[dict[str, Any], dict[str, Stored]]]) -> None:
        if self.ended:
            return
        arrays = {f"{at}.{key}": stored for at, (_, part) in enumerate(bundle) for key, stored in part.items()}
        header = self._header([fields for fields, _ in bundle])
        size = len(shard_head(header, arrays)) + sum(stored.size for stored in arrays.values())
        if self.max_bytes is not None and self.written + size > self.max_bytes:
            told = f"{self.written} bytes written, {size} more would exceed max_bytes {self.max_bytes}"
            _LOG.warning("recording of %s ended at step %d: %s", self.path, self._first_missing, told)
            self.end(_BUDGET, told)
            return
        write_shard(self.path / f"{name}.safetensors", header, arrays)
        self.written += size

    def _header(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        return {"version": VERSION, "rank": self.rank, "run": self.run, "parts": parts}

    def _fields(self, call: Call) -> dict[str, Any]:
        numbers = {name: json_number(self.scalar(kept)) for name, kept in call.scalars.items()}
        fields = call.fields | {name: value for name, value in numbers.items() if not name.startswith("metrics.")}
        metrics = {
            name.removeprefix("metrics."): value for name, value in numbers.items() if name.startswith("metrics.")
        }
        return fields | ({"metrics": metrics} if metrics else {})
