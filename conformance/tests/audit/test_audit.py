"""Real runs audit clean; every planted fault is named, with the step since which it is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from gspo_conformance.audit import read_trace
from gspo_conformance.audit.claim import claim_of
from gspo_conformance.audit.judgement import Audit, audit
from gspo_conformance.cli import main
from gspo_conformance.formats import ROOT

from .faults import CONTROLS, FAULTS, Fault, Run, shifted_mask, truncate
from .training import train

TRL = Path(__file__).parents[1] / "traces" / "trl"
# The first step of the second rollout.
SINCE = 2


@pytest.fixture(scope="session")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    own = tmp_path_factory.mktemp("own")
    train(own, gradient=True, updates=2)
    return {"trl": TRL, "own": own}


def _audit(folder: Path) -> Audit:
    trace = read_trace(folder)
    return audit(trace, claim_of(trace))


@pytest.mark.parametrize("name", ["trl", "own"])
def test_a_real_run_agrees_with_its_claim(name: str, traces: dict[str, Path]) -> None:
    found = _audit(traces[name])
    assert found.verdict == "agrees"
    assert found.findings == []
    compared = {what for what, series in found.ledger.series.items() if series.compared}
    assert {"loss", "step loss", "gradient", "advantages", "gradient at uncounted tokens"} <= compared
    assert any(what.startswith("metrics.") for what in compared)
    assert found.compared > 80


@pytest.mark.parametrize("name", ["trl", "own"])
@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
def test_a_replay_without_a_fault_agrees(control: Fault, name: str, traces: dict[str, Path], tmp_path: Path) -> None:
    run = Run(traces[name])
    control(run, 0)
    run.write(tmp_path)
    found = _audit(tmp_path)
    assert (found.verdict, found.findings) == ("agrees", [])


@pytest.mark.parametrize("name", ["trl", "own"])
@pytest.mark.parametrize("rule", FAULTS)
def test_every_planted_fault_is_named_with_its_step(
    rule: str, name: str, traces: dict[str, Path], tmp_path: Path
) -> None:
    run = Run(traces[name])
    FAULTS[rule](run, SINCE)
    run.write(tmp_path)
    found = _audit(tmp_path)
    assert found.verdict == "differs"
    assert found.exit_code == 1
    assert found.findings[0].rule == rule, found.findings
    assert f"step {SINCE}" in found.findings[0].message
    assert {one.rule for one in found.errors} == {rule}


@pytest.mark.parametrize("name", ["trl", "own"])
def test_a_truncated_file_is_named_and_the_rest_is_audited(name: str, traces: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "trace"
    shutil.copytree(traces[name], folder)
    cut = truncate(folder, 3)
    found = _audit(folder)
    assert found.findings[0].rule == "truncated-file"
    assert cut.name in found.findings[0].message
    assert (found.verdict, found.exit_code) == ("incomplete", 1)
    assert found.compared > 60


def test_mistakes_that_a_training_loop_really_makes(tmp_path: Path) -> None:
    train(tmp_path / "temperature", temperature=0.8, rollouts=2, updates=2)
    assert [one.rule for one in _audit(tmp_path / "temperature").errors] == ["temperature"]
    train(tmp_path / "stale", stale=1, updates=2)
    (one,) = _audit(tmp_path / "stale").errors
    assert one.rule == "stale-old-logp"
    assert "since step 2" in one.message


def test_the_command_reports_in_three_forms_and_ends_as_it_should(
    traces: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(TRL)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{TRL}: agrees")
    assert "numbers of the run recomputed, none differ" in text
    run = Run(TRL)
    FAULTS["aggregation.token-mean"](run, 2)
    run.write(tmp_path / "bad")
    assert main(["audit", str(tmp_path / "bad"), "--format", "json"]) == 1
    record = json.loads(capsys.readouterr().out)
    schema = json.loads((ROOT / "schemas" / "audit.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    assert list(Draft202012Validator(schema).iter_errors(record)) == []
    assert record["verdict"] == "differs"
    assert record["findings"][0]["rule"] == "aggregation.token-mean"
    assert main(["audit", str(tmp_path / "bad"), "--format", "html", "--out", str(tmp_path / "report")]) == 1
    page = (tmp_path / "report" / "audit.html").read_text(encoding="utf-8")
    assert "aggregation.token-mean" in page
    assert "<script" not in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "no such trace"),
        ([str(TRL), "--objective", "gpso"], "did you mean 'gspo'"),
        ([str(TRL), "--objective", '{"ratio": "sequence"'], "not JSON"),
        ([str(TRL), "--objective", '{"ratio": "sequence"}'], "surrogate"),
        ([str(TRL), "--config", "x.yaml"], "No such file"),
        ([str(TRL), "--config", "x.yaml", "--objective", "gspo"], "got both"),
        ([str(TRL), "--dialect", "trl"], "--dialect: says whose configuration"),
    ],
)
def test_usage_errors_are_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_claim_may_come_from_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "grpo.yaml"
    config.write_text("importance_sampling_level: token\nloss_type: grpo\nepsilon: 0.2\n")
    assert main(["audit", str(TRL), "--config", str(config), "--dialect", "trl"]) == 1
    assert "the loss differs since step 1" in " ".join(capsys.readouterr().out.split())


def test_the_guide_shows_what_the_audit_of_a_shifted_mask_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(TRL)
    shifted_mask(run, SINCE)
    run.write(tmp_path / "trace")
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[3] / "docs" / "audit.md"
    shown = page.read_text(encoding="utf-8").split("$ gspo audit trace\n")[1].split("  ...\n")[0]
    assert main(["audit", "trace"]) == 1
    assert capsys.readouterr().out.startswith(shown)
