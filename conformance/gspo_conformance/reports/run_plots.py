"""A run in four pictures: ratios against the range, what was clipped and why, spread against length, advantages by group.

    figures(analyse(trace))       the figures of a page; page.css styles them, nothing is a script

A figure whose numbers were not recorded is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..noise.analysis import Analysis, Minibatch
from ..noise.estimate import Estimate
from ..noise.responses import UNKNOWN, Gate, Responses
from ..noise.words import percent
from ..tensors import NumPyArray
from .markup import Markup, element
from .panel import Axis, Panel, decades, linear

_MOST, _BINS, _GROUPS = 8, 44, 72


def figures(run: Analysis) -> Markup:
    """All figures that the trace has the numbers for, side by side where there is room."""
    drawn = [figure for figure in (ratios(run), clipped(run), spread(run), advantages(run)) if figure]
    return element("div", drawn, class_="plots") if drawn else Markup("")


def ratios(run: Analysis) -> Markup | None:
    """The distribution of s in every mini-batch, A < 0 to the left and A > 0 to the right; beyond the range it is solid."""
    shown = _some(run.minibatches)
    if not shown:
        return None
    gate = run.gate if run.gate is not None and run.gate.ratio != "token" else None
    columns = [_ratio(run.finite.of_minibatch(one.index), gate) for one in shown]
    reach = _reach(columns, gate)
    panel = Panel(
        _categories(shown), Axis(-reach, reach, linear(-reach, reach, _around_one(reach))), "Ratios by mini-batch"
    )
    for at, (values, signs) in enumerate(columns):
        for side in (-1, 1):
            _half(panel, at, side, values[signs == side], reach, gate)
    if gate is not None:
        for bound in (-gate.clip.low, gate.clip.high):
            panel.line([(panel.x.low, bound), (panel.x.high, bound)], "limit")
    told = (
        "The ratio s of every response, and the clip range; solid where the gate is closed; what lies further out is at the ends."
        if gate
        else "The geometric mean of the token ratios of every response."
    )
    return _figure("Ratios against the range", panel, told, (("down", "A < 0"), ("up", "A > 0")))


def _ratio(rows: Responses, gate: Gate | None) -> tuple[NumPyArray, NumPyArray]:
    """s - 1 and the sign of A of every response."""
    log_ratio = rows.mean * (rows.length if gate is not None and gate.ratio == "product" else 1)
    return np.expm1(np.minimum(log_ratio, 50)), np.sign(rows.positive - rows.negative)


def _reach(columns: list[tuple[NumPyArray, NumPyArray]], gate: Gate | None) -> float:
    """Half the height of the axis: the range with room around it, or nearly all ratios."""
    sizes = np.abs(np.concatenate([values for values, _ in columns]))
    far = float(np.quantile(sizes, 0.985)) if sizes.size else 0.0
    return max(far * 1.1, 2 * max(gate.clip.low, gate.clip.high) if gate else 0.0, 1e-12)


def _half(panel: Panel, at: int, side: int, values: NumPyArray, reach: float, gate: Gate | None) -> None:
    """A histogram lying on the axis of its mini-batch, to one side of it; beyond the bound that this sign has it is solid."""
    kind = "up" if side > 0 else "down"
    bound = math.inf if gate is None else side * (gate.clip.high if side > 0 else gate.clip.low)
    edges = _edges(reach, bound if abs(bound) < reach else 0.0)
    counts, _ = np.histogram(np.clip(values, -reach, reach), edges)
    if not counts.any():
        return
    for count, low, high in zip(counts / counts.max(), edges[:-1], edges[1:], strict=True):
        closed = side * (low + high) / 2 > abs(bound)
        panel.box(at, at + side * 0.44 * float(count), low, high, kind if closed else f"{kind} soft")


def _edges(reach: float, at: float) -> NumPyArray:
    """The edges of bins of one width from -reach to reach, one of them `at` a bound; the bins at the ends may be narrower."""
    step = 2 * reach / _BINS
    inner = at + step * np.arange(-_BINS, _BINS + 1)
    inner = inner[np.abs(inner) < reach - step / 4]
    return np.concatenate([[-reach], inner, [reach]])


def clipped(run: Analysis) -> Markup | None:
    """The clip fraction of every mini-batch: what mismatch alone predicts, and what is above it."""
    shown = _some([one for one in run.minibatches if one.observed is not None])
    if run.gate is None or not shown:
        return None
    top = max(0.05, *map(_highest, shown)) * 1.18
    panel = Panel(_categories(shown), Axis(0, top, linear(0, top, percent, 4)), "Clip fraction by mini-batch")
    for at, one in enumerate(shown):
        _bar(panel, at, one)
    if all(one.predicted is None for one in shown):
        told = "Shares of all tokens. No first mini-batch was recorded, so nothing is predicted."
        return _figure("Clip fraction", panel, told, (("learned", "clipped"),))
    told = "Shares of all tokens. Noise is what two scoring passes that disagree clip while the policy stands still; two standard errors."
    keys = (("learned", "beyond what noise predicts"), ("noise", "noise"), ("rule", "predicted from mismatch alone"))
    return _figure("Clip fraction, observed and predicted", panel, told, keys)


def _highest(one: Minibatch) -> float:
    return max(one.observed or 0.0, (one.predicted or 0.0) + 2 * (one.error or 0.0))


def _bar(panel: Panel, at: int, one: Minibatch) -> None:
    """What was clipped, the part that noise explains in its colour, and the prediction as a mark with two standard errors."""
    observed, predicted = one.observed or 0.0, one.predicted
    noise = min(observed, predicted or 0.0)
    panel.box(at - 0.28, at + 0.28, 0, noise, "noise")
    panel.box(at - 0.28, at + 0.28, noise, observed, "learned")
    panel.words(at, _highest(one), percent(observed), up=6)
    if predicted is not None:
        reach = 2 * (one.error or 0.0)
        panel.line([(at - 0.38, predicted), (at + 0.38, predicted)], "mark")
        panel.line([(at, max(0.0, predicted - reach)), (at, predicted + reach)], "mark thin")


def spread(run: Analysis) -> Markup | None:
    """sd(log s) over length: measured in bins of equal size, and the line of the model."""
    series = [
        (kind, words, rows, one)
        for kind, words, rows, one in _series(run)
        if rows[0].size >= 16 and np.ptp(rows[0]) > 0
    ]
    measured = [(kind, _binned(*rows, one)) for kind, _, rows, one in series]
    points = [point for _, bins in measured for point in bins]
    if not points:
        return None
    lengths, sizes = [point[0] for point in points], [point[1] for point in points]
    sizes += [run.gate.clip.low] if run.gate is not None and run.gate.ratio not in ("token", "product") else []
    x = Axis(min(lengths) / 1.3, max(lengths) * 1.3, (), "tokens of a response", logarithmic=True)
    y = Axis(min(sizes) / 1.6, max(sizes) * 1.6, (), logarithmic=True)
    panel = Panel(
        Axis(x.low, x.high, decades(x.low, x.high, lambda value: f"{value:,.0f}"), x.label, logarithmic=True),
        Axis(y.low, y.high, decades(y.low, y.high, lambda value: f"{value:g}"), logarithmic=True),
        "Spread of the log-ratio against length",
    )
    if len(sizes) > len(points):
        panel.line([(x.low, sizes[-1]), (x.high, sizes[-1])], "limit")
        panel.words(x.high, sizes[-1], "ε low", up=5, anchor="end")
    for (kind, bins), (_, _, _, one) in zip(measured, series, strict=True):
        _bins(panel, kind, bins)
        if one is not None:
            grid = np.geomspace(x.low, x.high, 24)
            panel.line(list(zip(grid, one.mismatch.log_ratio_std(grid), strict=True)), f"model {kind}")
    keys = tuple((kind, words) for kind, words, _, _ in series)
    told = "Standard deviation of log s in bins of equal size (two standard errors); lines are the model."
    return _figure("Spread of log s against length", panel, told, keys)


_Columns = tuple[NumPyArray, NumPyArray]


def _series(run: Analysis) -> list[tuple[str, str, _Columns, Estimate | None]]:
    """First mini-batch, last mini-batch, rollout engine: lengths and means, with the model where it was estimated."""
    found: list[tuple[str, str, _Columns, Estimate | None]] = []
    rows = run.finite
    if run.first is not None and not run.first.exact:
        first = rows.of_minibatch(0)
        found.append(("noise", "first mini-batch", (first.length, first.mean), run.first))
    if run.minibatches and run.minibatches[-1].index > 0 and run.minibatches[-1].std > 0:
        last = rows.of_minibatch(run.minibatches[-1].index)
        found.append(("learned", "last mini-batch", (last.length, last.mean), None))
    if run.engine is not None and not run.engine.exact:
        known = rows.where(np.isfinite(rows.engine_mean))
        found.append(("engine", "rollout engine and trainer", (known.length, known.engine_mean), run.engine))
    return found


def _binned(lengths: NumPyArray, means: NumPyArray, one: Estimate | None) -> list[tuple[float, float, float]]:
    """Length, sd and standard error of up to twelve bins of responses of similar length."""
    center = one.bias.value if one is not None else float(np.mean(means))
    order = np.argsort(lengths, kind="stable")
    found = []
    for chosen in np.array_split(order, max(1, min(12, len(order) // 12))):
        sd = math.sqrt(float(np.mean((means[chosen] - center) ** 2)))
        if sd > 0:
            found.append((float(np.exp(np.mean(np.log(lengths[chosen])))), sd, sd / math.sqrt(2 * len(chosen))))
    return found


def _bins(panel: Panel, kind: str, bins: list[tuple[float, float, float]]) -> None:
    for length, sd, error in bins:
        panel.line([(length, max(sd - 2 * error, sd / 4)), (length, sd + 2 * error)], f"whisker {kind}")
        panel.dot(length, sd, kind)


def advantages(run: Analysis) -> Markup | None:
    """Every response's advantage, group by group, in the order of the share of positive ones."""
    rows = run.rows
    known = np.isfinite(rows.advantage) & (rows.group != UNKNOWN)
    if not known.any():
        return None
    groups = _groups(rows.where(known))
    shown = [groups[i] for i in np.unique(np.linspace(0, len(groups) - 1, _GROUPS).astype(int))]
    reach = max(0.1, max(float(np.max(np.abs(values))) for values in shown) * 1.12)
    panel = Panel(
        Axis(
            -0.5,
            len(shown) - 0.5,
            (),
            f"{len(shown)} of {len(groups):,} groups" if len(shown) < len(groups) else f"{len(groups)} groups",
        ),
        Axis(-reach, reach, linear(-reach, reach, lambda value: f"{value:g}".replace("-", "−"), 4)),
        "Advantages by group",
    )
    small = 1.6 if len(shown) > 36 else 2.6
    for at, values in enumerate(shown):
        if not values.any():
            panel.box(at - 0.5, at + 0.5, -reach, reach, "silent")
        for value, count in zip(*np.unique(np.round(values, 6), return_counts=True), strict=True):
            kind = "up" if value > 0 else "down" if value < 0 else "still"
            panel.dot(at, float(value), kind, round(min(5.5, small + 0.55 * math.sqrt(float(count))), 1))
    silent = sum(not values.any() for values in groups) / len(groups)
    told = f"Groups from few to many successes; a dot is as large as the responses it stands for. {percent(silent)} of the groups have no signal."
    return _figure("Advantages by group", panel, told, (("up", "A > 0"), ("down", "A < 0"), ("silent", "no signal")))


def _groups(rows: Responses) -> list[NumPyArray]:
    """The advantages of every group, ordered by their median."""
    source = np.where(rows.rollout == UNKNOWN, rows.step, rows.rollout)
    order = np.lexsort((rows.group, source))
    keys = np.stack([source, rows.group])[:, order]
    starts = np.flatnonzero(np.any(keys[:, 1:] != keys[:, :-1], axis=0)) + 1
    return sorted(
        np.split(rows.advantage[order], starts),
        key=lambda values: (float(np.max(values)), float(np.median(values))),
        reverse=True,
    )


def _some(minibatches: list[Minibatch]) -> list[Minibatch]:
    """All of few mini-batches; the first, the last and some between of many."""
    if len(minibatches) <= _MOST:
        return minibatches
    return [minibatches[i] for i in np.unique(np.linspace(0, len(minibatches) - 1, _MOST).astype(int))]


def _categories(shown: list[Minibatch]) -> Axis:
    ticks = [(float(at), f"{one.index + 1}") for at, one in enumerate(shown)]
    return Axis(-0.6, len(shown) - 0.4, ticks, "mini-batch of a rollout")


def _around_one(reach: float) -> Callable[[float], str]:
    digits = max(1, 1 - math.floor(math.log10(reach)))
    if reach >= 1e4:
        return lambda value: f"{1 + value:.0e}".replace("-", "−", 1) if value else "1"
    return lambda value: f"{1 + value:.{digits}f}"


def _figure(title: str, panel: Panel, told: str, keys: tuple[tuple[str, str], ...]) -> Markup:
    legend = [element("span", element("i", class_=f"swatch {kind}"), words) for kind, words in keys]
    return element(
        "figure", element("h4", title), panel.draw(), element("div", legend, class_="keys"), element("figcaption", told)
    )
