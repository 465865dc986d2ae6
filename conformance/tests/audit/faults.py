"""Ten faults for a trace: each replays what the run did with one mistake in it, and writes down what such a run would have recorded.

What a faulty run computes is computed, in float32, by other code than the audit's: `gspo_core`, or plain NumPy where the
mistake is in the formula. Arrays, losses, metrics and gradients are those of the faulty run; headers still claim what they claimed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gspo_core as gspo
from gspo_conformance.audit.claim import claim_of
from gspo_conformance.audit.trace import Trace, read_trace
from gspo_conformance.tensors import NumPyArray
from gspo_core.recording import Stored, write_shard

NAMES = {"bool": "BOOL", "int64": "I64", "float32": "F32"}
WORDS = 29


@dataclass
class File:
    """One file of a trace, to be changed."""

    path: Path
    header: dict[str, Any]
    arrays: list[dict[str, NumPyArray]]


class Run:
    """A trace in memory."""

    def __init__(self, folder: Path) -> None:
        trace = read_trace(folder)
        claim = claim_of(trace)
        self.objective, self.settings = claim.objective, dict(claim.advantages or {})
        self.files = [
            File(
                shard.path.relative_to(folder),
                json.loads(json.dumps(shard.header)),
                [
                    {key.partition(".")[2]: shard.array(key) for key in shard.tensors if key.startswith(f"{at}.")}
                    for at in range(len(shard.header["parts"]))
                ],
            )
            for shard in trace.shards
        ]

    def parts(self, since: int = 0, kind: str = "loss") -> Iterator[tuple[File, dict[str, Any], dict[str, NumPyArray]]]:
        """Header fields and arrays of every call of the loss from a step on."""
        for file in self.files:
            for fields, arrays in zip(file.header["parts"], file.arrays, strict=True):
                if fields["step"] >= since and fields.get("kind", "loss") == kind:
                    yield file, fields, arrays

    def write(self, folder: Path) -> Trace:
        """The trace, in a folder."""
        for file in self.files:
            arrays = {
                f"{at}.{name}": Stored(NAMES[values.dtype.name], values.shape, np.ascontiguousarray(values).tobytes())
                for at, part in enumerate(file.arrays)
                for name, values in part.items()
            }
            write_shard(folder / file.path, file.header, arrays)
        return read_trace(folder)

    def replay(self, fields: dict[str, Any], arrays: dict[str, NumPyArray], **wrong: Any) -> None:
        """The call of the loss once more, with some of its arguments, or its objective, replaced."""
        objective, rows = wrong.pop("objective", self.objective), wrong.pop("rows", slice(None))
        normalizer = wrong.pop("normalizer", fields["normalizer"])
        seen = {name: arrays[name] for name in ("logp", "old_logp", "mask", "advantages")} | wrong
        given = {
            "logp": seen["logp"],
            "old_logp": seen["old_logp"],
            "advantages": seen["advantages"],
            "sequences": seen["mask"],
        }
        given = {name: values[rows] for name, values in given.items()} | {"normalizer": np.float32(normalizer)}
        out = gspo.policy_loss(objective, **given)
        fields["loss"] = float(out.loss)
        self.report(fields, {name: float(value) for name, value in out.metrics.items()}, given)
        if "gradient" in arrays:
            gradient = np.zeros_like(arrays["gradient"])
            gradient[rows] = gspo.policy_gradient(objective, **given)
            arrays["gradient"] = gradient

    def report(self, fields: dict[str, Any], metrics: dict[str, float], given: dict[str, Any]) -> None:
        """The metrics under the names that the run used."""
        clipped = clipped_rows(given, self.objective.surrogate)
        theirs = {
            "clip_ratio/low_mean": float(clipped[0].mean()),
            "clip_ratio/high_mean": float(clipped[1].mean()),
            "clip_ratio/region_mean": float((clipped[0] | clipped[1]).mean()),
        }
        fields["metrics"] = {name: (metrics | theirs)[name] for name in fields["metrics"] if name in metrics | theirs}


def clipped_rows(given: dict[str, Any], clip: Any) -> tuple[NumPyArray, NumPyArray]:
    """Which responses are held below and above."""
    mask, a = given["sequences"], given["advantages"]
    s = np.exp(np.where(mask, given["logp"] - given["old_logp"], 0).sum(1) / np.maximum(mask.sum(1), 1))
    return (a < 0) & (s < 1 - clip.low), (a > 0) & (s > 1 + clip.high)


def wrong_aggregation(run: Run, since: int) -> None:
    """The mean over tokens: divided by the tokens of the micro-batch, then by the number of micro-batches."""
    objective = run.objective.replace(aggregation="token_mean")
    for _, fields, arrays in run.parts(since):
        share = fields["normalizer"] / len(arrays["mask"])
        run.replay(fields, arrays, objective=objective, normalizer=arrays["mask"].sum() * share)


def stale_old_logp(run: Run, since: int) -> None:
    """The old policy is the one before: its log-probabilities lack what the last update of the rollout before changed."""
    drifts = [(arrays["logp"] - arrays["old_logp"])[arrays["mask"]] for _, _, arrays in run.parts()]
    drift = max(drifts, key=lambda values: np.abs(values).mean())
    for _, fields, arrays in run.parts(since):
        arrays["old_logp"] = arrays["old_logp"] - np.resize(drift, arrays["old_logp"].shape)
        run.replay(fields, arrays)


def shifted_mask(run: Run, since: int) -> None:
    """The loss with its mask one place to the right of the one that was sampled with."""
    for _, fields, arrays in run.parts(since):
        mask = np.concatenate([np.zeros_like(arrays["mask"][:, :1]), arrays["mask"][:, :-1]], axis=1)
        run.replay(fields, arrays, mask=mask)


def wrong_ddof(run: Run, since: int) -> None:
    """Advantages with the population standard deviation, and the losses that they make."""
    table: dict[tuple[int, int], list[float]] = {}
    for _, fields, arrays in run.parts(since, kind="rollout"):
        for group, reward in zip(arrays["groups"].tolist(), arrays["rewards"], strict=True):
            table.setdefault((fields["rollout"], group), []).append(reward)
    for kind in ("rollout", "loss"):
        for _, fields, arrays in run.parts(since, kind=kind):
            members = [np.array(table[fields["rollout"], group]) for group in arrays["groups"].tolist()]
            scale = [rewards.std(ddof=0) + np.float32(run.settings["eps"]) for rewards in members]
            means = [rewards.mean() for rewards in members]
            arrays["advantages"] = ((arrays["rewards"] - means) / scale).astype(np.float32)
            if kind == "loss":
                run.replay(fields, arrays)


def bfloat16_logp(run: Run, since: int) -> None:
    """Log-probabilities that went through bfloat16."""
    for _, fields, arrays in run.parts(since):
        for name in ("logp", "old_logp"):
            bits = arrays[name].view(np.uint32)
            arrays[name] = ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
        run.replay(fields, arrays)


def dropped_group(run: Run, since: int) -> None:
    """The responses of the first group of a micro-batch left out of its loss."""
    for _, fields, arrays in run.parts(since):
        kept = arrays["groups"] != arrays["groups"][0]
        if kept.any():
            run.replay(fields, arrays, rows=kept)


def padded_length(run: Run, since: int) -> None:
    """s_i with the padded width in place of |y_i|."""
    for _, fields, arrays in run.parts(since):
        mask, a = arrays["mask"], arrays["advantages"]
        s = np.exp(np.where(mask, arrays["logp"] - arrays["old_logp"], 0).sum(1) / np.float32(mask.shape[1]))
        clip = run.objective.surrogate
        held = np.clip(s, np.float32(1 - clip.low), np.float32(1 + clip.high))
        fields["loss"] = float(-np.minimum(s * a, held * a).sum() / np.float32(fields["normalizer"]))
        fields["metrics"] = {}
        # log s_i = (1/W) Σ_t d_t, so every counted token gets 1/W of the gradient.
        closed = (a > 0) & (s > 1 + clip.high) | (a < 0) & (s < 1 - clip.low)
        share = np.where(closed, 0, -s * a) / np.float32(mask.shape[1] * fields["normalizer"])
        arrays["gradient"] = (share[:, None] * mask).astype(np.float32)


def rank_local_normaliser(run: Run, since: int) -> None:
    """The responses of a step on two ranks, 3 on one and the rest on the other, each divided by its own number."""
    _on_two_ranks(run, since, local=True)


def on_two_ranks(run: Run, since: int) -> None:
    """No fault: the same, divided by half the number of all."""
    _on_two_ranks(run, since, local=False)


def _on_two_ranks(run: Run, since: int, *, local: bool) -> None:
    steps: dict[int, list[tuple[dict[str, Any], dict[str, NumPyArray]]]] = {}
    for _, fields, arrays in run.parts(since):
        steps.setdefault(fields["step"], []).append((fields, arrays))
    header = next(run.parts())[0].header
    run.files = []
    for step, parts in steps.items():
        names = set.intersection(*(set(arrays) for _, arrays in parts)) - {"gradient"}
        whole = {name: np.concatenate([arrays[name] for _, arrays in parts]) for name in names}
        for rank, rows in enumerate((slice(0, 3), slice(3, None))):
            arrays = {name: values[rows] for name, values in whole.items()}
            own, share = len(arrays["mask"]), len(whole["mask"]) / 2
            fields = {**parts[0][0], "microbatch": 0, "normalizer": float(own if local else share), "metrics": {}}
            run.replay(fields, arrays)
            claims = header["run"] | {"ranks": 2, "rank_losses": "mean", "micro_batches": "sum"}
            told = header | {"rank": rank, "run": claims, "parts": [fields]}
            run.files.append(File(Path(f"rank-{rank}/{step:09d}.safetensors"), told, [arrays]))


def wrong_temperature(run: Run, since: int, ratio: float = 0.7) -> None:
    """The new policy scored at another temperature than the old: a token of probability p beside others that share the rest evenly."""
    for _, fields, arrays in run.parts(since):
        p = np.exp(arrays["logp"].astype(np.float64))
        others = np.maximum(1 - p, 1e-12) / (WORDS - 1)
        powered = p ** (1 / ratio)
        arrays["logp"] = np.log(powered / (powered + (WORDS - 1) * others ** (1 / ratio))).astype(np.float32)
        run.replay(fields, arrays)


def nothing(run: Run, since: int) -> None:
    """No fault: every loss once more."""
    for _, fields, arrays in run.parts(since):
        run.replay(fields, arrays)


Fault = Callable[[Run, int], None]
# The truncated file is the tenth: it is cut where it lies, see `truncate`.
FAULTS: dict[str, Fault] = {
    "aggregation.token-mean": wrong_aggregation,
    "stale-old-logp": stale_old_logp,
    "mask.shifted": shifted_mask,
    "advantage.ddof": wrong_ddof,
    "bfloat16-logp": bfloat16_logp,
    "dropped-group": dropped_group,
    "ratio.padded-length": padded_length,
    "step.rank-local-normaliser": rank_local_normaliser,
    "temperature": wrong_temperature,
}
CONTROLS: dict[str, Fault] = {"nothing": nothing, "on two ranks": on_two_ranks}


def truncate(folder: Path, step: int, kept: float = 0.7) -> Path:
    """The file of a step, cut."""
    path = next(folder.rglob(f"{step:09d}.safetensors"))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    return path
