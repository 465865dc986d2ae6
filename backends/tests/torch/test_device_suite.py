"""The conformance suite where no value may be read: on a GPU if there is one, and its branches on the CPU always."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import gspo_torch as gspo
from gspo_conformance import check
from gspo_conformance.targets.core import CoreTarget
from gspo_conformance.targets.torch import Torch
from gspo_conformance.targets.torch_fused import fused
from gspo_conformance.words import HarnessError

AREAS = ("packing/*", "mask/*", "numerics/*", "aggregation/*", "distribution/*", "correction/*")
TARGETS = {
    "torch": lambda: CoreTarget("unread", Torch(), gspo, traced=True),
    "torch:fused": lambda: fused("unread", "cpu", traced=True),
}


def _conforms(target: Any, *areas: str, dtypes: list[str] | None = None) -> None:
    run = check(target, *areas, dtypes=dtypes)
    assert [result.key for result in run.results if result.verdict not in ("pass", "unsupported", "skipped")] == []
    skipped = {result.id for result in run.results if result.verdict == "skipped"}
    assert skipped
    assert all("refuses" in name for name in skipped)


@pytest.mark.parametrize("name", TARGETS)
def test_conforms_without_reading_a_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(gspo.backend), "can_inspect", lambda *_: False)
    _conforms(TARGETS[name](), *AREAS, dtypes=["float32"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["torch:cuda", "torch:cuda-fused"])
def test_conforms_on_a_gpu(name: str) -> None:
    _conforms(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
@pytest.mark.parametrize("name", ["torch:cuda", "torch:cuda-fused"])
def test_no_gpu_is_said(name: str) -> None:
    with pytest.raises(HarnessError, match=f"target '{name}': expected a GPU"):
        check(name)


def test_what_is_measured_on_a_gpu_is_rehearsed_on_the_cpu(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
    options = ["--device", "cpu", "--quick", "--rounds", "2", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    paths = {row["path"] for row in found["losses"] + found["heads"] if "not_run" not in row}
    assert paths >= {"gspo_torch.policy_loss", "formula", "naive", "gspo recompute", "gspo single pass"}
    assert "| gspo recompute |" in (tmp_path / "gpu.md").read_text(encoding="utf-8")
