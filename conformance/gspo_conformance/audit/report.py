"""An audit in words (text), for programs (JSON), or as a page (HTML)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from ..lint.formula import formula
from ..trainers.dialect import Finding
from ..words import columns, json_text, plural, printable
from .differences import Series
from .judgement import Audit
from .page import page

FORMATS = ("text", "json", "html")
SHOWN = 3
_WIDTH = 110


def render(found: Audit, form: str, *, verbose: bool = False) -> str:
    """The report in one of `FORMATS`; text names the three findings that matter most unless `verbose`."""
    if form == "json":
        return json_text(record(found), default=_plain)
    if form == "html":
        return page(found)
    return printable("\n".join(_text(found, verbose)) + "\n")


def _text(found: Audit, verbose: bool) -> Iterator[str]:
    yield f"{found.trace.path}: {found.verdict}"
    yield ""
    yield f"  claim   {formula(found.claim.objective.to_dict())}"
    yield f"          from {found.claim.source}"
    yield f"  trace   {found.extent}"
    yield f"  numbers {found.numbers}"
    yield ""
    shown = found.findings if verbose else found.findings[:SHOWN]
    for one in shown:
        yield from _finding(one)
    if not found.findings:
        yield "  nothing to say"
    if len(found.findings) > len(shown):
        yield f"  {plural(len(found.findings) - len(shown), 'more finding')}: gspo audit --verbose"
    yield from _missing(found, verbose)


def _finding(one: Finding) -> Iterator[str]:
    yield f"  {one.severity:7} {one.rule}"
    details = [("", one.message), ("costs", one.consequence), ("fix", one.fix), ("clause", one.clause)]
    for name, words in details:
        if words:
            indent = f"          {name:6} " if name else "          "
            lines = textwrap.wrap(words, columns(_WIDTH) - len(indent), break_on_hyphens=False)
            yield from (f"{indent if i == 0 else ' ' * len(indent)}{line}" for i, line in enumerate(lines))
    yield ""


def _missing(found: Audit, verbose: bool) -> Iterator[str]:
    known = found.ledger.unchecked
    for reason, times in known if verbose else known[:SHOWN]:
        yield f"  not checked: {reason} ({plural(times, 'time')})"
    if not verbose and len(known) > SHOWN:
        yield f"  not checked: {plural(len(known) - SHOWN, 'more reason')} (--verbose)"


def record(found: Audit) -> dict[str, Any]:
    """The audit as JSON values."""
    series = found.ledger.series.values()
    return {
        "version": 1,
        "verdict": found.verdict,
        "trace": str(found.trace.path),
        "claim": {
            "objective": found.claim.objective.to_dict(),
            "source": found.claim.source,
            "advantages": None if found.claim.advantages is None else dict(found.claim.advantages),
            "dtype": found.claim.dtype,
        },
        "steps": list(found.trace.indices),
        "ranks": list(found.trace.ranks),
        "tokens": found.tokens,
        "findings": [asdict(one) for one in found.findings],
        "series": [_series(one) for one in series],
        "not_checked": dict(sorted(found.ledger.missing.items())),
        "losses": [{name: _plain(value) for name, value in asdict(row).items()} for row in found.rows],
    }


def _series(one: Series) -> dict[str, Any]:
    worst = None if one.worst is None else {name: _plain(value) for name, value in asdict(one.worst).items()}
    since = one.since if one.steps else None
    return {"what": one.what, "compared": one.compared, "different": one.different, "since": since, "worst": worst}


def _plain(value: Any) -> Any:
    """A number that strict JSON can hold, or the word for it."""
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and value - value != 0 else value
