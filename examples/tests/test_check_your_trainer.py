"""The loss with two mistakes: both are named, then one, then none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import check_your_trainer

PAGE = Path(__file__).parents[2] / "docs" / "examples.md"


def without_numbers(text: str) -> str:
    """Numbers of answers change with the suite, last digits with the machine."""
    return re.sub(r"-?\d[\d.e+-]*", "N", text)


def test_two_mistakes_are_named_then_one_then_none(capsys: pytest.CaptureFixture[str]) -> None:
    check_your_trainer.main([])
    said = capsys.readouterr().out
    assert without_numbers(said) in without_numbers(PAGE.read_text(encoding="utf-8"))
    first, second, third = said.split("\nthe fix\n")
    assert "`ratio.arithmetic-mean` (GSPO-RATIO-2) and `aggregation.token-mean`" in first
    assert "aggregation/extra-padding-gspo: a loss of 0.4999, where -0.0001249 is right" in first
    assert "+ ratio = (((logp - old_logp) * mask).sum(-1) / lengths).exp()" in second
    assert "`aggregation.token-mean` (GSPO-AGG-1)" in second
    assert "ratio.arithmetic-mean" not in second
    assert "+ return loss.mean()" in third
    assert "NOT conforming" not in third
    assert re.search(r"  conforming: (\d+) of \1 answers", third)
