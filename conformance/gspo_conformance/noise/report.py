"""Forecast and analysis for people and programs: a table, what it means and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from ..audit.trace import Trace
from ..lint.report import summary
from ..trainers.dialect import Finding
from ..words import json_text, plural, printable
from .analysis import Analysis, Minibatch
from .estimate import Estimate
from .forecast import Forecast, Row
from .words import bar, number, paragraph, percent, plain, thousands

FORMATS = ("text", "json")


def render(forecast: Forecast, form: str = "text") -> str:
    """The forecast in one of `FORMATS`."""
    if form == "json":
        return json_text(forecast.record())
    lines = [_head(forecast), "", *_table(forecast), ""]
    lines += paragraph("verdict", [forecast.verdict])
    lines += paragraph("why", forecast.reasons)
    lines += paragraph("do", forecast.advice, numbered=True)
    return "\n".join(lines) + "\n"


def _head(forecast: Forecast) -> str:
    noise, clip = forecast.mismatch, forecast.clip
    extra = f", neighbours correlated {noise.correlation:g}" * bool(noise.correlation)
    extra += f", {noise.between:g} between responses" * bool(noise.between)
    stored = f", stored in {forecast.dtype}" * bool(forecast.rounding)
    return (
        f"no change of the policy; log-ratio of a token {noise.bias:.4g} ± {noise.std:.4g}{extra}{stored}; "
        f"clip range {clip.low:g} / {clip.high:g}"
    )


def _table(forecast: Forecast) -> list[str]:
    head = f"  {'tokens':>8}  {'sd of log s':>11}  {'A > 0':>8}  {'A < 0':>8}  {'clipped':>8}"
    lines = [head, *(_line(row) for row in forecast.rows)]
    if forecast.distribution:
        whole = f"  {'all':>8}  {'':11}  {'':8}  {'':8}  {plain(percent(forecast.clip_fraction)):>8}"
        lines.append(f"{whole}  {bar(forecast.clip_fraction)}  of the tokens of {forecast.lengths.size:,} responses")
    return lines


def _line(row: Row) -> str:
    shares = "  ".join(f"{plain(percent(share)):>8}" for share in (row.positive, row.negative, row.clipped))
    return f"  {thousands(row.length):>8}  {number(row.std):>11}  {shares}  {bar(row.clipped)}"


def render_run(trace: Trace, run: Analysis, found: Sequence[Finding], form: str = "text") -> str:
    """What a trace says about noise, in one of `FORMATS`."""
    if form == "json":
        told = {"version": 1, "trace": str(trace.path), **run.record(), "findings": [asdict(one) for one in found]}
        return json_text(told)
    lines = [_run_head(trace, run), "", *_minibatches(run), *_estimates(run), ""]
    for one in found:
        lines += _finding(one)
    return printable("\n".join([*lines, "", summary(found)]) + "\n")


def _run_head(trace: Trace, run: Analysis) -> str:
    rows, gate = run.rows, run.gate
    range_ = f"{gate.ratio} ratio, clip range {gate.clip.low:g} / {gate.clip.high:g}" if gate else "no clip range"
    size = f"{plural(len(trace.indices), 'step')}, {rows.number:,} responses, {int(rows.length.sum()):,} tokens"
    lost = [plural(n, noun) for n, noun in ((len(trace.broken), "file"), (run.reading.broken, "part")) if n]
    return f"{size}; {range_}" + f"; {' and '.join(lost)} could not be read" * bool(lost)


def _minibatches(run: Analysis) -> list[str]:
    if not run.minibatches:
        return []
    head = f"  {'mini-batch':>10}  {'responses':>9}  {'mean of log s':>13}  {'sd of log s':>11}  {'clipped':>8}  {'by noise':>12}"
    return [head, *map(_minibatch, run.minibatches), ""]


def _minibatch(one: Minibatch) -> str:
    noise = "" if one.predicted is None else plain(percent(one.predicted))
    noise += f" ± {100 * one.error:.0f} %" if one.error else ""
    clipped = "" if one.observed is None else plain(percent(one.observed))
    moments = f"{number(one.mean):>13}  {number(one.std):>11}"
    drawn = "" if one.observed is None else bar(one.observed)
    return f"  {one.index + 1:>10}  {one.responses:>9,}  {moments}  {clipped:>8}  {noise:>12}  {drawn}".rstrip()


def _estimates(run: Analysis) -> list[str]:
    found = [("first mini-batch", run.first), ("rollout engine", run.engine)]
    return [_estimate(name, one) for name, one in found if one is not None]


def _estimate(name: str, one: Estimate) -> str:
    if one.exact:
        return f"  {name:17} s is exactly 1: no noise"
    bias = f"{number(one.bias.value)} (±{number(one.bias.error)})"
    std = f"{number(one.std.value)} (±{number(one.std.error)})"
    return f"  {name:17} log-ratio of a token: mean {bias}, spread {std}, {one.tokens:,} tokens"


def _finding(one: Finding) -> list[str]:
    lines = paragraph(one.severity, [f"{one.rule}: {one.message}"])
    for word, text in (("costs", one.consequence), ("fix", one.fix), ("clause", one.clause)):
        if text and one.severity != "note" and not (word == "clause" and text in one.fix):
            lines += paragraph("", [f"{word}: {text}"])
    return lines
