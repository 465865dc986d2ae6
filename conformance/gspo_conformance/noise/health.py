"""The health of ratios, groups and lengths: what wastes responses or tilts the gradient without being wrong."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..tensors import NumPyArray
from ..trainers.dialect import Finding
from ..words import plural
from .analysis import Analysis
from .estimate import BELIEVED
from .responses import UNKNOWN
from .words import number, percent, thousands


def _not_finite(run: Analysis) -> list[Finding]:
    lost = run.rows.number - run.finite.number
    if not lost:
        return []
    told = f"{plural(lost, 'response')} of {run.rows.number:,} with log-probabilities that are not numbers, or of no possible size; left out here"
    return [Finding("not-finite", "error", "logp", told, "GSPO-NUM-6")]


_UNMOVED = ", or no step moves the policy (a learning rate of 0)"


def _inert(run: Analysis) -> list[Finding]:
    """Ratios that are exactly 1 after the first mini-batch."""
    still = [one.index + 1 for one in run.minibatches if one.index > 0 and one.unmoved]
    if not still:
        return []
    told = f"every ratio is exactly 1 in mini-batch {', '.join(map(str, still))} too: old_logp is the current policy, not the old one"
    rows = run.finite
    once = len(np.unique(rows.step[rows.minibatch > 0])) < 2
    told += ", or this one update changed nothing, such as the first of a warm-up" if once else _UNMOVED
    costs = "the clip never acts, and GSPO, GRPO and REINFORCE are the same"
    return [
        Finding(
            "inert-ratio",
            "warning" if once else "error",
            "old_logp",
            told,
            "GSPO-METRIC-7",
            costs,
            "keep old_logp from before the first mini-batch; where it is kept, see what the optimiser does",
        )
    ]


def _dead_range(run: Analysis) -> list[Finding]:
    """A range that no ratio comes near."""
    gate, rows = run.response_gate, run.finite
    if gate is None or not any(one.index > 0 for one in run.minibatches) or float(np.sum(rows.high) + np.sum(rows.low)):
        return []
    (below, above), log_ratio = gate.bounds, gate.of_responses(rows)
    if not (below and above):
        return []
    reach = max(float(np.max(log_ratio)) / above, float(np.min(log_ratio)) / below)
    if not 0 < reach < 0.25:
        return []
    told = f"the range is dead: no ratio of {rows.number:,} comes closer than {percent(reach)} of the way to a bound"
    costs = "the objective is that of an unclipped ratio; nothing limits a step but the learning rate"
    fix = (
        f"narrow the range to the size of |log s|, here at most {number(float(np.max(np.abs(log_ratio))))}, or drop it"
    )
    return [Finding("dead-range", "warning", "clip", told, "GSPO-SURR-3", costs, fix)]


def _staleness(run: Analysis) -> list[Finding]:
    """How log s spreads over the mini-batches of a rollout."""
    steps = run.minibatches
    if len(steps) < 2 or not steps[-1].std > 0:
        return []
    before, last = steps[0], steps[-1]
    told = f"from mini-batch {before.index + 1} to {last.index + 1} the mean of log s goes from {number(before.mean)} to {number(last.mean)}, its spread from {number(before.std)} to {number(last.std)}"
    if not last.outside > 0.5:
        return [Finding("staleness", "note", "minibatch", told, "GSPO-METRIC-2")]
    costs = f"{percent(last.outside)} of the responses of the last mini-batch lie outside the range"
    grown = last.std > 1.5 * before.std or abs(last.mean) > abs(before.mean) + before.std
    fix = "fewer mini-batches a rollout, a smaller learning rate, or a wider range" if grown else ""
    return [Finding("staleness", "warning" if grown else "note", "minibatch", told, "GSPO-METRIC-2", costs, fix)]


def _silent_groups(run: Analysis) -> list[Finding]:
    """Groups whose rewards, or else advantages, are all alike."""
    silent, count, values = _alike(run)
    if not silent:
        return []
    told = (
        f"{percent(silent)} of {count:,} groups have equal {values}: they give no gradient, and still count in the mean"
        if count > 1
        else f"the only group has equal {values}: it gives no gradient, and still counts in the mean"
    )
    severity = "warning" if silent > 0.5 else "note"
    fix = "resample such groups, or choose prompts of middling difficulty (GSPO-REWARD-6)" if silent > 0.5 else ""
    costs = f"the gradient is {percent(1 - silent)} of what the other groups alone would give"
    return [Finding("silent-groups", severity, values, told, "GSPO-ADV-3", costs, fix)]


def _alike(run: Analysis) -> tuple[float, int, str]:
    """The share of groups without a signal, their number, and what was compared."""
    signals = run.reading.signals
    if signals.size:
        low, high = _ends(signals[:2], signals[2])
        return float(np.mean(low == high)), len(low), "rewards"
    rows = run.rows
    known = np.isfinite(rows.advantage) & (rows.group != UNKNOWN)
    if not known.any():
        return 0.0, 0, "advantages"
    source = np.where(rows.rollout == UNKNOWN, rows.step, rows.rollout)
    low, high = _ends(np.stack([source, rows.group])[:, known], rows.advantage[known])
    return float(np.mean((low == 0) & (high == 0))), len(low), "advantages"


def _ends(keys: NumPyArray, values: NumPyArray) -> tuple[NumPyArray, NumPyArray]:
    """The least and the greatest value of every group; a column of `keys` names a group."""
    order = np.lexsort(keys)
    sorted_keys, sorted_values = keys[:, order], values[order]
    first = np.append(True, np.any(sorted_keys[:, 1:] != sorted_keys[:, :-1], axis=0))
    starts = np.flatnonzero(first)
    return np.minimum.reduceat(sorted_values, starts), np.maximum.reduceat(sorted_values, starts)


def _length_bias(run: Analysis) -> list[Finding]:
    """Advantage that goes with length, which 1/|y| turns into weight per token."""
    rows = run.rows
    known = np.isfinite(rows.advantage) & (rows.advantage != 0)
    if run.gate is not None and not run.gate.shared:
        return []
    if np.count_nonzero(known) < 32 or len(np.unique(np.sign(rows.advantage[known]))) < 2:
        return []
    r, z = _correlation(np.log(rows.length[known]), rows.advantage[known])
    if not (abs(z) > BELIEVED and abs(r) > 0.1):
        return []
    positive, negative = (
        float(np.mean(rows.length[known & sign])) for sign in (rows.advantage > 0, rows.advantage < 0)
    )
    told = f"advantage goes with length (correlation {r:+.2f}): {thousands(round(positive))} tokens where A > 0, {thousands(round(negative))} where A < 0"
    heavier = "positive" if positive < negative else "negative"
    ratio = max(positive, negative) / min(positive, negative)
    costs = f"a token of a {heavier} response weighs {number(ratio)} times one of the other sign, because each response has weight 1/|y| per token"
    return [Finding("length-bias", "note" if ratio < 2 else "warning", "advantages", told, "GSPO-AGG-1", costs)]


def _correlation(x: NumPyArray, y: NumPyArray) -> tuple[float, float]:
    """Pearson's r and its distance from 0 in standard errors; 0 where either does not vary."""
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    r = float(x @ y) / scale if scale else 0.0
    return r, r * math.sqrt(len(x))


def _short_clipped(run: Analysis) -> list[Finding]:
    """Short responses that lose their gradient more often."""
    rows = run.rows
    closed = (rows.high + rows.low) > 0
    if run.response_gate is None or min(closed.sum(), (~closed).sum()) < 16:
        return []
    lengths = [np.log(rows.length[chosen]) for chosen in (closed, ~closed)]
    gap = float(lengths[0].mean() - lengths[1].mean())
    error = math.sqrt(sum(float(one.var()) / len(one) for one in lengths))
    if not (error and abs(gap) / error > BELIEVED and abs(gap) > math.log(1.25)):
        return []
    inside, outside = (thousands(round(math.exp(float(one.mean())))) for one in (lengths[1], lengths[0]))
    told = f"clipped responses have {outside} tokens (geometric mean), the others {inside}"
    costs = (
        "noise moves short responses further, so the range filters by length"
        if gap < 0
        else "long responses are dropped more often"
    )
    return [Finding("clipped-by-length", "note", "clip", told, "GSPO-SURR-2", costs)]


def _sample_size(run: Analysis) -> list[Finding]:
    """(Σs)²/Σs² of the responses of a step."""
    gate, rows = run.response_gate, run.finite
    if gate is None or not rows.number:
        return []
    log_ratio = gate.of_responses(rows)
    shares = [_share(log_ratio[rows.step == step]) for step in np.unique(rows.step)]
    worst = min(shares)
    if worst > 0.9:
        return []
    told = f"in the worst step the effective sample size is {percent(worst)} of the responses"
    return [
        Finding(
            "sample-size",
            "error" if worst < 0.5 else "warning",
            "ratio",
            told,
            "GSPO-METRIC-4",
            "few ratios carry the gradient",
        )
    ]


def _share(log_ratio: NumPyArray) -> float:
    ratio = np.exp(log_ratio - log_ratio.max())
    return float(ratio.sum() ** 2 / (ratio**2).sum() / len(ratio))


def _pile_up(run: Analysis) -> list[Finding]:
    """More responses just beyond a bound than on either side: the gate holds the policy there."""
    if run.response_gate is None:
        return []
    rows = run.finite.where(run.finite.minibatch != 0)
    (below, above), log_ratio = run.response_gate.bounds, run.response_gate.of_responses(rows)
    found: list[Finding] = []
    for side, bound, signed in (("upper", above, rows.positive), ("lower", below, rows.negative)):
        here, beside = _counts(log_ratio[signed > 0] / bound) if bound else (0, 0.0)
        if here - beside > BELIEVED * math.sqrt(1.5 * max(beside, 1.0)) and here > 16:
            told = f"{here} responses lie within an eighth of the range around the {side} bound, where their neighbours suggest {number(beside)}"
            costs = "the gate holds them there: the step size, not the reward, decides how far they go"
            found.append(Finding("pile-up", "note", "clip", told, "GSPO-SURR-2", costs))
    return found


def _counts(position: NumPyArray) -> tuple[int, float]:
    """How many lie within 1/8 of the bound at 1, and the mean of the two windows of that width beside it."""
    here = int(np.count_nonzero((position > 0.875) & (position <= 1.125)))
    around = int(np.count_nonzero((position > 0.625) & (position <= 1.375))) - here
    return here, around / 2


HEALTH: tuple[Callable[[Analysis], list[Finding]], ...] = (
    _not_finite,
    _inert,
    _dead_range,
    _staleness,
    _sample_size,
    _silent_groups,
    _length_bias,
    _short_clipped,
    _pile_up,
)
