"""The calm summary on a terminal: areas, verdict, diagnosis, the plainest failures, what to run next."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from textwrap import shorten, wrap
from typing import Any, TypeAlias

from ..clauses import clauses
from ..run import BAD, EXPECTED_FAILURE, PASS, SKIPPED, Result, Run, by_vector, clauses_of, show_k
from ..words import columns, cut, plural, printable
from .untested import more, unasked, why

Groups: TypeAlias = list[list[Result]]

_SHOWN = 5
_CLAUSES = 4
_WIDTH = 110
_SLOW = 5.0


def render(runs: Sequence[Run], *, verbose: bool = False, **options: Any) -> str:
    """One block per run, and the runs side by side where there are several."""
    blocks = [_block(run, verbose) for run in runs]
    return printable("\n\n".join([*blocks, *([_together(runs)] if len(runs) > 1 else [])]))


def _block(run: Run, verbose: bool) -> str:
    lines = [_title(run), ""]
    lines += _areas(run) if run.results else []
    lines += _verdict(run)
    lines += _diagnosis(run)
    lines += _failures("failing", run, run.offences, verbose)
    lines += _failures(f"below {run.level}: reported, not failing", run, run.remarks, verbose, told=_clauses)
    lines += _times(run) if run.results and (verbose or run.seconds > _SLOW) else []
    lines += _next(run)
    return "\n".join(lines).rstrip() + "\n"


def _title(run: Run) -> str:
    return f"{run.target} ({run.versions})" if run.versions else run.target


def _areas(run: Run) -> list[str]:
    known = run.counts[EXPECTED_FAILURE] > 0
    rows: list[tuple[str, ...]] = [("area", "pass", "bad", *(("known",) if known else ()), "other", "worst K")]
    for area, results in run.by_area().items():
        verdicts = [result.verdict for result in results]
        passed = [result for result in results if result.verdict == PASS]
        bad, listed = sum(verdict in BAD for verdict in verdicts), verdicts.count(EXPECTED_FAILURE)
        other = len(results) - len(passed) - bad - listed
        worst = max((result.k for result in passed if result.k is not None), default=None)
        counts = (len(passed), bad, *((listed,) if known else ()), other)
        rows.append((area, *(str(count or "") for count in counts), show_k(worst)))
    return [*("  " + line for line in _aligned(rows)), ""]


def _aligned(rows: Sequence[tuple[str, ...]], words: int = 1) -> list[str]:
    """Columns: the first `words` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [_row(row, widths, words) for row in rows]


def _row(row: tuple[str, ...], widths: list[int], words: int) -> str:
    first, *rest = (
        cell.ljust(width) if i < words else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join([first, *rest]).rstrip()


def _verdict(run: Run) -> list[str]:
    counts = ", ".join(f"{count} {verdict}" for verdict, count in run.counts.most_common())
    used = f"worst K {show_k(run.k)}" if run.k is not None else ""
    took = f"{run.seconds:.1f} s" if run.seconds else ""
    lines = [f"  {run.verdict}: {'; '.join(filter(None, (counts, used, took)))}"]
    lines += [f"  {line}" for line in run.failure.splitlines()]
    skipped = next((result.reason for result in run.results if result.verdict == SKIPPED), None)
    if run.failure:
        advice = ""
    elif run.answered:
        advice = more(run.capabilities)
    else:
        told = f"it skips every vector that applies: {cut(skipped or 'without a reason', 400)}"
        advice = why(run.capabilities) if skipped is None else told
    lines += [f"  {line}" for text in (advice, *unasked(run)) for line in wrap(text, columns(_WIDTH) - 2)]
    return [*lines, *(f"  stale known failure, nothing it names fails: {pattern}" for pattern in run.stale), ""]


def _diagnosis(run: Run) -> list[str]:
    name = "conventions" if run.remarks and not (run.offences or run.known) else "diagnosis"
    told = {"unsteady": run.unsteady, name: run.diagnosis["sentence"] if run.diagnosis else ""}
    return [line for name, sentence in told.items() if sentence for line in _paragraph(name, sentence)]


def _paragraph(name: str, sentence: str) -> list[str]:
    first, *rest = wrap(sentence, columns(_WIDTH) - 14, break_on_hyphens=False) or [""]
    return [f"  {name:11} {first}", *(f"              {line}" for line in rest), ""]


def _failures(
    title: str, run: Run, results: Sequence[Result], verbose: bool, told: Callable[[Groups], list[str]] = lambda _: []
) -> list[str]:
    groups = by_vector(results, run.suspected)
    if not groups:
        return []
    shown = groups if verbose else groups[:_SHOWN]
    lines = [f"  {title}: {plural(len(groups), 'vector')}{'' if verbose else ', the most telling first'}"]
    for group in shown:
        first = group[0]
        dtypes = " ".join(result.dtype for result in group)
        lines.append(f"    {first.verdict:<5} {first.id}  {dtypes}  {' '.join(first.clauses)}")
        lines += [f"          {line}" for line in _reasons(first)]
        if verbose and first.detail:
            lines += [f"          | {line}" for line in first.detail.rstrip().splitlines()]
    if len(groups) > len(shown):
        summary = told(groups)
        lines.append(f"    and {len(groups) - len(shown)} more (-v shows all){'; in all, on' if summary else ''}")
        lines += summary
    return [*lines, ""]


def _reasons(result: Result) -> list[str]:
    """Why, a line for each output that is wrong."""
    return [f"{one.output}: {one.reason}" for one in result.judged if not one.ok] or [result.reason]


def _clauses(groups: Groups) -> list[str]:
    """How many are on which clause, and what that asks for, as in `  18  GSPO-DATA-2  Uncounted positions reach nothing`."""
    found, known = clauses_of(groups), clauses()
    rows = [(str(count), clause, known[clause].title if clause in known else "") for clause, count in found[:_CLAUSES]]
    rest = sum(count for _, count in found[_CLAUSES:])
    rows += [(str(rest), "others", "")] if rest else []
    width = max(len(clause) for _, clause, _ in rows)
    return [f"    {count:>5}  {clause:{width}}  {title}".rstrip() for count, clause, title in rows]


def _times(run: Run) -> list[str]:
    share = run.answer_seconds
    slow = ", ".join(f"{result.key} {result.seconds:.2f} s" for result in run.slowest(3))
    return [f"  time        {run.seconds:.1f} s; answers took {share:.1f} s, the slowest {slow}", ""]


def _next(run: Run) -> list[str]:
    found = run.offences or run.remarks
    if not found:
        return []
    first, target = by_vector(found, run.suspected)[0][0], shlex.quote(run.target)
    return [
        f"  next        gspo explain {first.id}",
        f"              gspo check {target} -k {shlex.quote(first.id)} -v",
        f"              gspo check {target} --format html --out report",
    ]


def _together(runs: Sequence[Run]) -> str:
    """The runs side by side, and what each returns instead of the truth, where the diagnosis knows."""
    rows: list[tuple[str, ...]] = [("target", "verdict", "pass", "bad", "known", "worst K", "time")]
    for run in runs:
        counts = (run.counts[PASS], sum(run.counts[verdict] for verdict in BAD), run.counts[EXPECTED_FAILURE])
        rows.append((run.target, run.verdict, *map(str, counts), show_k(run.k), f"{run.seconds:.1f} s"))
    lines = []
    for run, line in zip([None, *runs], _aligned(rows, words=2), strict=True):
        lines.append("  " + line)
        if run is not None and run.diagnosis and (run.offences or run.known):
            lines.append("    " + shorten(run.diagnosis["sentence"], columns(_WIDTH) - 4, placeholder=" ..."))
    return "\n".join(["all targets", "", *lines, ""])
