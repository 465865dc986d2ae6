"""Three frameworks on one batch: a few ulps of the terms apart, and the same responses clipped."""

from __future__ import annotations

import numpy as np
import pytest

import mixed_frameworks

BATCH = mixed_frameworks.rollout(responses=64, length=100, seed=1)
EXACT = mixed_frameworks.exact_answers(BATCH)


@pytest.mark.parametrize("framework", mixed_frameworks.FRAMEWORKS)
def test_answers_are_within_ulps_of_their_terms(framework: str) -> None:
    answers = mixed_frameworks.FRAMEWORKS[framework](BATCH)
    sizes = mixed_frameworks.terms(BATCH, EXACT)
    for name, exact in EXACT.items():
        assert mixed_frameworks.ulps(np.asarray(answers[name]), exact, sizes[name]) < 4, name
    expected = mixed_frameworks.clipped(EXACT["gradient"], BATCH)
    assert 0 < expected.sum() < 64
    np.testing.assert_array_equal(mixed_frameworks.clipped(answers["gradient"], BATCH), expected)


def test_an_ulp_is_the_distance_of_neighbours() -> None:
    one = np.float64(1)
    assert mixed_frameworks.ulps(np.nextafter(np.float32(1), np.float32(2)), one, one) == 1
    assert mixed_frameworks.ulps(np.float32(1), one, one) == 0


def test_the_table_names_every_answer(capsys: pytest.CaptureFixture[str]) -> None:
    mixed_frameworks.main(["--responses", "64", "--length", "100"])
    said = capsys.readouterr().out
    assert all(name in said for name in EXACT)
    assert "clipped: the same" in said
