"""Words that mean harm, planted wherever a target or a record can put text: every report shows them and obeys none."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from gspo_conformance.cli import main
from gspo_conformance.formats import load_vectors
from gspo_conformance.judge import Judged
from gspo_conformance.reports import file_name, render, write
from gspo_conformance.reports.reading import read
from gspo_conformance.run import FAIL, Result, Run
from gspo_core import Objective

PAYLOADS = {
    "script": "\"'><script>alert(1)</script>",
    "handler": "\" onerror=alert(1) x='<img src=x onerror=alert(1)><svg onload=alert(1)>",
    "cdata": "]]> <![CDATA[ --> <!-- </title></style></testsuite><failure/> &lt;script&gt; &#x3c;",
    "markdown": "`x` | [a](javascript:alert(1)) ![a](http://evil.invalid/x.png) <https://evil.invalid> **b** \\| \n# head",
    "terminal": "\x1b[2J\x1b]8;;http://evil.invalid\x07link\x1b]8;;\x07\x9b31m\x08\x08\x7f\r  conforming\x00\u202eevil\u2066",
    "address": "javascript:alert(1)",
}
OBEYED = set("\x00\x07\x08\x0c\x1b\x7f\x85\x9b\r\u202a\u202e\u2066\u2028\ud800\ufeff")
VECTOR = next(vector for vector in load_vectors("gradient") if vector.refuses is None)


def planted(evil: str, *, known: bool) -> Run:
    """A run in which every text that a target or a hostile record chooses is `evil`."""
    judged = tuple(
        Judged(name, 99.0, 16.0, evil, (0,), evil, np.asarray([1.0]))
        for name in (evil, *(VECTOR.outputs if known else ()))
    )
    result = Result(
        VECTOR.id if known else f"{evil.partition('/')[0]}/{evil}",
        "float32",
        "MUST",
        (evil,),
        (evil,),
        evil,
        FAIL,
        judged,
        evil,
        evil,
        evil,
        answer={evil: np.asarray([1.0])},
    )
    levels = [result, replace(result, level="SHOULD"), replace(result, verdict="error", judged=())]
    return Run(
        evil,
        {"name": evil, evil: evil},
        {"operations": [evil]},
        [replace(one, id=one.id + f"-{i}" * (not known)) for i, one in enumerate(levels)],
        {"version": evil, "digest": evil, "vectors": 1},
        evil,
        failure=evil,
        detail=evil,
        complete=True,
        diagnosis={
            "sentence": evil,
            "clauses": [evil],
            "mutants": [evil],
            "links": [evil, "https://example.org/1"],
            "effect": evil,
            "confidence": 0.5,
            "runners_up": [{"mutants": evil, "confidence": 0.1}],
        },
        stale=(evil,),
    )


RUNS = [(kind, known) for kind in PAYLOADS for known in (True, False)]


class Page(HTMLParser):
    """Whatever the parser takes for a tag, an attribute or a style."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"a declaration: {data}")


@pytest.mark.parametrize(("kind", "known"), RUNS)
def test_the_page_runs_nothing_and_links_nowhere(kind: str, known: bool) -> None:
    page = Page(render([planted(PAYLOADS[kind], known=known)], "html"))
    assert not page.tags & {"script", "img", "iframe", "object", "embed", "link", "base", "form", "input", "math"}
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "srcdoc", "action")]
    links = [value or "" for name, value in page.attributes if name in ("href", "xlink:href")]
    assert all(link.startswith(("https://", "#")) for link in links)
    assert "https://example.org/1" in links
    styles = [value or "" for name, value in page.attributes if name == "style"]
    assert all(re.fullmatch(r"width:[\d.]+%", style) for style in styles)


@pytest.mark.parametrize(("kind", "known"), RUNS)
def test_junit_is_xml_with_the_elements_that_the_report_has(kind: str, known: bool) -> None:
    honest = ElementTree.fromstring(render([planted("calm", known=known)], "junit"))
    found = ElementTree.fromstring(render([planted(PAYLOADS[kind], known=known)], "junit"))
    assert [element.tag for element in found.iter()] == [element.tag for element in honest.iter()]
    assert [set(element.attrib) for element in found.iter()] == [set(element.attrib) for element in honest.iter()]


@pytest.mark.parametrize(("kind", "known"), RUNS)
def test_markdown_has_the_lines_and_cells_that_the_report_has(kind: str, known: bool) -> None:
    def shape(evil: str) -> list[int]:
        lines = render([planted(evil, known=known)], "md", verbose=True).splitlines()
        return [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) if line.startswith("|") else 0 for line in lines]

    found = render([planted(PAYLOADS[kind], known=known)], "md", verbose=True)
    assert shape(PAYLOADS[kind]) == shape("calm")
    outside = re.sub(r"`[^`]*`", "", re.sub(r"\\.", "", found))
    assert "<" not in outside
    assert not re.search(r"\]\(", outside)


@pytest.mark.parametrize("kind", PAYLOADS)
@pytest.mark.parametrize("format", ["text", "md", "json", "html", "junit"])
def test_no_report_holds_what_a_terminal_obeys(format: str, kind: str) -> None:
    for known in (True, False):
        found = render([planted(PAYLOADS[kind], known=known)], format, verbose=True)
        assert not set(found) & OBEYED
        assert found.encode("utf-8")


def test_what_an_implementation_says_of_itself_is_one_line_of_the_summary() -> None:
    found = Run("mine", {"name": "x\n\n  conforming: 9 pass", "lib\n": "1\n2"}, failure="does not answer")
    assert render([found], "text").splitlines()[0] == "mine (x conforming: 9 pass, lib 1 2)"


@pytest.mark.parametrize("kind", PAYLOADS)
def test_a_planted_record_survives_the_way_and_lands_in_its_folder(kind: str, tmp_path: Path) -> None:
    run = planted(PAYLOADS[kind], known=False)
    folder = tmp_path / "out"
    paths = write([run, run], folder, "html")
    assert {path.parent for path in paths} == {folder}
    assert len(set(paths)) == 3
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in paths)
    assert render([read(paths[0])], "json") == render([run], "json")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..", ".", "", "/", "a/../b", "\\\\server\\x", "NUL\0", "x" * 999]
)
def test_a_target_does_not_choose_the_folder(name: str, tmp_path: Path) -> None:
    found = tmp_path / f"{file_name(name)}.jsonl"
    assert found.parent == tmp_path
    assert len(found.name) < 100
    for path in write([Run(name)], tmp_path / "out", "json"):
        assert path.parent == tmp_path / "out"
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[0])["target"] == name


@pytest.mark.parametrize("kind", PAYLOADS)
def test_what_a_trace_says_is_shown_and_not_obeyed(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = PAYLOADS[kind]
    run = {
        "objective": Objective.gspo().to_dict(),
        "trainer": {"name": evil[:100], "version": evil[:100], "settings": {evil: evil}},
    }
    part = {"step": 0, "loss": 0.5, "metrics": {evil[:80]: 0.5, "clip_fraction": 0.9}}
    header = {"version": 1, "rank": 0, "run": run, "parts": [part], "end": {"reason": "error", "message": evil}}
    arrays = {
        "0.logp": np.zeros((2, 2), np.float32),
        "0.old_logp": np.full((2, 2), 0.1, np.float32),
        "0.advantages": np.asarray([1.0, -1.0], np.float32),
        "0.mask": np.ones((2, 2), bool),
    }
    folder = tmp_path / "trace"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(_shard(header, arrays))
    (folder / f"{evil.replace(chr(0), '').replace('/', '')[:60]}.safetensors").write_bytes(b"broken")
    assert main(["audit", str(folder), "--format", "html", "--out", str(tmp_path / "out")]) in (0, 1)
    page = Page((tmp_path / "out" / "audit.html").read_text(encoding="utf-8"))
    assert not page.tags & {"script", "img", "iframe", "object", "embed", "base", "form"}
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "srcdoc", "action")]
    assert all((value or "").startswith(("https://", "#")) for name, value in page.attributes if name == "href")
    for words in (["audit", str(folder), "-v"], ["audit", str(folder), "--format", "json"], ["noise", str(folder)]):
        capsys.readouterr()
        assert main(words) in (0, 1, 2)
        assert not set("".join(capsys.readouterr())) & OBEYED


def _shard(header: dict[str, object], arrays: dict[str, np.ndarray]) -> bytes:
    """A file of a trace by hand."""
    entries: dict[str, object] = {"__metadata__": {"gspo_trace": json.dumps(header)}}
    body = b""
    for name, array in arrays.items():
        kind = {"f": "F32", "b": "BOOL"}[array.dtype.kind]
        entries[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + array.nbytes],
        }
        body += array.tobytes()
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + body
