"""Programs in other processes, over the golden vectors: the Node harness that ships, and one of plain Python."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gspo_conformance.formats import ROOT, Vector
from gspo_conformance.program import Program
from gspo_conformance.run import FAIL, PASS, Run
from gspo_conformance.runner import Options, run_vectors
from gspo_conformance.scaffold import scaffold
from gspo_conformance.suite import vectors

from .speaker import main

HARNESS = ROOT / "harnesses" / "node" / "harness.js"
NODE = shutil.which("node")
SPEAKER = str(Path(main.__code__.co_filename))


def small(*areas: str) -> list[Vector]:
    """The vectors of some areas whose numbers lie in their own file."""
    return [vector for vector in vectors(*areas) if '"file"' not in json.dumps(vector.raw["inputs"])]


def check(words: list[str], chosen: list[Vector], level: str = "MUST") -> Run:
    return run_vectors(Program(words[0], words), chosen, Options(level=level))


needs_node = pytest.mark.skipif(NODE is None, reason="no Node on PATH; plain Python speaks the protocol below")


@needs_node
def test_the_node_harness_conforms_at_every_level() -> None:
    chosen = small(
        "ratio/*", "aggregation/*", "gradient/*", "advantage/*", "packing/*", "metrics/*", "surrogate/paper*"
    )
    found = check([str(NODE), str(HARNESS)], chosen, "MAY")
    assert found.exit_code == 0, [f"{result.key}: {result.reason}" for result in found.offences]
    operations = {result.operation for result in found.results if result.verdict == PASS}
    assert operations == set(found.capabilities["operations"]) & {vector.operation for vector in chosen}
    assert found.counts[PASS] > 200
    assert found.implementation["name"] == "javascript"


@needs_node
def test_a_slip_in_the_node_harness_is_found(tmp_path: Path) -> None:
    path, target = scaffold(str(tmp_path / "mine"), "node")
    assert target == f"'cmd:node {path}'"
    right = path.read_text(encoding="utf-8")
    slipped = right.replace("positions.length * divisor", "divisor")
    assert slipped != right
    path.write_text(slipped, encoding="utf-8")
    found = check([str(NODE), str(path)], small("gradient/*"))
    assert found.exit_code == 1
    assert {result.worst.output for result in found.results if result.verdict == FAIL and result.worst} == {"gradient"}


@needs_node
def test_the_node_harness_needs_no_package() -> None:
    text = HARNESS.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if "require(" in line] == ['const readline = require("node:readline");']
    subprocess.run([str(NODE), "--check", str(HARNESS)], check=True)


def test_a_program_of_plain_python_conforms() -> None:
    chosen = small("ratio/*", "aggregation/*", "gradient/*", "surrogate/paper*")
    found = check([sys.executable, "-S", SPEAKER], chosen)
    assert found.exit_code == 0, [f"{result.key}: {result.reason}" for result in found.offences]
    assert found.counts[PASS] > 100
