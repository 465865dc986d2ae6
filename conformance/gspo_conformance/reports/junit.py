"""JUnit XML, as CI systems read it: a suite per target and area, a case per vector and dtype.

A failure below the level that counts, and an expected one, is a skipped case with its reason, so that the file
is red exactly where the exit code is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..run import BAD, ERROR, PASS, Result, Run, show_k
from .markup import Markup, element


def render(runs: Sequence[Run], **options: Any) -> str:
    """One document for all runs."""
    suites = [_suite(run, area, results) for run in runs for area, results in run.by_area().items()]
    suites += [_harness(run) for run in runs if run.exit_code == 3 or run.stale]
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{element("testsuites", suites, name="gspo")}\n'


def _suite(run: Run, area: str, results: Sequence[Result]) -> Markup:
    counted = [_kind(run, result) for result in results]
    return element(
        "testsuite",
        [_case(run, result) for result in results],
        name=f"{run.target}: {area}",
        tests=len(results),
        failures=counted.count("failure"),
        errors=counted.count("error"),
        skipped=counted.count("skipped"),
        time=f"{sum(result.seconds for result in results):.3f}",
        timestamp=run.started.removesuffix("+00:00"),
    )


def _kind(run: Run, result: Result) -> str:
    if result.verdict == PASS:
        return ""
    if result.verdict in BAD and run.counts_for_exit(result):
        return "error" if result.verdict == ERROR else "failure"
    return "skipped"


def _case(run: Run, result: Result) -> Markup:
    kind = _kind(run, result)
    told = f"{result.verdict}: {result.reason}" if result.reason else result.verdict
    lines = [" ".join(result.clauses), f"K {show_k(result.k)}", result.detail]
    body = element(kind, "\n".join(filter(None, lines)), message=told) if kind else None
    return element(
        "testcase",
        body,
        name=result.key,
        classname=f"{run.target}.{result.area}",
        time=f"{result.seconds:.3f}",
    )


def _harness(run: Run) -> Markup:
    told = run.failure or (f"stale known failures: {', '.join(run.stale)}" if run.stale else run.verdict)
    error = element("error", run.detail, message=told)
    case = element("testcase", error, name="the run itself", classname=run.target, time=f"{run.seconds:.3f}")
    return element("testsuite", case, name=f"{run.target}: harness", tests=1, failures=0, errors=1, skipped=0)
