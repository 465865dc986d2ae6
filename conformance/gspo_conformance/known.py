"""Known failures, strict both ways: a listed vector that passes fails the run, and so does an entry that hits nothing.

One glob of vector ids a line, with a dtype in brackets where only that dtype fails, and the reason after `#`:

    aggregation/lengths-1-3-gspo          # https://example.org/issues/1
    gradient/*[float64]                   # computes in float32
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import translate
from functools import cache
from pathlib import Path
from re import Pattern
from re import compile as compile_pattern

from .run import ERROR, EXPECTED_FAILURE, FAIL, PASS, UNEXPECTED_PASS, Result
from .words import UsageError, near

MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class KnownFailure:
    """One line: where failure is expected, and why."""

    pattern: str
    reason: str

    def hits(self, result: Result) -> bool:
        """Whether this line speaks of `result`."""
        glob, bracket, dtype = self.pattern.partition("[")
        return (not bracket or dtype.rstrip("]") == result.dtype) and bool(_glob(glob).match(result.id))


@dataclass(frozen=True)
class KnownFailures:
    """The lines of a file."""

    entries: tuple[KnownFailure, ...] = ()

    def revise(self, result: Result) -> Result:
        """fail and error become expected failures where they are listed, pass an unexpected one."""
        entry = next((entry for entry in self.entries if entry.hits(result)), None)
        if entry is None or result.verdict not in (PASS, FAIL, ERROR):
            return result
        if result.verdict == PASS:
            return replace(
                result, verdict=UNEXPECTED_PASS, reason=f"listed as a known failure ({entry.pattern}) but passes"
            )
        why = f" [known: {entry.reason}]" if entry.reason else ""
        return replace(result, verdict=EXPECTED_FAILURE, reason=result.reason + why)

    def stale(self, results: Sequence[Result]) -> tuple[str, ...]:
        """Entries that speak of vectors of this run and of which none failed."""
        return tuple(
            entry.pattern
            for entry in self.entries
            if (hit := [result for result in results if entry.hits(result)])
            and all(result.verdict != EXPECTED_FAILURE for result in hit)
        )


def read_known(path: Path, ids: Iterable[str]) -> KnownFailures:
    """The known failures in a file; a line that names no vector of the suite is an error."""
    try:
        with path.open("rb") as file:  # which may be /dev/null, or what a shell puts in the place of <(...)
            raw = file.read(MAX_BYTES + 1)
        lines = raw.decode("utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"--known {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--known {path}: expected a list of known failures, in UTF-8") from None
    if len(raw) > MAX_BYTES:
        raise UsageError(f"--known {path}: expected a list of known failures of at most {MAX_BYTES} bytes")
    entries = tuple(entry for line in lines if (entry := _entry(line)) is not None)
    known = list(ids)
    for entry in entries:
        glob = entry.pattern.partition("[")[0]
        if not any(_glob(glob).match(name) for name in known):
            guess = near(glob, known)
            hint = f"; did you mean {guess!r}?" if guess else ""
            raise UsageError(f"--known {path}: no vector matches {entry.pattern!r}{hint}")
    return KnownFailures(entries)


def _entry(line: str) -> KnownFailure | None:
    pattern, _, reason = line.partition("#")
    return KnownFailure(pattern.strip(), reason.strip()) if pattern.strip() else None


@cache
def _glob(pattern: str) -> Pattern[str]:
    return compile_pattern(translate(pattern))
