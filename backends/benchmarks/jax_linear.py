"""From hidden states to loss and gradients in JAX: memory and time of the fused loss beside all logits and Tunix.

    python backends/benchmarks/jax_linear.py --out docs/benchmarks --peers /path/to/python

Every measurement is a process of its own. "Compiled" is what the compiled program sets aside beside its
inputs and outputs, from its own memory analysis; "measured" is the highest resident size of one run above
what was resident before it, gradients included. Paths take turns, and must agree in loss and gradients.
`--peers` names a Python with `google-tunix==0.1.7` and this package.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import jax_measure

MIB = jax_measure.MIB
PATHS = ("all logits", "tunix", "linear_policy_loss", "single pass")
# Logits larger than this are not built: the paths that would are listed as not run.
LARGEST_LOGITS = 1 << 30
COLOURS = {"all logits": "0.55", "tunix": "C1", "linear_policy_loss": "C0", "single pass": "C4"}


def case(
    batch: int,
    length: int,
    vocabulary: int,
    width: int,
    filled: float = 1.0,
    clipped: float = 0.0,
    dtype: str = "float32",
) -> dict[str, Any]:
    return {
        "batch": batch,
        "length": length,
        "vocabulary": vocabulary,
        "width": width,
        "filled": filled,
        "clipped": clipped,
        "dtype": dtype,
    }


GROWTH = (
    *(case(2, length, 32_768, 256) for length in (512, 1024, 2048, 4096)),
    *(case(2, length, 151_936, 128) for length in (512, 1024, 2048)),
)
OTHERS = (
    case(4, 512, 32_768, 256, filled=0.5),
    case(4, 512, 32_768, 256, clipped=0.25),
    case(2, 1024, 32_768, 256, dtype="bfloat16"),
)
QUICK = (case(2, 64, 1024, 32), case(2, 128, 1024, 32))


def run(task: dict[str, Any]) -> dict[str, Any]:
    """One path on one batch, in this process."""
    import jax_paths

    size = {name: task[name] for name in case(1, 1, 1, 1)}
    return jax_measure.measure(jax_paths.HEAD_PATHS[task["path"]](), jax_paths.head_batch(**size), 1)


def rows_of(size: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, Any]]] = {path: [] for path in PATHS}
    for _ in range(options.rounds):
        for path in PATHS:
            logits = 4 * size["batch"] * size["length"] * size["vocabulary"]
            if path in ("all logits", "tunix") and logits > LARGEST_LOGITS:
                found[path].append({"error": f"logits of more than {LARGEST_LOGITS >> 30} GiB"})
                continue
            python = options.peers if path == "tunix" else sys.executable
            found[path].append(jax_measure.in_a_fresh_process(__file__, size | {"path": path}, python))
    rows = [{"path": path} | size | _best(answers) for path, answers in found.items()]
    for row in rows:
        print(json.dumps(row), flush=True)
    jax_measure.check_agreement(rows)
    return rows


def _best(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Of several runs, the shortest times and the smallest peak."""
    least = {"processor_seconds", "seconds", "peak_bytes"}
    return {name: min(one[name] for one in answers) if name in least else value for name, value in answers[0].items()}


def _extra(row: dict[str, Any]) -> float:
    return max(0.0, (row["peak_bytes"] - row["gradient_bytes"]) / MIB)


def table(result: dict[str, Any]) -> str:
    """One Markdown table per size."""
    here = result["machine"]
    lines = [
        f"{here['device']}, {here['cores']} cores, JAX {here['jax']}; best of {here['rounds']}, load average {here['load']:.1f} at the end."
    ]
    for size, rows in groupby(result["rows"], key=lambda row: tuple(row[name] for name in case(1, 1, 1, 1))):
        lines += ["", f"**{_heading(*size)}**", "", *_table(list(rows))]
    return "\n".join([*lines, ""])


def _heading(batch: int, length: int, vocabulary: int, width: int, filled: float, clipped: float, dtype: str) -> str:
    extra = (
        f", rows filled to {filled:.0%}"
        if filled < 1
        else f", {clipped:.0%} of the responses clipped"
        if clipped
        else ""
    )
    return f"{batch} responses of {length:,} tokens, V = {vocabulary:,}, D = {width}, {dtype}{extra}"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    base = next((row["processor_seconds"] for row in rows if row["path"] == "all logits" and "seconds" in row), None)
    lines = [
        "| path | compiled, MiB | measured beyond gradients, MiB | gradients, MiB | processor time, s | beside all logits | wall time, s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['path']} | not run: {row['error']} | | | | | |")
            continue
        beside = f"{row['processor_seconds'] / base:.2f}" if base else "–"
        lines.append(
            f"| {row['path']} | {row['temporary_bytes'] / MIB:,.0f} | {_extra(row):,.0f} | {row['gradient_bytes'] / MIB:,.0f} "
            f"| {row['processor_seconds']:.2f} | {beside} | {row['seconds']:.2f} |"
        )
    return lines


def plot(result: dict[str, Any], path: Path) -> None:
    """Compiled memory and processor time per token over the length of a response, a column per vocabulary."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    from linear_report import readable

    plt.rcParams["svg.hashsalt"] = "gspo"
    plain = [
        row
        for row in result["rows"]
        if "seconds" in row and row["filled"] == 1 and not row["clipped"] and row["dtype"] == "float32"
    ]
    heads = sorted({(row["vocabulary"], row["width"]) for row in plain})
    figure, axes = plt.subplots(2, len(heads), figsize=(4.6 * len(heads), 6.0), squeeze=False, layout="constrained")
    for column, head in enumerate(heads):
        here = [row for row in plain if (row["vocabulary"], row["width"]) == head]
        for name in PATHS:
            mine = sorted((row for row in here if row["path"] == name), key=lambda row: row["length"])
            style = {"color": COLOURS[name], "marker": "o", "ms": 4, "label": name}
            lengths = [row["length"] for row in mine]
            axes[0][column].plot(lengths, [row["temporary_bytes"] / MIB for row in mine], **style)
            per_token = [1e3 * row["processor_seconds"] / (row["batch"] * row["length"]) for row in mine]
            axes[1][column].plot(lengths, per_token, **style)
        axes[0][column].set(title=f"V = {head[0]:,}, D = {head[1]}", xscale="log", yscale="log")
        readable(axes[0][column].yaxis)
        axes[1][column].set(xscale="log", xlabel="tokens of a response")
        axes[1][column].set_ylim(bottom=0)
        ticks = sorted({row["length"] for row in here})
        for row in axes:
            row[column].set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            row[column].xaxis.minorticks_off()
            row[column].grid(alpha=0.3)
    axes[0][0].set_ylabel("compiled temporaries, MiB")
    axes[1][0].set_ylabel("processor time per token, ms")
    figure.legend(*axes[1][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for jax_linear.json, jax_linear.md and jax_linear.svg")
    parser.add_argument("--peers", default=sys.executable, help="a Python interpreter with Tunix")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two tiny sizes, to see that it runs")
    parser.add_argument("--render", action="store_true", help="table and plot again, from jax_linear.json in --out")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task is not None:
        print(json.dumps(run(options.task)))
        return
    record = None if options.out is None else options.out / "jax_linear.json"
    if options.render:
        result = json.loads(record.read_text(encoding="utf-8"))
    else:
        rows = [row for size in (QUICK if options.quick else (*GROWTH, *OTHERS)) for row in rows_of(size, options)]
        result = {"machine": jax_measure.machine() | {"rounds": options.rounds}, "rows": rows}
    if record is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        record.with_suffix(".md").write_text(table(result), encoding="utf-8")
        plot(result, record.with_suffix(".svg"))


if __name__ == "__main__":
    main()
