"""From log-probabilities to the GSPO loss and its gradient: the closed form beside autograd, verl and TRL.

    python backends/benchmarks/loss.py --out docs/benchmarks --peers /path/to/python ...

`--peers` names Pythons with `verl==0.9.1` (installed with --no-deps), `trl==1.16.0` and the same
torch. In a fresh process per peer and size all paths take turns, so that what slows the machine
slows them alike; ratios are of processor time, round by round. Every path must give the same gradient, or the
run fails. `stream` is the time in which the machine copies the bytes that a loss has to move: two
log-probabilities and a mask in, a gradient out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import array_api_compat
import torch

ROOT = Path(__file__).resolve().parents[2]
OURS = ("gspo_torch", "compiled", "autograd")
PEERS = ("verl", "trl")
# A copy moves 8 bytes per token; a loss 4 + 4 + 1 in and 4 out.
STREAM = 13 / 8
TITLES = {
    "gspo_torch": "`gspo_torch.policy_loss`",
    "compiled": "the same, `torch.compile`",
    "autograd": "`gspo_core.policy_loss`, autograd",
    "verl": "verl `compute_policy_loss_gspo`",
    "trl": "TRL `_compute_loss`, its metrics included",
    "stream": "copying the bytes",
}
Row = dict[str, Any]


class Size(NamedTuple):
    batch: int
    length: int


SIZES = (Size(64, 4096), Size(8, 32_768), Size(256, 16_384))
QUICK = (Size(4, 64),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for loss.json, loss.md and loss.svg")
    parser.add_argument("--peers", nargs="*", default=[], help="Python interpreters with verl or TRL")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one tiny size, to see that it runs")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        # Peers need this one dependency of ours, and nothing else from this environment.
        (Path(folder) / "array_api_compat").symlink_to(Path(array_api_compat.__file__).parent)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "backends"), folder])
        processes = list(_processes(options.peers))
        for size in QUICK if options.quick else SIZES:
            for interpreter, paths in processes:
                rows += _measure(size, interpreter, paths, options)
    if options.out is not None:
        import loss_report

        loss_report.write(options.out, {"machine": _machine(options), "rows": rows}, TITLES)


def _processes(peers: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each interpreter with the paths that it runs: ours, and what it has of the peers."""
    yield sys.executable, OURS
    found = set()
    for interpreter in peers:
        for peer in PEERS:
            if peer not in found and "error" not in _child(interpreter, {"probe": peer}):
                found.add(peer)
                yield interpreter, ("gspo_torch", peer)
    for peer in sorted(set(PEERS) - found):
        print(f"{peer}: not measured: name a Python that has it with --peers")


def _measure(size: Size, interpreter: str, paths: tuple[str, ...], options: argparse.Namespace) -> list[Row]:
    rounds = max(5, options.rounds * min(1, 4 * 64 * 4096 // (size.batch * size.length)))
    task = {"paths": paths, **size._asdict(), "rounds": rounds, "threads": options.threads}
    found = _child(interpreter, task)
    if "error" in found:
        raise SystemExit(f"{paths} at {size}: {found['error']}")
    rows = []
    for name, pairs in found["seconds"].items():
        factor = STREAM if name == "stream" else 1
        processor, wall = ([factor * pair[clock] for pair in pairs] for clock in (0, 1))
        own = [pair[0] for pair in found["seconds"]["gspo_torch"]]
        ratios = sorted(mine / ours for mine, ours in zip(processor, own, strict=True))
        quarter = len(ratios) // 4
        row = {"path": name, **size._asdict(), "beside": paths[-1], "version": found["versions"].get(name)}
        row |= {"least": min(processor), "median": statistics.median(processor), "wall": min(wall), "rounds": rounds}
        row |= {"ratio": statistics.median(ratios), "quartiles": [ratios[quarter], ratios[-1 - quarter]]}
        print(_line(row), flush=True)
        rows.append(row)
    return rows


def _line(row: Row) -> str:
    low, high = row["quartiles"]
    return (
        f"B={row['batch']:>4} T={row['length']:>6} {row['path']:10s} beside {row['beside']:8s} processor {1e3 * row['least']:8.3f} ms, "
        f"median {1e3 * row['median']:8.3f} ms; {row['ratio']:5.2f} times ours ({low:.2f} to {high:.2f}); wall {1e3 * row['wall']:8.3f} ms"
    )


def _child(interpreter: str, task: dict[str, Any]) -> dict[str, Any]:
    script = Path(__file__).with_name("loss_paths.py")
    done = subprocess.run([interpreter, str(script), json.dumps(task)], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.strip().splitlines()[-1])
    errors = done.stderr.strip().splitlines()
    return {"error": errors[-1] if errors else f"exit status {done.returncode}"}


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "device": platform.machine(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
