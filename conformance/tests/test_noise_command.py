"""`gspo noise`: what it prints for people and for programs, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gspo_conformance.cli import main
from gspo_conformance.noise.figure import main as figure

from .audit.simulated import Run

REPORTED = ("--std", "0.05", "--bias", "-0.0015")


@pytest.fixture
def noise(capsys: pytest.CaptureFixture[str]):
    def read(*words: str, code: int = 0) -> str:
        assert main(["noise", *words]) == code, capsys.readouterr()
        captured = capsys.readouterr()
        return captured.err if code == 2 else captured.out

    return read


def record(noise: Any, *words: str) -> dict[str, Any]:
    return json.loads(noise(*words, "--format", "json"))


def test_the_reported_mismatch_at_three_lengths(noise) -> None:
    found = noise(*REPORTED)
    assert [line.split()[0] for line in found.splitlines()[3:6]] == ["512", "4,096", "32,768"]
    assert "clips 45 % to 50 % of the responses" in found
    assert "says nothing about learning" in " ".join(found.split())
    assert "5 times ε_low" in found
    assert "1. Recompute old_logp" in found
    assert max(map(len, found.splitlines())) <= 110


def test_the_numbers_of_one_length(noise) -> None:
    found = record(noise, *REPORTED, "--length", "4096")
    assert found["clip_fraction"] == pytest.approx(0.4726, abs=1e-4)
    assert found["lengths"][0]["negative"] == pytest.approx(0.9377, abs=1e-4)
    assert found["half_outside_up_to"] is None
    assert len(found["advice"]) == 3


def test_a_quiet_mismatch_asks_for_nothing(noise) -> None:
    found = record(noise, "--std", "0.001", "--length", "4096")
    assert found["clip_fraction"] < 1e-9
    assert found["advice"] == []
    assert any("this range is dead" in reason for reason in found["reasons"])


def test_a_bias_that_noise_does_not_explain_is_not_to_be_widened_away(noise) -> None:
    found = record(noise, "--std", "0.05", "--bias", "-0.105", "--length", "512")
    assert "another temperature" in found["reasons"][0]
    assert not any("widen" in step for step in found["advice"])
    sampled = record(noise, "--std", "0.05", "--bias", "sampled", "--length", "512")
    assert sampled["mismatch"]["bias"] == pytest.approx(-0.00125)
    assert "sampled from the old policy imply" in sampled["reasons"][0]


def test_rounding_alone(noise) -> None:
    found = record(noise, "--dtype", "bf16", "--length", "16,512")
    assert found["rounding_std"] == pytest.approx(0.0013, abs=5e-5)
    assert found["lengths"][0]["clipped"] > 0.1 > 1e-4 > found["lengths"][1]["clipped"]
    assert any("no value in this range" in reason for reason in found["reasons"])
    assert any("float32" in step for step in found["advice"])


def test_the_lengths_of_a_run_are_weighted_by_tokens(noise, tmp_path: Path) -> None:
    file = tmp_path / "lengths.json"
    file.write_text(json.dumps([10] * 90 + [100_000] * 10), encoding="utf-8")
    found = record(noise, "--std", "0.05", "--lengths", str(file))
    assert found["responses"] == 100
    assert found["clip_fraction"] < 0.05
    assert "of the tokens of 100 responses" in noise("--std", "0.05", "--lengths", str(file))


def test_the_range_that_is_asked_for_does_what_it_promises(noise) -> None:
    wide = record(noise, *REPORTED, "--length", "4096", "--target", "0.02")["required_clip"]
    again = record(noise, *REPORTED, "--length", "4096", "--clip", f"{wide['low']},{wide['high']}")
    assert again["lengths"][0]["negative"] == pytest.approx(0.02, rel=1e-6)
    assert again["lengths"][0]["positive"] == pytest.approx(0.02, rel=1e-6)


@pytest.mark.parametrize(("bias", "clip", "side"), [("-0.0015", "0,4e-4", "ε_low"), ("0.0015", "4e-4,0", "ε_high")])
def test_a_range_without_one_side_has_a_forecast(noise, bias: str, clip: str, side: str) -> None:
    (reason, *_) = record(noise, "--std", "0.05", "--bias", bias, "--clip", clip)["reasons"]
    assert reason.startswith(f"The bias is beyond the range, whose {side} is 0")


def test_a_bias_without_a_spread_has_a_forecast(noise) -> None:
    found = record(noise, "--bias", "3e-4")
    assert (found["clip_fraction"], found["reasons"][1:]) == (0.0, [])
    assert found["reasons"][0].startswith("The bias is 0.75 times ε_high")


@pytest.mark.parametrize(("option", "value"), [("--std", "0.1"), ("--positive", "0.1"), ("--target", "0.2")])
def test_what_a_forecast_alone_reads_is_not_ignored_beside_a_trace(noise, option: str, value: str) -> None:
    assert f"{option}: " in noise("nowhere", option, value, code=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to forecast: give --std"),
        (("--std", "-1"), "--std: expected a finite number of at least 0, got -1.0"),
        (("--std", "0.05", "--length", "0"), "--length: expected whole numbers from 1 to 1e+12, got [0.0]"),
        (("--std", "0.05", "--length", "1e18"), "--length: expected whole numbers from 1 to 1e+12, got [1e+18]"),
        (("--std", "1e308"), "--std: expected 0, or a size from 1e-12 to 100, got 1e+308"),
        (("--std", "1e-200"), "--std: expected 0, or a size from 1e-12 to 100, got 1e-200"),
        (("--std", "0.05", "--bias", "1e9"), "--bias: expected 0, or a size from 1e-12 to 100, got 1e+09"),
        (("--std", "0.05", "--length", "many"), "--length: expected numbers, got 'many'"),
        (("--std", "0.05", "--bias", "small"), "--bias: expected numbers, got 'small'"),
        (("--std", "0.05", "--bias", "0.1,0.2"), "--bias: expected one number, or `sampled`, got '0.1,0.2'"),
        (("--std", "0.05", "--clip", "1,2,3"), "--clip: expected LOW,HIGH such as 3e-4,4e-4, got '1,2,3'"),
        (("--std", "0.05", "--clip=-1"), "--clip: low: expected"),
        (("--std", "0.05", "--dtype", "bf15"), "--dtype: unknown 'bf15'; did you mean 'bf16'?"),
        (("--std", "0.05", "--positive", "2"), "--positive: expected a share, got 2.0"),
        (("--std", "0.05", "--lengths", "nowhere.txt"), "nowhere.txt: No such file"),
        (("--std", "0.05", "--length", "5", "--lengths", "f"), "--length or --lengths: expected one of the two"),
    ],
)
def test_errors_teach(noise, words: tuple[str, ...], message: str) -> None:
    assert message in noise(*words, code=2)


PAGE = Path(__file__).resolve().parents[2] / "docs" / "noise.md"


def shown(command: str) -> str:
    """What docs/noise.md shows below a command."""
    return PAGE.read_text(encoding="utf-8").split(f"$ gspo {command}\n")[1].split("```")[0]


def test_the_guide_shows_what_the_command_prints(noise) -> None:
    command = "noise --std 0.05 --bias -0.0015 --length 512,4096,32768"
    assert noise(*command.split()[1:]) == shown(command)


def test_the_guide_shows_what_a_trace_says(noise, tmp_path: Path) -> None:
    Run(std=0.05, bias=-0.0012, drift=6e-4, engine=0.05, prompts=64, rollouts=3).write(tmp_path)
    assert noise(str(tmp_path), code=1).startswith(shown("noise runs/trace"))


def test_the_figure_of_the_guide_is_fresh() -> None:
    assert figure(["--check"]) == 0


def test_the_guide_tells_what_was_measured() -> None:
    pairs = json.loads((PAGE.parent / "benchmarks" / "mismatch.json").read_text(encoding="utf-8"))["pairs"]
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if " trainer | 0." in line]
    assert len(rows) == 2
    for row, pair in zip(rows, pairs):
        bias = f"−{-pair['bias']:.6f} ± {pair['bias_error']:.6f} (−{-pair['implied_bias']:.6f})"
        for words in (
            f"{pair['std']:.4f}",
            bias,
            f"{pair['kurtosis']:.1f}",
            f"T^{{{pair['slope']:.2f}\\pm{pair['slope_error']:.2f}}}",
            f"{100 * pair['predicted']:.1f} % | {100 * pair['observed']:.1f} %",
        ):
            assert words in row, words
        assert f"{pair['tokens']:,} tokens" in PAGE.read_text(encoding="utf-8")
    assert pairs[2]["std"] == 0
