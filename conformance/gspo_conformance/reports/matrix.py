"""Clauses by targets: what each target does with the vectors of each clause of the specification."""

from __future__ import annotations

from collections.abc import Sequence

from ..clauses import Clause, clauses
from ..run import BAD, ERROR, PASS, SKIPPED, UNSUPPORTED, Result, Run, show_k
from ..words import plural
from .markup import Markup, element

_SIGNS = {"pass": "✓", "fail": "✗", "error": "!", "remark": "✗", "other": "○", "none": ""}
_WORDS = {
    "pass": "every vector passes",
    "fail": "a vector fails that counts",
    "error": "no answer",
    "remark": "a vector fails below the level that counts",
    "other": "unsupported, skipped or expected to fail",
    "none": "no vector",
}


def matrix(runs: Sequence[Run]) -> Markup:
    """One table; a row leads to its clause by `#ID`."""
    by_run = [run.by_clause() for run in runs]
    known = clauses()
    tested = {id_ for found in by_run for id_ in found}
    rows, room = [], ""
    for id_, clause in known.items():
        if id_ not in tested:
            continue
        if clause.page != room:
            room = clause.page
            rows.append(_room(room, len(runs)))
        rows.append(_row(clause, [(run, found.get(id_, [])) for run, found in zip(runs, by_run, strict=True)]))
    rows += [_stray(id_, by_run, runs) for id_ in sorted(tested - known.keys())]
    head = element("tr", element("th", "clause"), [element("th", run.target, class_="state") for run in runs])
    table = element("table", element("thead", head), element("tbody", rows), class_="matrix")
    rest = [id_ for id_ in known if id_ not in tested]
    note = element("p", f"No vector ran for {', '.join(rest)}.", class_="quiet") if rest else Markup()
    return Markup(element("div", table, class_="scroll") + _legend() + note)


def _room(page: str, width: int) -> Markup:
    return element("tr", element("th", page.removesuffix(".md"), colspan=width + 1), class_="room")


def _row(clause: Clause, cells: Sequence[tuple[Run, list[Result]]]) -> Markup:
    level = None if clause.level == "MUST" else element("span", clause.level, class_="level")
    name = element("td", element("code", clause.id.removeprefix("GSPO-")), " ", clause.title, " ", level)
    return element("tr", name, [_cell(run, results) for run, results in cells], id=clause.id)


def _stray(id_: str, by_run: Sequence[dict[str, list[Result]]], runs: Sequence[Run]) -> Markup:
    cells = [_cell(run, found.get(id_, [])) for run, found in zip(runs, by_run, strict=True)]
    return element("tr", element("td", element("code", id_)), cells, id=id_)


def _cell(run: Run, results: list[Result]) -> Markup:
    kind = state(run, results)
    passed = [result for result in results if result.verdict == PASS]
    judged = sum(result.verdict not in (SKIPPED, UNSUPPORTED) for result in results)
    count = f" {len(passed)}/{judged}" if judged else ""
    worst = max((result.k for result in passed if result.k is not None), default=None)
    rest = f"; {plural(len(results) - judged, 'other')} unsupported or skipped" if len(results) > judged else ""
    told = f"{_WORDS[kind]}{rest}; worst K of those that pass {show_k(worst)}"
    return element("td", _SIGNS[kind], element("small", count), class_=f"state {kind}", title=told)


def state(run: Run, results: Sequence[Result]) -> str:
    """What a clause came to: the worst that happened on its vectors."""
    if not results:
        return "none"
    bad = [result for result in results if result.verdict in BAD]
    counted = [result for result in bad if run.counts_for_exit(result)]
    if counted:
        return "error" if all(result.verdict == ERROR for result in counted) else "fail"
    if bad:
        return "remark"
    return "pass" if any(result.verdict == PASS for result in results) else "other"


def _legend() -> Markup:
    kinds = [kind for kind in _WORDS if kind != "none"]
    entries = [element("span", element("b", _SIGNS[kind], class_=f"state {kind}"), " ", _WORDS[kind]) for kind in kinds]
    return element("p", entries, class_="legend")
