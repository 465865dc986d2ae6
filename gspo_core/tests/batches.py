"""Seeded batches for tests: ragged lengths, holes, an empty response, mixed signs, garbage where nothing counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import gspo_core as gspo
from gspo_core.objective import PRESETS

# For many small shapes, each of which JAX compiles for a tenth of a second; it is held to the same numbers elsewhere.
EAGER = pytest.mark.parametrize("xp", ["numpy", "strict", "torch"], indirect=True)


def preset(name: str) -> gspo.Objective:
    return getattr(gspo.Objective, name)()


def axes() -> dict[str, gspo.Objective]:
    """Objectives that together visit every value of every axis."""
    found = {name: preset(name) for name in PRESETS}
    wide = gspo.Clip(0.2, 0.3)
    for importance in (None, "token", "sequence"):
        for estimator in ("k1", "k2", "k3", "k3_plus", "abs"):
            penalty = gspo.Penalty(estimator, 0.5, importance, log_ratio_clamp=0.3, value_clamp=0.02)
            found[f"kl-{estimator}-{importance}"] = gspo.Objective("sequence", wide, penalty=penalty)
            found[f"kl-{estimator}-{importance}-free"] = gspo.Objective(
                "token", wide, penalty=replace(penalty, log_ratio_clamp=None, value_clamp=None)
            )
    for level in ("token", "sequence", "geometric"):
        for action in ("clamp", "mask", "reject"):
            correction = gspo.Correction(level, action, 0.8, 1.2, negative_only=action == "reject")
            for ratio in ("sequence", "gspo_token"):
                found[f"correction-{level}-{action}-{ratio}"] = gspo.Objective(ratio, wide, correction=(correction,))
    for ratio in ("token", "sequence", "gspo_token", "product"):
        for surrogate in (
            gspo.Unclipped(),
            gspo.Clip(0.2, 0.3, 2.0),
            gspo.Sapo(),
            gspo.Reinforce(gspo.Clip(0.1, 0.1)),
            gspo.Cispo(0.1, 0.1),
            gspo.Vespo(),
        ):
            kind = type(surrogate).__name__
            found[f"{ratio}-{kind}"] = gspo.Objective(ratio, surrogate, log_ratio_cap=0.4)
    found["token-Gmpo"] = gspo.Objective("token", gspo.Gmpo(0.1, 0.2), log_ratio_cap=0.15)
    for mode in (
        "sequence_mean_token_mean",
        "sequence_mean_token_sum",
        "token_mean",
        "token_sum",
        "group_token_mean",
    ):
        for count in ("all", "non_empty"):
            found[f"{mode}-{count}"] = gspo.Objective("token", wide, gspo.Aggregation(mode, count, 3.0))
    return found


class Batch:
    """Five responses of 7, 3, 0, 1 and 5 tokens with one hole, in both layouts, as NumPy arrays."""

    lengths = (7, 3, 0, 1, 5)

    def __init__(self, seed: int = 0, garbage: float = np.nan, spread: float = 0.3) -> None:
        rng = np.random.default_rng(seed)
        shape = (len(self.lengths), max(self.lengths))
        self.mask = np.arange(shape[1])[None] < np.asarray(self.lengths)[:, None]
        self.mask[0, 2] = False
        logp = -rng.exponential(size=shape)
        old = logp + spread * rng.normal(size=shape)
        tokens = {
            "logp": logp,
            "old_logp": old,
            "ref_logp": logp + 0.2 * rng.normal(size=shape),
            "behavior_logp": old + 0.1 * rng.normal(size=shape),
        }
        self.tokens = {name: np.where(self.mask, values, garbage) for name, values in tokens.items()}
        self.per_sequence = np.asarray([1.0, -1.0, 0.5, -2.0, 0.7])
        self.per_token = np.where(self.mask, rng.normal(size=shape), garbage)
        self.groups = np.asarray([3, -1, 3, -1, -1])

    def padded(self, xp: Any, dtype: str = "float64", per_token: bool = False) -> dict[str, Any]:
        """Keyword arguments of `policy_loss`."""
        arrays = {name: xp(values, dtype) for name, values in self.tokens.items()}
        advantages = xp(self.per_token if per_token else self.per_sequence, dtype)
        return arrays | {
            "advantages": advantages,
            "sequences": gspo.Padded(xp(self.mask)),
            "groups": xp(self.groups),
        }

    def pack(self, values: np.ndarray, tail: float) -> np.ndarray:
        rows = [values[i, :length] for i, length in enumerate(self.lengths)]
        return np.concatenate([*rows, np.full(2, tail, values.dtype)])

    def packed(self, xp: Any, dtype: str = "float64", per_token: bool = False) -> dict[str, Any]:
        """The same batch, packed, with two tokens of trailing padding."""
        arrays = {name: xp(self.pack(values, np.nan), dtype) for name, values in self.tokens.items()}
        offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        sequences = gspo.Packed(xp(offsets), mask=xp(self.pack(self.mask, True)))
        advantages = self.pack(self.per_token, np.nan) if per_token else self.per_sequence
        return arrays | {
            "advantages": xp(advantages, dtype),
            "sequences": sequences,
            "groups": xp(self.groups),
        }
