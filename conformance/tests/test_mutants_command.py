"""`gspo mutants`: who kills whom, as text, Markdown and JSON."""

from __future__ import annotations

import json
import sys

import pytest

from gspo_conformance.cli import main
from gspo_conformance.commands import counted
from gspo_conformance.diagnosis.census import Examined
from gspo_conformance.diagnosis.report import Report, render_pairs, show_margin
from gspo_conformance.formats import load_vectors
from gspo_conformance.mutants import find
from gspo_conformance.words import UsageError


@pytest.fixture(scope="module")
def vectors() -> list:
    return [vector for vector in load_vectors() if vector.area in ("reward", "sampling")]


@pytest.fixture(scope="module")
def report(vectors: list) -> Report:
    from gspo_conformance.diagnosis.census import census

    names = ["overlong.sign", "sampling.inverted"]
    return Report([find(name) for name in names], vectors, census(vectors, names), whole=True, seconds=1.5)


def test_text_says_who_kills_whom(report: Report) -> None:
    lines = report.render("text").splitlines()
    row = next(line for line in lines if line.startswith("overlong.sign"))
    assert row.split()[1] == "GSPO-REWARD-5"
    assert row.endswith("yes")
    assert "2 of 2 mutants killed (100%)" in "\n".join(lines)
    assert any(line.startswith("idle, kills nothing: reward/") for line in lines)
    assert not report.complete


def test_the_witness_is_of_the_clause(report: Report) -> None:
    for item in report.score.scored:
        assert item.mutant.clause in item.vectors[report.witness(item)].clauses


def test_markdown_tells_stories(report: Report) -> None:
    text = report.render("md", vectors=True)
    assert "## overlong" in text
    assert "### `overlong.sign`" in text
    assert "The penalty with the wrong sign: length is rewarded." in text
    assert "- Effect: length is rewarded." in text
    assert "- Killed by `reward/" in text


def test_json_has_everything(report: Report) -> None:
    found = json.loads(report.render("json"))
    assert [entry["name"] for entry in found["mutants"]] == ["overlong.sign", "sampling.inverted"]
    entry = found["mutants"][0]
    assert entry["killed"]
    assert entry["recognised"]
    assert set(entry["kills"]) == {id_ for id_, names in found["vectors"].items() if "overlong.sign" in names}
    assert found["survivors"] == []


def test_a_survivor_is_told_what_it_needs(vectors: list) -> None:
    lone = find("clip.mask")
    report = Report([lone], vectors, {lone.name: Examined(lone.name, {})}, whole=False, seconds=0.0)
    assert not report.complete
    assert "survives: clip.mask: needs a vector of clause GSPO-SURR-1" in report.render("text")
    assert "mistaken: clip.mask for nothing" in report.render("text")


def test_pairs_are_counted() -> None:
    found = {"a+b": Examined("a+b", {}, ("b", "a")), "c+d": Examined("c+d", {}, ("c",), (), 0.5)}
    text = render_pairs(found, 3)
    assert "1 of 2 pairs recognised (50%), 1 by name alone; seed 3" in text
    assert "c+d: taken for c (50.0%)" in text


def test_margins_are_readable() -> None:
    assert [show_margin(value) for value in (float("inf"), 118.4, 2e9)] == ["exact", "118x", ">1e6x"]


def test_a_misspelt_mutant_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mutants", "clip.two-sidet"]) == 2
    assert "did you mean 'clip.two-sided'?" in capsys.readouterr().err


@pytest.mark.parametrize("pairs", ["0", "-1", "many"])
def test_pairs_are_counted_from_one(pairs: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Hunts `0 of 0 pairs recognised` as a success, and 0 as a run of everything."""
    with pytest.raises(SystemExit, match="2"):
        main(["mutants", "--pairs", pairs])
    assert f"expected 1 or more pairs, got {pairs}" in capsys.readouterr().err


@pytest.mark.parametrize("names", [["clip.mask"], ["ratio.cap-10", "ratio.cap-20"]])
def test_no_pair_is_no_success(names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mutants", *names, "--pairs", "2"]) == 2
    assert "no pair in" in capsys.readouterr().err


def test_the_live_line_counts_in_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Hunts `2/363 mutantss`."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with counted("mutant") as show:
        assert show is not None
        show(2, 363, "clip.mask")
    assert "2/363 mutants  clip.mask" in capsys.readouterr().err


def test_globs_choose_by_name_family_and_clause() -> None:
    from gspo_conformance.commands.mutants import choose

    assert [mutant.name for mutant in choose(["overlong.s*"])] == ["overlong.step", "overlong.sign"]
    assert {mutant.name.partition(".")[0] for mutant in choose(["whiten"])} == {"whiten"}
    assert all(mutant.clause == "GSPO-KL-5" for mutant in choose(["GSPO-KL-5"]))
    with pytest.raises(UsageError):
        choose(["nothing.like-it"])


def test_a_report_that_is_to_be_reproduced_has_no_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    found = {"clip.two-sided": Examined("clip.two-sided", {})}
    monkeypatch.setattr("gspo_conformance.diagnosis.census.census", lambda *_, **__: found)
    main(["mutants", "clip.two-sided", "--format", "json"])
    assert json.loads(capsys.readouterr().out)["seconds"] == 0.0
