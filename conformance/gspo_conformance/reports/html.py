"""One self-contained page: verdicts, errors in units of tolerance, clauses by targets, every failing vector in full.

No script, no request: a content security policy forbids both. Everything that a target said is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..formats import Vector, load_vectors
from ..run import AS_EXPECTED, HARNESS, VERDICTS, Run, show_k
from ..words import plural
from .failures import failures
from .markup import Markup, element, prose
from .matrix import matrix
from .plots import strip

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = Path(__file__).with_name("page.css")


def render(runs: Sequence[Run], *, vectors: Sequence[Vector] | None = None, **options: Any) -> str:
    """The page. `vectors` are those that ran; the suite's own where nothing is said."""
    known = {vector.id: vector for vector in (load_vectors() if vectors is None else vectors)}
    title = f"GSPO conformance: {', '.join(run.target for run in runs)}"
    body = [
        element("header", element("h1", "GSPO conformance"), _subtitle(runs), _chips(runs)),
        [_run(run, i) for i, run in enumerate(runs)],
        element("section", element("h2", "Clauses"), matrix(runs), id="clauses", class_="run"),
        [_failures(run, i, known) for i, run in enumerate(runs)],
        _footer(),
    ]
    page = element("html", page_head(title), element("body", element("main", body)), lang="en")
    return f"<!doctype html>\n{page}\n"


def page_head(title: str) -> Markup:
    """The head of a page of this suite: its style, and a policy that forbids scripts and requests."""
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("title", title),
        element("style", Markup(_STYLE.read_text(encoding="utf-8"))),
    )


def _subtitle(runs: Sequence[Run]) -> Markup:
    suite = runs[0].suite
    which = f"suite {suite.get('version', '')} {suite.get('digest', '')[:8]}".strip()
    started = runs[0].started.replace("T", " ").removesuffix("+00:00")
    return element("p", f"{which}, {started} UTC" if started else which, class_="quiet")


def _chips(runs: Sequence[Run]) -> Markup:
    chips = [
        element("a", element("b", run.target), " ", run.verdict, href=f"#run-{i}", class_=f"chip {tone(run)}")
        for i, run in enumerate(runs)
    ]
    return element("nav", chips)


def tone(run: Run) -> str:
    """good, bad or broken: the colour of a run."""
    return {AS_EXPECTED: "good", HARNESS: "broken"}.get(run.exit_code, "bad")


def _run(run: Run, i: int) -> Markup:
    parts = [
        element("h2", run.target, " ", element("span", run.verdict, class_=f"verdict {tone(run)}")),
        element("p", _implementation(run), class_="quiet"),
        element("pre", run.failure) if run.failure else None,
        [element("p", f"Stale known failure: {pattern}", class_="reason") for pattern in run.stale],
        _tally(run),
        element("p", _capital(run.unsteady), class_="reason") if run.unsteady else None,
        _diagnosis(run),
        _errors(run),
        _leads(run, i),
    ]
    return element("section", parts, id=f"run-{i}", class_="run")


def _leads(run: Run, i: int) -> Markup | None:
    bad = {result.id for result in (*run.offences, *run.remarks)}
    words = f"{plural(len(bad), 'vector')} in full, with what went in and what came back"
    return element("p", element("a", words, href=f"#failures-{i}")) if bad else None


def _failures(run: Run, i: int, known: dict[str, Vector]) -> Markup | None:
    """The vectors that a target fails."""
    parts = [
        _failing("Failing", run, run.offences, known),
        _failing(f"Below {run.level}: reported, not failing", run, run.remarks, known),
    ]
    if not any(parts):
        return None
    return element("section", element("h2", run.target), parts, id=f"failures-{i}", class_="run")


def _implementation(run: Run) -> str:
    slow = f"; the slowest answer {run.slowest(1)[0].key} took {run.slowest(1)[0].seconds:.2f} s" if run.results else ""
    took = f"{run.seconds:.1f} s, {run.answer_seconds:.1f} s of it in answers{slow}" if run.seconds else ""
    return ", ".join(filter(None, [run.versions, f"worst K {show_k(run.k)}", took]))


def _tally(run: Run) -> Markup:
    """How many of each verdict, as a bar and in words."""
    counts = [(verdict, run.counts[verdict]) for verdict in VERDICTS if run.counts[verdict]]
    total = sum(count for _, count in counts) or 1
    pieces = [
        element(
            "span", class_=f"piece {verdict}", style=f"width:{100 * count / total:.3f}%", title=f"{count} {verdict}"
        )
        for verdict, count in counts
    ]
    words = [element("li", element("i", class_=f"dot {verdict}"), f"{count} {verdict}") for verdict, count in counts]
    return Markup(element("div", pieces, class_="tally") + element("ul", words, class_="counts"))


def _diagnosis(run: Run) -> Markup | None:
    if not run.diagnosis:
        return None
    found = run.diagnosis
    share = (
        f"{100 * found.get('confidence', 0):.0f} % of the telling answers explained" if found.get("confidence") else ""
    )
    effect = element("p", _capital(found["effect"])) if found.get("effect") else None
    links = [
        [element("a", url.removeprefix("https://"), href=url, rel="noreferrer"), " "] for url in found.get("links", [])
    ]
    others = [f"{item['mutants']} ({100 * item['confidence']:.0f} %)" for item in found.get("runners_up", [])]
    notes = [
        element("p", share, class_="quiet") if share else None,
        element("p", "seen in ", links, class_="quiet") if links else None,
        element("p", f"next best: {', '.join(others)}", class_="quiet") if others else None,
    ]
    name = "Diagnosis" if run.offences or run.known else "Conventions"
    return element("aside", element("h3", name), element("p", prose(_capital(found["sentence"]))), effect, notes)


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:].rstrip(".") + "." if sentence else ""


def _errors(run: Run) -> Markup | None:
    if not any(result.judged for result in run.results):
        return None
    told = "Every number that came back, in units of what is allowed: right of the line it fails."
    return element("figure", strip(run.by_area()), element("figcaption", told))


def _failing(title: str, run: Run, results: Any, known: dict[str, Vector]) -> Markup | None:
    if not results:
        return None
    count = plural(len({result.id for result in results}), "vector")
    return Markup(element("h3", f"{title}: {count}") + failures(run, results, known))


def _footer() -> Markup:
    told = "K is the error in units of u(dtype) × scale; a vector allows 16, and 64 where sums are long. "
    return element("footer", element("p", told, element("code", "gspo explain ID"), " says more about any name here."))
