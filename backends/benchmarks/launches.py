"""What a loss and its gradient launch on a GPU, how many bytes they move, and how often the host has to wait: counted, not timed.

    gspo trainers setup verl trl openrlhf ...
    python backends/benchmarks/launches.py --out docs/benchmarks

Every operation that PyTorch sends to a device is a launch, but for those that make views or memory; its bytes are those
of its arguments and results. Ours run on a device that is not the CPU (`elsewhere.py`), where they take the path that a
GPU takes. Trainers run on the CPU, on the tensors that the suite's adapters make: what they do for the CPU alone would
count, and what they read of a GPU by `.cpu()` or `.numpy()` does not show.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from loss_paths import BYTES, Batch, Loss, batch, path
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BATCH, LENGTH = 64, 1024
_OURS = ("gspo_torch", "autograd")
# Names of memory or of what it is, not of work on it.
_FREE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}
# The shape of what they return has to be read.
_SIZED = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
_CPU = torch.device("cpu")


class Counter(TorchDispatchMode):
    """Counts while it is active, gradients included."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.launches = self.on_tokens = self.moved = self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation, after it ran."""
        found = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        results = [value for value in tree_leaves(found) if isinstance(value, Tensor)]
        self.reads += name == "_local_scalar_dense" or _is_sized(name, given) or _comes_back(given, results)
        if name != "_local_scalar_dense" and name not in _FREE and not _is_view(func._schema):
            # What is written in place is an argument and a result.
            parts = {(value.data_ptr(), value.shape): value for value in (*given, *results)}.values()
            self.launches += 1
            self.on_tokens += max((_entries(value) for value in parts), default=0) >= self.tokens
            self.moved += sum(_entries(value) * value.element_size() for value in parts)
        return found


def _is_view(schema: Any) -> bool:
    aliases = [value.alias_info for value in schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def _is_sized(name: str, given: list[Tensor]) -> bool:
    by_mask = name in ("index", "index_put", "index_put_") and any(value.dtype == torch.bool for value in given[1:])
    return name in _SIZED or by_mask


def _comes_back(given: list[Tensor], results: list[Tensor]) -> bool:
    return any(value.device != _CPU for value in given) and any(value.device == _CPU for value in results)


def _entries(value: Tensor) -> int:
    """How many different numbers a tensor has: one for all that it repeats."""
    found = 1
    for size, stride in zip(value.shape, value.stride(), strict=True):
        found *= size if stride else min(size, 1)
    return found


def count(data: Batch, loss: Loss) -> dict[str, Any]:
    """One loss and its gradient, after one that may prepare what is kept."""
    for _ in range(2):
        data.logp.grad = None
        with Counter(data.logp.numel() // 2) as counter:
            value = loss()
            value.backward()
    least = BYTES * data.logp.numel()
    numbers = {"launches": counter.launches, "on_tokens": counter.on_tokens, "reads": counter.reads}
    return numbers | {"moved": counter.moved / least}


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """The counts of every path of a task, and their versions."""
    rows = {}
    for name in task["paths"]:
        data = batch(task["batch"], task["length"], task["packed"])
        if name in _OURS:
            data = _elsewhere(data)
        loss, version = path(name, task, data)
        rows[name] = count(data, loss) | {"version": version}
    return rows


def _elsewhere(data: Batch) -> Batch:
    from elsewhere import DEVICE

    data.logp = data.logp.detach().to(DEVICE).requires_grad_()
    data.old_logp, data.advantages = data.old_logp.to(DEVICE), data.advantages.to(DEVICE)
    data.where = {key: value.to(DEVICE) for key, value in data.where.items()}
    return data


def table(rows: list[dict[str, Any]]) -> str:
    """A row per path."""
    lines = [
        f"{BATCH} responses padded to {LENGTH:,} tokens, float32; counted with PyTorch {torch.__version__}. Regenerate: `make bench`.",
        "",
        "| path | launches | of them on tokens | bytes, of the least | reads that wait |",
        "|---|---:|---:|---:|---:|",
        *map(_row, rows),
    ]
    versions = sorted({row["version"] for row in rows}, key=str.lower)
    return "\n".join([*lines, "", f"Versions: {', '.join(versions)}.", ""])


def _row(row: dict[str, Any]) -> str:
    return f"| {row['title']} | {row['launches']} | {row['on_tokens']} | {row['moved']:.1f} | {row['reads']} |"


def main() -> None:
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        print(json.dumps(measure(json.loads(sys.argv[1]))))
        return
    import loss

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for launches.md")
    parser.add_argument("--trainers", nargs="*", metavar="NAME[@VERSION]", help="default: all that are set up")
    options = parser.parse_args()
    rows = []
    with loss.peers_of(options.trainers) as peers:
        for peer in peers:
            paths = [name for name in peer.paths if name in _OURS] if peer is peers[0] else peer.paths[-1:]
            task = {"paths": paths, "batch": BATCH, "length": LENGTH, "packed": False}
            found = loss.child(peer, task, __file__)
            if "error" in found:
                raise SystemExit(f"{peer.paths}: {found['error']}")
            for name, row in found.items():
                rows.append(row | {"title": peer.title or loss.TITLES[name]})
                print(rows[-1], flush=True)
    if options.out is not None:
        (options.out / "launches.md").write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
