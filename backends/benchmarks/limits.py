"""What has a budget, measured against it: start-up, advantages of millions of responses, whole runs of the suite.

    python backends/benchmarks/limits.py --out docs/benchmarks            # exit code 1 where a budget is exceeded

Every line is a fresh interpreter; seconds are of processor time, the least of several runs (two, where it takes
seconds: the first writes bytecode), because these commands wait for nothing; wall time and peak memory stand beside
them. What Python itself takes to start is taken off the first line alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ADVANTAGES = """
import numpy as np, resource, time, gspo_core
random = np.random.default_rng(0)
rewards, groups = random.random({count}), np.repeat(np.arange({count} // 16), 16)
groups = random.permutation(groups) if {shuffled} else groups
begin = time.process_time(), time.perf_counter()
gspo_core.group_advantages(rewards, groups)
print(time.process_time() - begin[0], time.perf_counter() - begin[1])
"""


class Line(NamedTuple):
    """What is run, how often, and its budgets: processor seconds, wall seconds, MB; None for no budget."""

    title: str
    code: str
    runs: int = 2
    processor: float | None = None
    wall: float | None = None
    memory: float | None = None
    says_its_time: bool = False


def lines() -> list[Line]:
    """Start-up, advantages, the suite."""
    command = "from gspo_conformance.cli import main; raise SystemExit(main({!r}))"
    found = [
        Line("`import gspo_core`", "import gspo_core", 15, processor=0.050),
        Line("`gspo --help`", command.format(["--help"]), 15, processor=0.300),
    ]
    for count, budget in ((10**6, 1.0), (10**7, 20.0)):
        for shuffled in (False, True):
            title = f"advantages of {count:,} responses in groups of 16, {'shuffled' if shuffled else 'side by side'}"
            code = ADVANTAGES.format(count=count, shuffled=shuffled)
            found.append(Line(title, code, 3, processor=budget, says_its_time=True))
    for target, budget, memory in (("numpy", 10.0, 500), ("torch", 20.0, 500), ("jax", 60.0, 500)):
        found.append(Line(f"`gspo check {target}`", command.format(["check", target]), wall=budget, memory=memory))
    return found


class Found(NamedTuple):
    """The least of the runs: seconds of the processor and of the clock, and MB of the largest process."""

    processor: float
    wall: float
    memory: float


def measured(line: Line, environment: dict[str, str]) -> Found:
    """The least over the runs of a line."""
    every = []
    for _ in range(line.runs):
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", line.code],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        assert process.stdout is not None
        told = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(f"{line.title}: exit code {process.returncode}\n{told}")
        seconds = (used.ru_utime + used.ru_stime, time.perf_counter() - begin)
        if line.says_its_time:
            seconds = tuple(map(float, told.split()))
        every.append(Found(*seconds, _peak(used)))
    return Found(*map(min, zip(*every, strict=True)))


def _peak(used: resource.struct_rusage) -> float:
    return used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> int:
    """Prints the table, a line as soon as it is known, and says whether a budget is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for limits.md")
    options = parser.parse_args()
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    rows = ["| what | processor, s | wall, s | memory, MB | budget |", "|---|---:|---:|---:|---|"]
    sys.stdout.write("\n".join(rows) + "\n")
    exceeded = []
    with tempfile.TemporaryDirectory() as folder:
        environment = plain | {"PYTHONPYCACHEPREFIX": folder}
        bare = measured(Line("python", "pass", 15), environment)
        for line in lines():
            found = measured(line, environment)
            if line.title == "`import gspo_core`":
                found = Found(found.processor - bare.processor, found.wall - bare.wall, found.memory)
            budgets = zip(found, (line.processor, line.wall, line.memory), strict=True)
            exceeded += [line.title for value, budget in budgets if budget is not None and value > budget]
            rows.append(_row(line, found))
            sys.stdout.write(rows[-1] + "\n")
            sys.stdout.flush()
    if options.out is not None:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; load average {os.getloadavg()[0]:.1f} at the end."
        (options.out / "limits.md").write_text("\n".join([machine, "", *rows, ""]), encoding="utf-8")
    for title in exceeded:
        sys.stdout.write(f"exceeds its budget: {title}\n")
    return int(bool(exceeded))


def _row(line: Line, found: Found) -> str:
    units = (("s of the processor", line.processor), ("s", line.wall), ("MB", line.memory))
    budget = ", ".join(f"{value:g} {unit}" for unit, value in units if value is not None)
    return f"| {line.title} | {found.processor:.3f} | {found.wall:.3f} | {found.memory:.0f} | {budget} |"


if __name__ == "__main__":
    sys.exit(main())
