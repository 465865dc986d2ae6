"""A forecast for people: the mismatch, a table by length, what it means and what to do."""

from __future__ import annotations

import json

from .forecast import Forecast, Row
from .words import bar, number, paragraph, percent, plain, thousands

FORMATS = ("text", "json")


def render(forecast: Forecast, form: str = "text") -> str:
    """The forecast in one of `FORMATS`."""
    if form == "json":
        return json.dumps(forecast.record(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
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
