"""Markdown, for a pull request or a job summary: areas by targets, then what failed and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..run import BAD, PASS, Result, Run, by_vector, show_k
from ..words import printable

_SHOWN = 20


def render(runs: Sequence[Run], *, verbose: bool = False, **options: Any) -> str:
    """One table for all runs, one section for each."""
    lines = ["# GSPO conformance", "", *_table(runs), *(line for run in runs for line in _section(run, verbose))]
    return printable("\n".join(lines))


def _table(runs: Sequence[Run]) -> list[str]:
    areas = sorted({area for run in runs for area in run.by_area()})
    head = ["area", *(_cell(run.target) for run in runs)]
    rows = [[_cell(area), *(_area(run.by_area().get(area, [])) for run in runs)] for area in areas]
    rows.append(["**verdict**", *(f"**{run.verdict}**" for run in runs)])
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows), ""]


def _area(results: Sequence[Result]) -> str:
    if not results:
        return "-"
    passed = [result for result in results if result.verdict == PASS]
    bad = sum(result.verdict in BAD for result in results)
    worst = max((result.k for result in passed if result.k is not None), default=None)
    parts = [f"{len(passed)} pass" if passed else "", f"{bad} bad" if bad else ""]
    parts.append(f"{len(results) - len(passed) - bad} other" if len(results) > len(passed) + bad else "")
    return ", ".join(filter(None, parts)) + (f" (K {show_k(worst)})" if worst is not None else "")


def _section(run: Run, verbose: bool) -> list[str]:
    lines = [f"## {_cell(run.target)}: {run.verdict}", ""]
    lines += [_cell(run.versions), ""] if run.versions else []
    lines += [f"{_cell(run.failure)}", ""] if run.failure else []
    lines += [f"Stale known failure: `{_code(pattern)}`" for pattern in run.stale]
    lines += [f"**Unsteady.** {_cell(run.unsteady)}", ""] if run.unsteady else []
    name = "Diagnosis" if run.offences or run.known else "Conventions"
    lines += [f"**{name}.** {_cell(run.diagnosis['sentence'])}", ""] if run.diagnosis else []
    lines += _failures("Failing", run, run.offences, verbose)
    return lines + _failures(f"Below {run.level}: reported, not failing", run, run.remarks, verbose)


def _failures(title: str, run: Run, results: Sequence[Result], verbose: bool) -> list[str]:
    groups = by_vector(results, run.suspected)
    if not groups:
        return []
    shown = groups if verbose else groups[:_SHOWN]
    lines = [f"### {title}", "", _row(["vector", "dtype", "clauses", "what"]), _row(["---"] * 4)]
    for group in shown:
        dtypes = ", ".join(result.dtype for result in group)
        first = group[0]
        lines.append(_row([f"`{_code(first.id)}`", dtypes, _cell(" ".join(first.clauses)), _cell(first.reason)]))
    if len(groups) > len(shown):
        lines.append(_row([f"and {len(groups) - len(shown)} more", "", "", ""]))
    return [*lines, ""]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(words: str) -> str:
    """Text that neither ends a cell nor begins a tag or an emphasis."""
    words = " ".join(words.split()).replace("\\", "\\\\").replace("<", "&lt;")
    return "".join(f"\\{char}" if char in "|*_`[]" else char for char in words)


def _code(words: str) -> str:
    return " ".join(words.split()).replace("`", "'").replace("\\", "\\\\").replace("|", "\\|")
