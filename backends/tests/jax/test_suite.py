"""The fused and the sharded loss under the conformance suite: a few telling vectors (all of them: `gspo check jax:fused jax:shard`)."""

from __future__ import annotations

import pytest

from gspo_conformance import check

PATTERNS = {
    "jax:fused": ("packing/gspo-packed", "packing/mask-inside-grpo-nan"),
    "jax:shard": ("packing/one-token-ends", "distribution/group-token-mean"),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_vectors(name: str) -> None:
    run = check(name, *PATTERNS[name], dtypes=["float32"], level="SHOULD", timeout=300.0)
    assert run.conforming, [(result.key, result.reason) for result in run.results]
    assert {result.verdict for result in run.results} == {"pass"}
