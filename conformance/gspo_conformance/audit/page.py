"""The audit as one self-contained page: verdict, findings, losses by step, and the plots of the run."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..lint.formula import formula
from ..reports.html import page_head
from ..reports.markup import Markup, element, prose
from ..reports.run_plots import figures
from ..trainers.dialect import Finding
from ..words import plural
from .judgement import Audit

_TONES = {"agrees": "good", "differs": "bad", "incomplete": "broken"}
_ROWS = 400


def page(found: Audit) -> str:
    """HTML without scripts and without requests; whatever the trace says is escaped."""
    title = f"GSPO audit: {found.trace.path.name}"
    verdict = element("span", found.verdict, class_=f"verdict {_TONES[found.verdict]}")
    head = element(
        "header", element("h1", title, " ", verdict), [element("p", text, class_="quiet") for text in _said(found)]
    )
    findings = [_finding(one) for one in found.findings] or element("p", "Nothing to say.")
    body = [
        head,
        element("section", element("h2", "Findings"), findings, class_="run"),
        _plots(found),
        element("section", element("h2", "Losses"), _losses(found), class_="run"),
        _missing(found),
    ]
    whole = element("html", page_head(title), element("body", element("main", body)), lang="en")
    return f"<!doctype html>\n{whole}\n"


def _said(found: Audit) -> list[str]:
    claim = found.claim
    return [formula(claim.objective.to_dict()), f"Claim: {claim.source}. {found.extent}; {found.numbers}."]


def _finding(one: Finding) -> Markup:
    """One aside: what, what it costs, what to do."""
    parts = [
        element("h3", f"{one.severity}: {one.rule}"),
        element("p", prose(one.message)),
        element("p", f"Costs: {one.consequence}") if one.consequence else None,
        element("p", prose(f"Fix: {one.fix}")) if one.fix else None,
        element("p", one.clause, class_="quiet") if one.clause else None,
    ]
    return element("aside", parts, class_=f"finding {one.severity}")


def _plots(found: Audit) -> Any:
    """Ratios by mini-batch, clip fractions, spreads and groups."""
    with np.errstate(all="ignore"):
        drawn = None if found.noise is None else figures(found.noise)
    return element("section", element("h2", "The run"), drawn, class_="run") if drawn else None


def _losses(found: Audit) -> Any:
    """Step by step: what the run computed, what is due."""
    cells = ("step", "mini-batch", "parts", "tokens", "loss of the run", "loss due", "difference")
    rows = [element("tr", [element("th", name) for name in cells])]
    for row in found.rows[:_ROWS]:
        difference = None if row.run is None or row.truth is None else row.run - row.truth
        values = (
            row.step,
            "" if row.minibatch is None else row.minibatch + 1,
            row.parts,
            f"{row.tokens:,}",
            _number(row.run),
            _number(row.truth),
            _number(difference),
        )
        rows.append(element("tr", [element("td", value) for value in values]))
    left = len(found.rows) - _ROWS
    return [
        element("div", element("table", rows, class_="numbers"), class_="scroll"),
        element("p", plural(left, "more step"), class_="quiet") if left > 0 else None,
    ]


def _missing(found: Audit) -> Any:
    items = [element("li", f"{reason} ({plural(times, 'time')})") for reason, times in found.ledger.unchecked]
    if not items:
        return None
    return element("section", element("h2", "Not checked"), element("ul", items), class_="run")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
