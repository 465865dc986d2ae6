"""What docs/examples.md shows is what the examples make."""

from __future__ import annotations

from pathlib import Path

import pytest

import gspo_vs_grpo
import recording

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["torch_training", "jax_training"])
def test_the_figures_are_those_of_the_runs(name: str) -> None:
    run = DOCS / "assets" / "examples" / name
    assert recording.main([f"{run}.jsonl", "--out", f"{run}.svg", "--check"]) == 0
    final = recording.read(run.with_suffix(".jsonl"))[-1]["held_out"]
    assert f"{final:.1%} of the held-out questions answered" in (DOCS / "examples.md").read_text(encoding="utf-8")


def test_another_run_has_another_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = DOCS / "assets" / "examples" / "torch_training"
    rows = run.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "short.jsonl").write_text("".join(rows[:-1]), encoding="utf-8")
    assert recording.main([str(tmp_path / "short.jsonl"), "--out", f"{run}.svg", "--check"]) == 1
    assert "not the figure of" in capsys.readouterr().out


def test_the_table_and_the_figure_of_gspo_and_grpo_are_those_of_the_numbers() -> None:
    assert gspo_vs_grpo.main(["--out", str(DOCS / "benchmarks"), "--check"]) == 0
