"""Tries mutants, each in a fork of a process that has everything loaded, so that most cost a tenth of a second.

`Warm`: the tests are collected once, unmutated; the fork gives the mutated function another code object, or the module other constants
and defaults, and runs the checks that enter it until one fails. `fresh`: what survives and runs at import is tried once more in a fork that
imports everything anew, with the mutant in the source.
A check is a test of gspo_core/tests (the example of a docstring is one), or a golden vector put to the core on NumPy.
"""

from __future__ import annotations

import functools
import gc
import inspect
import json
import mmap
import os
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple

import pytest
from _pytest.runner import runtestprotocol
from grafts import CORE, Finder, graft, outer, run, swap

VECTOR = "vector:"
SURVIVED, KILLED, AGAIN = 0, 1, 2
# The text, the build and the imports of the repository: no line of mathematics matters to them.
NOT_THESE = ("test_distribution.py", "test_walls.py", "test_specification.py", "test_public_names.py")
# JAX starts threads, which do not survive a fork; a program that a test starts is not mutated.
NOT_WITH = ("import jax", "subprocess")
# Long, and NumPy's numbers once more.
REPEATED = {"test_frameworks.py": ("[strict",), "test_advantages.py": ("[strict", "[torch")}
Mutant = dict[str, Any]


class Check(NamedTuple):
    """A test or a vector: its name, whether it passes now, its text, the CPU seconds that it takes, and the functions that it enters."""

    name: str
    passes: Callable[[], bool]
    stamp: str = ""
    seconds: float = 1.0
    enters: frozenset[str] = frozenset()


class Told:
    """Shared memory in which a fork says which check it runs, so that its parent knows even where the fork is killed."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 1024)

    def say(self, text: str) -> None:
        """Writes a name."""
        self._page[:] = text.encode()[:1024].ljust(1024, b"\0")

    def read(self) -> str:
        """The name that was written last."""
        return self._page[:].rstrip(b"\0").decode(errors="replace")


Task = tuple[Mutant, Callable[[Told], int]]
Verdict = tuple[Mutant, int, str, float]


def forked(tasks: Iterable[Task], jobs: int) -> Iterator[Verdict]:
    """Every task in a fork, `jobs` at a time: the mutant, what became of it, the last check that ran, seconds."""
    running: dict[int, tuple[Mutant, Told, float]] = {}
    queue = iter(tasks)
    while True:
        while len(running) < jobs and (task := next(queue, None)) is not None:
            told = Told()
            running[_fork(task[1], told)] = (task[0], told, time.monotonic())
        if not running:
            return
        pid, status = os.wait()
        mutant, told, begin = running.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        yield mutant, code if code in (SURVIVED, AGAIN) else KILLED, told.read(), time.monotonic() - begin


def _fork(work: Callable[[Told], int], told: Told) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = KILLED
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        code = work(told)
    finally:
        os._exit(code)


def attempt(checks: Iterable[Check], told: Told) -> int:
    """Runs checks until one fails; one that takes far too much CPU time is ended by the system, and its process with it."""
    for check in checks:
        told.say(check.name)
        signal.setitimer(signal.ITIMER_PROF, 3 + 10 * check.seconds)
        if not check.passes():
            return KILLED
    return SURVIVED


# What there is to run


def tests_of(items: Iterable[pytest.Item]) -> list[Check]:
    """The tests that may run in a fork."""
    return [Check(item.nodeid, _runner(item), _stamp(item.path)) for item in items if _usable(item)]


@functools.cache
def _stamp(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()[:16]


def _usable(item: pytest.Item) -> bool:
    function = getattr(item, "function", None)
    if item.path.name in NOT_THESE or any(word in item.name for word in ("jax", *REPEATED.get(item.path.name, ()))):
        return False
    return function is None or not any(word in inspect.getsource(function) for word in NOT_WITH)


def _runner(item: pytest.Item) -> Callable[[], bool]:
    example = getattr(item, "dtest", None)
    names = dict(example.globs) if example else {}

    def passes() -> bool:
        if example:
            example.globs.update(names)  # doctest empties them after a run
        return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=None))

    return passes


def vectors() -> list[Check]:
    """Every golden vector in every dtype, put to the core on NumPy; it passes where the verdict is what it was at first."""
    from gspo_conformance.asking import Asker
    from gspo_conformance.resolve import connect
    from gspo_conformance.suite import vectors as every

    connection = connect("numpy", isolate=False)
    asker = Asker(connection, connection.start(), 20.0)

    def runner(vector: Any, dtype: str) -> Callable[[], bool]:
        return lambda: asker.result(vector, dtype).verdict not in ("fail", "error")

    return [
        Check(f"{VECTOR}{vector.id}[{dtype}]", runner(vector, dtype)) for vector in every() for dtype in vector.dtype
    ]


class Watch:
    """Which functions of the core are entered."""

    def __init__(self) -> None:
        self.entered: set[str] = set()
        self._names: dict[CodeType, str] = {}
        self._files = {str(path): path.stem for path in CORE.glob("*.py")}

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """The profile function."""
        code = frame.f_code
        if event == "call" and code.co_filename in self._files:
            self.entered.add(outer(self._files[code.co_filename], code.co_qualname))

    def during(self, call: Callable[[], bool]) -> tuple[bool, float, frozenset[str]]:
        """What a call returns, the CPU seconds that it takes, and what it enters."""
        self.entered, begin = set(), time.process_time()
        sys.setprofile(self)
        threading.setprofile(self)
        try:
            found = call()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]
        return found, time.process_time() - begin, frozenset(self.entered)


def measured(checks: list[Check], cache: Path) -> list[Check]:
    """The checks that pass without a mutant, with what they take and enter; remembered in `cache` while their text is the same."""
    known: dict[str, Any] = json.loads(cache.read_text()) if cache.exists() else {}
    new = [check for check in checks if check.name not in known or known[check.name]["stamp"] != check.stamp]
    watch, control = Watch(), cache.with_suffix(".control")
    found = {check.name: (check, *watch.during(check.passes)) for check in new}
    os.waitpid(_fork(lambda _: _control(new, control), Told()), 0)
    passing = set(json.loads(control.read_text()))
    for name, (check, passes, seconds, enters) in found.items():
        if not passes or name not in passing:
            sys.stderr.write(f"does not pass without a mutant, so not used: {name}\n")
        fields = {"passes": passes and name in passing, "seconds": round(seconds, 4), "enters": sorted(enters)}
        known[name] = {"stamp": check.stamp} | fields
    cache.write_text(json.dumps(known))
    return [
        check._replace(seconds=known[check.name]["seconds"], enters=frozenset(known[check.name]["enters"]))
        for check in checks
        if known[check.name]["passes"]
    ]


def _control(checks: list[Check], file: Path) -> int:
    """Every check in a fork as those of a mutant, where nothing is mutated."""
    for path in CORE.glob("*.py"):
        if path.stem != "__init__":
            graft(path.stem, run(path.stem, path.read_bytes()))
    _forget()
    file.write_text(json.dumps([check.name for check in checks if check.passes()]))
    return SURVIVED


# Warm


class Warm:
    """A pytest plug-in: in place of running the tests, tries mutants of functions in forks."""

    def __init__(self, mutants: list[tuple[Mutant, bytes]], cache: Path, jobs: int, keep: Callable[..., None]) -> None:
        self.mutants, self.cache, self.jobs, self.keep = mutants, cache, jobs, keep
        self.watch = Watch()
        sys.setprofile(self.watch)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Tries them all."""
        sys.setprofile(None)
        self.early = frozenset(self.watch.entered)
        checks = measured([*tests_of(session.items), *vectors()], self.cache)
        self.checks: dict[str, list[Check]] = defaultdict(list)
        for check in checks:
            # What enters nothing looks at the modules themselves, such as their signatures.
            modules = {name.split(":")[0] for name in check.enters} or {path.stem for path in CORE.glob("*.py")}
            for name in check.enters | modules:
                self.checks[name].append(check)
        self.live, self.kills = _live(), Counter[str]()
        gc.freeze()
        for mutant, code, check, seconds in forked(self._tasks(), self.jobs):
            self.kills[check] += code == KILLED
            at_import = not mutant["swaps"] or mutant["swaps"] in self.early
            self.keep(mutant, AGAIN if at_import and code == SURVIVED else code, check, seconds)
        return True

    def _tasks(self) -> Iterator[Task]:
        for mutant, source in self.mutants:
            mutant["swaps"], code = swap(mutant["module"], source)
            yield mutant, self._work(mutant["module"], mutant["swaps"], code, source)

    def _work(self, module: str, name: str, code: CodeType | None, source: bytes) -> Callable[[Told], int]:
        exchanged = code is not None and name in self.live
        checks = self._ordered(module, self.checks[name if exchanged else module])

        def work(told: Told) -> int:
            gc.disable()
            told.say("import")
            made = None if exchanged else run(module, source)
            try:
                if made is not None:
                    graft(module, made)
                for function in self.live[name] if exchanged else ():
                    function.__code__ = code
            except (AttributeError, TypeError, ValueError):  # such as another number of free variables
                return AGAIN
            _forget()
            return attempt(checks, told)

        return work

    def _ordered(self, module: str, checks: list[Check]) -> list[Check]:
        """The tests, then the vectors: what killed others before, the tests of the module, the quick ones first."""
        own = f"test_{module}.py"
        return sorted(
            checks,
            key=lambda one: (one.name.startswith(VECTOR), -self.kills[one.name] if one.seconds < 0.1 else 0,
                             own not in one.name, one.seconds),
        )  # fmt: skip


def _live() -> dict[str, list[FunctionType]]:
    """The functions of the core that exist, by name."""
    files = {str(path): path.stem for path in CORE.glob("*.py")}
    found: dict[str, list[FunctionType]] = defaultdict(list)
    for thing in gc.get_objects():
        if (
            type(thing) is FunctionType
            and thing.__code__.co_filename in files
            and "<" not in thing.__code__.co_qualname
        ):
            found[outer(files[thing.__code__.co_filename], thing.__code__.co_qualname)].append(thing)
    return found


def _forget() -> None:
    """Empties what the core remembers from call to call."""
    sys.modules["gspo_core.arrays"]._NAMESPACES.clear()
    sys.modules["gspo_core.backend"]._BACKENDS.clear()


# Fresh


class Fresh:
    """A pytest plug-in: runs the tests, those of one module first, until one fails."""

    def __init__(self, module: str, told: Told, seconds: Mapping[str, float]) -> None:
        self.module, self.told, self.seconds, self.code = f"test_{module}.py", told, seconds, KILLED

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Runs them."""
        if session.testsfailed:
            self.told.say("collection")
            return True
        tests = [check._replace(seconds=self.seconds.get(check.name, 1.0)) for check in tests_of(session.items)]
        tests = [check for check in tests if check.name in self.seconds]
        self.code = attempt(sorted(tests, key=lambda one: (self.module not in one.name, one.seconds)), self.told)
        return True


def fresh(mutant: Mutant, source: bytes, seconds: Mapping[str, float]) -> Task:
    """The task that imports everything with the mutant; nothing of this repository may have been imported before."""

    def work(told: Told) -> int:
        told.say("import")
        signal.setitimer(signal.ITIMER_PROF, 120)
        sys.meta_path.insert(0, Finder(mutant["module"], source))
        plugin = Fresh(mutant["module"], told, seconds)
        files = [CORE / "tests" / f"test_{name}.py" for name in (mutant["module"], *AT_IMPORT)]
        pytest.main([*PYTEST, *(str(path) for path in files if path.exists())], plugins=[plugin])
        return plugin.code

    return mutant, work


# The tests of what is built at import: presets, defaults, tables.
AT_IMPORT = ("objective", "signatures", "named", "validation")
PYTEST = (
    "-q", "-s", "-x", "-p", "no:cacheprovider", "--no-header", "--no-summary", "--disable-warnings",
    "-W", "ignore::pytest.PytestAssertRewriteWarning",
)  # fmt: skip
