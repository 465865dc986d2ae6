"""How long `import gspo_core` and `gspo --help` take: processor time, the best of several fresh interpreters.

Processor time, because these commands wait for nothing, and because it is the same on a machine that has other work.

python backends/benchmarks/start_up.py            # prints; exit code 1 beyond the limits below
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

RUNS = 15
LIMITS = {"import gspo_core": 0.050, "gspo --help": 0.300}
CODE = {
    "nothing": "pass",
    "import gspo_core": "import gspo_core",
    "gspo --help": "from gspo_conformance.cli import main; main(['--help'])",
}


def best(code: str, environment: dict[str, str]) -> float:
    """Seconds of processor time, the least of `RUNS`."""
    found = []
    for _ in range(RUNS):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, env=environment)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(f"{code}: exit code {process.returncode}")
        found.append(used.ru_utime + used.ru_stime)
    return min(found)


def main() -> int:
    """Prints a line for each, what Python itself takes subtracted from the import alone."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        taken = {name: best(code, plain | {"PYTHONPYCACHEPREFIX": folder}) for name, code in CODE.items()}
    bare = taken.pop("nothing")
    found = taken | {"import gspo_core": taken["import gspo_core"] - bare}
    sys.stdout.write(f"python itself      {1e3 * bare:6.1f} ms\n")
    for name, seconds in found.items():
        sys.stdout.write(f"{name:18} {1e3 * seconds:6.1f} ms, limit {1e3 * LIMITS[name]:.0f}\n")
    return int(any(found[name] > LIMITS[name] for name in LIMITS))


if __name__ == "__main__":
    sys.exit(main())
