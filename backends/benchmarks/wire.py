"""What a loss sends between ranks, and how long it takes: one step over 1, 2, 4 and 8 processes, by gloo.

    python backends/benchmarks/wire.py --out docs/benchmarks

Every collective of `torch.distributed` is counted where it is called: how many bytes a rank puts in. The batch is the same however many ranks share it, so the loss is too, or the run fails. Times
are wall times of the loss and its gradient on this machine, whose ranks share its cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.multiprocessing as mp

import gspo_torch as gspo
from gspo_torch import distributed

WORLDS = (1, 2, 4, 8)
RESPONSES, ROUNDS = 16, 9
COLLECTIVES = ("all_gather", "all_reduce", "all_gather_into_tensor", "all_gather_tensor", "reduce_scatter_tensor")


class Sent(NamedTuple):
    """Calls of collectives, and the bytes that a rank puts in."""

    calls: int
    out: int


@contextmanager
def counted(found: list[Sent]) -> Iterator[None]:
    """Counts what every gather and reduction carries meanwhile."""
    plain = {
        (room, name): getattr(room, name) for room in (dist, functional) for name in COLLECTIVES if hasattr(room, name)
    }

    def counting(call: Any, place: int) -> Any:
        def count(*arguments: Any, **options: Any) -> Any:
            found.append(Sent(1, arguments[place].nbytes))
            return call(*arguments, **options)

        return count

    for (room, name), call in plain.items():
        # `dist.all_gather` takes the list that it fills first.
        setattr(room, name, counting(call, 1 if (room, name) == (dist, "all_gather") else 0))
    try:
        yield
    finally:
        for (room, name), call in plain.items():
            setattr(room, name, call)


def batch(length: int) -> dict[str, torch.Tensor]:
    """The whole step, alike on every rank."""
    generator = torch.Generator().manual_seed(0)
    old_logp = -torch.rand(RESPONSES, length, generator=generator)
    lengths = torch.randint(length // 2, length + 1, (RESPONSES, 1), generator=generator)
    return {
        "old_logp": old_logp,
        "logp": old_logp + 0.01 * torch.randn(RESPONSES, length, generator=generator),
        "mask": torch.arange(length) < lengths,
        "advantages": torch.randn(RESPONSES, generator=generator),
    }


def data_parallel(whole: dict[str, torch.Tensor], rank: int, size: int) -> Any:
    """Every rank holds some of the responses."""
    mine = {name: values[rank::size] for name, values in whole.items()}

    def step() -> torch.Tensor:
        logp = mine["logp"].clone().requires_grad_()
        rest = {"old_logp": mine["old_logp"], "advantages": mine["advantages"], "sequences": mine["mask"]}
        loss = distributed.reduce(gspo.Objective.gspo(), logp=logp, **rest, world_scale=size).loss
        loss.backward()
        return loss.detach()

    return step


def context_parallel(whole: dict[str, torch.Tensor], *_: int) -> Any:
    """Every rank holds a part of every response."""
    split = distributed.ContextSplit(whole["mask"], group=dist.group.WORLD)
    logp, old_logp = split.shard(whole["logp"]), split.shard(whole["old_logp"])

    def step() -> torch.Tensor:
        part = logp.clone().requires_grad_()
        loss = gspo.gspo_loss(part, old_logp, whole["advantages"], split.sequences).loss
        loss.backward()
        return loss.detach()

    return step


KINDS = {"data parallel": data_parallel, "context parallel": context_parallel}


def work(rank: int, size: int, length: int, kind: str, folder: str) -> None:
    """One rank: counts a step, then times some."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    step, found = KINDS[kind](batch(length), rank, size), list[Sent]()
    with counted(found):
        loss = step()
    seconds = []
    for _ in range(ROUNDS):
        dist.barrier()
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    if rank == 0:
        total = Sent(*map(sum, zip(*found, strict=True))) if found else Sent(0, 0)
        answer = total._asdict() | {"loss": loss.item(), "seconds": statistics.median(seconds)}
        Path(folder, "answer.json").write_text(json.dumps(answer), encoding="utf-8")
    dist.destroy_process_group()


def measure(kind: str, size: int, length: int) -> dict[str, Any]:
    """One row, from processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (size, length, kind, folder), nprocs=size)
        return {"kind": kind, "ranks": size, "length": length} | json.loads(Path(folder, "answer.json").read_text())


def table(run: dict[str, Any]) -> str:
    """Markdown."""
    machine = run["machine"]
    lines = [
        f"{machine['device']}, {machine['cores']} cores, torch {machine['torch']}, gloo; {RESPONSES} responses. Regenerate: `make bench`.",
        "",
        "| split | ranks | tokens of a response | collectives | bytes a rank sends | bytes a response | median time, ms |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in run["rows"]:
        per = row["out"] / RESPONSES if row["kind"] == "context parallel" else None
        cells = (
            row["kind"],
            row["ranks"],
            f"{row['length']:,}",
            row["calls"],
            row["out"],
            "–" if per is None else f"{per:g}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + f" | {1e3 * row['seconds']:.2f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for wire.json and wire.md")
    parser.add_argument("--lengths", type=int, nargs="*", default=[1024, 65_536])
    parser.add_argument("--ranks", type=int, nargs="*", default=WORLDS)
    options = parser.parse_args()
    rows = []
    for kind in KINDS:
        for length in options.lengths:
            for size in options.ranks:
                rows.append(measure(kind, size, length))
                print(json.dumps(rows[-1]), flush=True)
    for length in options.lengths:
        losses = [row["loss"] for row in rows if row["length"] == length]
        if max(losses) - min(losses) > 1e-5 * max(map(abs, losses)):
            raise SystemExit(f"the loss depends on the split at {length} tokens: {losses}")
    if options.out is not None:
        machine = {"device": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
        run = {"machine": machine, "rows": rows}
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "wire.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
        (options.out / "wire.md").write_text(table(run), encoding="utf-8")


if __name__ == "__main__":
    main()
