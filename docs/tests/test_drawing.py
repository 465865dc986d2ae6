"""What the scripts in docs/drawing write is what is committed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .served import ROOT

SCRIPTS = ("figures",)


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_is_committed_is_what_the_script_writes(name: str) -> None:
    command = [sys.executable, str(ROOT / "docs" / "drawing" / f"{name}.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
