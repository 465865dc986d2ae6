"""The tests of `eight_devices*.py`, in a process that starts with eight virtual CPU devices."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = sorted(str(path) for path in Path(__file__).parent.glob("eight_devices*.py"))


def test_on_eight_devices() -> None:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"^\d+ passed in", ran.stdout, flags=re.MULTILINE), ran.stdout
