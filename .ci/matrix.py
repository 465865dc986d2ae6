"""The wheel against the oldest and newest supported packages, with every supported Python that is here: `make matrix`.

Each row is a fresh environment in a temporary folder, outside the checkout: the wheel, NumPy and array-api-compat of that age, then
the core's fast tests and the suite on NumPy. `--frameworks` adds rows with PyTorch and JAX, which are large.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MINORS = (11, 12, 13, 14)
NUMPY = {11: "2.0.0", 12: "2.0.0", 13: "2.1.0", 14: "2.3.3"}  # the first with wheels for that Python
OLDEST = {"array-api-compat": "1.11", "array-api-strict": "2.3.1", "jsonschema": "4.20", "mpmath": "1.3.0"}
FRAMEWORKS = {"torch": ("2.7.0", "2.15.0"), "jax": ("0.10.0", "0.10.2")}
FAST = ("test_validation.py", "test_objective.py", "test_signatures.py")
AREAS = ("ratio", "surrogate", "aggregation", "advantage", "penalty", "packing", "mask")
COMPILED = ("mask", "packing")  # of PyTorch, whose compiler takes another part of Python in every release


class Row(NamedTuple):
    """A Python, which ages, the packages that are pinned, the target that is checked."""

    python: Path
    minor: int
    age: str
    pins: tuple[str, ...]
    target: str = "numpy"


def pythons() -> dict[int, Path]:
    """A working interpreter of each minor version, from PATH or ~/.pyenv."""
    found: dict[int, Path] = {}
    for minor in MINORS:
        candidates = [
            shutil.which(f"python3.{minor}") or "",
            *Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"),
        ]
        for candidate in filter(None, candidates):
            code = "import sys; print(sys.version_info[1])"
            done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
            if done.returncode == 0 and done.stdout.strip() == str(minor):
                found[minor] = Path(candidate)
                break
    return found


def rows(*, frameworks: bool) -> Iterator[Row]:
    """Every Python with the oldest and the newest packages; each framework with the newest Python that it knows."""
    found = pythons()
    for minor, python in found.items():
        oldest = (f"numpy=={NUMPY[minor]}", *(f"{name}=={version}" for name, version in OLDEST.items()))
        yield Row(python, minor, "oldest", oldest)
        yield Row(python, minor, "newest", ("numpy", *OLDEST))
    minor = min(found)
    for name, versions in FRAMEWORKS.items() if frameworks else ():
        for version in versions:
            yield Row(found[minor], minor, f"{name} {version}", ("numpy", f"{name}=={version}"), name)


def tried(row: Row, wheel: Path, folder: Path) -> tuple[str, str]:
    """The verdict on one row, and the versions that were installed or the end of what went wrong."""
    python = folder / "venv" / "bin" / "python"
    tests = shutil.copytree(ROOT / "gspo_core" / "tests", folder / "checks")
    steps = [
        [str(row.python), "-m", "venv", str(folder / "venv")],
        [str(python), "-m", "pip", "install", "-q", f"{wheel}[conformance]", "pytest", "mpmath<1.4", *row.pins],
        [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib",
         *(str(tests / name) for name in FAST if row.target == "numpy")],
        _check(python, row.target, AREAS),
        *([_check(python, "torch:compile", COMPILED)] if row.target == "torch" else []),
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    for step in steps[:2] + steps[2 + (row.target != "numpy") :]:
        done = subprocess.run(step, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return "FAILS", " ".join((done.stdout + done.stderr).split())[-300:]
    code = "from importlib.metadata import version as v; print('numpy', v('numpy'), 'compat', v('array-api-compat'))"
    return "passes", subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _check(python: Path, target: str, areas: tuple[str, ...]) -> list[str]:
    globs = (word for area in areas for word in ("-k", area))
    return [str(python), "-m", "gspo_conformance.cli", "check", target, "--jobs", "1", *globs]


def _show(line: tuple[str, ...]) -> None:
    sys.stdout.write("  ".join(f"{cell:<14}" if at < 4 else cell for at, cell in enumerate(line)) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Builds the wheel, tries every row, prints a line for each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frameworks", action="store_true", help="PyTorch and JAX too, oldest and newest")
    options = parser.parse_args()
    table: list[tuple[str, ...]] = []
    _show(("python", "packages", "verdict", "took", "versions"))
    with tempfile.TemporaryDirectory() as place:
        subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", place, str(ROOT)],
                       check=True, stdout=subprocess.DEVNULL)  # fmt: skip
        (wheel,) = Path(place).glob("*.whl")
        for i, row in enumerate(rows(frameworks=options.frameworks)):
            folder = Path(place) / f"row-{i}"
            folder.mkdir()
            begin = time.monotonic()
            verdict, told = tried(row, wheel, folder)
            table.append((f"3.{row.minor}", row.age, verdict, f"{time.monotonic() - begin:.0f} s", told))
            _show(table[-1])
            shutil.rmtree(folder)
    missing = [f"3.{minor}" for minor in MINORS if f"3.{minor}" not in {line[0] for line in table}]
    sys.stdout.write(f"not here, so not tried: Python {', '.join(missing)}\n" if missing else "")
    return int(any(line[2] != "passes" for line in table))


if __name__ == "__main__":
    sys.exit(main())
