"""The ranks that the tests of this folder share: four, and groups of two within them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .world import World


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    four = World(4)
    yield four
    four.close()
