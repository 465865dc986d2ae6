"""What the scripts in docs/drawing write is what is committed."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from gspo_conformance.mutants import mutants

from .served import ROOT

SCRIPTS = ("figures", "mistakes")


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_is_committed_is_what_the_script_writes(name: str) -> None:
    command = [sys.executable, str(ROOT / "docs" / "drawing" / f"{name}.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_mutant_is_on_one_page_of_the_gallery() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "mistakes").glob("*.md"))
    assert sorted(re.findall(r"^## (\S+) \{#\S+\}$", text, re.M)) == sorted(mutant.name for mutant in mutants())
