"""From hidden states to loss and gradients: peak memory and time of the fused loss beside naive logits, TRL and Liger.

    python backends/benchmarks/linear.py --out docs/benchmarks --peers /path/to/python

Every measurement is a process of its own. Memory is the highest resident size above the inputs while
loss and gradients are computed once; the gradients themselves are in it, and are also listed apart.
Times are the best and the spread over rounds in which the paths take turns. `--peers` names a Python
with `trl==1.16.0`, `liger-kernel==0.8.5` (installed with --no-deps) and the same torch. Every path
must give the same loss and gradients, or the run fails.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import linear_paths

# How many times the logits a path holds at its peak, about. What would not fit is listed as not run.
COPIES = {"naive": 3, "trl logits": 3}
MEMORY = 10 << 30


class Size(NamedTuple):
    """A batch of `batch` responses of `length` tokens, and a head."""

    batch: int
    length: int
    vocabulary: int
    width: int
    clipped: float = 0.0


SIZES = (
    Size(2, 512, 32_000, 512),
    Size(2, 2048, 32_000, 512),
    Size(2, 4096, 32_000, 512),
    Size(1, 32_768, 32_000, 512),
    Size(2, 512, 151_936, 256),
    Size(2, 2048, 151_936, 256),
    Size(1, 8192, 151_936, 256),
)
# A tenth of the responses clipped: what fits a chunk, and what does not.
CLIPPED = (Size(10, 256, 32_000, 512, 0.1),)
QUICK = (Size(2, 64, 1000, 32), Size(2, 128, 1000, 32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for linear.json, linear.md and linear.svg")
    parser.add_argument("--peers", help="a Python interpreter with TRL and Liger")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="*", help="of the sizes, only those of these lengths")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of each measurement; all cores by default")
    parser.add_argument("--quick", action="store_true", help="two tiny sizes, to see that it runs")
    parser.add_argument("--only", nargs="*", help="names of paths")
    options = parser.parse_args()
    interpreters = {"gspo": sys.executable, "peers": options.peers or sys.executable}
    paths = {name: room for name, room in linear_paths.ROOMS.items() if not options.only or name in options.only}
    paths = dict(_present(paths, interpreters))
    rows = []
    sizes = QUICK if options.quick else (*SIZES, *CLIPPED)
    for size in (size for size in sizes if not options.lengths or size.length in options.lengths):
        found = list(_measure_size(size, paths, interpreters, options))
        _check_agreement(size, found)
        rows += found
        if options.out is not None:
            import linear_report

            linear_report.write(options.out, {"machine": _machine(options), "rows": rows})


def _present(paths: dict[str, str], interpreters: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The paths whose libraries are there; a line for each that is not."""
    for name, room in paths.items():
        reply = _child(interpreters[room], {"path": name, "probe": True})
        if "error" in reply:
            print(f"{name}: not measured: {reply['error']}; name a Python that has it with --peers")
        else:
            yield name, room


def _measure_size(
    size: Size, paths: dict[str, str], interpreters: dict[str, str], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in paths}
    logits = 4 * size.batch * size.length * size.vocabulary
    for _ in range(options.rounds):
        for name, room in paths.items():
            if COPIES.get(name, 0) * logits > MEMORY:
                continue
            task = {"path": name, "size": size, "dtype": options.dtype, "device": options.device}
            task["threads"] = options.threads
            runs[name].append(_child(interpreters[room], task))
    for name, found in runs.items():
        row = _row(size, name, found)
        print(_line(row), flush=True)
        yield row


def _row(size: Size, name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"path": name, **size._asdict()}
    if not found:
        return row | {"not_run": f"it would hold more than {MEMORY >> 30} GiB"}
    for one in found:
        if "error" in one:
            raise SystemExit(f"{name} at {size}: {one['error']}")
    seconds = [one["seconds"] for one in found]
    return row | {
        "seconds": min(seconds),
        "slowest": max(seconds),
        "processor_seconds": min(one["processor_seconds"] for one in found),
        "peak_bytes": min(one["peak_bytes"] for one in found),
        "gradient_bytes": found[0]["gradient_bytes"],
        "loss": found[0]["loss"],
        "norms": found[0]["norms"],
        "version": found[0]["version"],
    }


def _line(row: dict[str, Any]) -> str:
    head = f"V={row['vocabulary']:>6} D={row['width']} B={row['batch']} T={row['length']:>5} {row['path']:22s}"
    if "not_run" in row:
        return f"{head} not run: {row['not_run']}"
    extra = row["peak_bytes"] - row["gradient_bytes"]
    return (
        f"{head} peak {row['peak_bytes'] / 2**20:7.0f} MiB, beyond gradients {extra / 2**20:7.0f} MiB, "
        f"{row['seconds']:7.2f} s (slowest {row['slowest']:.2f}), processor {row['processor_seconds']:.2f} s"
    )


def _check_agreement(size: Size, rows: list[dict[str, Any]]) -> None:
    """Loss and norms of gradients, against the first path that ran."""
    rows = [row for row in rows if "loss" in row and row["path"] != "products"]
    for row in rows[1:]:
        for mine, first in zip([row["loss"], *row["norms"]], [rows[0]["loss"], *rows[0]["norms"]], strict=True):
            if abs(mine - first) > 1e-3 * abs(first) + 1e-6:
                raise SystemExit(f"{row['path']} differs from {rows[0]['path']} at {size}: {mine!r} and {first!r}")


def _child(interpreter: str, task: dict[str, Any]) -> dict[str, Any]:
    script = Path(__file__).with_name("linear_paths.py")
    done = subprocess.run([interpreter, str(script), json.dumps(task)], capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    errors = done.stderr.strip().splitlines()
    return {"error": errors[-1] if errors else f"exit status {done.returncode}"}


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    import os

    import torch

    return {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else _processor(),
        "threads": options.threads or os.cpu_count(),
        "torch": torch.__version__,
        "dtype": options.dtype,
        "rounds": options.rounds,
        "load": os.getloadavg()[0],
    }


def _processor() -> str:
    """The processor's name where Linux tells it."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
