"""The pictures of the specification, computed by the core: `python docs/drawing/figures.py [--check]`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import erf, log, sqrt

import numpy as np
from generated import asked_to_check, settle
from svg import Panel, drawing, rectangle, text

import gspo_core as gspo
from gspo_conformance.mutants.narrow import to_bfloat16

CLIP = gspo.Clip(3e-4, 4e-4)
MODES = ("sequence_mean_token_mean", "token_mean", "sequence_mean_token_sum", "token_sum", "group_token_mean")


def coefficients(objective: gspo.Objective, d: np.ndarray, advantages: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What every token's log-probability is pushed by: minus the gradient of the loss."""
    old = np.full(d.shape, -1.0)
    return -gspo.policy_gradient(objective, logp=old + d, old_logp=old, advantages=advantages, sequences=mask)


def gate() -> str:
    """Surrogate over ratio at GSPO's own scale, a panel per sign of the advantage."""
    steps = np.linspace(-10, 10, 201)
    ratios = 1 + 1e-4 * steps
    panels = []
    for column, sign in enumerate((1.0, -1.0)):
        values = 1e4 * (np.asarray(gspo.clipped_surrogate(ratios, np.full(201, sign), CLIP)) - sign)
        panel = Panel((64 + 350 * column, 34, 280, 190), (-10, 10), (-10, 10))
        closed = ((4, -10), (10, 10)) if sign > 0 else ((-10, -10), (-3, 10))
        panel.span(*closed, "area soft").line(steps, sign * steps, "dash soft").line(steps, values, "one")
        panel.title(f"advantage {'+1' if sign > 0 else '−1'}")
        panel.ticks([(x, f"{x:+d}" if x else "1") for x in (-10, -3, 0, 4, 10)], [(y, f"{y:+d}" if y else f"{sign:+g}") for y in (-10, 0, 10)])  # fmt: skip
        panel.word(7 if sign > 0 else -6.5, -8.2, "gate 0", "", "middle")
        panel.word(-9.4 if sign > 0 else 9.4, 7, "gate 1, full gradient", "one", "start" if sign > 0 else "end")  # fmt: skip
        panels += panel.parts
    panels.append(text(379, 262, "sequence ratio s: distance from 1 in units of 1e-4", "", "middle"))
    panels.append(text(18, 130, "surrogate J, same units", "", "middle", -90))
    return drawing(720, 274, "The clipped surrogate of GSPO over its ratio, for both signs of the advantage: one side only is clipped.", panels)  # fmt: skip


def weights() -> str:
    """What each token of one response is multiplied by under GRPO and under GSPO, for the same token log-ratios."""
    d = np.random.default_rng(5).normal(0.0, 0.15, 48)
    d += 1e-4 - d.mean()
    mask, positive, number = np.ones((1, 48), dtype=bool), np.ones(1), np.arange(48)
    parts = []
    for row, (name, kind) in enumerate((("grpo", "two"), ("gspo", "one"))):
        weight = 48 * coefficients(getattr(gspo.Objective, name)(), d[None], positive, mask)[0]
        panel = Panel((56, 30 + 150 * row, 648, 100), (-0.8, 47.8), (0, 1.5))
        for t in number:
            panel.span((t - 0.38, 0), (t + 0.38, float(weight[t])), f"fill {kind}")
        panel.ticks(y=[(0, "0"), (0.5, "0.5"), (1, "1"), (1.5, "1.5")])
        zeros = int((weight == 0).sum())
        told = (
            f"GRPO: its own ratio each; {zeros} tokens beyond 1.27 are dropped"
            if row == 0
            else "GSPO: one ratio for all"
        )
        parts += panel.title(told).parts
    parts.append(text(380, 302, "token of the response, advantage +1", "", "middle"))
    return drawing(720, 312, "Weights of the 48 tokens of one response: scattered under GRPO, equal under GSPO.", parts)


def spread() -> str:
    """Standard deviation of three log-ratios over the length of a response."""
    random, lengths, sigma = np.random.default_rng(7), 4 ** np.arange(1, 8), 0.05
    panel = Panel((70, 30, 440, 240), (4, 16384), (1e-4, 10), "xy")
    panel.span((4, 3e-4), (16384, 1e-4), "area one").word(4.6, 1.5e-4, "inside GSPO's clip range", "small")
    for kind, power in (("two", 0.5), ("soft", 0.0), ("one", -0.5)):
        panel.line(lengths, [sigma * n**power for n in lengths], f"dash {kind}")
    token, mean, product = [], [], []
    for n in lengths:
        d = random.normal(0.0, sigma, (128, n)).astype(np.float32)
        m = gspo.sequence_log_ratio(d, np.zeros_like(d), np.ones(d.shape, dtype=bool))
        token.append(float(d.std()))
        mean.append(float(m.std()))
        product.append(float((m * n).std()))
    panel.dots(lengths, product, "two").dots(lengths, token, "soft").dots(lengths, mean, "one")
    panel.ticks([(n, f"{n:,}") for n in lengths], [(10.0**p, f"1e{p}" if p else "1") for p in range(-4, 2)], "tokens of the response", "standard deviation")  # fmt: skip
    words = [
        ("two", product, "product: grows as √|y|"),
        ("soft", token, "a token's own"),
        ("one", mean, "GSPO's mean: falls as 1/√|y|"),
    ]
    parts = [text(520, panel.at(16384, at[-1])[1] + 4, said, kind) for kind, at, said in words]
    return drawing(
        720, 316, "Spread of log-ratios over the length of a response, on logarithmic axes.", panel.parts + parts
    )


def ulps() -> str:
    """The numbers around 1 that three dtypes have, and the clip range."""
    grid = np.linspace(0.9955, 1.0085, 26001)
    kinds = {
        "bfloat16": np.unique(to_bfloat16(grid)),
        "float16": np.unique(grid.astype(np.float16).astype(float)),
        "float32": np.linspace(0.9955, 1.0085, 400),
    }
    panel = Panel((90, 34, 600, 150), (-45, 85), (0, 3))
    panel.span((-3, 0), (4, 3), "area one").word(0.5, 3, "clip range", "one", "middle", 8)
    for row, (name, values) in enumerate(kinds.items()):
        inside = 1e4 * (values[(values >= grid[0]) & (values <= grid[-1])] - 1)
        height = 2.5 - row
        if name == "float32":
            panel.span((-45, height - 0.12), (85, height + 0.12), "fill soft")
            panel.word(84, height, f"{inside_range():,} numbers inside the range alone", "small", "end", 12)
        else:
            panel.dots(inside, [height] * len(inside), "two" if name == "bfloat16" else "three", 4)
        panel.parts.append(text(82, panel.at(0, height)[1] + 4, name, "", "end"))
    axis = Panel((90, 34, 600, 150), (-45, 85), (0, 3)).ticks([(x, f"{x:+d}" if x else "1") for x in range(-40, 90, 20)], across="ratio: distance from 1 in units of 1e-4")  # fmt: skip
    return drawing(720, 230, "Representable numbers around 1: bfloat16 and float16 have none inside the clip range but 1.", panel.parts + axis.parts)  # fmt: skip


def inside_range() -> int:
    """How many float32 numbers the clip range holds besides 1."""
    low, high = (int(np.float32(bound).view(np.int32)) for bound in (1 - CLIP.low, 1 + CLIP.high))
    return high - low


def aggregation() -> str:
    """The share of a short and of a long response in a step, per aggregation."""
    mask = np.arange(32)[None] < np.array([[8], [32]])
    parts = [text(200, 22, "pull of the response", "title"), text(470, 22, "pull of one of its tokens", "title")]
    for row, mode in enumerate(MODES):
        axes = gspo.Objective.gspo().replace(aggregation=gspo.Aggregation(mode, constant=32.0))
        pull = coefficients(axes, np.zeros((2, 32)), np.ones(2), mask)
        whole, each = pull.sum(axis=1), pull.max(axis=1)
        top = 40 + 52 * row
        parts.append(text(188, top + 21, mode, "", "end"))
        for column, values in enumerate((whole, each)):
            for response, kind in enumerate(("three", "two")):
                length = 200 * float(values[response]) / float(max(whole.max(), 1e-9) if column == 0 else each.max())
                parts.append(rectangle(200 + 270 * column, top + 16 * response, length, 13, f"fill {kind}"))
                parts.append(
                    text(204 + 270 * column + length, top + 11 + 16 * response, f"{values[response]:.3g}", "small")
                )
    parts += [rectangle(200, 304, 13, 13, "fill three"), text(219, 315, "8 tokens"), rectangle(300, 304, 13, 13, "fill two"), text(319, 315, "32 tokens")]  # fmt: skip
    return drawing(720, 328, "What five aggregations make of a response of 8 and one of 32 tokens, advantage 1, unchanged policy.", parts)  # fmt: skip


def mismatch() -> str:
    """Share of clipped tokens over length when nothing was learned and scoring differs by noise."""
    random, lengths = np.random.default_rng(11), 4 ** np.arange(3, 8)
    fine = np.geomspace(64, 16384, 60)
    panel = Panel((62, 30, 420, 220), (64, 16384), (0, 0.6), "x")
    ends = []
    for sigma, bias, kind in ((0.055, 0.0, "one"), (0.05, -0.0015, "two")):
        seen = []
        for n in lengths:
            d = random.normal(bias, sigma, (256, n)).astype(np.float32)
            signs = np.where(np.arange(256) % 2, 1.0, -1.0).astype(np.float32)
            out = gspo.gspo_loss(d, np.zeros_like(d), signs, np.ones(d.shape, dtype=bool))
            seen.append(float(out.metrics["clip_fraction"]))
        curve = [predicted(sigma, bias, n) for n in fine]
        panel.line(fine, curve, f"dash {kind}").dots(lengths, seen, kind)
        ends.append(
            text(492, panel.at(16384, curve[-1])[1] + 4, f"noise {sigma}, bias {bias or 0:g}".replace("-", "−"), kind)
        )
    panel.ticks([(n, f"{n:,}") for n in lengths], [(y / 10, f"{y / 10:g}") for y in range(0, 7, 2)], "tokens of the response", "clip fraction")  # fmt: skip
    return drawing(720, 296, "Clip fraction that scoring noise alone causes, over the length of a response.", panel.parts + ends)  # fmt: skip


def predicted(sigma: float, bias: float, length: float) -> float:
    """P(clipped) of docs/spec/numerics.md."""
    width = sigma / sqrt(length)
    above, below = (bias - log(1 + 4e-4)) / width, (log(1 - 3e-4) - bias) / width
    return sum(0.25 * (1 + erf(z / sqrt(2))) for z in (above, below))


FIGURES: tuple[Callable[[], str], ...] = (gate, weights, spread, ulps, aggregation, mismatch)

if __name__ == "__main__":
    sys.exit(settle({f"figures/{draw.__name__}.svg": draw() for draw in FIGURES}, asked_to_check(__doc__)))
