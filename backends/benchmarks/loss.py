"""From log-probabilities to the GSPO loss and its gradient: the closed form beside autograd and the trainers' own losses.

    gspo trainers setup verl trl openrlhf ...
    python backends/benchmarks/loss.py --out docs/benchmarks --trainers verl trl openrlhf ...

Each trainer's real function runs in its own environment (`gspo trainers`), on settings that mean the paper's loss,
or, where it has none, the one of token means. In a fresh process per trainer and size all paths take turns, so that
what slows the machine slows them alike; ratios are of processor time, round by round. Every path must give the same
gradient, or the run fails. `stream` is the time in which the machine copies the bytes that a loss has to move: two
log-probabilities and a mask in, a gradient out.
"""

from __future__ import annotations

import argparse
import contextlib
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
from loss_paths import BYTES
from ratios import ratios

from gspo_conformance.trainers.dialect import Inexpressible
from gspo_conformance.trainers.environment import Environment, environment_of
from gspo_conformance.trainers.room import choose, rooms
from gspo_core import Aggregation, Objective

ROOT = Path(__file__).resolve().parents[2]
OURS = ("gspo_torch", "compiled", "autograd")
# A copy moves 8 bytes per token.
STREAM = BYTES / 8
TITLES = {
    "gspo_torch": "`gspo_torch.policy_loss`",
    "compiled": "the same, `torch.compile`",
    "autograd": "`gspo_core.policy_loss`, autograd",
    "verl_function": "verl `compute_policy_loss_gspo` alone",
    "verl": "verl `ppo_loss`",
    "trl": "TRL `_compute_loss`",
    "roll": "ROLL `loss_func`",
    "areal": "AReaL `ppo_actor_loss_fn`",
    "openrlhf": "OpenRLHF `PolicyLoss`",
    "ms_swift": "ms-swift `_compute_loss_and_metrics`",
    "skyrl": "SkyRL `_forward_backward_micro`",
    "slime": "slime `loss_function`",
    "nemo_rl": "NeMo-RL `ClippedPGLossFn`",
    "unsloth": "Unsloth `grpo_compute_loss`, uncompiled",
    "stream": "copying the bytes",
}
Row = dict[str, Any]


class Size(NamedTuple):
    batch: int
    length: int
    packed: bool = False


SIZES = (
    Size(64, 4096),
    Size(8, 32_768),
    Size(256, 16_384),
    Size(64, 4096, packed=True),
    Size(8, 32_768, packed=True),
)
QUICK = (Size(4, 64), Size(4, 64, packed=True))
# The trainers whose loss takes responses one behind the other.
PACKS = {"areal", "slime", "miles"}
# Liger begins at hidden states, which `linear.py` measures. ART and PipelineRL lay their tokens out on the way, by the adapter.
ELSEWHERE = {"liger", "art", "pipelinerl"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for loss.json, loss.md and loss.svg")
    parser.add_argument(
        "--trainers", nargs="*", metavar="NAME[@VERSION]", help="default: all that are set up, on PyTorch"
    )
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one tiny size, to see that it runs")
    options = parser.parse_args()
    rows: list[Row] = []
    with peers_of(options.trainers) as peers:
        for size in QUICK if options.quick else SIZES:
            for peer in peers:
                if not size.packed or peer is peers[0] or peer.paths[-1] in PACKS:
                    rows += _measure(size, peer, options)
    if options.out is not None:
        import loss_report

        titles = TITLES | {peer.paths[-1]: peer.title for peer in peers if peer.paths[-1] not in TITLES}
        loss_report.write(options.out, {"machine": _machine(options), "rows": rows}, titles)


class Peer(NamedTuple):
    """What runs in one process: `paths`, ours first, on one objective."""

    python: str
    paths: tuple[str, ...]
    title: str
    objective: dict[str, Any]
    settings: dict[str, Any]
    variables: dict[str, str]


@contextlib.contextmanager
def peers_of(names: list[str] | None) -> Iterator[list[Peer]]:
    """Ours alone, then each trainer beside ours, as long as what they import is there."""
    with tempfile.TemporaryDirectory() as folder:
        # Trainers need this one dependency of ours, and nothing else from this environment.
        (Path(folder) / "array_api_compat").symlink_to(Path(array_api_compat.__file__).parent)
        yield _peers(names, folder)


def _peers(names: list[str] | None, folder: str) -> list[Peer]:
    packages = [str(ROOT), str(ROOT / "backends"), str(ROOT / "conformance"), folder]
    paths = {"PYTHONPATH": os.pathsep.join(packages)}
    found = [Peer(sys.executable, OURS, "", Objective.gspo().to_dict(), {}, paths)]
    for choice in map(choose, _set_up() if names is None else names):
        room, environment = choice.room, environment_of(choice)
        objective, settings = _faithful(room.dialect, choice.version.name)
        title = TITLES.get(room.name, room.title) + ("" if objective == found[0].objective else ", token means")
        runs = ("verl_function", "verl") if room.name == "verl" else (room.name,)
        variables = environment.variables() | paths
        found.append(Peer(str(environment.python), ("gspo_torch", *runs), title, objective, settings, variables))
    return found


def _set_up() -> list[str]:
    """Every trainer on PyTorch whose newest environment is there."""
    every = [room for room in rooms().values() if room.framework == "torch" and room.name not in ELSEWHERE]
    return [room.name for room in every if Environment(room, room.versions[room.default]).ready]


def _faithful(dialect: Any, version: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The paper's objective, or else that of token means, and the settings that mean it."""
    token_means = Objective.gspo().replace(aggregation=Aggregation("token_mean"))
    for objective in (Objective.gspo(), token_means):
        with contextlib.suppress(Inexpressible):
            return objective.to_dict(), dialect.write(objective.to_dict(), version)
    raise SystemExit(f"{dialect.name}: it has neither the paper's loss nor that of token means")


def _measure(size: Size, peer: Peer, options: argparse.Namespace) -> list[Row]:
    rounds = max(5, options.rounds * min(1, 4 * 64 * 4096 // (size.batch * size.length)))
    task = {"paths": peer.paths, **size._asdict(), "rounds": rounds, "threads": options.threads}
    found = child(peer, task, str(Path(__file__).with_name("loss_paths.py")))
    if "error" in found:
        raise SystemExit(f"{peer.paths} at {size}: {found['error']}")
    rows = []
    for name, pairs in found["seconds"].items():
        factor = STREAM if name == "stream" else 1
        processor, wall = ([factor * pair[clock] for pair in pairs] for clock in (0, 1))
        own = [pair[0] for pair in found["seconds"]["gspo_torch"]]
        row = {"path": name, **size._asdict(), "beside": peer.paths[-1], "version": found["versions"].get(name)}
        row |= {"least": min(processor), "median": statistics.median(processor), "wall": min(wall), "rounds": rounds}
        row |= ratios(processor, own)
        print(_line(row), flush=True)
        rows.append(row)
    return rows


def _line(row: Row) -> str:
    low, high = row["quartiles"]
    return (
        f"B={row['batch']:>4} T={row['length']:>6} {'packed' if row['packed'] else 'padded'} {row['path']:10s} beside {row['beside']:8s} processor {1e3 * row['least']:8.3f} ms, "
        f"median {1e3 * row['median']:8.3f} ms; {row['ratio']:5.2f} times ours ({low:.2f} to {high:.2f}); wall {1e3 * row['wall']:8.3f} ms"
    )


def child(peer: Peer, task: dict[str, Any], script: str) -> dict[str, Any]:
    """What `script` prints of `task` on the objective of `peer`, in its environment."""
    task = task | {"objective": peer.objective, "settings": peer.settings}
    command = [peer.python, script, json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | peer.variables)
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
