"""What the training examples share beside their task: settings from the command line, the record of a run, its figure.

python examples/recording.py runs/torch/metrics.jsonl --out curve.svg     # draw a run again
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

Row = dict[str, Any]
HEADS, MOST_PROMPTS = 4, 9000
# Ten supervised steps each: a warm-up that has not got there by then will not.
WARM_UP_ROUNDS = 2000
# Greys and hues that read on white and on black.
INK, HUES = "#808080", ("#2f7fd0", "#e07b00", "#1a9c6b", "#c2589c")
STYLE = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.prop_cycle": plt.cycler(color=HUES),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "font.size": 9,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "gspo",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


class Refused(ValueError):
    """A run that cannot be made as it was asked for."""


def _option(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Settings:
    """What determines a curve. Every field is an option of the command line."""

    seed: int = _option(0, "of parameters, questions and samples")
    iterations: int = _option(600, "rollouts")
    prompts: int = _option(64, "questions a rollout")
    group: int = _option(8, "responses to each question; their rewards are each other's baseline")
    mini_batches: int = _option(4, "optimiser steps a rollout, each on its own part of it; the paper has 4")
    clip_low: float = _option(3e-4, "left half-width of the clip range, the paper's")
    clip_high: float = _option(4e-4, "right half-width of the clip range, the paper's")
    learning_rate: float = _option(1e-3, "at the start; falls linearly to a tenth")
    warm_up: float = _option(0.4, "share of the held-out questions at which the supervised steps end")
    width: int = _option(64, "of the transformer, which has two layers and four heads")
    evaluate_every: int = _option(10, "iterations between greedy answers to the held-out questions")
    save_every: int = _option(50, "iterations between checkpoints")

    def expect(self, saved: Row, path: Path) -> None:
        """A checkpoint made with other settings would give a curve of neither."""
        for name, mine in dataclasses.asdict(self).items():
            if saved[name] != mine:
                raise Refused(f"{name}: expected {saved[name]!r}, which made {path}, got {mine!r}")

    def wrong(self) -> Iterator[str]:
        """What cannot be: option, expected, got."""
        for name in ("iterations", "prompts", "mini_batches", "width", "evaluate_every", "save_every", "learning_rate"):
            if not getattr(self, name) > 0:
                yield f"{_as_option(name)}: expected a number above 0, got {getattr(self, name)}"
        for name in ("seed", "clip_low", "clip_high"):
            if not getattr(self, name) >= 0:
                yield f"{_as_option(name)}: expected at least 0, got {getattr(self, name)}"
        if self.group < 2:
            yield f"--group: expected at least 2, got {self.group}: one response has nothing to be compared with"
        if not 0 <= self.warm_up < 1:
            yield f"--warm-up: expected a share from 0 to below 1, got {self.warm_up}"
        if self.width % HEADS:
            yield f"--width: expected a multiple of {HEADS}, the number of heads, got {self.width}"
        if self.mini_batches > 0 and self.prompts % self.mini_batches:
            yield f"--prompts: expected a multiple of --mini-batches = {self.mini_batches}, got {self.prompts}"
        if self.prompts > MOST_PROMPTS:
            yield f"--prompts: expected at most {MOST_PROMPTS}, all that are not held out, got {self.prompts}"


def _as_option(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Command:
    """A parsed command line."""

    settings: Settings
    out: Path
    resume: bool


def command_line(description: str, out: str, arguments: Sequence[str] | None = None) -> Command:
    """Settings, the folder of the run, and whether to go on from its checkpoint."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for item in dataclasses.fields(Settings):
        help = f"{item.metadata['help']} (default: {item.default:g})"
        parser.add_argument(
            _as_option(item.name), type=type(item.default), default=item.default, metavar="N", help=help
        )
    parser.add_argument("--out", type=Path, default=Path(out), help=f"folder of the run (default: {out})")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the folder of the run")
    found = vars(parser.parse_args(arguments))
    folder, resume = found.pop("out"), found.pop("resume")
    settings = Settings(**found)
    for told in settings.wrong():
        parser.error(told)
    if resume and not any(path.suffix != ".new" for path in folder.glob("checkpoint.*")):
        parser.error(f"--resume: there is no checkpoint in {folder} yet; without --resume the run begins anew")
    return Command(settings, folder, resume)


class Record:
    """The rows of a run, one per iteration, in memory and as JSON lines."""

    def __init__(self, path: Path, before: int = 0) -> None:
        """The first `before` rows of the file at `path` are kept, so that a resumed run goes on behind them."""
        self.rows = read(path)[:before] if before else []
        if len(self.rows) < before:
            raise Refused(f"{path}: expected the {before} iterations before the checkpoint, got {len(self.rows)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        self._path = path

    def add(self, row: Row) -> Row:
        """Appends a row, to six digits, and returns it."""
        row = {name: to_six_digits(value) for name, value in row.items()}
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return row


def to_six_digits(value: Any) -> Any:
    """A number, or a list of them."""
    if isinstance(value, list):
        return [to_six_digits(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def summary(steps: Sequence[Row]) -> Row:
    """What is kept of the metrics of the mini-batches of a rollout."""
    clipped = [step["clip_fraction"] for step in steps]
    ends = {name: steps[-1][name] for name in ("ratio_min", "ratio_max", "approx_kl")}
    return {"clip_fraction": sum(clipped) / len(clipped), "clip_fractions": clipped} | ends


def read(path: Path) -> list[Row]:
    """The rows of a run."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def progress(rows: Iterable[Row], total: int, stream: TextIO = sys.stderr) -> Row:
    """Shows rows as they come, as one line that is written over, or as ten where that cannot be; returns the last."""
    start, first, row = time.monotonic(), None, {}
    for row in rows:
        done = row["iteration"]
        first = done if first is None else first
        left = (time.monotonic() - start) / (done - first + 1) * (total - done)
        bar = "█" * (20 * done // total)
        accuracy = "" if row["held_out"] is None else f"  held out {row['held_out']:6.1%}"
        line = (
            f"{bar:░<20} {done:4}/{total}  reward {row['reward']:.3f}  clipped {row['clip_fraction']:.3f}"
            f"  {left // 60:2.0f}:{left % 60:02.0f} left{accuracy}"
        )
        if stream.isatty():
            stream.write(f"\r{line}\x1b[K" + "\n" * (done == total))
        elif done == total or 10 * done // total > 10 * (done - 1) // total:
            stream.write(line + "\n")
        stream.flush()
    return row


def warm_up_rounds(settings: Settings) -> Iterator[int]:
    """Rounds of ten supervised steps, which the caller leaves where enough held-out questions are answered."""
    sys.stderr.write(f"supervised steps until {settings.warm_up:.0%} of the held-out questions are answered\n")
    yield from range(WARM_UP_ROUNDS)
    raise Refused(f"warm_up: expected a share that {10 * WARM_UP_ROUNDS} steps reach, got {settings.warm_up}")


def run(command: Command, train: Callable[[Settings, Path, bool], Iterator[Row]]) -> None:
    """Trains, and says how it ended."""
    try:
        last = progress(train(command.settings, command.out, command.resume), command.settings.iterations)
    except Refused as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{last['held_out']:.1%} of the held-out questions answered; {command.out / 'curve.svg'}\n")


def draw(rows: Sequence[Row], settings: Settings, path: Path) -> None:
    """Accuracy, clipped tokens of each mini-batch, and the spread of the ratio, over iterations."""
    steps = np.asarray([row["iteration"] for row in rows])
    with plt.rc_context(STYLE):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
        tested = [row for row in rows if row["held_out"] is not None]
        left.plot(steps, smooth([row["reward"] for row in rows]), label="sampled, rewarded questions")
        left.plot([row["iteration"] for row in tested], [row["held_out"] for row in tested], label="greedy, held out")
        left.set(title="right answers", ylim=(0, 1.02))
        clipped = np.asarray([row["clip_fractions"] for row in rows])
        for number, fraction in enumerate(clipped.T, 1):
            middle.plot(steps, smooth(fraction), label=f"mini-batch {number}")
        middle.set(title="clipped tokens", ylim=(0, None))
        ends = np.asarray([[row["ratio_max"] - 1, 1 - row["ratio_min"]] for row in rows])
        right.plot(steps, smooth(ends[:, 0]), label="largest s - 1")
        right.plot(steps, smooth(ends[:, 1]), label="1 - smallest s")
        right.axhspan(settings.clip_low, settings.clip_high, color=INK, alpha=0.6, lw=0, label="clip range")
        right.set(title="ratio of the last mini-batch", yscale="log")
        for panel in (left, middle, right):
            panel.set_xlabel("rollouts")
            panel.legend(fontsize=8)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def smooth(values: Sequence[float] | np.ndarray, over: int = 10) -> np.ndarray:
    """The mean of each value and up to nine before it."""
    total = np.cumsum(np.asarray(values, float))
    before = np.concatenate([np.zeros(over), total])[: len(total)]
    return (total - before) / np.minimum(np.arange(1, len(total) + 1), over)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws the figure of a run, or says whether it is drawn already."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metrics", type=Path, help="the metrics.jsonl of a run")
    parser.add_argument("--out", type=Path, required=True, help="the figure, SVG")
    parser.add_argument(
        "--check", action="store_true", help="draw nothing; fail where the figure is not that of the run"
    )
    wanted = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "curve.svg"
        draw(read(wanted.metrics), Settings(), fresh)
        if not wanted.check:
            wanted.out.write_bytes(fresh.read_bytes())
        elif wanted.out.read_bytes() != fresh.read_bytes():
            sys.stdout.write(f"{wanted.out}: not the figure of {wanted.metrics}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
