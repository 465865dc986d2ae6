"""Everything that is measured on a GPU, in one process and eight minutes: `make gpu`.

    python backends/benchmarks/gpu.py --out docs/benchmarks

First the suite, on `torch:cuda` and `torch:cuda-fused`. Then two ceilings, the bandwidth of a copy and the rate of a
product of bfloat16 matrices; the loss from log-probabilities, as a share of the first; the loss from hidden states in
bfloat16, as a share of the second, with the memory at its peak. Paths take turns, round by round. What no time or no memory is left
for is listed as such. `--device cpu --quick` rehearses all of it without a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import linear_paths
import loss_paths
import torch
from ratios import ratios
from torch import Tensor

from gspo_conformance import check
from gspo_core import Objective

Run = Callable[[], Any]
Row = dict[str, Any]
OWN = ("gspo_torch.policy_loss", "gspo_core.policy_loss, autograd", "gspo recompute", "gspo single pass")


class Plan(NamedTuple):
    """What is measured: `losses` (B, T), `heads` (B, T, V, D, share of clipped responses), edges of the ceilings' arrays."""

    losses: tuple[tuple[int, int], ...]
    heads: tuple[tuple[int, int, int, int, float], ...]
    copied: int
    product: int
    dtype: str
    areas: tuple[str, ...] = ()


FULL = Plan(
    losses=((64, 4096), (8, 32_768), (256, 16_384), (512, 32_768)),
    heads=(
        (4, 512, 151_936, 4096, 0.0),
        (4, 2048, 151_936, 4096, 0.0),
        (10, 1024, 151_936, 4096, 0.1),
        (1, 32_768, 151_936, 4096, 0.0),
        (4, 2048, 32_000, 4096, 0.0),
        (1, 32_768, 32_000, 4096, 0.0),
    ),
    copied=1 << 30,
    product=8192,
    dtype="bfloat16",
)
QUICK = Plan(((4, 64),), ((2, 64, 1000, 32, 0.0),), 1 << 20, 128, "float32", ("surrogate/sapo*", "packing/ragged*"))


class Clock:
    """Seconds on a device, and how many are left."""

    def __init__(self, device: str, minutes: float) -> None:
        self.device = device
        self._end = time.monotonic() + 60 * minutes

    @property
    def out(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self._end

    def time(self, run: Run) -> float:
        """From an idle device to an idle device."""
        return linear_paths.seconds_of(run, self.device)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for gpu.json and gpu.md")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="start nothing new after so many (8)")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="tiny sizes and nothing compiled, to see that it runs")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device: PyTorch {torch.__version__} finds no GPU; --device cpu --quick rehearses without one")
    clock, plan = Clock(options.device, options.minutes), QUICK if options.quick else FULL
    found = {"device": _name(options.device), "torch": torch.__version__, "suite": list(_suite(plan, options))}
    found |= {"ceilings": ceilings(plan, clock), "losses": [], "heads": []}
    for size in plan.losses:
        found["losses"] += _shown(losses(size, clock, options))
        _write(found, options)
    for size in plan.heads:
        found["heads"] += _shown(heads(size, plan.dtype, clock, options))
        _write(found, options)


def _write(found: dict[str, Any], options: argparse.Namespace) -> None:
    if options.out is not None:
        (options.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (options.out / "gpu.md").write_text(page(found), encoding="utf-8")


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def _suite(plan: Plan, options: argparse.Namespace) -> Iterator[Row]:
    names = ("torch:cuda", "torch:cuda-fused") if options.device == "cuda" else ("torch", "torch:fused")
    for name in names:
        run = check(name, *plan.areas, timeout=60.0)
        row = {"target": name, "verdict": run.verdict, "counts": dict(run.counts)}
        print(f"{name}: {run.verdict}, {row['counts']}", flush=True)
        if not run.conforming:
            raise SystemExit(f"{name} does not conform; nothing is measured")
        yield row


def ceilings(plan: Plan, clock: Clock) -> dict[str, float]:
    """Bytes per second of a copy (read and written), and multiplications with additions per second times two."""
    source = torch.empty(plan.copied, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    left = torch.randn(plan.product, plan.product, device=clock.device).to(getattr(torch, plan.dtype))
    copying = min(clock.time(lambda: target.copy_(source)) for _ in range(20))
    product = min(clock.time(lambda: left @ left) for _ in range(20))
    found = {"bandwidth": 2 * plan.copied / copying, "products": 2 * plan.product**3 / product}
    print(f"copy {found['bandwidth'] / 1e9:.0f} GB/s, products {found['products'] / 1e12:.1f} TFLOP/s", flush=True)
    return found


def losses(size: tuple[int, int], clock: Clock, options: argparse.Namespace) -> Iterator[Row]:
    """From log-probabilities: ours eager, compiled and by autograd; the paper's formula, eager and compiled."""
    problem = loss_paths.batch(*size, packed=False)
    for name in ("logp", "old_logp", "advantages"):
        setattr(problem, name, getattr(problem, name).detach().to(clock.device))
    problem.logp.requires_grad_()
    problem.where = {"mask": problem.where["mask"].to(clock.device)}
    problem.objective = Objective.gspo().to_dict()
    steps: dict[str, Run] = {"gspo_torch.policy_loss": loss_paths.gspo_torch(problem)[0]}
    steps["formula"] = lambda: formula(problem.logp, problem.old_logp, problem.advantages, problem.where["mask"])
    steps["gspo_core.policy_loss, autograd"] = loss_paths.autograd(problem)[0]
    if not options.quick:
        graph = torch.compile(formula)
        steps["the same, compiled"] = loss_paths.compiled(problem)[0]
        steps["formula, compiled"] = lambda: graph(
            problem.logp, problem.old_logp, problem.advantages, problem.where["mask"]
        )
    runs, named = {}, {"batch": size[0], "length": size[1]}
    for name, step in steps.items():
        run = _tried(name, partial(_backward, step, [problem.logp]))
        if isinstance(run, str):
            yield {**named, "path": name, "not_run": run}
        else:
            runs[name] = run
    tokens = size[0] * size[1]
    for row in _turns(runs, clock, options.rounds):
        yield {**named, "bytes_per_second": loss_paths.BYTES * tokens / row["median"], **row}


def formula(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Equation 5 as it is printed."""
    lengths = mask.sum(1).clamp(min=1)
    ratio = (((logp - old_logp) * mask).sum(1) / lengths).exp()
    clipped = ratio.clamp(1 - loss_paths.LOW, 1 + loss_paths.HIGH)
    return -torch.minimum(ratio * advantages, clipped * advantages).mean()


def heads(
    size: tuple[int, int, int, int, float], dtype: str, clock: Clock, options: argparse.Namespace
) -> Iterator[Row]:
    """From hidden states: ours, all logits (compiled too), Liger where it is installed."""
    named = dict(zip(("batch", "length", "vocabulary", "width", "clipped"), size, strict=True))
    if clock.out:
        yield {**named, "path": "all", "not_run": "no time was left"}
        return
    problem = linear_paths.build(list(size), dtype, clock.device)
    leaves, runs, peaks = [problem.hidden, problem.weight], {}, {}
    for name in ("products", "naive", "naive, compiled", "gspo recompute", "gspo single pass", "liger"):
        if options.quick and name.endswith("compiled"):
            continue
        run = _tried(name, partial(_head, name, problem, leaves))
        if isinstance(run, str):
            yield {**named, "path": name, "not_run": run}
        else:
            _forget(leaves)
            peaks[name] = linear_paths.peak_of(lambda run=run: run() or 0.0, clock.device)[0]
            runs[name] = run
        _forget(leaves)
    work = 6 * named["batch"] * named["length"] * named["vocabulary"] * named["width"]
    for row in _turns(runs, clock, max(3, options.rounds // 4)):
        yield {**named, "peak_bytes": peaks[row["path"]], "products_per_second": work / row["median"], **row}


def _head(name: str, problem: Any, leaves: list[Tensor]) -> Run:
    step, _ = linear_paths.PATHS[name.partition(",")[0]](problem)
    return _backward(torch.compile(step) if name.endswith("compiled") else step, leaves)


def _tried(name: str, make: Callable[[], Run]) -> Run | str:
    """A path that ran once, or why it cannot. What is ours and eager may lack memory, and nothing else."""
    try:
        run = make()
        run()
    except Exception as error:
        if name in OWN and not isinstance(error, torch.OutOfMemoryError):
            raise
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return run


def _backward(step: Run, leaves: list[Tensor]) -> Run:
    def run() -> None:
        _forget(leaves)
        loss = step()
        if loss is not None:
            loss.backward()

    return run


def _forget(leaves: list[Tensor]) -> None:
    for leaf in leaves:
        leaf.grad = None


def _turns(runs: dict[str, Run], clock: Clock, rounds: int) -> Iterator[Row]:
    """Each path once per round, after two rounds that do not count; ratios to the first path of ours in the same round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-2, rounds):
        if clock.out and turn > 3:
            break
        for name, run in runs.items():
            found = clock.time(run)
            if turn >= 0:
                seconds[name].append(found)
    own = next(found for name, found in seconds.items() if name.startswith("gspo"))
    for name, found in seconds.items():
        yield {"path": name, "median": statistics.median(found), "least": min(found), **ratios(found, own)}


def _shown(rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        size = f"B={row['batch']} T={row['length']}" + (f" V={row['vocabulary']}" if "vocabulary" in row else "")
        told = row.get("not_run") or f"{1e3 * row['median']:.3f} ms, {row['ratio']:.2f} times ours"
        print(f"{size:28s} {row['path']:32s} {told}", flush=True)
        yield row


def page(found: dict[str, Any]) -> str:
    """The tables, as Markdown."""
    ceiling = found["ceilings"]
    copied, products = ceiling["bandwidth"] / 1e9, ceiling["products"] / 1e12
    lines = [
        f"{found['device']}, torch {found['torch']}. Ceilings: a copy moves {copied:,.0f} GB/s, matrix products run at {products:,.1f} TFLOP/s.",
        "",
        *(
            f"`gspo check {row['target']}`: {row['verdict']}, {row['counts'].get('pass', 0):,} pass."
            for row in found["suite"]
        ),
        "",
        "| responses | tokens | path | median, ms | times ours | quartiles | share of the bandwidth |",
        "|---:|---:|---|---:|---:|---:|---:|",
    ]
    for row in found["losses"]:
        if "not_run" in row:
            lines.append(f"| {row['batch']} | {row['length']:,} | {row['path']} | {row['not_run']} | | | |")
            continue
        low, high = row["quartiles"]
        lines.append(
            f"| {row['batch']} | {row['length']:,} | {row['path']} | {1e3 * row['median']:.3f} | {row['ratio']:.2f} | {low:.2f} to {high:.2f} "
            f"| {row['bytes_per_second'] / ceiling['bandwidth']:.0%} |"
        )
    lines += [
        "",
        "| tokens | V | clipped | path | median, ms | times ours | peak, MiB | share of the products |",
        "|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    for row in found["heads"]:
        head = f"| {row['batch']} x {row['length']:,} | {row['vocabulary']:,} | {row['clipped']:.0%} | {row['path']} |"
        if "not_run" in row:
            lines.append(f"{head} {row['not_run']} | | | |")
            continue
        share = row["products_per_second"] / ceiling["products"]
        lines.append(
            f"{head} {1e3 * row['median']:.2f} | {row['ratio']:.2f} | {row['peak_bytes'] / 2**20:,.0f} | {share:.0%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
