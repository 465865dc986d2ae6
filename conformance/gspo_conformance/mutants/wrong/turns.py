"""Wrong turns: a trajectory whose model turns have tool output between them is one response, not several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...tensors import NumPyArray
from ..registry import mutant
from ..sequences import Sequences, sequences_of
from ..surrogates import Fields
from ..tape import stop
from ..whole import Reference


@mutant(
    "ratio.per-turn",
    "GSPO-RATIO-2",
    effect="short turns leave the range that the trajectory stays in; the unit of reward and of ratio differ",
    seen=("rllm-org/rllm#513", "NovaSky-AI/SkyRL#1278"),
)
class PerTurn(Reference):
    """One ratio for each unbroken run of counted tokens: a trajectory of two turns has two ratios.

    The mean of log-ratios taken turn by turn, within one row.
    """

    def sequence_unit(self) -> Any:
        return self._by_run(self.log_ratio())

    def gspo_token_unit(self) -> Any:
        return self._by_run(stop(self.log_ratio())) + (self.new - stop(self.new))

    def _by_run(self, log_ratio: Any) -> Any:
        counted, own = self.sequences.counted, self.sequences.offsets
        starts = np.flatnonzero(counted & ~np.append(False, counted[:-1]))
        offsets = np.unique(np.concatenate([own, starts, [counted.size]]))
        runs = Sequences(offsets, counted, (counted.size,))
        lengths = np.maximum(runs.sum(counted.astype(float)), 1)
        return runs.spread(runs.sum(self.clean(log_ratio)) / lengths)


@mutant(
    "ratio.turn-rows",
    "GSPO-RATIO-2",
    effect="a trajectory weighs as many times as it has turns, and each turn leaves the range for itself",
    seen=("NovaSky-AI/SkyRL#1278", "rllm-org/rllm#513"),
)
class TurnRows(Reference):
    """Each unbroken run of counted tokens as a row of its own: a ratio of its own, and the mean is over turns.

    Each model turn stored as a sample, with the advantage of its trajectory.
    """

    turns: NumPyArray = np.ones(1)

    def policy_loss(self) -> dict[str, Any]:
        shape = np.shape(self.case.inputs["logp"])
        inputs, self.turns = _by_turn(self.case.inputs)
        self.case = replace(self.case, inputs=inputs)
        return {
            name: value.reshape(shape) if name == "gradient" else value for name, value in super().policy_loss().items()
        }


@mutant(
    "ratio.turn-mean",
    "GSPO-RATIO-2",
    effect="a short turn weighs as much as a long one, and each leaves the range for itself",
)
class TurnMean(TurnRows):
    """The mean over the turns of a response, each with a ratio of its own: a short turn weighs as much as a long one.

    Ratios of segments, averaged segment by segment.
    """

    def omega(self, aggregation: Fields) -> NumPyArray:
        mean = aggregation["mode"] == "sequence_mean_token_mean"
        return super().omega(aggregation) / (self.turns if mean else 1.0)

    def count(self, aggregation: Fields) -> Any:
        if aggregation["mode"] != "sequence_mean_token_mean" or aggregation["count"] == "given":
            return super().count(aggregation)
        members = (self.lengths() > 0) | (aggregation["count"] == "all")
        return (members / self.turns).sum()


def _by_turn(arrays: Mapping[str, Any]) -> tuple[dict[str, Any], NumPyArray]:
    """The same tokens in packed rows, one for each turn, and how many turns the response of each row has."""
    sequences, size = sequences_of(arrays), np.size(arrays["logp"])
    counted, offsets = sequences.counted, sequences.offsets
    begins = np.flatnonzero(counted & ~np.append(False, counted)[:size])
    later = np.array([at for at in begins if counted[offsets[sequences.owner[at]] : at].any()], dtype=int)
    turns = 1 + np.bincount(sequences.owner[later], minlength=sequences.number)[: sequences.number]
    owner = np.repeat(np.arange(sequences.number), turns)
    found: dict[str, Any] = {"offsets": np.sort(np.append(offsets, later)), "mask": counted}
    for name, values in arrays.items():
        if name in ("advantages", "groups") and np.size(values) == sequences.number:
            found[name] = np.asarray(values).ravel()[owner]
        elif name not in found:
            found[name] = np.ravel(values)
    return found, turns[owner]
