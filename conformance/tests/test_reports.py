"""Reports: the record obeys its schema and shows truncation, parts merge, and no format lets a target's words out of their place."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest

import gspo_conformance
from gspo_conformance.connection import InProcess
from gspo_conformance.known import KnownFailure, KnownFailures
from gspo_conformance.reports import FORMATS, render, write
from gspo_conformance.reports.markup import element, text
from gspo_conformance.reports.matrix import matrix
from gspo_conformance.reports.plots import bars, gauge
from gspo_conformance.reports.reading import read
from gspo_conformance.reports.record import lines, merge
from gspo_conformance.run import FAIL, PASS, SKIPPED, UNSUPPORTED, Result, Run, by_vector, clauses_of
from gspo_conformance.runner import Options, run_vectors
from gspo_conformance.target import Capabilities, Case, FunctionTarget, Skip
from gspo_conformance.words import UsageError

from .small import small_suite

SCHEMA = json.loads((Path(gspo_conformance.__file__).parent / "schemas/report.schema.json").read_text(encoding="utf-8"))
SUITE = small_suite()
EVIL = '"><script>alert(1)</script> & | `x` <b>*bold*</b> ]]> \x00\x1b[31m \N{SNOWMAN}'
TRUTH = {vector.id: vector.expected for vector in SUITE}


def answer(case: Case) -> dict[str, Any]:
    """Right, but for one wrong gradient, one crash and one skip."""
    if case.id == "sampling/keep":
        raise Skip("not yet", "https://example.org/1")
    if case.id == "ratio/sequence" and case.dtype == "float64":
        raise RuntimeError(EVIL)
    answers = {name: expected.value.astype(case.dtype) for name, expected in TRUTH[case.id].items()}
    if case.id.startswith("gradient"):
        answers["gradient"] = 2 * answers["gradient"] + 1e-3
    return answers


def test_wrong_numbers_are_told_before_inputs_that_are_accepted() -> None:
    reason = "expected an error about `logp`, got an answer"
    refused = Result("numerics/refuses", "float32", "SHOULD", ("GSPO-NUM-6",), (), "policy_loss", FAIL, reason=reason)
    numbers = replace(refused, id="mask/nan", clauses=("GSPO-DATA-2", "GSPO-NUM-5"), reason="loss: got nan")
    assert [group[0].id for group in by_vector([refused, numbers])] == ["mask/nan", "numerics/refuses"]
    assert [group[0].id for group in by_vector([numbers, refused], ("GSPO-NUM-6",))] == ["numerics/refuses", "mask/nan"]


def test_failures_that_are_not_shown_are_told_by_clause() -> None:
    of = (("GSPO-DATA-2", "GSPO-NUM-5"), ("GSPO-NUM-5",), ("GSPO-NUM-6",))
    groups = [[Result(f"mask/{i}", "float32", "SHOULD", of[i], (), "policy_loss", FAIL)] for i in range(3)]
    assert clauses_of(groups) == [("GSPO-NUM-5", 2), ("GSPO-NUM-6", 1)]
    assert clauses_of([]) == []
    results = [Result(f"mask/{i}", "float32", "SHOULD", of[i % 3], (), "policy_loss", FAIL) for i in range(7)]
    told = render([replace(RUN, results=results)], "text")
    assert re.search(
        r"\n    and 2 more .*on\n +5  GSPO-NUM-5  Mask by selection\n +2  GSPO-NUM-6  Non-finite counted", told
    )


def run(**changes: Any) -> Run:
    capabilities = Capabilities.everything()
    target = FunctionTarget(changes.get("name", EVIL), changes.get("function", answer), capabilities, {"lib": EVIL})
    found = run_vectors(InProcess(target), changes.get("vectors", SUITE), changes.get("options", Options()))
    found.diagnosis = {"sentence": f"returns {EVIL}", "clauses": ["GSPO-GRAD-2"], "mutants": ["a"], "confidence": 0.9}
    return found


RUN = run()


def test_every_line_of_a_record_obeys_the_schema() -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    failing = Run("x", failure="does not start")
    for found in (RUN, failing, run(options=Options(level="MAY", known=KnownFailures((KnownFailure("*", "all"),))))):
        if found is not failing:
            entries = [json.loads(line) for line in lines(found)]
            assert not [error.message for entry in entries for error in validator.iter_errors(entry)]
            assert [entries[0]["type"], entries[-1]["type"]] == ["header", "footer"]
    assert json.loads(list(lines(failing))[-1])["failure"] == "does not start"


def test_only_the_header_knows_the_time_of_day() -> None:
    first, *rest = lines(RUN)
    assert RUN.started in first
    assert not [line for line in rest if RUN.started[:10] in line]


def test_a_record_read_back_is_the_run(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text("".join(lines(RUN)), encoding="utf-8")
    back = read(path)
    assert list(lines(back)) == list(lines(RUN))
    assert (back.exit_code, back.verdict, back.k) == (RUN.exit_code, RUN.verdict, RUN.k)
    for format in ("text", "md", "junit", "html"):
        assert render([back], format).replace(f"{back.seconds:.1f} s", "") == render([RUN], format).replace(
            f"{RUN.seconds:.1f} s", ""
        )


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.95])
def test_a_record_that_was_cut_short_says_so_and_never_conforms(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "run.jsonl"
    whole = "".join(lines(run(function=lambda case: {n: e.value for n, e in TRUTH[case.id].items()})))
    path.write_text(whole, encoding="utf-8")
    assert read(path).exit_code == 0
    path.write_text(whole[: int(len(whole) * kept)], encoding="utf-8")
    cut = read(path)
    assert cut.failure == "the record is cut short"
    assert cut.exit_code == 3
    assert "0.0 s" not in render([cut], "text") + render([cut], "html")


def test_a_cell_counts_what_was_judged_and_not_what_was_unsupported() -> None:
    one = next(result for result in RUN.results if result.verdict == PASS)
    rest = [replace(one, verdict=verdict) for verdict in (FAIL, UNSUPPORTED, SKIPPED)]
    cells = re.findall(r"<small>(.*?)</small>", matrix([replace(RUN, results=[one, *rest])]))
    assert set(cells) == {" 1/2"}


def test_a_line_that_is_missing_from_the_middle_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    entries = list(lines(RUN))
    path.write_text("".join(entries[:3] + entries[4:]), encoding="utf-8")
    assert read(path).failure == "the record is cut short"


@pytest.mark.parametrize("content", ["", "not JSON\n", '{"type":"footer"}\n', '{"type":"header","schema":9}\n'])
def test_what_is_no_record_is_a_mistake_of_usage(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match="expected"):
        read(path)


def test_parts_of_one_run_are_joined_and_other_runs_stand_side_by_side() -> None:
    parts = [run(vectors=SUITE[:3]), run(vectors=SUITE[3:])]
    (joined,) = merge(parts)
    assert [result.key for result in joined.results] == [result.key for result in RUN.results]
    assert joined.exit_code == RUN.exit_code
    assert len(merge([run(), run()])) == 2
    assert len(merge([run(name="a", vectors=SUITE[:3]), run(name="b", vectors=SUITE[3:])])) == 2
    stranger = run()
    stranger.suite = {**stranger.suite, "digest": "0" * 16}
    with pytest.raises(UsageError, match="another suite"):
        merge([run(), stranger])


def test_of_parts_of_a_run_the_diagnosis_that_explains_most_stands() -> None:
    known = {"sentence": "returns the loss of `a`", "clauses": [], "mutants": ["a"], "explained": 7}
    vague = {"sentence": "unknown deviation", "clauses": [], "mutants": []}
    for first, second, stands in (
        (vague, known, known),
        (known, vague, known),
        (None, vague, vague),
        (None, None, None),
    ):
        parts = [replace(run(vectors=SUITE[:3]), diagnosis=first), replace(run(vectors=SUITE[3:]), diagnosis=second)]
        assert merge(parts)[0].diagnosis == stands


def test_text_is_calm_and_says_what_to_do_next() -> None:
    found = render([run(name="mine:target")], "text")
    assert "NOT conforming: 5 pass, 4 fail, 2 skipped, 1 error" in found
    assert "\x1b" not in found
    assert re.search(r"gradient +4", found)
    assert "GSPO-GRAD-2" in found
    assert "next        gspo explain gradient/clipped" in found
    assert "gspo check mine:target -k gradient/clipped -v" in found
    assert "below MUST: reported, not failing" in found
    assert "Traceback" not in found
    assert "Traceback" in render([RUN], "text", verbose=True)
    assert render([RUN, RUN], "text").count("NOT conforming") == 4


def test_text_has_a_line_for_each_wrong_output_and_breaks_no_reason() -> None:
    def broken(case: Case) -> dict[str, Any]:
        if case.id == "ratio/sequence":
            raise ValueError('NaN is not JSON; write "nan"')
        return {name: value + 1.0 for name, value in answer(case).items()}

    found = render([run(name="mine", function=broken)], "text")
    assert 'ValueError: NaN is not JSON; write "nan"\n' in found
    assert re.search(r"\n +loss: got .*\n +gradient: got ", found)


def test_markdown_keeps_every_word_in_its_cell() -> None:
    rows = [line for line in render([RUN], "md").splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} <= {3, 5}
    assert "<script>" not in render([RUN], "md")


def test_junit_is_xml_whose_red_is_the_exit_code() -> None:
    root = ElementTree.fromstring(render([RUN], "junit"))
    suites = root.findall("testsuite")
    totals = {
        name: sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    }
    assert totals == {"tests": 12, "failures": 2, "errors": 1, "skipped": 4}
    for kind in ("failure", "error", "skipped"):
        assert len(root.findall(f".//{kind}")) == totals[kind if kind == "skipped" else f"{kind}s"]
    messages = [found.get("message", "") for found in root.findall(".//error")]
    assert messages == [
        f"error: RuntimeError: {' '.join(EVIL.split())}".replace("\x00", "\\x00").replace("\x1b", "\\x1b")
    ]
    broken = ElementTree.fromstring(render([Run("x", failure=EVIL)], "junit"))
    assert broken.find(".//error") is not None


class Page(HTMLParser):
    """What a browser would see: elements, links, ids, and text by element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += "" if "style" in self.open else data


@pytest.fixture(scope="module")
def html() -> str:
    return render([RUN, run(name="another")], "html", vectors=SUITE)


def test_the_page_is_well_formed_and_nothing_in_it_runs_or_loads(html: str) -> None:
    page = Page(html)
    assert not page.open
    assert not {"script", "b onload", "iframe", "object", "embed", "link", "img", "form", "base"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    loading = [
        (tag, name, value) for tag, name, value in page.attributes if name in ("src", "srcset", "action", "data")
    ]
    assert not loading
    assert all(tag == "a" for tag, name, _ in page.attributes if name == "href")
    assert "url(" not in html
    assert "@import" not in html
    assert (
        "meta",
        "content",
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    ) in (page.attributes)


def test_the_page_shows_what_failed_and_why(html: str) -> None:
    page = Page(html)
    ids = {value for _, name, value in page.attributes if name == "id"}
    targets = {value[1:] for _, name, value in page.attributes if name == "href" and value and value.startswith("#")}
    assert targets <= ids
    assert "NOT conforming" in page.words
    for words in (
        "gradient/clipped",
        "The vector gradient/clipped",
        "expected",
        "got",
        "what went in",
        "what it hunts",
    ):
        assert words in page.words
    assert page.tags.count("svg") > 10
    assert "alert(1)" in page.words, "the target's words are shown, as words"
    assert "\\x00" in page.words


def test_the_page_of_a_run_that_never_started_says_why() -> None:
    page = Page(render([Run("ghost", failure=EVIL)], "html", vectors=SUITE))
    assert "harness failed" in page.words
    assert "alert(1)" in page.words


def test_a_vector_that_the_suite_no_longer_has_is_reported_from_the_record_alone() -> None:
    assert "gradient/clipped" in Page(render([RUN], "html", vectors=[])).words


def test_markup_escapes_all_but_itself() -> None:
    made = element("a", "<&>", [element("b", None, "x")], href='#"<', disabled=True, hidden=None)
    assert made == '<a href="#&quot;&lt;" disabled>&lt;&amp;&gt;<b>x</b></a>'
    assert text("\x00\x08\ud800") == "\\x00\\x08\\xd800"


@pytest.mark.parametrize("units", [np.array([0.0]), np.array([np.inf, 0.5, 1e9]), np.full((3, 400), 20.0), np.zeros(0)])
def test_plots_stand_any_error(units: np.ndarray) -> None:
    for svg in (bars(units, 16.0), bars(units, 0.0)):
        root = ElementTree.fromstring(svg)
        assert not [value for shape in root.iter() for value in shape.attrib.values() if value in ("nan", "inf")]
    ElementTree.fromstring(gauge(float(units.max(initial=0)), 16.0))


def test_reports_and_records_are_written_under_names_that_file_systems_like(tmp_path: Path) -> None:
    for format in FORMATS:
        paths = write([RUN], tmp_path / format, format)
        assert all(path.stat().st_size > 100 for path in paths)
        assert all(re.fullmatch(r"[\w.-]+", path.name) for path in paths)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH; the parsed page is checked above")
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_the_page_without_an_error(html: str, width: int, tmp_path: Path) -> None:
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    page.write_text(html, encoding="utf-8")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    size = [f"--window-size={width},900", f"--screenshot={shot}", "--enable-logging=stderr"]
    done = subprocess.run([CHROMIUM, *FLAGS, profile, *size, page.as_uri()], capture_output=True, text=True, timeout=60)
    assert shot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert shot.stat().st_size > 20_000, "an empty page compresses to less"
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line], done.stderr


def test_the_page_is_the_same_with_and_without_the_time() -> None:
    later = replace(RUN, started="2030-01-01T00:00:00+00:00")
    one, other = (render([found], "html", vectors=SUITE).splitlines() for found in (RUN, later))
    assert len([1 for a, b in zip(one, other, strict=True) if a != b]) == 1
