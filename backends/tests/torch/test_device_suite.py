"""The conformance suite where no value may be read: on a GPU if there is one, and always on a device that is not the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import backend_registration

import gspo_core
from gspo_conformance import check
from gspo_conformance.words import HarnessError

HEAD = ("packing/*", "mask/*", "numerics/*")  # what follows the head is `torch`'s
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

needs_a_device = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch takes no device that is written in Python",
)


def _run(script: str, *what: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *what], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _only_refusals(verdicts: dict[str, list[str]]) -> None:
    assert verdicts.keys() - {"pass", "unsupported", "skipped"} == set()
    assert verdicts["pass"]
    assert all("refuses" in name for name in verdicts["skipped"])


@needs_a_device
@pytest.mark.parametrize(("name", "areas"), [("torch", ()), ("torch:fused", HEAD)])
def test_conforms_on_a_device_that_is_not_the_cpu(name: str, areas: tuple[str, ...]) -> None:
    _only_refusals(_run("elsewhere.py", name, *areas))


@needs_a_device
@pytest.mark.parametrize(("packed", "launches", "moved"), [(False, 106, 6), (True, 130, 18)])
def test_a_loss_on_a_device_waits_for_nothing_and_moves_little(packed: bool, launches: int, moved: float) -> None:
    objective = gspo_core.Objective.gspo().to_dict()
    task = {"paths": ["gspo_torch"], "batch": 8, "length": 512, "packed": packed, "objective": objective}
    found = _run("launches.py", json.dumps(task))["gspo_torch"]
    assert found["reads"] == 0
    assert found["launches"] <= launches
    assert found["moved"] <= moved


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["torch:cuda", "torch:cuda-fused"])
def test_conforms_on_a_gpu(name: str) -> None:
    verdicts: dict[str, list[str]] = {}
    for result in check(name).results:
        verdicts.setdefault(result.verdict, []).append(result.id)
    _only_refusals(verdicts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
@pytest.mark.parametrize("name", ["torch:cuda", "torch:cuda-fused"])
def test_no_gpu_is_said(name: str) -> None:
    with pytest.raises(HarnessError, match=f"target '{name}': expected a GPU"):
        check(name)


def test_what_is_measured_on_a_gpu_is_rehearsed_on_the_cpu(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--quick", "--rounds", "2", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py"), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    paths = {row["path"] for row in found["losses"] + found["heads"] if "not_run" not in row}
    assert paths >= {"gspo_torch.policy_loss", "formula", "naive", "gspo recompute", "gspo single pass"}
    assert "| gspo recompute |" in (tmp_path / "gpu.md").read_text(encoding="utf-8")
