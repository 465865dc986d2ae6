"""The GSPO loss from log-probabilities in JAX: autodiff of the core, its closed form, and Tunix's own loss.

    python backends/benchmarks/jax_loss.py --out docs/benchmarks --peers /path/to/python

Every path is compiled and run in a process of its own, and must give the same loss and gradient.
`--peers` names a Python with `google-tunix==0.1.7` and this package.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax_measure

SIZES = ((64, 1024), (64, 4096), (256, 4096))
MIB = jax_measure.MIB


def run(task: dict[str, Any]) -> dict[str, Any]:
    """One path on one batch, in this process."""
    import jax_paths

    program = jax_paths.LOGP_PATHS[task["path"]]()
    return jax_measure.measure(program, jax_paths.logp_batch(task["batch"], task["length"]), task["rounds"])


def rows_of(size: tuple[int, int], options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for path in ("autodiff", "autodiff, loss alone", "closed form", "closed form, loss alone", "tunix"):
        head = {"path": path, "batch": size[0], "length": size[1]}
        python = options.peers if path == "tunix" else sys.executable
        found = jax_measure.in_a_fresh_process(__file__, head | {"rounds": options.rounds}, python)
        rows.append(head | found)
        print(json.dumps(rows[-1]), flush=True)
    jax_measure.check_agreement(rows)
    return rows


def table(result: dict[str, Any]) -> str:
    here = result["machine"]
    lines = [
        f"{here['device']}, {here['cores']} cores, JAX {here['jax']}, float32; best of {here['rounds']} runs, load average {here['load']:.1f} at the end.",
        "",
        "| responses × tokens | path | processor time, ms | wall time, ms | compiled temporaries, MiB | compile, s |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        head = f"| {row['batch']} × {row['length']:,} | {row['path']} |"
        if "error" in row:
            lines.append(f"{head} not run: {row['error']} | | | |")
            continue
        lines.append(
            f"{head} {1e3 * row['processor_seconds']:.2f} | {1e3 * row['seconds']:.2f} "
            f"| {row['temporary_bytes'] / MIB:.1f} | {row['compile_seconds']:.2f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for jax_loss.json and jax_loss.md")
    parser.add_argument("--peers", default=sys.executable, help="a Python interpreter with Tunix")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="one tiny size, to see that it runs")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task is not None:
        print(json.dumps(run(options.task)))
        return
    rows = [row for size in (((4, 64),) if options.quick else SIZES) for row in rows_of(size, options)]
    result = {"machine": jax_measure.machine() | {"rounds": options.rounds}, "rows": rows}
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "jax_loss.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (options.out / "jax_loss.md").write_text(table(result), encoding="utf-8")


if __name__ == "__main__":
    main()
