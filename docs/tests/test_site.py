"""Every page of the site in a headless Chromium: no error, no request that leaves, no formula left as source, no dead link.

Without a Chromium on the machine these tests are skipped and say so; CI installs one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.parse import unquote, urldefrag, urlparse

import pytest

from .browser import BrowserError, Page, browser, chromium
from .served import build, served

PHONE, DESK = 390, 1400
OBSERVE = (Path(__file__).parent / "observe.js").read_text(encoding="utf-8")
PROGRAM = chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine: apt-get install chromium")


@dataclass
class Visit:
    """What was seen on one page."""

    seen: dict[str, Any]
    errors: list[str]
    requests: list[str]


@dataclass
class Site:
    """The built site, where it is served, and the visits by path."""

    folder: Path
    address: str
    page: Page
    visits: dict[str, Visit]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    build(folder)
    with served(folder) as address, browser(str(PROGRAM)) as page:
        page.resize(PHONE)
        visits = {"index.html": visit(page, f"{address}/")}
        _forget_what_can_be_searched(folder)
        paths = {path.relative_to(folder).as_posix() for path in folder.rglob("*.html")}
        visits |= {path: visit(page, f"{address}/{path}") for path in sorted(paths - set(visits))}
        yield Site(folder, address, page, visits)


def _forget_what_can_be_searched(folder: Path) -> None:
    """Every page indexes the whole site when it is loaded; once is enough here."""
    path = folder / "search" / "search_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    assert len(index["docs"]) > 100
    path.write_text(json.dumps(index | {"docs": index["docs"][:1]}), encoding="utf-8")


def visit(page: Page, url: str) -> Visit:
    """Opens a page and looks."""
    page.open(url.removesuffix("index.html"))
    seen = page.run(OBSERVE)
    return Visit(seen, list(errors(page.events)), list(requests(page.events)))


def errors(events: list[dict[str, Any]]) -> Iterator[str]:
    """What the console shows in red or yellow, and exceptions."""
    for event in events:
        method, told = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            yield details.get("exception", {}).get("description", details["text"])
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            yield " ".join(str(part.get("value", part.get("description"))) for part in told["args"])
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            yield f"{told['entry']['text']} {told['entry'].get('url', '')}"


def requests(events: list[dict[str, Any]]) -> Iterator[str]:
    """Every address that the page asked for."""
    for event in events:
        if event.get("method") == "Network.requestWillBeSent":
            yield event["params"]["request"]["url"]


def offences(site: Site, of: str) -> dict[str, Any]:
    return {path: visit.seen[of] for path, visit in site.visits.items() if visit.seen[of]}


def test_there_is_a_site(site: Site) -> None:
    assert len(site.visits) > 25
    assert sum(visit.seen["rendered"] for visit in site.visits.values()) > 300
    assert [path for path, visit in site.visits.items() if visit.seen["headings"] != 1 and path != "404.html"] == []


def test_no_page_complains(site: Site) -> None:
    assert {path: visit.errors for path, visit in site.visits.items() if visit.errors} == {}


def test_no_request_leaves_the_host(site: Site) -> None:
    inside = (site.address, "data:", "blob:")
    left = {path: [url for url in visit.requests if not url.startswith(inside)] for path, visit in site.visits.items()}
    assert {path: urls for path, urls in left.items() if urls} == {}
    assert all(visit.requests for visit in site.visits.values())


def test_every_formula_is_rendered(site: Site) -> None:
    assert offences(site, "formulas") == {}


def test_every_image_shows_and_has_words(site: Site) -> None:
    assert offences(site, "broken") == {}
    assert offences(site, "unnamed") == {}


def test_every_link_and_anchor_exists(site: Site) -> None:
    ids = {path: set(visit.seen["ids"]) for path, visit in site.visits.items()}
    dead = [
        f"{path}: {link.removeprefix(site.address)}"
        for path, one in site.visits.items()
        for link in one.seen["links"] + one.seen["sources"]
        if link.startswith(site.address) and not _exists(site.folder, ids, link)
    ]
    assert dead == []


def _exists(folder: Path, ids: dict[str, set[str]], link: str) -> bool:
    url, anchor = urldefrag(link)
    name = unquote(urlparse(url).path).lstrip("/")
    name = f"{name}index.html" if not name or name.endswith("/") else name
    return (folder / name).is_file() and (not anchor or name not in ids or unquote(anchor) in ids[name])


def test_no_page_is_wider_than_a_phone(site: Site) -> None:
    assert {path: pixels for path, pixels in offences(site, "overflow").items() if pixels > 0} == {}


@pytest.mark.parametrize("path", ["", "api/", "play/", "spec/numerics/", "spec/traceability/", "mistakes/clip/"])
def test_a_page_fits_a_desk(site: Site, path: str) -> None:
    site.page.resize(DESK)
    assert visit(site.page, f"{site.address}/{path}").seen["overflow"] <= 0


def _wait(page: Page, condition: str) -> None:
    """Asks until it is so; a page that is just being replaced gives no answer."""
    end = monotonic() + 20
    while monotonic() < end:
        with suppress(BrowserError):
            if page.run(condition):
                return
        sleep(0.05)
    raise AssertionError(f"not within 20 s: {condition}")


def test_formulas_are_rendered_after_a_click_too(site: Site) -> None:
    site.page.resize(DESK)
    site.page.open(f"{site.address}/spec/notation/")
    site.page.run("document.querySelector('.md-nav a[href$=\"ratio/\"]').click()")
    _wait(site.page, "location.pathname.endsWith('/ratio/') && document.querySelectorAll('.katex').length > 20")
    assert site.page.run(OBSERVE)["formulas"] == []
    assert list(errors(site.page.events)) == []


def test_the_sliders_move_by_keyboard(site: Site) -> None:
    site.page.open(f"{site.address}/play/")
    values = "[...document.querySelectorAll('.play-card')].map((card) => card.querySelector('.play-loss output').dataset.value)"
    before = site.page.run(values)
    assert len(before) == 7
    assert (
        site.page.run(
            "document.querySelectorAll('#play input:not([aria-label]), #play select:not([aria-label])').length"
        )
        == 0
    )
    site.page.run("document.querySelector('[aria-label=\"log-ratio of token 3\"]').focus()")
    for kind in ("keyDown", "keyUp"):
        site.page.call("Input.dispatchKeyEvent", type=kind, key="ArrowUp", code="ArrowUp", windowsVirtualKeyCode=38)
    after = site.page.run(values)
    assert all(one != other for one, other in zip(before[:2] + before[4:], after[:2] + after[4:]))
    site.page.run(
        "[...document.querySelectorAll('#play button')].find((button) => button.textContent === 'all 0').click()"
    )
    assert [round(float(value), 12) for value in site.page.run(values)] == [-1, -1, -1, -1, -1, 1, -2]
    assert list(errors(site.page.events)) == []


FAULTS = """<!doctype html><link rel="icon" href="data:,"><article><p>$$x$$ and \\(y\\)</p><span class="katex-error" title="bad"></span>
<img src="absent.png"><svg role="img"></svg><a href="gone.html">a</a><a href="#nowhere">b</a><a href="#here">c</a><p id="here"
style="width: 3000px">wide</p></article><script>console.error("told"); fetch("https://example.org/").catch(() => 0)</script>"""


def test_every_kind_of_fault_is_seen(tmp_path: Path, site: Site) -> None:
    (tmp_path / "faults.html").write_text(FAULTS, encoding="utf-8")
    with served(tmp_path) as address:
        one = visit(site.page, f"{address}/faults.html")
    assert one.seen["formulas"] == ["$$x$$ and \\(y\\)", "bad"]
    assert len(one.seen["broken"]) == 1
    assert len(one.seen["unnamed"]) == 2
    assert one.seen["overflow"] > 0
    assert any("told" in error for error in one.errors)
    assert "https://example.org/" in one.requests
    ids = {"faults.html": set(one.seen["ids"])}
    assert [_exists(tmp_path, ids, link) for link in one.seen["links"]] == [False, False, True]


def test_examples_in_docstrings_are_code(site: Site) -> None:
    """Hunts `>>>`, which Markdown takes for a quotation in a quotation."""
    text = (site.folder / "api/index.html").read_text(encoding="utf-8")
    assert "<blockquote>" not in text
    assert text.count('<span class="gp">&gt;&gt;&gt; </span>') > 30
