"""What every mutant answers to every question, worked out when it is first asked for, and compared in bulk.

An answer is kept as one row of numbers: its outputs one after another, of a large one a sample. A
mutant that cannot differ from the reference on a question has no row there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from ..judge import UNIT_ROUNDOFF
from ..tensors import NumPyArray
from .bench import Answer, Bench, Question, Refused, same
from .registry import Mutant

Slack: TypeAlias = tuple[NumPyArray, NumPyArray]

SAMPLE = 256
KEPT = 1 << 15
_TINY = {"float32": 2.0**-126, "float64": 2.0**-1022}


@dataclass(frozen=True)
class Row:
    """An answer as numbers. `present` says which of them there were; `odd` why it is none of the numbers asked for."""

    numbers: NumPyArray
    present: NumPyArray
    odd: str = ""


@dataclass
class Atlas:
    """Rows by mutant and question. Questions are those of `bench`, mutants those of `mutants`, both by index."""

    bench: Bench
    mutants: Sequence[Mutant]
    _rows: dict[tuple[str, int], Row | None] = field(default_factory=dict)
    _made: dict[tuple[str, int], Row] = field(default_factory=dict)
    _right: dict[int, Row] = field(default_factory=dict)
    _slack: dict[int, Slack] = field(default_factory=dict)

    @cached_property
    def index(self) -> dict[str, int]:
        """The index of each question by its key."""
        return {question.key: i for i, question in enumerate(self.bench.questions)}

    def row(self, mutant: Mutant, question: int) -> Row | None:
        """The mutant's answer; None where it is the reference's own."""
        place = (mutant.name, question)
        if place not in self._rows:
            answer, right = self.bench.ask(mutant, question), self.bench.right(question)
            self._rows[place] = None if same(answer, right) else row_of(self.bench.questions[question], answer)
        return self._rows[place]

    def keep(self, name: str, rows: Mapping[int, Row | None]) -> None:
        """Rows of a mutant that were worked out elsewhere."""
        self._rows |= {(name, question): row for question, row in rows.items()}

    def made(self, mutant: Mutant, question: int) -> Row:
        """The answer of a mutant that was put together for a search: there are too many to keep all of them."""
        place = (mutant.name, question)
        if place not in self._made:
            if len(self._made) == KEPT:
                self._made.clear()
            self._made[place] = row_of(self.bench.questions[question], self.bench.ask(mutant, question))
        return self._made[place]

    def active(self, mutant: Mutant, question: int) -> bool:
        """Whether the mutant's answer differs from the right one by more than rounding."""
        row = self.row(mutant, question)
        return row is not None and not self.matches(question, row, [self.right(question)])[0]

    def right(self, question: int) -> Row:
        """The reference's answer."""
        if question not in self._right:
            self._right[question] = row_of(self.bench.questions[question], self.bench.right(question))
        return self._right[question]

    def matches(self, question: int, got: Row, rows: Sequence[Row], loose: float = 0.0) -> list[bool]:
        """Which of the rows `got` equals up to rounding, of numbers as large as `loose` too."""
        asked = self.bench.questions[question]
        if question not in self._slack:
            self._slack[question] = (np.zeros(0), np.zeros(0)) if asked.vector.refuses else slack(asked)
        fixed, relative = self._slack[question]
        return agree(asked, got, rows, (fixed + 4 * UNIT_ROUNDOFF[asked.case.dtype] * loose, relative))


def row_of(question: Question, answer: Answer | Mapping[str, Any]) -> Row:
    """An answer as a row; outputs that are missing are not present."""
    if isinstance(answer, Refused) or question.vector.refuses:
        return Row(np.zeros(0), np.zeros(0, bool), "refused" if isinstance(answer, Refused) else "answered")
    numbers: list[NumPyArray] = []
    present: list[NumPyArray] = []
    for name in question.vector.outputs:
        shape = question.vector.expected[name].shape
        value = answer.get(name)
        if value is not None and np.shape(value) != shape:
            return Row(np.zeros(0), np.zeros(0, bool), f"{name} of shape {np.shape(value)}")
        flat = sampled(np.full(shape, np.nan) if value is None else np.asarray(value))
        numbers.append(flat.astype(np.float64))
        present.append(np.full(flat.shape, value is not None))
    return Row(np.concatenate(numbers), np.concatenate(present))


def sampled(values: NumPyArray) -> NumPyArray:
    """All entries of a small array, evenly spaced ones of a large array."""
    flat = values.ravel()
    return flat if flat.size <= SAMPLE else flat[np.linspace(0, flat.size - 1, SAMPLE).astype(int)]


def slack(question: Question) -> Slack:
    """What two implementations of one wrong formula may differ by: absolutely, and relative to the number itself."""
    unit, fixed, relative = UNIT_ROUNDOFF[question.case.dtype], [], []
    for name in question.vector.outputs:
        expected = question.vector.expected[name]
        scale = sampled(np.asarray(expected.scale))
        fixed.append(2 * unit * max(expected.compare.k, 16.0) * scale + _TINY[question.case.dtype])
        stored = UNIT_ROUNDOFF[question.case.input_dtype] if question.case.input_dtype else 0.0
        relative.append(np.full(scale.shape, 64 * unit + (2 * stored if name.startswith("gradient") else 0.0)))
    return np.concatenate(fixed), np.concatenate(relative)


def agree(question: Question, got: Row, rows: Sequence[Row], room: Slack) -> list[bool]:
    """Which of the rows `got` equals up to rounding, where both have a number."""
    if got.odd or not rows:
        return [row.odd == got.odd for row in rows]
    whole = [i for i, row in enumerate(rows) if not row.odd]
    found = [False] * len(rows)
    if whole:
        numbers = np.stack([rows[i].numbers for i in whole])
        near = close(got.numbers, numbers, room, question.case.dtype) | ~got.present
        for i, everywhere in zip(whole, near, strict=True):
            found[i] = bool(np.all(everywhere))
    return found


def close(got: NumPyArray, numbers: NumPyArray, room: Slack, dtype: str) -> NumPyArray:
    """Element by element: near, equal, or both no finite number."""
    fixed, relative = room
    with np.errstate(invalid="ignore", over="ignore"):
        a, b = got.astype(dtype).astype(float), numbers.astype(dtype).astype(float)
        near = np.abs(a - b) <= fixed + relative * np.abs(b)
        return near | (a == b) | (~np.isfinite(a) & ~np.isfinite(b))
