"""Traces of runs that never were: every response's log-probabilities drawn from the noise model, and a policy that moves."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from gspo_conformance.audit import Trace, read_trace
from gspo_conformance.spec_numbers import round_to
from gspo_conformance.tensors import NumPyArray
from gspo_core import Objective


@dataclass
class Run:
    """How a run behaves: noise of spread `std` and mean `bias` between old and new, and a policy that moves `drift` a mini-batch.

    `engine` is the spread of the rollout engine's log-probabilities around the trainer's, None where they are not
    recorded; `borrow` makes them old_logp. `dtype` rounds what is stored.
    """

    std: float = 0.0
    bias: float = 0.0
    correlation: float = 0.0
    between: float = 0.0
    drift: float = 0.0
    engine: float | None = None
    borrow: bool = False
    rollouts: int = 2
    minibatches: int = 4
    prompts: int = 16
    group: int = 8
    median: int = 300
    longer_when_wrong: float = 0.0
    silent: float = 0.0
    dtype: str | None = None
    inert: bool = False
    numbered: bool = True
    seed: int = 0
    objective: dict[str, Any] | None = field(default_factory=lambda: Objective.gspo().to_dict())

    def write(self, path: Path) -> Trace:
        """One file with a part per optimiser step, each on its own quarter of the prompts, read back."""
        stream = np.random.RandomState(self.seed)
        parts: list[dict[str, Any]] = []
        arrays: dict[str, NumPyArray] = {}
        for step in range(self.rollouts * self.minibatches):
            rollout, minibatch = divmod(step, self.minibatches)
            place = {"rollout": rollout, "minibatch": minibatch} if self.numbered else {}
            parts.append({"step": step} | place)
            arrays |= {f"{step}.{name}": array for name, array in self._part(stream, minibatch).items()}
        header = {"version": 1, "run": {"objective": self.objective}, "parts": parts}
        path.mkdir(parents=True, exist_ok=True)
        save_file(arrays, path / "0.safetensors", metadata={"gspo_trace": json.dumps(header)})
        return read_trace(path)

    def _part(self, stream: np.random.RandomState, minibatch: int) -> dict[str, NumPyArray]:
        count = self.prompts // self.minibatches * self.group
        rewards = (stream.random_sample(count) < 0.5).astype(np.float64)
        groups = np.repeat(np.arange(count // self.group), self.group) + minibatch * 100
        rewards[groups % 100 < self.silent * count / self.group] = 1.0
        centred = rewards - np.repeat(rewards.reshape(-1, self.group).mean(axis=1), self.group)
        spread = np.repeat(rewards.reshape(-1, self.group).std(axis=1, ddof=1), self.group)
        advantages = centred / (spread + 1e-6)
        scale = np.where(rewards > 0, 1.0, 1.0 + self.longer_when_wrong)
        lengths = np.maximum(4, scale * self.median * np.exp(0.7 * stream.standard_normal(count))).astype(int)
        owner = np.repeat(np.arange(count), lengths)
        trainer = -stream.gamma(0.25, 1.0, size=lengths.sum())
        noise = self._noise(stream, lengths)
        moved = (self.drift * minibatch * advantages)[owner]
        engine = trainer + (self.engine or 0.0) * stream.standard_normal(trainer.size)
        old = engine if self.borrow else trainer
        new = trainer.copy() if self.inert else trainer + noise + moved
        token_arrays = {"logp": new, "old_logp": new if self.inert else old}
        if self.engine is not None:
            token_arrays["behavior_logp"] = engine
        stored = {name: self._stored(values) for name, values in token_arrays.items()}
        per_response = {"advantages": advantages.astype(np.float32), "rewards": rewards.astype(np.float32)}
        offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
        return stored | per_response | {"groups": groups.astype(np.int64), "offsets": offsets}

    def _noise(self, stream: np.random.RandomState, lengths: NumPyArray) -> NumPyArray:
        fresh = stream.standard_normal(int(lengths.sum()))
        if self.correlation:
            for t in range(1, fresh.size):
                fresh[t] = self.correlation * fresh[t - 1] + (1 - self.correlation**2) ** 0.5 * fresh[t]
        whole = np.repeat(stream.standard_normal(len(lengths)), lengths)
        return (
            self.bias + self.between * whole + self.std * fresh if self.std or self.bias or self.between else 0 * fresh
        )

    def _stored(self, values: NumPyArray) -> NumPyArray:
        return np.asarray(values if self.dtype is None else round_to(values, self.dtype), np.float32)
