"""The conformance suite where no value may be read: on a GPU if there is one, and its branches on the CPU always."""

from __future__ import annotations

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
