"""Noise estimated from traces: what was put in comes out with honest errors, and every planted trouble is named."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gspo_core as gspo
from gspo_conformance.audit import Trace, read_trace
from gspo_conformance.cli import main
from gspo_conformance.noise import Mismatch, clip_fraction
from gspo_conformance.noise.analysis import analyse
from gspo_conformance.noise.estimate import estimate
from gspo_conformance.noise.findings import findings, findings_of
from gspo_conformance.noise.report import render_run
from gspo_conformance.noise.responses import gate_of
from gspo_conformance.reports.run_plots import figures
from gspo_conformance.trainers.dialect import Finding
from gspo_core import Clip, Objective

from .simulated import Run
from .test_right_runs import batch
from .test_right_runs import write as written


def found(trace: Trace) -> dict[str, Finding]:
    return {one.rule: one for one in findings(trace)}


def drawn(seed: int, *, omega: float = 0.0, count: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths, means and mean squares of responses from N(-2e-4, 0.05²) per token."""
    stream = np.random.RandomState(seed)
    lengths = np.exp(stream.normal(5, 0.8, count)).astype(int) + 4
    noise = [stream.normal(-2e-4 + omega * stream.standard_normal(), 0.05, length) for length in lengths]
    return lengths, np.array([d.mean() for d in noise]), np.array([(d * d).mean() for d in noise])


def test_the_estimates_are_within_two_standard_errors_as_often_as_they_should_be() -> None:
    estimates = [estimate(*drawn(seed)) for seed in range(40)]
    assert all(one is not None for one in estimates)
    for name, truth in (("bias", -2e-4), ("std", 0.05), ("inflation", 1.0), ("slope", -0.5)):
        distances = [getattr(one, name).distance(truth) for one in estimates]
        assert np.mean([distance > 2 for distance in distances]) < 0.2, name
        assert np.mean([distance > 0.5 for distance in distances]) > 0.3, name
    assert np.mean([one.mismatch.correlation != 0 or one.mismatch.between != 0 for one in estimates]) < 0.06


@pytest.mark.parametrize("count", [8, 16])
def test_few_responses_of_independent_noise_are_not_called_correlated(count: int) -> None:
    """Hunts `0.0 times what independent tokens give: neighbours are correlated`, said of one small batch in five."""
    estimates = [estimate(*drawn(seed, count=count)) for seed in range(100)]
    assert np.mean([one is None or one.mismatch.correlation != 0 for one in estimates]) < 0.02
    assert all(one is not None and (one.inflation.value > 0 or one.mismatch.between) for one in estimates)


def test_what_responses_have_in_common_is_told_from_what_tokens_have() -> None:
    one = estimate(*drawn(0, omega=5e-3, count=400))
    assert one is not None
    assert one.mismatch.between == pytest.approx(5e-3, rel=0.2)
    assert one.std.value == pytest.approx(0.05, rel=0.02)
    assert one.slope is not None
    assert one.slope.distance(-0.5) > 3


def test_the_estimate_scales_with_its_unit_and_needs_some_responses() -> None:
    lengths, means, squares = drawn(3)
    one, tiny = estimate(lengths, means, squares), estimate(lengths, 1e-6 * means, 1e-12 * squares)
    assert one is not None
    assert tiny is not None
    assert tiny.std.value == pytest.approx(1e-6 * one.std.value, rel=1e-9)
    assert tiny.inflation.value == pytest.approx(one.inflation.value, rel=1e-9)
    assert estimate(lengths[:7], means[:7], squares[:7]) is None
    still = estimate(lengths, 0 * means, 0 * squares)
    assert still is not None
    assert still.exact


def test_the_predicted_clip_fraction_is_what_the_run_clipped(tmp_path: Path) -> None:
    run = analyse(Run(std=0.05, bias=-1e-3, minibatches=1, rollouts=1, prompts=128, median=60).write(tmp_path))
    [first] = run.minibatches
    assert first.predicted == pytest.approx(first.observed, abs=0.03)
    lengths = run.rows.length
    truth = clip_fraction(Mismatch(0.05, -1e-3), Clip(3e-4, 4e-4), lengths, weights=lengths)
    assert first.predicted == pytest.approx(truth, abs=0.03)


def test_a_clean_run_is_told_so(tmp_path: Path) -> None:
    clean = found(Run(drift=5e-5, engine=0.04).write(tmp_path))
    assert {one.severity for one in clean.values()} == {"note"}
    assert "exactly 1" in clean["first-minibatch"].message
    assert "a spread of 0.04" in clean["rollout-mismatch"].message
    assert clean["rollout-mismatch"].message.count("clip") == 1


def test_rounding_is_no_noise_to_do_something_about(tmp_path: Path) -> None:
    """Hunts "no length averages this out" of log-ratios of 1e-8, which two batch shapes of one kernel have."""
    fields = {"ratio": "token", "surrogate": {"kind": "reinforce", "gate": None}}
    clean = found(Run(std=8e-8, between=1e-7, prompts=64, objective=fields).write(tmp_path))
    assert {one.severity for one in clean.values()} == {"note"}
    assert not clean["first-minibatch"].fix


PLANTED = {
    "noise": (Run(std=0.05), "first-minibatch", "error", "s is 1 unless an older policy sampled it, the log-ratio"),
    "noise explains the clips": (Run(std=0.05, drift=1e-4), "clip-explained", "warning", "mismatch alone predicts"),
    "engine log-probabilities": (Run(engine=0.05, borrow=True), "borrowed-old-logp", "error", "bit for bit"),
    "top-p": (Run(std=0.05, bias=-0.105), "systematic-bias", "error", "is not noise"),
    "a higher mean": (Run(std=0.01, bias=0.02), "systematic-bias", "error", "0.02 per token"),
    "correlation": (Run(std=0.05, correlation=0.6), "correlated-noise", "note", "neighbours are correlated"),
    "responses": (Run(std=0.02, between=5e-3, prompts=64), "response-level-noise", "warning", "as a whole"),
    "bfloat16": (Run(drift=3e-4, dtype="bfloat16"), "rounded-logp", "error", "bfloat16"),
    "float16": (Run(drift=3e-4, dtype="float16"), "rounded-logp", "warning", "float16"),
    "stale old": (Run(inert=True), "inert-ratio", "error", "(a learning rate of 0)"),
    "dead": (Run(drift=3e-4, objective=Objective.gspo(Clip(0.2, 0.27)).to_dict()), "dead-range", "warning", "1 %"),
    "silence": (Run(drift=5e-5, silent=0.6), "silent-groups", "warning", "equal rewards"),
    "lengths": (Run(drift=5e-5, longer_when_wrong=2.0), "length-bias", "warning", "where A < 0"),
    "speed": (Run(drift=3e-3), "staleness", "warning", "mini-batch 1 to 4"),
    "numbers": (Run(std=0.05, numbered=False), "unknown-minibatch", "note", "not recorded"),
    "product": (
        Run(std=0.08, objective=Objective.gspo().to_dict() | {"ratio": "product"}),
        "sample-size",
        "error",
        "effective sample size",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_trouble_is_named(tmp_path: Path, name: str) -> None:
    run, rule, severity, words = PLANTED[name]
    one = found(run.write(tmp_path))[rule]
    assert one.severity == severity, one
    assert words in one.message, one


def test_a_range_without_one_side_is_neither_dead_nor_a_defect(tmp_path: Path) -> None:
    """Hunts a division by the width of a side that is 0."""
    for clip in (Clip(0.2, 0.0), Clip(0.0, 0.2)):
        run = Run(drift=-3e-4, dtype="bfloat16", objective=Objective.gspo(clip).to_dict())
        rules = found(run.write(tmp_path / f"{clip.high}"))
        assert "rounded-logp" in rules
        assert "dead-range" not in rules


def test_tokens_that_weigh_alike_have_no_bias_of_length(tmp_path: Path) -> None:
    """Hunts `each response has weight 1/|y| per token` said of a token mean."""
    plain = gspo.Objective.gspo()
    for mode, told in (("sequence_mean_token_mean", True), ("token_mean", False), ("sequence_mean_token_sum", False)):
        run = Run(drift=5e-5, longer_when_wrong=2.0, objective=plain.replace(aggregation=mode).to_dict())
        assert ("length-bias" in found(run.write(tmp_path / mode))) is told


@pytest.mark.parametrize("run", [{}, {"group_size": 4}])
def test_groups_that_go_on_in_other_steps_are_not_silent(run: dict[str, Any], tmp_path: Path) -> None:
    """Hunts `100 % of 24 groups have equal rewards` where a step sees one response of each."""
    stream = np.random.default_rng(0)
    steps = [batch(6, step) for step in range(4)]
    for arrays in steps:
        arrays["rewards"], arrays["groups"] = stream.normal(size=6).astype(np.float32), np.arange(6)
    trace = read_trace(written(tmp_path, [[(arrays, {})] for arrays in steps], objective="gspo", **run))
    assert "silent-groups" not in found(trace)


def test_advantages_stand_in_for_rewards_and_nothing_is_guessed(tmp_path: Path) -> None:
    trace = Run(std=0.05, objective=None).write(tmp_path)
    run = analyse(trace)
    assert run.gate is None
    assert all(one.predicted is None for one in run.minibatches)
    assert found(trace)["first-minibatch"].severity == "note"
    assert all(one.observed is None for one in run.minibatches)
    assert all(math.isnan(one.outside) for one in run.minibatches)
    assert main(["noise", str(tmp_path)]) == 0


def test_the_gate_of_an_objective() -> None:
    assert gate_of(Objective.grpo().to_dict()).ratio == "token"
    assert gate_of(Objective.minirl().to_dict()).clip == Clip(0.2, 0.27)
    assert gate_of(Objective.rloo().to_dict()) is None
    assert gate_of(None) is None


def test_the_clip_fraction_of_the_table_is_that_of_the_core(tmp_path: Path) -> None:
    for objective in (Objective.gspo(), Objective.grpo(Clip(0.04, 0.05)), Objective.gspo_token()):
        trace = Run(std=0.05, drift=2e-4, objective=objective.to_dict()).write(tmp_path / objective.ratio)
        run = analyse(trace)
        step = trace.step(5)
        tokens = step.tokens()
        out = gspo.policy_loss(
            objective,
            logp=tokens.logp,
            old_logp=tokens.old_logp,
            advantages=tokens.advantages,
            sequences=gspo.Packed(tokens.offsets),
        )
        rows = run.rows.where(run.rows.step == 5)
        assert rows.clip_fraction == pytest.approx(float(out.metrics["clip_fraction"]), abs=1e-6)
        assert rows.clip_fraction > 0.1


def test_a_response_that_is_not_a_number_is_counted_and_left_out(tmp_path: Path) -> None:
    trace = Run(std=0.05).write(tmp_path)
    file = tmp_path / "0.safetensors"
    header, arrays = trace.shards[0].header, load_file(file)
    arrays["0.logp"][3] = np.nan
    save_file(arrays, file, metadata={"gspo_trace": json.dumps(dict(header))})
    one = found(read_trace(tmp_path))["not-finite"]
    assert "1 response of 256" in one.message


def test_the_command_reads_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run(std=0.05, drift=2e-4, engine=0.03).write(tmp_path)
    assert main(["noise", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "8 steps, 256 responses" in text
    assert "error    first-minibatch" in text
    assert main(["audit", str(tmp_path)]) == 1
    assert "recomputed, none differ; the errors are of another kind" in capsys.readouterr().out
    assert main(["noise", str(tmp_path), "--format", "json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["first_minibatch"]["std"] == pytest.approx(0.05, rel=0.02)
    assert record["rollout_engine"]["std"] == pytest.approx(0.03, rel=0.02)
    assert record["findings"][0]["severity"] == "error"
    assert main(["noise", str(tmp_path), "--clip", "0.2,0.27"]) == 0
    assert main(["noise", str(tmp_path), "--std", "0.05"]) == 2
    assert main(["noise", str(tmp_path / "nothing")]) == 2


def test_the_range_comes_from_the_settings_of_the_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    trace = Path(__file__).resolve().parents[1] / "traces" / "trl"
    assert main(["noise", str(trace)]) == 0
    text = capsys.readouterr().out
    assert "sequence ratio, clip range 0.0003 / 0.0004" in text
    assert "s is exactly 1: no noise" in text


POISON = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0, 3e38, -3e38], dtype=np.float32)


@pytest.mark.parametrize("seed", range(16))
def test_hostile_numbers_neither_raise_nor_warn(tmp_path: Path, seed: int) -> None:
    stream = np.random.default_rng(seed)
    ratio = ("sequence", "token", "product", "gspo_token")[seed % 4]
    run = Run(
        std=(0.0, 1e-30, 0.05, 5.0)[seed // 4],
        engine=(None, 0.0, 0.05)[seed % 3],
        prompts=4,
        group=(2, 8)[seed % 2],
        median=(1, 5, 50)[seed % 3],
        minibatches=(1, 2)[seed % 2],
        objective=Objective.gspo().to_dict() | {"ratio": ratio},
        seed=seed,
    )
    with np.errstate(all="ignore"):
        header = run.write(tmp_path).shards[0].header
    arrays = load_file(tmp_path / "0.safetensors")
    for name, array in arrays.items():
        if array.dtype == np.float32 and stream.random() < 0.4:
            places = stream.integers(0, array.size, size=int(stream.choice([1, 3, array.size])))
            array[places] = stream.choice(POISON, size=places.size)
        elif name.endswith("groups"):
            array *= 2**55
    save_file(arrays, tmp_path / "0.safetensors", metadata={"gspo_trace": json.dumps(dict(header))})
    trace = read_trace(tmp_path)
    analysis = analyse(trace)
    told = findings_of(analysis)
    assert "nan" not in render_run(trace, analysis, told, "json")
    assert told
    assert not {"nan", "inf"} & set(re.findall(r"[a-z]+", str(figures(analysis))))


def test_the_error_of_a_prediction_is_the_spread_of_what_noise_clips(tmp_path: Path) -> None:
    run = Run(std=0.02, bias=-2e-4, rollouts=1, median=100)
    distances = []
    for run.seed in range(24):
        later = analyse(run.write(tmp_path)).minibatches[1:]
        assert not any(one.beyond for one in later)
        distances += [(one.observed - one.predicted) / one.error for one in later]
    assert abs(np.mean(distances)) < 0.35
    assert 0.75 < np.std(distances) < 1.3


def test_learning_beyond_noise_is_significant(tmp_path: Path) -> None:
    assert analyse(Run(std=0.005, drift=3e-4).write(tmp_path)).minibatches[-1].beyond


def test_short_responses_that_noise_clips_and_piles_at_a_bound_are_told(tmp_path: Path) -> None:
    short = found(Run(std=0.01, median=400, prompts=64).write(tmp_path / "short"))
    assert "noise moves short responses further" in short["clipped-by-length"].consequence
    trace = Run(drift=1e-9, prompts=32).write(tmp_path / "pile")
    arrays, header = load_file(tmp_path / "pile" / "0.safetensors"), trace.shards[0].header
    for step in (1, 2, 3):
        d = np.linspace(0.2, 1.8, len(arrays[f"{step}.rewards"]))
        d[::3] = 1.03
        lengths = np.diff(arrays[f"{step}.offsets"])
        arrays[f"{step}.logp"] = arrays[f"{step}.old_logp"] + np.float32(np.repeat(4e-4 * d, lengths))
    save_file(arrays, tmp_path / "pile" / "0.safetensors", metadata={"gspo_trace": json.dumps(dict(header))})
    piled = found(read_trace(tmp_path / "pile"))["pile-up"]
    assert "around the upper bound" in piled.message


def test_clipped_tokens_are_predicted_from_the_first_minibatch_and_not_from_a_normal(tmp_path: Path) -> None:
    run = analyse(Run(std=0.05, objective=Objective.grpo(Clip(0.1, 0.1)).to_dict()).write(tmp_path))
    first, *later = run.minibatches
    assert first.predicted == pytest.approx(first.observed, rel=1e-12)
    assert first.observed == pytest.approx(0.5 * 0.0175 + 0.5 * 0.0284, rel=0.1)  # beyond log 0.9 and log 1.1
    assert all(one.observed == pytest.approx(one.predicted, rel=0.1) for one in later)
    assert not any(one.beyond for one in later)
