"""The table and the plot of `loss.py`, from its rows."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

Row = dict[str, Any]


def write(out: Path, run: dict[str, Any], titles: dict[str, str]) -> None:
    """loss.json, loss.md and loss.svg in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "loss.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    (out / "loss.md").write_text(table(run, titles), encoding="utf-8")
    plot(run, titles, out / "loss.svg")


def table(run: dict[str, Any], titles: dict[str, str]) -> str:
    """One Markdown table per size."""
    machine = run["machine"]
    where = f"{machine['device']}, {machine['cores']} cores, {machine['threads']} thread{'s' if machine['threads'] > 1 else ''}, torch {machine['torch']}, float32"
    how = f"Loss and gradient; load average {machine['load']:.1f} at the end. Ratios to `gspo_torch` in the same round"
    lines = [f"{where}. {how}: median and quartiles. Regenerate: `make bench`."]
    for size, rows in groupby(run["rows"], key=_size):
        lines += ["", f"**{_name(*size)}**", ""]
        lines.append(
            "| path | processor time, least, ms | median, ms | times ours | quartiles | wall time, least, ms |"
        )
        lines.append("|---|---:|---:|---:|---:|---:|")
        lines += [_row(row, titles) for row in shown(list(rows))]
    versions = sorted({row["version"] for row in run["rows"] if row["version"]}, key=str.lower)
    return "\n".join([*lines, "", f"Versions: {', '.join(versions)}.", ""])


def shown(rows: list[Row]) -> list[Row]:
    """One row per path: ours and the copy as they ran beside each other, each peer beside ours in its own process."""
    own = rows[0]["beside"]
    return [row for row in rows if row["beside"] == own or row["path"] not in ("gspo_torch", "stream")]


def _size(row: Row) -> tuple[int, int, bool]:
    return row["batch"], row["length"], row["packed"]


def _name(batch: int, length: int, packed: bool) -> str:
    layout = f"of {length // 2:,} to {length:,} tokens, packed" if packed else f"padded to {length:,} tokens"
    return f"{batch} responses {layout}"


def _row(row: Row, titles: dict[str, str]) -> str:
    low, high = row["quartiles"]
    return (
        f"| {titles[row['path']]} | {1e3 * row['least']:.2f} | {1e3 * row['median']:.2f} | "
        f"{row['ratio']:.2f} | {low:.2f} to {high:.2f} | {1e3 * row['wall']:.2f} |"
    )


def plot(run: dict[str, Any], titles: dict[str, str], path: Path) -> None:
    """Bars of the ratios, per size."""
    padded = [row for row in run["rows"] if not row["packed"]]
    sizes = [(size, shown(list(rows))) for size, rows in groupby(padded, key=_size)]
    plt.rcParams["svg.hashsalt"] = "gspo"
    figure, panels = plt.subplots(
        1,
        len(sizes),
        figsize=(3.6 * len(sizes), 0.8 + 0.26 * len(sizes[0][1])),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for panel, ((batch, length, _), rows) in zip(panels[0], sizes, strict=True):
        names = [titles[row["path"]].replace("`", "") for row in rows]
        ratios = [row["ratio"] for row in rows]
        panel.barh(names, ratios, color=["C0" if row["path"] == "gspo_torch" else "0.7" for row in rows])
        panel.bar_label(panel.containers[0], fmt="%.1f", padding=2)
        panel.set(title=f"B = {batch}, T = {length:,}", xlabel="time, gspo_torch = 1", xscale="log", xlim=(0.04, 300))
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].invert_yaxis()
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
