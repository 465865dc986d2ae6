"""The conformance suite on PyTorch: all of it on the closed form, a few vectors compiled."""

from __future__ import annotations

import pytest

from gspo_conformance import check, vectors

COMPILED = [
    "surrogate/*",
    "gradient/*",
    "packing/*",
]


def test_torch_conforms() -> None:
    run = check("torch")
    assert run.conforming
    assert {result.verdict for result in run.results} == {"pass"}


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .functools.lru_cache")
@pytest.mark.parametrize("area", COMPILED)
def test_torch_compile_conforms(area: str) -> None:
    whole = next(vector.id for vector in vectors(area) if vector.operation == "policy_loss")
    run = check("torch:compile", whole, dtypes=["float32"], timeout=120.0)
    assert run.conforming
    assert {result.verdict for result in run.results} == {"pass"}
