"""Runs every Python block of README.md and docs/, in order, each page in a namespace of its own.

The blocks of a page build on each other, so they are run in one process (with -n, by --dist loadfile).
"""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

# Scripts, and programs that run in environments of their own: nothing to import here.
collect_ignore_glob = [
    "backends/benchmarks/*",
    "backends/tests/jax/eight_devices*.py",
    "conformance/gspo_conformance/frameworks/mlx.py",
    "conformance/gspo_conformance/trainers/*/adapter.py",
    "conformance/gspo_conformance/trainers/*/releases.py",
    "conformance/gspo_conformance/trainers/liger/head.py",
    "conformance/gspo_conformance/trainers/molt/command_line.py",
    "conformance/tests/traces/*",
    "docs/drawing/*",
    "examples/configs/*",
    *(f"examples/{name}.py" for name in ("easydel_loss", "trl_trainer", "tunix_loss", "verl_loss")),
]

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
).pytest()
