"""A trainer that knows nothing of this package: NumPy, eq. 5 written out, and the documented format written by hand.

Its log-probabilities are random and its policy moves at random; micro-batches are of unequal size, some responses have a
single token. `mistake` makes one mistake in its loss, its advantages or its report.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from gspo_conformance.tensors import NumPyArray
from gspo_core import Objective

LOW, HIGH, SIZE, WIDTH = 3e-3, 4e-3, 4, 12
CUTS = ((0, 3), (3, 6), (6, 8))
# The runs that do not say what they divide by.
UNSAID = ("", "eos", "tokens", "means", "unit", "responses")
CLAIM = Objective.gspo().replace(surrogate=Objective.gspo().surrogate.__class__(LOW, HIGH)).to_dict()


def write(folder: Path, mistake: str = "", steps: int = 4, **run: Any) -> Path:
    """A trace of `steps` steps, two to a rollout."""
    stream = np.random.default_rng(7)
    for step in range(steps):
        arrays, parts = _step(stream, step, mistake)
        header = {"version": 1, "run": {"objective": CLAIM, "group_size": SIZE, **run}, "parts": parts}
        save_file(arrays, folder / f"{step:05d}.safetensors", metadata={"gspo_trace": json.dumps(header)})
    return folder


def _step(stream: np.random.Generator, step: int, mistake: str) -> tuple[dict[str, NumPyArray], list[dict[str, Any]]]:
    groups = np.repeat([0, 1], SIZE) + 10 * step
    rewards = stream.normal(size=2 * SIZE).round(2)
    mask = np.arange(WIDTH) < np.append(stream.integers(2, WIDTH + 1, 2 * SIZE - 2), [1, WIDTH])[:, None]
    a = _advantages(rewards, mistake).astype(np.float32)
    old = -stream.gamma(0.5, 1.0, mask.shape)
    new = old + (step % 2) * (0.02 * stream.normal(size=mask.shape) + 0.004 * np.sign(stream.normal(size=(8, 1))))
    reference, sampler = old + 0.3 * stream.normal(size=mask.shape), old + 0.2 * stream.normal(size=mask.shape)
    tokens = {"logp": new, "old_logp": old, "ref_logp": reference, "behavior_logp": sampler}
    tokens = {name: values.astype(np.float32) for name, values in tokens.items()}
    units = {"probabilities": np.exp, "costs": np.negative}
    if mistake in units:
        tokens |= {name: units[mistake](tokens[name]) for name in ("logp", "old_logp")}
    whole = {"rewards": rewards.astype(np.float32), "groups": groups, "advantages": a, "mask": mask}
    arrays: dict[str, NumPyArray] = {}
    parts: list[dict[str, Any]] = []
    for at, (begin, end) in enumerate(CUTS):
        mine = {name: np.ascontiguousarray(values[begin:end]) for name, values in (tokens | whole).items()}
        arrays |= {f"{at}.{name}": values for name, values in mine.items()}
        place = {"step": step, "rollout": step // 2, "minibatch": step % 2, "microbatch": at}
        total = {"responses": 2 * SIZE, "tokens": int(mask.sum())}
        parts.append(place | _reported(mine, mistake, total))
        if mistake == "small kl":
            arrays[f"{at}.gradient"] = _gradient(mine, total["responses"])
    if mistake == "unit":
        parts = [{**part, "loss": part["loss"] * len(CUTS)} for part in parts]
    return arrays, parts


def _advantages(rewards: NumPyArray, mistake: str) -> NumPyArray:
    rows = rewards.reshape(2, SIZE)
    a = ((rows - rows.mean(1, keepdims=True)) / (rows.std(1, ddof=1, keepdims=True) + 1e-6)).ravel()
    made = {
        "reversed": lambda: a[::-1],
        "clamped": lambda: np.clip(a, -0.9, 0.9),
        "halved": lambda: a / 2,
        "uncentred": lambda: np.abs(rows).ravel(),
    }
    return made[mistake]() if mistake in made else a


def _gradient(mine: dict[str, NumPyArray], responses: int) -> NumPyArray:
    """d loss / d logp of eq. 5 and of 1e-4 times k3, which the loss that is reported leaves out."""
    mask, a = mine["mask"], mine["advantages"].astype(np.float64)
    new, old, reference = (mine[name].astype(np.float64) for name in ("logp", "old_logp", "ref_logp"))
    length = mask.sum(1)
    s = np.exp(((new - old) * mask).sum(1) / length)
    kept = ((s <= 1 + HIGH) | (a <= 0)) & ((s >= 1 - LOW) | (a >= 0))
    token = -(kept * s * a)[:, None] + 1e-4 * (1 - np.exp(reference - new))
    return (token * mask / length[:, None] / responses).astype(np.float32)


def _counted(mask: NumPyArray, mistake: str) -> NumPyArray:
    """The mask of the loss."""
    places = np.arange(mask.shape[1])
    length = mask.sum(1, keepdims=True)
    made = {
        "eos": mask & (places != length - 1),
        "behind": mask | (places == length),
        "truncated": mask & (length < mask.shape[1]),
    }
    return made.get(mistake, mask)


def _reported(mine: dict[str, NumPyArray], mistake: str, total: dict[str, int]) -> dict[str, Any]:
    mask, a = _counted(mine["mask"], mistake), mine["advantages"].astype(np.float64)
    frozen = "ref_logp" if mistake == "reference" else "old_logp"
    new, old = mine["logp"].astype(np.float64), mine[frozen].astype(np.float64)
    length = np.maximum(mask.sum(1), 1)
    s = np.exp(((new - old) * mask).sum(1) / length)
    a = -a if mistake == "negated" else a
    unit = np.minimum(s * a, np.clip(s, 1 - LOW, 1 + HIGH) * a)
    if mistake == "weighted":
        unit = unit * np.exp(((old - mine["behavior_logp"]) * mask).sum(1) / length)
    loss = -unit.sum() / total["responses"]
    if mistake == "tokens":
        loss = -(unit * length).sum() / total["tokens"]
    if mistake == "sums":
        loss = -(unit * length).sum() / total["responses"]
    if mistake == "means":
        loss = -unit.mean() / len(CUTS)
    z = mine["ref_logp"].astype(np.float64) - new
    if mistake == "kl":
        loss += ((0.02 * (np.exp(z) - z - 1) * mask).sum(1) / length).sum() / total["responses"]
    if mistake == "old kl":
        loss += 0.03 * ((new - old) * mask).sum() / length.sum()
    gated = ((s > 1 + HIGH) & (a > 0)) | ((s < 1 - LOW) & (a < 0))
    outside = (s > 1 + HIGH) | (s < 1 - LOW)
    clipped = {"responses": gated.mean(), "outside": outside.mean()}.get(mistake, (gated * length).sum() / length.sum())
    return {
        "loss": float(np.float32(loss)),
        "metrics": {"clip_fraction": float(clipped), "ratio_mean": float(s.mean())},
    }
