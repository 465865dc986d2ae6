"""Inputs for recipes: seeded, exact in the narrowest dtype they are used in, the same on every machine.

Only `random.Random(name).random()`, whose sequence Python guarantees, and exact dyadic arithmetic are
used: every log-probability is a multiple of `QUANTUM`, so that log-ratios are exact too and a recipe
can ask for a mean log-ratio and get it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np

from ..tensors import NumPyArray

QUANTUM = 2.0**-20
WIDTHS = (9, 32, 64, 128, 512, 4096, 8192, 32768)
ROWS = ("logp", "old_logp", "ref_logp", "behavior_logp", "token_advantages", "values", "rewards")


def dyadic(value: float, quantum: float = QUANTUM) -> float:
    """The nearest multiple of `quantum`, a power of two."""
    return round(value / quantum) * quantum


def uniform(name: str, count: int, low: float, high: float, quantum: float = QUANTUM) -> NumPyArray:
    """`count` seeded multiples of `quantum` in [low, high]."""
    source = Random(name)
    return np.array([dyadic(low + (high - low) * source.random(), quantum) for _ in range(count)])


def log_ratios(name: str, length: int, mean: float, spread: float, quantum: float = QUANTUM) -> NumPyArray:
    """Log-ratios of mixed sign, about `spread` large, whose mean is `mean` to within quantum / length."""
    if length == 0:
        return np.zeros(0)
    draws = uniform(name, length, -spread, spread, quantum)
    steps = np.round((draws - draws.mean() + mean) / quantum).astype(np.int64)
    every, some = divmod(round(mean * length / quantum) - int(steps.sum()), length)
    steps += every
    steps[:some] += 1
    return steps * quantum


@dataclass(frozen=True)
class Responses:
    """Ragged responses: per name, one array of counted tokens for each. Laid out by `padded` or `packed`."""

    rows: dict[str, list[NumPyArray]]
    per_response: dict[str, NumPyArray] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in next(iter(self.rows.values()))]

    def also(self, **per_response: Any) -> Responses:
        """With arrays that have one value per response: advantages, groups, rewards."""
        return replace(self, per_response=self.per_response | {name: np.asarray(v) for name, v in per_response.items()})

    def tokens(self, **rows: Sequence[Any]) -> Responses:
        """With further arrays that have one value per token."""
        return replace(
            self, rows=self.rows | {name: [np.asarray(row, dtype=float) for row in v] for name, v in rows.items()}
        )

    def part(self, members: Sequence[int]) -> Responses:
        """Some of the responses: a micro-batch, or what one rank holds."""
        return Responses(
            {name: [rows[i] for i in members] for name, rows in self.rows.items()},
            {name: values[list(members)] for name, values in self.per_response.items()},
        )


def responses(
    name: str,
    lengths: Sequence[int],
    means: Sequence[float],
    *,
    spread: float = 0.05,
    extra: Sequence[str] = (),
    extra_spread: float = 0.1,
    quantum: float = QUANTUM,
) -> Responses:
    """Responses with the given mean log-ratios; `extra` names further token arrays near the old policy."""
    ratios = [
        log_ratios(f"{name}/d/{i}", n, m, spread, quantum) for i, (n, m) in enumerate(zip(lengths, means, strict=True))
    ]
    old = [uniform(f"{name}/old/{i}", n, -3.0, -0.25, quantum) - _room(ratios[i]) for i, n in enumerate(lengths)]
    rows = {"logp": [o + d for o, d in zip(old, ratios, strict=True)], "old_logp": old}
    for other in extra:
        rows[other] = [
            o + uniform(f"{name}/{other}/{i}", len(o), -extra_spread, extra_spread, quantum) for i, o in enumerate(old)
        ]
    return Responses(rows)


def explicit(log_ratios_: Sequence[Sequence[float]], old: float = -2.0) -> Responses:
    """Responses with log-ratios written out, over one old log-probability."""
    base = [np.full(len(row), old) for row in log_ratios_]
    return Responses(
        {"logp": [b + np.asarray(row) for b, row in zip(base, log_ratios_, strict=True)], "old_logp": base}
    )


def padded(
    source: Responses, *, width: int | None = None, fill: Any = 0.0, masks: str | None = None
) -> dict[str, NumPyArray]:
    """`[B, T]` arrays and their mask. `masks` places the counted tokens, a word for each response; `fill` goes everywhere else.

    `fill` is a number, or one per array name. Where the width is no matter it is one of `WIDTHS`: few
    shapes spare a framework that compiles for each.
    """
    width = width or next(size for size in WIDTHS if size >= max(source.lengths))
    words = masks.split() if masks else ["1" * n + "0" * (width - n) for n in source.lengths]
    mask = np.array([[letter == "1" for letter in word] for word in words])
    arrays = {name: _lay(rows, mask, _fill(fill, name)) for name, rows in source.rows.items()}
    return _named(arrays) | {"mask": mask} | source.per_response


def packed(source: Responses, *, trailing: int = 0, fill: Any = 0.0) -> dict[str, NumPyArray]:
    """`[N]` arrays and `offsets`, with `trailing` padding tokens at the end."""
    offsets = np.concatenate([[0], np.cumsum(source.lengths)]).astype(np.int64)
    arrays = {name: np.concatenate([*rows, np.full(trailing, _fill(fill, name))]) for name, rows in source.rows.items()}
    return _named(arrays) | {"offsets": offsets} | source.per_response


def _lay(rows: Sequence[NumPyArray], mask: NumPyArray, fill: Any) -> NumPyArray:
    array = np.resize(np.asarray(fill, dtype=float), mask.shape).copy()
    for i, row in enumerate(rows):
        array[i, mask[i]] = row
    return array


def _named(arrays: dict[str, NumPyArray]) -> dict[str, NumPyArray]:
    return {("advantages" if name == "token_advantages" else name): array for name, array in arrays.items()}


def _fill(fill: Any, name: str) -> Any:
    return fill.get(name, 0.0) if isinstance(fill, dict) else fill


def _room(ratios: NumPyArray) -> float:
    """How far below 0 the old log-probabilities must start for the new ones to stay below 0."""
    return float(max(0.0, ratios.max(initial=0.0)))
