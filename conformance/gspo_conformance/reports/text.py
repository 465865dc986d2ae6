"""The calm summary on a terminal: per area, verdict, worst K, what failed, what to run next."""

from __future__ import annotations

from collections.abc import Sequence

from ..run import BAD, PASS, Result, Run, show_k

_SHOWN = 10


def render(runs: Sequence[Run], *, verbose: bool = False) -> str:
    """One block per run."""
    return "\n".join(_block(run, verbose) for run in runs)


def _block(run: Run, verbose: bool) -> str:
    lines = [_title(run), ""]
    lines += _areas(run) if run.results else []
    lines += _failures("failing", run.offences, verbose)
    lines += _failures(f"below {run.level}: reported, not failing", run.remarks, verbose)
    lines += [f"  stale known failure: {pattern}" for pattern in run.stale]
    lines += _diagnosis(run)
    return "\n".join([*lines, _footer(run), ""])


def _title(run: Run) -> str:
    version = ", ".join(f"{name} {value}" for name, value in run.implementation.items() if isinstance(value, str))
    return f"{run.target}{f' ({version})' if version else ''}"


def _areas(run: Run) -> list[str]:
    rows = [("area", "pass", "bad", "other", "worst K")]
    for area, results in run.by_area().items():
        passed = [result for result in results if result.verdict == PASS]
        bad = sum(result.verdict in BAD for result in results)
        other = len(results) - len(passed) - bad
        worst = max((result.k for result in passed if result.k is not None), default=None)
        rows.append((area, str(len(passed)), str(bad or ""), str(other or ""), show_k(worst)))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return ["  " + _row(row, widths) for row in rows] + [""]


def _row(row: tuple[str, ...], widths: list[int]) -> str:
    first, *rest = (
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join([first, *rest]).rstrip()


def _failures(title: str, results: list[Result], verbose: bool) -> list[str]:
    if not results:
        return []
    shown = results if verbose else results[:_SHOWN]
    lines = [f"  {title}"]
    for result in shown:
        lines.append(f"    {result.verdict:<5} {result.key}  {' '.join(result.clauses)}")
        lines.append(f"          {result.reason}")
        if verbose and result.detail:
            lines += [f"          | {line}" for line in result.detail.rstrip().splitlines()]
    if len(results) > len(shown):
        lines.append(f"    and {len(results) - len(shown)} more (-v shows all)")
    return [*lines, ""]


def _diagnosis(run: Run) -> list[str]:
    return [f"  diagnosis: {run.diagnosis['sentence']}", ""] if run.diagnosis else []


def _footer(run: Run) -> str:
    counts = run.counts
    parts = [f"{counts[verdict]} {verdict}" for verdict in counts if counts[verdict]]
    used = f"worst K {show_k(run.k)}" if run.k is not None else ""
    tail = "; ".join(part for part in (", ".join(parts), used, f"{run.seconds:.1f} s") if part)
    lines = [f"  {run.verdict}: {tail}"]
    if run.failure:
        lines.append(f"  {run.failure}")
    elif not run.answered:
        lines.append("  not one vector applies to what this target claims to do; see its capabilities")
    if run.offences:
        lines.append(f"  next: gspo explain {run.offences[0].id}")
    return "\n".join(lines)
