"""Runs every Python block of README.md and docs/, in order, each page in a namespace of its own."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest
from sybil import Sybil
from sybil.integration.pytest import SybilItem
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
).pytest()


def pytest_itemcollected(item: pytest.Item) -> None:
    """The blocks of a page share one namespace, so one worker runs them all."""
    if isinstance(item, SybilItem):
        item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(item.config.rootpath))))
