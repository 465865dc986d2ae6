"""The two training examples: the same seed gives the same curve, resumed or not, and what is rewarded is learnt."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import arithmetic
import recording
from recording import Row, Settings

SMALL = Settings(
    iterations=5, prompts=8, group=8, warm_up=0.0, width=16, learning_rate=1e-2, evaluate_every=2, save_every=2
)


@pytest.fixture(params=["torch_training", "jax_training"])
def training(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Each example as a module, with one layer, which compiles in half of the time."""
    module = import_module(request.param)
    monkeypatch.setattr(module, "LAYERS", 1)
    return module


@pytest.fixture
def rewarded_for_sevens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that a random policy gets now and then: the answer begins with 7."""
    monkeypatch.setattr(arithmetic, "rewards", lambda _, responses: (responses[:, 0] == 7).astype(np.float32))


@pytest.mark.usefixtures("rewarded_for_sevens")
def test_a_resumed_run_has_the_curve_of_one_that_was_not_interrupted(training: ModuleType, tmp_path: Path) -> None:
    whole = list(training.train(SMALL, tmp_path / "whole"))
    other = list(training.train(replace(SMALL, seed=1, iterations=1), tmp_path / "other"))
    list(islice(training.train(SMALL, tmp_path / "cut"), 3))
    rest = list(training.train(SMALL, tmp_path / "cut", resume=True))
    assert [row["iteration"] for row in rest] == [3, 4, 5]
    assert recording.read(tmp_path / "cut" / "metrics.jsonl") == whole
    assert whole[0] != other[0]
    assert list(training.train(SMALL, tmp_path / "cut", resume=True)) == whole[-1:]
    curves = [(tmp_path / run / "curve.svg").read_bytes() for run in ("whole", "cut")]
    assert curves[0] == curves[1]


@pytest.mark.usefixtures("rewarded_for_sevens")
def test_what_is_rewarded_is_learnt(training: ModuleType, tmp_path: Path) -> None:
    settings = replace(SMALL, iterations=20)
    rows = list(training.train(settings, tmp_path))
    assert rows[0]["reward"] < 0.3
    assert rows[-1]["reward"] > 0.7


@pytest.mark.usefixtures("rewarded_for_sevens")
def test_the_first_mini_batch_is_on_policy_and_later_ones_are_clipped(training: ModuleType, tmp_path: Path) -> None:
    rows = list(training.train(SMALL, tmp_path))
    first, *later = np.asarray([row["clip_fractions"] for row in rows]).T
    assert first.max() == 0
    assert min(fractions.max() for fractions in later) > 0


def test_the_warm_up_ends_where_some_questions_are_answered(training: ModuleType) -> None:
    settings = replace(SMALL, warm_up=0.003)
    if training.__name__ == "torch_training":
        policy = training.Policy(settings.width)
        training.warm_up(policy, settings)
    else:
        policy = training.warm_up(training.new_policy(training.jax.random.key(0), settings.width), settings)
    assert 0.003 <= training.held_out_accuracy(policy) < 0.1


def test_a_checkpoint_of_other_settings_is_refused(training: ModuleType, tmp_path: Path) -> None:
    list(training.train(replace(SMALL, iterations=1), tmp_path))
    with pytest.raises(ValueError, match=r"learning_rate: expected 0\.01, which made .*checkpoint.*, got 0\.02"):
        list(training.train(replace(SMALL, iterations=1, learning_rate=2e-2), tmp_path, resume=True))


def test_help_says_what_the_example_teaches(
    training: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        training.main(["--help"])
    said = capsys.readouterr().out
    assert "Rewards alone cannot start" in said or "a group of wrong answers" in said
    assert "--clip-high N" in said
    assert "the paper's (default: 0.0004)" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--prompts 7", "a multiple of --mini-batches = 4"),
        ("--group 1", "one response has nothing to be compared with"),
        ("--warm-up 2", "expected a share from 0 to below 1, got 2.0"),
        ("--width 30", "a multiple of 4"),
        ("--learning-rate nan", "above 0, got nan"),
        ("--iterations 0", "above 0, got 0"),
        ("--resume", "there is no checkpoint in"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    words: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hunts a warm-up that never ends, and tracebacks."""
    with pytest.raises(SystemExit):
        recording.command_line("", str(tmp_path), words.split())
    assert told in capsys.readouterr().err


def test_right_answers_are_rewarded_and_no_others() -> None:
    questions = np.arange(10_000)
    right = arithmetic.answers(questions)
    assert arithmetic.rewards(questions, right).all()
    assert [int(row[: row.index(".")][::-1]) for row in arithmetic.text(right)] == [
        question // 100 + question % 100 for question in questions
    ]
    for place in range(arithmetic.ANSWER):
        wrong = right.copy()
        wrong[:, place] = (wrong[:, place] + 1) % len(arithmetic.SYMBOLS)
        changed = arithmetic.counted(right)[:, place]
        np.testing.assert_array_equal(arithmetic.rewards(questions, wrong), ~changed)


def test_questions_are_held_out() -> None:
    assert not set(arithmetic.HELD_OUT) & (set(arithmetic.REWARDED) | set(arithmetic.SHOWN))


def rows(count: int) -> Iterable[Row]:
    """Rows of no run."""
    for iteration in range(1, count + 1):
        yield {"iteration": iteration, "reward": 0.5, "clip_fraction": 0.1, "held_out": None if iteration % 5 else 0.25}


def test_progress_is_ten_lines_where_it_cannot_write_over_one() -> None:
    stream = io.StringIO()
    assert recording.progress(rows(40), 40, stream)["iteration"] == 40
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[4].startswith("██████████░░░░░░░░░░   20/40  reward 0.500  clipped 0.100")
    assert lines[4].endswith("held out  25.0%")


def test_progress_writes_over_one_line_on_a_terminal() -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True
    recording.progress(rows(4), 4, stream)
    assert stream.getvalue().count("\r") == 4
    assert stream.getvalue().count("\n") == 1
