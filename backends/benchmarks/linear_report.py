"""The table and the plot of `linear.py`, from its rows."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullLocator

MIB = 2**20
TITLES = {
    "naive": "all logits, log_softmax",
    "products": "three matrix products alone",
    "gspo": "linear_policy_loss",
    "gspo recompute": "linear_policy_loss, recompute",
    "gspo single pass": "linear_policy_loss, single pass",
    "trl logits": "TRL: all logits, selective_log_softmax",
    "trl fused": "TRL: fused head",
    "liger": "Liger: fused GRPO loss",
}
COLOURS = {
    "naive": "0.55",
    "products": "0.8",
    "gspo": "C0",
    "gspo recompute": "C2",
    "gspo single pass": "C4",
    "trl logits": "C1",
    "trl fused": "C8",
    "liger": "C3",
}
Row = dict[str, Any]


def write(out: Path, run: dict[str, Any]) -> None:
    """linear.json, linear.md and linear.svg in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "linear.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    (out / "linear.md").write_text(table(run), encoding="utf-8")
    plot(run, out / "linear.svg")


def table(run: dict[str, Any]) -> str:
    """One Markdown table per size."""
    machine, lines = run["machine"], []
    lines.append(
        f"{machine['device']}, {_count(machine['threads'], 'thread')}, torch {machine['torch']}, {machine['dtype']}; "
        f"{_count(machine['rounds'], 'round')}, at a load average of {machine['load']:.1f}, which stretches wall times. "
        f"Regenerate: `make bench`."
    )
    for size, rows in groupby(run["rows"], key=_size):
        lines += ["", f"**{_heading(size)}**", "", *_table(list(rows))]
    versions = sorted({row["version"] for row in run["rows"] if "version" in row})
    return "\n".join([*lines, "", f"Versions: {', '.join(versions)}.", ""])


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")


def _size(row: Row) -> tuple[Any, ...]:
    return row["vocabulary"], row["width"], row["batch"], row["length"], row["clipped"]


def _heading(size: tuple[Any, ...]) -> str:
    vocabulary, width, batch, length, clipped = size
    share = f", {clipped:.0%} of the responses clipped" if clipped else ""
    return f"{_count(batch, 'response')} of {length:,} tokens, V = {vocabulary:,}, D = {width}{share}"


def _table(rows: list[Row]) -> list[str]:
    base = next((row["processor_seconds"] for row in rows if row["path"] == "naive" and "seconds" in row), None)
    lines = [
        "| path | beyond inputs and gradients, MiB | gradients, MiB | processor time, s | beside all logits | wall time, s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        title = TITLES[row["path"]]
        if "not_run" in row:
            lines.append(f"| {title} | not run: {row['not_run']} | | | | |")
            continue
        beside = f"{row['processor_seconds'] / base:.2f}" if base else "–"
        memory = "– | –" if row["path"] == "products" else f"{_extra(row):,.0f} | {row['gradient_bytes'] / MIB:,.0f}"
        wall = f"{row['seconds']:.2f}" + (f" – {row['slowest']:.2f}" if row["slowest"] > row["seconds"] else "")
        lines.append(f"| {title} | {memory} | {row['processor_seconds']:.2f} | {beside} | {wall} |")
    return lines


def _extra(row: Row) -> float:
    return max(0.0, (row["peak_bytes"] - row["gradient_bytes"]) / MIB)


def readable(axis: Axis) -> None:
    """A logarithmic axis with numbers as people write them: 200, 500, 1,000."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_minor_locator(NullLocator())


def plot(run: dict[str, Any], path: Path) -> None:
    """Memory and processor time per token over the length of a response, a column per vocabulary; none without one."""
    rows = [row for row in run["rows"] if "seconds" in row and not row["clipped"] and row["batch"] == 2]
    heads = sorted({(row["vocabulary"], row["width"]) for row in rows})
    if not heads:
        return
    plt.rcParams["svg.hashsalt"] = "gspo"
    figure, axes = plt.subplots(2, len(heads), figsize=(4.6 * len(heads), 6.4), squeeze=False, layout="constrained")
    for column, head in enumerate(heads):
        here = [row for row in rows if (row["vocabulary"], row["width"]) == head]
        for name in TITLES:
            mine = sorted((row for row in here if row["path"] == name), key=lambda row: row["length"])
            style = {"color": COLOURS[name], "marker": "o", "ms": 4, "label": TITLES[name]}
            lengths = [row["length"] for row in mine]
            if mine and name != "products":
                axes[0][column].plot(lengths, [max(1.0, _extra(row)) for row in mine], **style)
            if mine:
                tokens = [row["batch"] * row["length"] for row in mine]
                times = [1e3 * row["processor_seconds"] / count for row, count in zip(mine, tokens, strict=True)]
                axes[1][column].plot(lengths, times, **style)
        axes[0][column].set(title=f"V = {head[0]:,}, D = {head[1]}", xscale="log", yscale="log")
        axes[1][column].set(xscale="log", xlabel="tokens of a response")
        readable(axes[0][column].yaxis)
        axes[1][column].set_ylim(bottom=0)
        for row in axes:
            ticks = sorted({one["length"] for one in here})
            row[column].set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            row[column].xaxis.set_minor_locator(NullLocator())
            row[column].grid(alpha=0.3)
    axes[0][0].set_ylabel("beyond inputs and gradients, MiB")
    axes[1][0].set_ylabel("processor time per token, ms")
    handles, labels = axes[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
