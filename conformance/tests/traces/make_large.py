"""Writes a trace of ten million counted tokens, to measure an audit: python conformance/tests/traces/make_large.py FOLDER

80 steps of 128 responses, 1,024 tokens on average, padded to 2,048: four mini-batches a rollout, rewards and groups of 8, losses of `gspo_core`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import gspo_core as gspo
from gspo_core.recording import Stored, json_number, write_shard

STEPS, ROWS, WIDTH, SIZE = 80, 128, 2048, 8
NAMES = {"bool": "BOOL", "int64": "I64", "float32": "F32"}


def main(folder: Path) -> None:
    """One file per step."""
    draw = np.random.default_rng(0)
    run = {"objective": gspo.Objective.gspo().to_dict(), "advantages": {}, "group_size": SIZE, "every": 1}
    counted = 0
    for step in range(STEPS):
        mask = np.arange(WIDTH) < draw.integers(1, WIDTH + 1, ROWS)[:, None]
        old = -draw.exponential(0.5, (ROWS, WIDTH)).astype(np.float32)
        drift = 0.0 if step % 4 == 0 else 0.02 * (step % 4)
        logp = old + np.float32(drift) * draw.standard_normal((ROWS, WIDTH), dtype=np.float32)
        rewards = draw.integers(0, 2, ROWS).astype(np.float32)
        groups = np.arange(ROWS) // SIZE + step * ROWS
        advantages = gspo.group_advantages(rewards, groups)
        out = gspo.gspo_loss(logp, old, advantages, mask)
        part = {
            "step": step,
            "rollout": step // 4,
            "minibatch": step % 4,
            "loss": json_number(float(out.loss)),
            "metrics": {name: json_number(float(value)) for name, value in out.metrics.items()},
        }
        arrays = {
            "logp": logp,
            "old_logp": old,
            "mask": mask,
            "rewards": rewards,
            "groups": groups,
            "advantages": advantages,
        }
        stored = {f"0.{name}": Stored(NAMES[x.dtype.name], x.shape, x.tobytes()) for name, x in arrays.items()}
        write_shard(folder / f"rank-0/{step:09d}.safetensors", {"version": 1, "run": run, "parts": [part]}, stored)
        counted += int(mask.sum())
    print(f"{counted:,} tokens")  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
