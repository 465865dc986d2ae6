"""A trace as a table: one row per response and optimiser step, all that the analysis of noise needs.

Tokens are read part by part and go at once; what stays of a response is its length, mean log-ratio, mean
square, counts at the gate, advantage and group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gspo_core import Clip

from ..audit.shards import Broken
from ..audit.trace import Part, Tokens, Trace
from ..tensors import NumPyArray
from .precision import quantisation_std, stored_dtype

UNKNOWN = -1


@dataclass(frozen=True)
class Gate:
    """The ratio and the clip range of an objective; the gate closes outside, on the side that the advantage's sign says.

    `shared`: whether a response shares one weight among its tokens, 1/|y| for each.
    """

    ratio: str
    clip: Clip
    shared: bool = True

    def log_ratio(self, tokens: Tokens, d: NumPyArray) -> NumPyArray:
        """The logarithm of the ratio at every token."""
        if self.ratio == "token":
            return d
        return tokens.spread(tokens.sums(d) if self.ratio == "product" else tokens.means(d))

    def of_responses(self, rows: Responses) -> NumPyArray:
        """The logarithm of the ratio of every response, where a response has one."""
        return rows.mean * (rows.length if self.ratio == "product" else 1)

    @property
    def bounds(self) -> tuple[float, float]:
        """log(1-ε_low) and log(1+ε_high)."""
        return math.log1p(-self.clip.low) if self.clip.low < 1 else -math.inf, math.log1p(self.clip.high)


def gate_of(objective: Mapping[str, Any] | None) -> Gate | None:
    """The gate of an objective as `Objective.to_dict` writes it; None where nothing is clipped by its ratio."""
    surrogate = dict((objective or {}).get("surrogate") or {})
    clip = surrogate if surrogate.get("kind") == "clip" else surrogate.get("gate") or {}
    if objective is None or "low" not in clip or "high" not in clip:
        return None
    aggregation = objective.get("aggregation") or {}
    mode = aggregation.get("mode") if isinstance(aggregation, Mapping) else aggregation
    clipped = Clip(float(clip["low"]), float(clip["high"]))
    return Gate(str(objective.get("ratio", "sequence")), clipped, mode in (None, "sequence_mean_token_mean"))


@dataclass(frozen=True, eq=False)
class Responses:
    """Columns of one length; `UNKNOWN` or NaN where a run recorded nothing.

    `mean`, `square`: (1/T) Σ d and (1/T) Σ d² of d = logp - old_logp; `engine_mean`, `engine_square` the same
    of old_logp - behavior_logp. `zeros` counts d = 0. Of the tokens `positive` have A > 0 and `negative`
    A < 0; the gate closes `high` of the former and `low` of the latter, NaN without a gate.
    """

    step: NumPyArray
    minibatch: NumPyArray
    rollout: NumPyArray
    length: NumPyArray
    mean: NumPyArray
    square: NumPyArray
    zeros: NumPyArray
    engine_mean: NumPyArray
    engine_square: NumPyArray
    advantage: NumPyArray
    group: NumPyArray
    positive: NumPyArray
    negative: NumPyArray
    high: NumPyArray
    low: NumPyArray

    @property
    def number(self) -> int:
        """How many rows."""
        return len(self.length)

    def where(self, chosen: NumPyArray) -> Responses:
        """Some of the rows."""
        return Responses(*(getattr(self, one.name)[chosen] for one in fields(self)))

    def of_minibatch(self, index: int) -> Responses:
        """The rows of one mini-batch, over all rollouts."""
        return self.where(self.minibatch == index)

    @property
    def minibatches(self) -> list[int]:
        """The mini-batches that are known, ascending."""
        return [int(index) for index in np.unique(self.minibatch) if index != UNKNOWN]

    @property
    def clip_fraction(self) -> float:
        """Of all tokens (GSPO-METRIC-1); NaN without a token, a gate or advantages."""
        total = float(np.sum(self.length))
        return float(np.sum(self.high) + np.sum(self.low)) / total if total else math.nan


@dataclass(frozen=True)
class Reading:
    """A trace, read: its rows, the gate, and the dtypes that bits of log-probabilities betray (name: (dtype, σ_q)).

    `signals` are the rewards of whole groups, each with its rollout and group: `[3, n]`. `broken` counts the parts that cannot be read.
    """

    responses: Responses
    gate: Gate | None
    rounded: Mapping[str, tuple[str, float]]
    signals: NumPyArray
    broken: int = 0


def read_responses(trace: Trace, gate: Gate | None = None) -> Reading:
    """The table of a trace; `gate` instead of that of the objective which the run claims."""
    gate = gate or gate_of(trace.objective)
    rows: list[dict[str, NumPyArray]] = []
    rounding, signals, broken = _Rounding(), [np.zeros((3, 0))], 0
    for part in (part for step in trace.steps() for part in (*step.parts, *step.rollouts)):
        try:
            signals.append(_signal(part))
            tokens = part.tokens if part.kind == "loss" else None
        except Broken:
            broken += 1
            continue
        if tokens is None:
            continue
        rounding.see(tokens)
        logp, old = tokens.logp, tokens.old_logp
        if logp is not None and old is not None and tokens.count:
            with np.errstate(all="ignore"):  # a NaN or an infinity is a finding, not an accident
                rows.append(_rows(part, tokens, logp, old, gate))
    names = [one.name for one in fields(Responses)]
    columns = {name: np.concatenate([row[name] for row in rows]) if rows else np.zeros(0) for name in names}
    counted = columns["length"] > 0
    responses = Responses(**{name: column[counted] for name, column in columns.items()})
    spread = bool(np.any(responses.rollout == UNKNOWN))
    whole = _whole(np.concatenate(signals, axis=1), trace.run.get("group_size"), spread)
    return Reading(responses, gate, rounding.found, whole, broken)


def _whole(signals: NumPyArray, group_size: int | None, spread: bool) -> NumPyArray:
    """Without groups of which members are missing; where they may be `spread` over steps, the largest are whole."""
    if not signals.size or (group_size is None and not spread):
        return signals
    _, place, counts = np.unique(signals[:2], axis=1, return_inverse=True, return_counts=True)
    return signals[:, counts[place.ravel()] >= (group_size or max(2, int(counts.max())))]


def _signal(part: Part) -> NumPyArray:
    """Rollout (or step, where it is unknown), group and reward of the responses of a part; none where one is missing."""
    rewards, groups = part.array("rewards"), part.array("groups")
    if rewards is None or groups is None:
        return np.zeros((3, 0))
    source = part.step if part.rollout is None else part.rollout
    return np.stack([np.full(len(rewards), float(source)), groups.astype(float), rewards.astype(float)])


def _rows(part: Part, tokens: Tokens, logp: NumPyArray, old: NumPyArray, gate: Gate | None) -> dict[str, NumPyArray]:
    number, length = tokens.number, tokens.lengths
    full = np.maximum(length, 1)
    d = np.subtract(logp, old, dtype=np.float64)
    mean, square = tokens.sums(d) / full, tokens.sums(d * d) / full
    return {
        "step": np.full(number, part.step),
        "minibatch": np.full(number, UNKNOWN if part.minibatch is None else part.minibatch),
        "rollout": np.full(number, UNKNOWN if part.rollout is None else part.rollout),
        "length": length,
        "mean": mean,
        "square": square,
        "zeros": tokens.sums(d == 0),
        **_engine(tokens, old, full),
        "advantage": _advantage(tokens),
        "group": np.full(number, UNKNOWN) if tokens.groups is None else tokens.groups,
        **_at_gate(tokens, d, gate),
    }


def _engine(tokens: Tokens, old: NumPyArray, full: NumPyArray) -> dict[str, NumPyArray]:
    if tokens.behavior_logp is None:
        missing = np.full(tokens.number, math.nan)
        return {"engine_mean": missing, "engine_square": missing}
    e = np.subtract(old, tokens.behavior_logp, dtype=np.float64)
    return {"engine_mean": tokens.sums(e) / full, "engine_square": tokens.sums(e * e) / full}


def _advantage(tokens: Tokens) -> NumPyArray:
    """One value per response: its own, or the mean over its tokens."""
    values = tokens.advantages
    if values is None:
        return np.full(tokens.number, math.nan)
    return tokens.means(values) if len(values) != tokens.number else values.astype(np.float64)


def _at_gate(tokens: Tokens, d: NumPyArray, gate: Gate | None) -> dict[str, NumPyArray]:
    """Tokens of either sign, and those of them that the gate closes."""
    unknown = np.full(tokens.number, math.nan)
    if tokens.advantages is None:
        nothing = np.zeros(tokens.number)
        return {"positive": nothing, "negative": nothing, "high": unknown, "low": unknown}
    advantages = tokens.advantages
    if len(advantages) == tokens.number:
        advantages = tokens.spread(advantages)
    signs = {"positive": advantages > 0, "negative": advantages < 0}
    found = {name: tokens.sums(mask) for name, mask in signs.items()}
    if gate is None:
        return {**found, "high": unknown, "low": unknown}
    below, above = gate.bounds
    log_ratio = gate.log_ratio(tokens, d)
    high, low = signs["positive"] & (log_ratio > above), signs["negative"] & (log_ratio < below)
    return {**found, "high": tokens.sums(high), "low": tokens.sums(low)}


class _Rounding:
    """Which log-probabilities are rounded in every part so far, to what, and the mean square of their spacing."""

    def __init__(self) -> None:
        self._parts: dict[str, list[tuple[str | None, float]]] = {}

    def see(self, tokens: Tokens) -> None:
        for name in ("logp", "old_logp", "behavior_logp"):
            values = getattr(tokens, name)
            if values is not None and values.size:
                self._parts.setdefault(name, []).append(_rounding(values))

    @property
    def found(self) -> dict[str, tuple[str, float]]:
        """Name: the dtype that all parts agree on, and σ_q of one side."""
        agreed: dict[str, tuple[str, float]] = {}
        for name, parts in self._parts.items():
            kinds = {kind for kind, _ in parts}
            kind = next(iter(kinds)) if len(kinds) == 1 else None
            if kind is not None:
                agreed[name] = kind, math.sqrt(float(np.mean([square for _, square in parts])))
        return agreed


def _rounding(values: NumPyArray) -> tuple[str | None, float]:
    kind = stored_dtype(values)
    if kind is None:
        return None, 0.0
    return kind, quantisation_std(kind, values[:65536], sides=1) ** 2
