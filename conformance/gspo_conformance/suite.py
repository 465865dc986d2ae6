"""The suite in code: choose vectors, check a target, verify one vector in a test of your own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .connection import Connection, InProcess, describe
from .formats import Vector, load_vectors
from .known import KnownFailures, read_known
from .manifest import MANIFEST, verify_manifest
from .run import EXPECTED_FAILURE, FAIL, SKIPPED, UNSUPPORTED, Result, Run
from .runner import Options, Progress, run_vectors, select
from .target import Target
from .trainers.environment import expected
from .trainers.room import choose, is_trainer
from .words import HarnessError, UsageError, near, plural


def vectors(*patterns: str) -> list[Vector]:
    """The vectors whose id, area or a clause matches one of the globs; all of them without globs.

    @pytest.mark.parametrize("vector", vectors("gradient/*"), ids=lambda vector: vector.id)
    def test_gradient(vector):
        verify(target, vector)

    Raises `HarnessError` where a file of the suite has not the SHA-256 of its manifest.
    """
    _check_manifest()
    everything = load_vectors()
    found = select(everything, patterns)
    if not found:
        raise UsageError(_nothing(patterns, everything))
    return found


def _check_manifest() -> None:
    wrong = verify_manifest()
    if wrong:
        first = "\n".join(f"  {line}" for line in wrong[:5])
        number = f"{plural(len(wrong), 'file')} {'differs' if len(wrong) == 1 else 'differ'}"
        raise HarnessError(f"the vectors are not those of {MANIFEST}, {number}:\n{first}")


def check(
    target: Target | str,
    *patterns: str,
    dtypes: Sequence[str] | None = None,
    level: str = "MUST",
    known: Path | str | None = None,
    timeout: float = 20.0,
    progress: Progress | None = None,
) -> Run:
    """Every vector, or those that match, put to a target: an object in this process, or a TARGET as on the command line.

    `check(target).conforming` says whether it went as expected, `print(render([run], "text"))` what happened.
    """
    chosen = vectors(*patterns)
    options = Options(tuple(dtypes) if dtypes else None, level, timeout, known_failures(known))
    return checked(run_vectors(_connections(target), chosen, options, progress), chosen)


def verify(target: Target | str, vector: Vector, *, level: str = "MUST") -> list[Result]:
    """One vector in each of its dtypes: raises AssertionError where it fails, skips (pytest) where it does not apply.

    A failure below `level` is returned, not raised.
    """
    run = run_vectors(_connection(target), [vector], Options(level=level))
    if run.failure:
        raise AssertionError(run.failure)
    if run.offences:
        raise AssertionError("\n".join(f"{result.key}: {result.reason}" for result in run.offences))
    idle = [result for result in run.results if result.verdict in (UNSUPPORTED, SKIPPED)]
    if len(idle) == len(run.results):
        import pytest

        pytest.skip("; ".join(sorted({f"{result.verdict}: {result.reason}" for result in idle})))
    return run.results


def known_failures(path: Path | str | None, spec: str = "") -> KnownFailures:
    """The known failures of a file, or of a trainer by its name; without either, those of the trainer that `spec` names."""
    if path is not None and is_trainer(str(path)) and not Path(path).exists():
        named, variant = choose(str(path)), choose(spec).variant if is_trainer(spec) else ""
        path = named.room.known(named.version.name, named.variant or variant)
    elif path is None and is_trainer(spec):
        path = expected(choose(spec))
    return KnownFailures() if path is None else read_known(Path(path), [vector.id for vector in load_vectors()])


def checked(run: Run, chosen: Sequence[Vector]) -> Run:
    """The run with its diagnosis, where an answer was wrong. A diagnosis that fails says so; it takes no result along."""
    if any(result.verdict in (FAIL, EXPECTED_FAILURE) for result in run.results):
        from .diagnosis import diagnose

        try:
            found = diagnose(run, chosen)
        except Exception as error:
            run.diagnosis = {"sentence": f"none: it failed itself with {describe(error)}", "clauses": [], "mutants": []}
        else:
            run.diagnosis = None if found is None else found.to_dict()
    return run


def _connection(target: Target | str) -> Connection:
    from .resolve import check_target, connect

    return connect(target) if isinstance(target, str) else InProcess(check_target(target, type(target).__name__))


def _connections(target: Target | str) -> list[Connection]:
    from .resolve import connections

    return connections(target) if isinstance(target, str) else [_connection(target)]


def _nothing(patterns: Sequence[str], everything: Sequence[Vector]) -> str:
    if not patterns:
        return "the suite has no vectors: `gspo vectors regen` writes them"
    names = {v.id for v in everything} | {v.area for v in everything} | {c for v in everything for c in v.clauses}
    guess = near(patterns[0], names)
    return f"no vector matches {' '.join(patterns)}" + (f"; did you mean {guess!r}?" if guess else "")
