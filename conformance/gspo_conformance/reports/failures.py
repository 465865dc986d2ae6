"""One failing vector in full: what it says, what went in, what was expected and what came, and the story of its flags."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..applicability import case_of
from ..clauses import clauses
from ..flags import read_flags
from ..formats import Vector
from ..judge import Judged, error_units
from ..run import Result, Run, by_vector
from ..target import Capabilities
from ..words import plural
from .arrays import array
from .markup import Markup, element
from .plots import bars, gauge

_SHOWN = 40
_OPEN = 2


def failures(run: Run, results: Sequence[Result], vectors: dict[str, Vector]) -> Markup:
    """The most telling vectors in full, the rest as a list."""
    groups = by_vector(results, run.suspected)
    full = [failure(group, vectors.get(group[0].id), i < _OPEN) for i, group in enumerate(groups[:_SHOWN])]
    rest = [element("li", element("code", group[0].id), " ", _brief(group[0])) for group in groups[_SHOWN:]]
    if not rest:
        return Markup("".join(full))
    more = element("details", element("summary", f"and {plural(len(rest), 'vector')} more"), element("ul", rest))
    return Markup("".join(full) + more)


def failure(group: Sequence[Result], vector: Vector | None, is_open: bool) -> Markup:
    """The results of one vector; without the vector, what the record alone knows."""
    first = group[0]
    title = vector.title if vector else ""
    dtypes = [element("span", result.dtype, class_="tag") for result in group]
    summary = element("summary", element("code", first.id), " ", title, " ", dtypes)
    parts = [_clauses(first), _result(first, vector), *(_also(result, vector) for result in group[1:])]
    parts += [_question(vector), _flags(first)] if vector else [_flags(first)]
    return element("details", summary, element("div", parts, class_="body"), class_="failure", open=is_open)


def _also(result: Result, vector: Vector | None) -> Markup:
    summary = element("summary", f"{result.verdict} in {result.dtype} too: ", _brief(result))
    return element("details", summary, _result(result, vector))


def _brief(result: Result) -> str:
    return result.reason if len(result.reason) < 160 else result.reason[:157] + "..."


def _clauses(result: Result) -> Markup:
    known = clauses()
    links = [
        element("a", id_, f" {known[id_].title}" if id_ in known else "", href=f"#{id_}", class_="clause")
        for id_ in result.clauses
    ]
    return element("p", element("span", result.level, class_="tag"), " ", links, class_="clauses")


def _result(result: Result, vector: Vector | None) -> Markup:
    outputs = [_output(item, result, vector) for item in result.judged]
    detail = element("pre", result.detail) if result.detail else None
    told = None if result.judged else element("p", result.reason, class_="reason")
    return element("section", element("h4", f"{result.verdict} in {result.dtype}"), told, outputs, detail)


def _output(item: Judged, result: Result, vector: Vector | None) -> Markup:
    if item.ok:
        return element("p", element("b", item.output), f" passes, K {item.k:.3g} of {item.limit:g}", class_="quiet")
    head = element("p", element("b", item.output), " ", item.reason, class_="reason")
    expected = vector.expected.get(item.output) if vector else None
    if vector is None or expected is None or item.got is None or np.shape(item.got) != expected.shape:
        return head
    case = case_of(vector, result.dtype, Capabilities.everything())
    units = error_units(case, item.output, expected, item.got)
    wrong = units > item.limit
    pair = [
        element("div", element("h5", "expected"), array(expected.value, due=wrong), class_="pane"),
        element("div", element("h5", "got"), array(item.got, bad=wrong), class_="pane"),
    ]
    drawn = bars(units, item.limit) if units.ndim else gauge(item.k, item.limit)
    plot = element("figure", drawn, element("figcaption", "error in units of the tolerance"))
    return Markup(head + element("div", pair, plot, class_="panes"))


def _question(vector: Vector) -> Markup:
    parameters = json.dumps(vector.parameters, indent=1, ensure_ascii=False)
    body = [
        element("p", vector.note) if vector.note else None,
        element("h5", f"parameters of {vector.operation}"),
        element("pre", parameters),
        _inputs(vector.inputs),
    ]
    return element("details", element("summary", "what went in"), body)


def _inputs(inputs: dict[str, Any]) -> list[Markup]:
    mask = inputs.get("mask")
    found: list[Markup] = []
    for name, value in inputs.items():
        if isinstance(value, list):
            for i, part in enumerate(value):
                found += [element("h5", f"part {i}"), *_inputs(part)]
        else:
            faint = None if mask is None or name == "mask" else ~np.asarray(mask, bool)
            found.append(element("div", element("h5", name), array(np.asarray(value), faint=faint), class_="pane"))
    return found


def _flags(result: Result) -> Markup | None:
    known = read_flags()
    stories = [_flag(known[flag]) for flag in result.flags if flag in known]
    if not stories:
        return None
    return element("details", element("summary", "what it hunts"), stories, open=True)


def _flag(story: dict[str, Any]) -> Markup:
    links = [element("a", _short(url), href=url, rel="noreferrer") for url in story["seen"]]
    seen = element("p", "seen in ", [[link, " "] for link in links], class_="quiet") if links else None
    hunts = element("p", element("b", story["title"]), ". ", story["hunts"], " ", story["effect"])
    return element("div", hunts, seen, class_="flag")


def _short(url: str) -> str:
    return url.removeprefix("https://").removeprefix("github.com/")
