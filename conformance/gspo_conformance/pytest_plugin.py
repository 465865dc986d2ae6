"""In pytest: `pytest --gspo-target module:attribute` adds one test per golden vector; the ids are the vectors' ids.

    pytest --gspo-target my_package.loss:target -m gspo          the vectors alone
    pytest --gspo-target my_package.loss:target -k "gradient/"   some of them

A vector that the target does not claim is skipped; a failure below `--gspo-level`, and one that
`--gspo-known` lists, is an expected failure.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .commands import seconds

if TYPE_CHECKING:
    from .asking import Asker
    from .formats import Vector
    from .known import KnownFailures
    from .run import Result

_LEVELS = ("MUST", "SHOULD", "MAY")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options; nothing of the suite is imported before one is used."""
    group = parser.getgroup("gspo", "conformance of a GSPO implementation")
    group.addoption(
        "--gspo-target",
        metavar="TARGET",
        help="a built-in name, module:attribute, file.py:attribute, or cmd:PROGRAM ARGS",
    )
    group.addoption("--gspo-level", choices=_LEVELS, default="MUST", help="the levels up to this one can fail (MUST)")
    group.addoption("--gspo-known", type=Path, metavar="FILE", help="failures that are expected, strict both ways")
    group.addoption("--gspo-timeout", type=seconds, default=20.0, metavar="SECONDS", help="for one answer (20)")


def pytest_configure(config: pytest.Config) -> None:
    """The marker of the vectors' tests."""
    config.addinivalue_line("markers", "gspo: a golden vector of the GSPO conformance suite")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Adds the vectors behind what was collected, before -k and -m choose."""
    if config.option.gspo_target:
        items.extend(Suite.from_parent(session, name="gspo", nodeid="gspo").collect())


class Suite(pytest.Collector):
    """All vectors, put to one target that is started with the first."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._asker: Asker | None = None
        self._known: KnownFailures | None = None
        self._refused: Exception | None = None

    def collect(self) -> Iterable[VectorTest]:
        """One test for each."""
        from .suite import vectors

        return [VectorTest.from_parent(self, name=vector.id, vector=vector) for vector in vectors()]

    def results(self, vector: Vector) -> list[Result]:
        """The verdict in every dtype."""
        if self._refused is not None:
            raise self._refused
        if self._asker is None:
            self._start()
        assert self._asker is not None
        assert self._known is not None
        return [self._known.revise(self._asker.result(vector, dtype)) for dtype in vector.dtype]

    def _start(self) -> None:
        """What does not start is not tried again for each of the vectors."""
        from .words import HarnessError, UsageError

        try:
            self._connect()
        except (HarnessError, UsageError) as error:
            self._refused = error
            raise

    def _connect(self) -> None:
        from .asking import Asker
        from .resolve import connect
        from .suite import known_failures

        connection = connect(self.config.option.gspo_target)
        self.config.add_cleanup(connection.stop)
        self._known = known_failures(self.config.option.gspo_known)
        self._asker = Asker(connection, connection.start(), self.config.option.gspo_timeout)


class VectorTest(pytest.Item):
    """One vector in all its dtypes."""

    def __init__(self, *, vector: Vector, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.vector = vector
        self.add_marker("gspo")

    def runtest(self) -> None:
        """Fails, skips or passes as the results say."""
        assert isinstance(self.parent, Suite)
        results = self.parent.results(self.vector)
        for result in results:
            self.user_properties.append((f"K {result.dtype}", result.k))
        _conclude(results, self.config.option.gspo_level)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What was wrong, without the way there."""
        from .words import HarnessError, UsageError

        if isinstance(excinfo.value, (NonConforming, HarnessError, UsageError)):
            return f"{excinfo.value}\n\ngspo explain {self.name}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """The file of the vector."""
        return self.vector.folder / f"{self.vector.id.partition('/')[2]}.json", None, self.name


class NonConforming(Exception):
    """A vector that counts failed."""


def _conclude(results: list[Result], level: str) -> None:
    from .run import BAD, EXPECTED_FAILURE, PASS, UNEXPECTED_PASS

    def told(verdicts: Iterable[str]) -> str:
        return "\n".join(
            f"{r.verdict} {r.key}  {' '.join(r.clauses)}\n  {r.reason}" for r in results if r.verdict in verdicts
        )

    counts = _LEVELS.index(results[0].level) <= _LEVELS.index(level)
    if told((UNEXPECTED_PASS,)) or (counts and told(BAD)):
        raise NonConforming(told(BAD))
    if told((*BAD, EXPECTED_FAILURE)):
        pytest.xfail(told((*BAD, EXPECTED_FAILURE)))
    if not told((PASS,)):
        pytest.skip("; ".join(sorted({f"{r.verdict}: {r.reason}" for r in results})))
