"""The conformance suite over real ranks: responses cut among them, and every response cut among them."""

from __future__ import annotations

import pytest

from gspo_conformance import check

AREAS = ("distribution/*", "packing/*", "pipeline/*", "aggregation/*", "metrics/*", "mask/*")


@pytest.mark.parametrize("name", ["torch:ddp", "torch:cp"])
def test_conforms(name: str) -> None:
    run = check(name, *AREAS, dtypes=["float32"], timeout=120.0)
    assert run.conforming
    assert {result.verdict for result in run.results} == {"pass", "unsupported"}
    assert sum(result.verdict == "pass" for result in run.results) > 150
