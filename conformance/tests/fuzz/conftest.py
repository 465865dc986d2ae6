"""How many cases each property is given, and how many there were."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

collect_ignore = ["parsers.py"]  # needs atheris
CASES = int(os.environ.get("FUZZ", "0"))
SAMPLE, SHARES = 1100, 220
_COUNTS: dict[str, int] = {}
Property = Callable[[Any], None]


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Callable[[SearchStrategy[Any], Property, int], None]:
    """`fuzz(strategy, property, share)`: `share` of `SHARES` of the cases; the same ones each time, unless FUZZ asks for new ones."""

    def run(strategy: SearchStrategy[Any], holds: Property, share: int) -> None:
        phases = [Phase.explicit, Phase.generate, Phase.shrink]
        limits = settings(
            max_examples=max(1, (CASES or SAMPLE) * share // SHARES),
            derandomize=not CASES,
            database=None,
            deadline=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        )

        @limits
        @given(strategy)
        def one(case: Any) -> None:
            _COUNTS[request.node.name] = _COUNTS.get(request.node.name, 0) + 1
            holds(case)

        one()

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if CASES:
        for name, count in sorted(_COUNTS.items()):
            terminalreporter.write_line(f"{count:9,}  {name}")
        terminalreporter.write_line(f"{sum(_COUNTS.values()):9,}  cases")
