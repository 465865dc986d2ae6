"""Isolated environments for trainers: a virtual environment per trainer and version, pinned, never this process's own.

They live in `$GSPO_TRAINERS`, or `~/.cache/gspo/trainers`. The suite itself is linked into them, not
installed, so that a run always speaks to the suite that started it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..words import HarnessError, UsageError
from .room import Choice, Room, Version

PACKAGES = ("gspo_core", "gspo_conformance")
NEEDED = "numpy array-api-compat"
FIXED = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
INSIDE = Path("Scripts/python.exe") if os.name == "nt" else Path("bin/python")


def home() -> Path:
    """Where the environments are."""
    named = os.environ.get("GSPO_TRAINERS")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "gspo" / "trainers"


@dataclass(frozen=True)
class Environment:
    """The environment of one version of one trainer."""

    room: Room
    version: Version

    @property
    def folder(self) -> Path:
        """Its place on disk."""
        return home() / f"{self.room.name}-{self.version.name}"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / INSIDE

    @property
    def record(self) -> Mapping[str, str]:
        """What `set_up` wrote down; empty where the environment is missing, unfinished or of other requirements."""
        try:
            record = json.loads((self.folder / "gspo.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if record.get("install") == list(self.version.install) else {}

    @property
    def ready(self) -> bool:
        """Whether `gspo check` can use it."""
        return bool(self.record)

    @property
    def other(self) -> str:
        """What the checkout holds where that is not the commit of this version: `1a2b3c4d`, `8eb27cc2, changed`."""
        source = Path(self.record.get("source") or "/")
        top, _, head = _git(source, "rev-parse", "--show-toplevel", "HEAD").partition("\n")
        if Path(top) != source:
            return ""
        changed = bool(_git(source, "status", "--porcelain", "--untracked-files=no", "--", "*.py"))
        return "" if head == self.version.commit and not changed else head[:8] + ", changed" * changed

    def set_up(self, say: Callable[[str], None], source: Path | None = None, *, force: bool = False) -> None:
        """Makes it, step by step; `say` hears of each. A failed step leaves no environment that looks ready."""
        source = _checked_source(self.room, self.version, source)
        if force and self.folder.exists():
            shutil.rmtree(self.folder)
        if not self.ready:
            self._install(say)
        record = {"install": list(self.version.install), "source": str(source or "")}
        (self.folder / "gspo.json").write_text(json.dumps(record), encoding="utf-8")

    def command(self, attribute: str) -> list[str]:
        """The program that serves one of its targets; a checkout in the working directory (`-P`) is not this version."""
        return [str(self.python), "-P", "-m", "gspo_conformance.serve", attribute]

    def variables(self) -> dict[str, str]:
        """The environment variables of that program: the suite on its path, the checkout, no accelerator."""
        link = self.folder / "suite"
        _link_suite(link)
        chosen = {"GSPO_SOURCE": self.record.get("source", ""), "GSPO_VERSION": self.version.name}
        return {"PYTHONPATH": str(link), "GSPO_OTHER": self.other, **chosen, **FIXED}

    def _install(self, say: Callable[[str], None]) -> None:
        steps = [*self.version.install, NEEDED]
        say(f"{self.room.name} {self.version.name}: an environment in {self.folder}")
        _run([sys.executable, "-m", "venv", "--clear", str(self.folder)])
        for number, step in enumerate(steps, 1):
            say(f"[{number}/{len(steps)}] pip install {step}")
            _run([str(self.python), "-m", "pip", "install", "--quiet", *shlex.split(step)])


@dataclass(frozen=True)
class OwnEnvironment(Environment):
    """An environment that the user made, with a fork, a branch or another release of the trainer in it."""

    own: Path

    @property
    def python(self) -> Path:
        """The interpreter itself, or that of the virtual environment."""
        return self.own / INSIDE if self.own.is_dir() else self.own

    def command(self, attribute: str) -> list[str]:
        """The same, where the working directory counts as it does to the user's Python."""
        return [part for part in super().command(attribute) if part != "-P"]

    def variables(self) -> dict[str, str]:
        """As ever, in front of the user's own path; array-api-compat comes along, so that nothing has to be installed."""
        link = home() / "suite"
        _link_suite(link, (*PACKAGES, "array_api_compat"))
        path = os.pathsep.join(filter(None, (str(link), os.environ.get("PYTHONPATH"))))
        return {"PYTHONPATH": path, "GSPO_VERSION": self.version.name, **FIXED}

    def check(self, spec: str) -> None:
        """Raises where this is no Python that the suite runs in."""
        code = "import sys; print(*sys.version_info[:2]); import numpy"
        try:
            done = subprocess.run([str(self.python), "-c", code], capture_output=True, text=True, check=False)
        except OSError as error:
            raise UsageError(
                f"target {spec!r}: expected a Python or the folder of a virtual environment after @, got {self.own}: {error.strerror}"
            ) from error
        version = tuple(map(int, done.stdout.split()))
        if version and version < (3, 11):
            raise UsageError(f"target {spec!r}: expected Python 3.11 or newer, got {version[0]}.{version[1]}")
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise UsageError(f"target {spec!r}: {self.python} cannot run the suite: {last}")


def environment_of(choice: Choice, spec: str = "") -> Environment:
    """The environment of a choice; an error that says how to make it where it is missing."""
    if choice.python is not None:
        own = OwnEnvironment(choice.room, choice.version, choice.python)
        own.check(spec)
        return own
    found = Environment(choice.room, choice.version)
    if not found.ready:
        name = f"{choice.room.name}@{choice.version.name}"
        raise UsageError(f"trainer {name} is not set up: run `gspo trainers setup {name}` first")
    return found


def expected(choice: Choice) -> Path | None:
    """The file of its expected failures; of code that is not that version's nothing is expected."""
    own = choice.python is not None or Environment(choice.room, choice.version).other
    return None if own else choice.room.known(choice.version.name, choice.variant)


def _git(folder: Path, *words: str) -> str:
    """What git says of a folder; nothing where there is no git, or no checkout."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return "" if done.returncode else done.stdout.strip()


def _checked_source(room: Room, version: Version, source: Path | None) -> Path | None:
    address = version.source or room.source
    if address and source is None:
        commit = f" at {version.commit}" if version.commit else ""
        raise UsageError(
            f"trainer {room.name}@{version.name} is not a package: check out {address}{commit} and name the folder with --source"
        )
    if source is not None and not address:
        raise UsageError(
            f"--source {source}: {room.name} {version.name} is installed as a package; for code of your own install that into "
            f"an environment, and check it there: gspo check {room.name}@path/to/environment"
        )
    if source is not None and not source.is_dir():
        raise UsageError(f"--source {source}: no such folder")
    return source.resolve() if source is not None else None


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-12:])
        raise HarnessError(f"{shlex.join(command[:6])} ... failed with exit code {done.returncode}\n{tail}")


def _link_suite(folder: Path, names: Sequence[str] = PACKAGES) -> None:
    """A folder with nothing but these packages in it, so that no other package of this process leaks in."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        package, link = Path(spec.origin).parent, folder / name
        if link.is_symlink() and link.resolve() != package.resolve():
            link.unlink()
        if not link.exists():
            link.symlink_to(package, target_is_directory=True)
