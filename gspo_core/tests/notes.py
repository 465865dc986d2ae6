"""A recorder of NumPy arrays, and what it wrote, as the library of the format reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from gspo_core.recording import Recorder, Stored

Part = tuple[dict[str, Any], dict[str, np.ndarray]]


class Notes(Recorder):
    """A recorder of NumPy arrays, whose copies arrive when the test says so."""

    arrived = True

    def keep(self, name: str, array: Any) -> Any:
        return np.array(array, dtype=float)

    def store(self, kept: np.ndarray) -> Stored:
        return Stored("F64", kept.shape, kept.tobytes())

    def scalar(self, kept: np.ndarray) -> float:
        return float(kept)

    def ready(self, kept: Any) -> bool:
        assert all(isinstance(one, np.ndarray) for one in kept)
        return self.arrived


def read(path: Path) -> tuple[dict[str, Any], list[Part]]:
    """The header of a file, and its parts with their arrays, as the library of the format reads them."""
    with safe_open(path, "numpy") as file:
        header = json.loads(file.metadata()["gspo_trace"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    parts = [
        (fields, {name.split(".", 1)[1]: array for name, array in arrays.items() if name.startswith(f"{at}.")})
        for at, fields in enumerate(header["parts"])
    ]
    assert sum(len(part[1]) for part in parts) == len(arrays)
    return header, parts


def files_of(folder: Path, rank: int = 0) -> dict[str, tuple[dict[str, Any], list[Part]]]:
    return {path.stem: read(path) for path in sorted((folder / f"rank-{rank}").glob("*"))}


def places(folder: Path) -> list[tuple[Any, ...]]:
    """Where each part of a trace stands: step, micro-batch, rollout, mini-batch, kind."""
    names = ("step", "microbatch", "rollout", "minibatch", "kind")
    return [tuple(part[0].get(name) for name in names) for _, parts in files_of(folder).values() for part in parts]


def train(recorder: Recorder, steps: int, calls: int = 1) -> None:
    for _ in range(steps):
        for call in range(calls):
            recorder.part(logp=np.full(3, recorder.step_index + call / 10))
        recorder.advance()
