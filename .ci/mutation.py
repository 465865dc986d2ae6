"""Mutation testing of gspo_core: every small change of its code, and whether a test or a golden vector notices.

    make mutation                                   # all of it, about an hour on one core, the first time
    make mutation MUTATION='--module ratio'         # one module
    make mutation MUTATION='--table'                # the table of docs/mutation.md from what has been tried

The operators are mutmut's (.ci/mutants.py); they run in forks (.ci/trials.py). Nothing in the checkout is changed. A killed mutant is not
tried again (but with --all); those that survived are, with the tests of today. Results: .mutation/results.jsonl, the last line of a mutant counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CORE, CACHE = ROOT / "gspo_core", ROOT / ".mutation"
TOOL = ("mutmut==3.8.1", "libcst==1.9.0")
RESULTS = CACHE / "results.jsonl"
VERDICTS = ("survived", "killed", "again")
Mutant = dict[str, Any]


def mutants(modules: Iterable[Path]) -> list[Mutant]:
    """The mutants of some modules, each with a key that outlives changes elsewhere in its file."""
    tool = CACHE / "tool"
    if not (tool / "mutmut").exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tool), *TOOL]
        subprocess.run(pip, check=True)
    found: list[Mutant] = []
    for module in modules:
        digest = sha256(module.read_bytes() + (ROOT / ".ci" / "mutants.py").read_bytes()).hexdigest()[:16]
        listing = CACHE / f"{module.stem}-{digest}.jsonl"
        if not listing.exists():
            command = [sys.executable, str(ROOT / ".ci" / "mutants.py"), str(module)]
            done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tool)}, check=True, stdout=-1)
            listing.write_bytes(done.stdout)
        found += _keyed([json.loads(line) for line in listing.read_text().splitlines()], module)
    return found


def _keyed(listed: list[Mutant], module: Path) -> list[Mutant]:
    lines, seen = module.read_text().splitlines(), Counter[str]()
    for mutant in listed:
        text = [mutant[name] for name in ("module", "function", "before", "after")]
        digest = sha256("\0".join([*text, lines[mutant["line"] - 1]]).encode()).hexdigest()[:20]
        seen[digest] += 1
        mutant["key"] = f"{digest}-{seen[digest]}"
    return listed


def results() -> dict[str, Mutant]:
    """What became of each mutant that was tried, by key."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {one["key"]: one for one in map(json.loads, lines)}


class Keeper:
    """Writes every verdict down at once, and says how far it is."""

    def __init__(self, total: int, label: str) -> None:
        self.total, self.label, self.begin, self.told = total, label, time.monotonic(), 0.0
        self.seen = Counter[str]()

    def __call__(self, mutant: Mutant, code: int, check: str, seconds: float) -> None:
        """One verdict."""
        verdict = VERDICTS[code]
        self.seen[verdict] += 1
        fields = {name: mutant[name] for name in ("key", "module", "function", "line", "before", "after")}
        by = {"by": check} if verdict == "killed" else {}
        with RESULTS.open("a") as file:
            file.write(json.dumps(fields | {"verdict": verdict, **by, "seconds": round(seconds, 2)}) + "\n")
        done, now = self.seen.total(), time.monotonic()
        if now > self.told + 5 or done == self.total:
            self.told = now
            left = (now - self.begin) / done * (self.total - done)
            counts = ", ".join(f"{number} {verdict}" for verdict, number in self.seen.items())
            sys.stderr.write(f"{self.label}: {done} of {self.total}, {counts}, {left / 60:.0f} min left\n")


def run(pending: list[Mutant], jobs: int) -> None:
    """Tries mutants, first of functions that can be exchanged while everything is loaded, then the others."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.path[:0] = [str(ROOT), str(ROOT / "backends"), str(ROOT / "conformance"), str(ROOT / ".ci")]
    import trials

    _load_others()
    sources = {path.stem: path.read_bytes() for path in CORE.glob("*.py")}

    def source(mutant: Mutant) -> bytes:
        text, start = sources[mutant["module"]], mutant["start"]
        return text[:start] + mutant["after"].encode() + text[start + mutant["length"] :]

    support = [path for path in CORE.glob("tests/*.py") if not path.name.startswith("test_")]
    text = b"".join(path.read_bytes() for path in (*sorted(CORE.glob("*.py")), *sorted(support)))
    cache = CACHE / f"checks-{sha256(text).hexdigest()[:16]}.json"
    keeper = Keeper(len(pending), "functions")
    if os.fork() == 0:
        import pytest

        warm = trials.Warm([(mutant, source(mutant)) for mutant in pending], cache, jobs, keeper)
        os._exit(int(pytest.main([*trials.PYTEST, str(CORE)], plugins=[warm])))
    if os.waitstatus_to_exitcode(os.wait()[1]):
        sys.exit("the tests could not be collected")
    known = results()
    again = [mutant for mutant in pending if known[mutant["key"]]["verdict"] == "again"]
    seconds = {name: one["seconds"] for name, one in json.loads(cache.read_text()).items() if one["passes"]}
    keeper = Keeper(len(again), "what runs at import")
    controls = [
        trials.fresh({"module": name}, sources[name], seconds) for name in sorted({one["module"] for one in again})
    ]
    for control, code, check, _ in trials.forked(controls, jobs):
        if code != trials.SURVIVED:
            sys.exit(f"{control['module']}: expected every check to pass without a mutant, got a failure of {check}")
    for verdict in trials.forked((trials.fresh(one, source(one), seconds) for one in again), jobs):
        keeper(*verdict)


def _load_others() -> None:
    """Imports what the tests import and this repository does not own, and sees that they choose the same cases every time."""
    import array_api_strict  # noqa: F401
    import hypothesis
    import jsonschema  # noqa: F401
    import mpmath  # noqa: F401
    import numpy  # noqa: F401
    import torch

    torch.set_num_threads(1)
    phases = [phase for phase in hypothesis.Phase if phase.name not in ("shrink", "explain")]
    hypothesis.settings.register_profile("mutation", derandomize=True, database=None, deadline=None, phases=phases)
    hypothesis.settings.load_profile("mutation")


def table(listed: list[Mutant]) -> str:
    """The table of docs/mutation.md, and the percentage of all."""
    known = results()
    rows = []
    for module in [*dict.fromkeys(mutant["module"] for mutant in listed), "all"]:
        tried = [known.get(one["key"], {}) for one in listed if module in (one["module"], "all")]
        killed = [one for one in tried if one.get("verdict") == "killed"]
        suite = sum(one["by"].startswith("vector:") for one in killed)
        alive = len(tried) - len(killed)
        rows.append((module, len(tried), len(killed) - suite, suite, alive, f"{100 * len(killed) / len(tried):.1f} %"))
    head = [
        "| module | mutants | killed by its tests | by the suite alone | survivors | killed |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    return "\n".join([*head, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def survivors(listed: list[Mutant]) -> str:
    """The mutants that live, a line each."""
    known, lines = results(), []
    for mutant in listed:
        verdict = known.get(mutant["key"], {}).get("verdict", "not tried")
        if verdict != "killed":
            change = " => ".join(" ".join(mutant[side].split())[:100] for side in ("before", "after"))
            lines.append(f"{mutant['module']}.py:{mutant['line']} {mutant['function']}: {change} ({verdict})")
    return "\n".join(lines)


def main() -> int:
    """Tries what has not been killed, prints the survivors and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--module", action="append", metavar="NAME", help="only this module, such as ratio; may be repeated"
    )
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time (1)")
    parser.add_argument("--all", action="store_true", help="try again what was killed before")
    parser.add_argument("--table", action="store_true", help="try nothing")
    options = parser.parse_args()
    CACHE.mkdir(exist_ok=True)
    modules = [path for path in sorted(CORE.glob("*.py")) if path.stem in (options.module or [path.stem])]
    listed = mutants(modules)
    known = {} if options.all else results()
    pending = [mutant for mutant in listed if known.get(mutant["key"], {}).get("verdict") != "killed"]
    pending.sort(key=lambda mutant: mutant["key"] in known)  # what was never tried comes first
    if pending and not options.table:
        run(pending, options.jobs)
    sys.stdout.write(f"{survivors(listed)}\n\n{table(listed)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
