"""What a run's noise does to it: findings with a severity, the numbers, and what to do.

findings(trace)      the most severe first; of equal severity, what distorts the gradient first
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from ..audit.trace import Trace
from ..trainers.dialect import SEVERITIES, Finding
from .analysis import Analysis, analyse
from .estimate import BELIEVED, NEGLIGIBLE, Estimate
from .forecast import CORRECT, LOUD, QUIET, RECOMPUTE, widen
from .health import HEALTH
from .model import effective_share, required_clip
from .responses import Gate
from .words import number, percent, plain, span, thousands


def findings(trace: Trace, gate: Gate | None = None) -> list[Finding]:
    """All that the noise model and the health of the ratios have to say about a trace; `gate` instead of the run's own."""
    return findings_of(analyse(trace, gate))


def findings_of(run: Analysis) -> list[Finding]:
    """The findings of a run that was analysed already."""
    if not run.rows.number:
        missing = "no part of the trace has both logp and old_logp: nothing can be said about ratios"
        return [Finding("no-ratios", "note", "", missing)]
    found = [one for rule in (*_RULES, *HEALTH) for one in rule(run)]
    return sorted(map(_plain, found), key=lambda one: SEVERITIES.index(one.severity))


def _plain(one: Finding) -> Finding:
    return replace(one, message=plain(one.message), consequence=plain(one.consequence), fix=plain(one.fix))


def _severity(clipped: float | None) -> str:
    if clipped is None or clipped < QUIET:
        return "note"
    return "error" if clipped >= LOUD else "warning"


def _described(one: Estimate) -> str:
    """`-0.0015 (standard error 0.0002) with a spread of 0.05`."""
    return (
        f"{number(one.bias.value)} (standard error {number(one.bias.error)}) with a spread of {number(one.std.value)}"
    )


def _first_minibatch(run: Analysis) -> list[Finding]:
    """s ≠ 1 where the policy has not moved yet."""
    if not run.finite.minibatches:
        return [Finding("unknown-minibatch", "note", "minibatch", _UNKNOWN, fix=_NUMBER_THEM)]
    rows = run.finite.of_minibatch(0)
    if run.first is None:
        were = "response of a first mini-batch was" if rows.number == 1 else "responses of a first mini-batch were"
        count = f"{rows.number} {were} recorded, too few to tell its noise"
        return [Finding("first-minibatch", "note", "old_logp", count)]
    if run.first.exact:
        exact = f"s is exactly 1 for all {rows.number:,} responses of a first mini-batch: logp and old_logp come from one path"
        return [Finding("first-minibatch", "note", "old_logp", exact, "GSPO-RATIO-8")]
    clipped = run.predicted(rows)
    message = f"in the first mini-batch, where s is 1 unless an older policy sampled it, the log-ratio of a token is {_described(run.first)}"
    return [
        Finding(
            "first-minibatch",
            _severity(clipped),
            "old_logp",
            message,
            "GSPO-DATA-5",
            _costs(run, run.first, clipped, rows.clip_fraction),
            RECOMPUTE if run.first.std.value >= NEGLIGIBLE and (clipped is None or clipped >= QUIET) else "",
        )
    ]


_UNKNOWN = "which mini-batch of its rollout a step is was not recorded: noise and learning cannot be told apart"
_NUMBER_THEM = "record minibatch (0 is the first optimiser step after a rollout)"


def _costs(run: Analysis, one: Estimate, clipped: float | None, observed: float) -> str:
    rows = run.finite.of_minibatch(0)
    signs = run.by_sign(rows, one)
    if clipped is None or signs is None:
        return "the objective has no clip range, or none was recorded"
    told = f"mismatch alone clips {percent(clipped)} of the tokens, {percent(signs[0])} of those with A < 0 and {percent(signs[1])} of those with A > 0"
    return f"{told}; {percent(observed)} were"


def _rollout_engine(run: Analysis) -> list[Finding]:
    """The rollout engine's log-probabilities against the trainer's."""
    if run.engine is None:
        return []
    if run.borrowed:
        if run.first is None or run.first.exact:
            return []
        told = "old_logp is, bit for bit, what the rollout engine reported: its mismatch with the trainer is in every ratio"
        severity = _severity(run.predicted(run.finite.of_minibatch(0)))
        return [Finding("borrowed-old-logp", severity, "old_logp", told, "GSPO-DATA-5", fix=f"{RECOMPUTE} {CORRECT}")]
    clipped = run.predicted(run.finite, run.engine)
    would = f"; used as old_logp they would clip {percent(clipped)} of the tokens" if clipped is not None else ""
    product = effective_share(run.engine.mismatch, run.finite.length, "product")
    weights = f"weights over whole responses (a product over tokens) would leave {percent(product)} of the sample"
    told = f"trainer and rollout engine differ by {_described(run.engine)} per token{would}"
    return [Finding("rollout-mismatch", "note", "behavior_logp", told, "GSPO-CORR-5", weights)]


def _systematic(run: Analysis) -> list[Finding]:
    """A bias that noise does not explain."""
    found: list[Finding] = []
    for key, one in (("old_logp", run.first), ("behavior_logp", run.engine)):
        if one is None or one.exact or not one.systematic:
            continue
        told = f"the bias of {number(one.bias.value)} per token in {key} is not noise: a spread of {number(one.std.value)} explains {number(one.mismatch.implied_bias)} (-σ²/2)"
        fix = "score both with the same weights, temperature and prompt, before top-p and top-k are applied"
        costs = f"s is off by {number(abs(one.bias.value))} for every response, whatever its length"
        found.append(
            Finding(
                "systematic-bias", "error" if key == "old_logp" else "warning", key, told, "GSPO-DATA-5", costs, fix
            )
        )
    return found


def _dependence(run: Analysis) -> list[Finding]:
    """Noise that does not average out as independent noise does."""
    one = run.first if run.first is not None and not run.first.exact else run.engine
    if one is None or max(one.std.value, one.mismatch.between) < NEGLIGIBLE:
        return []
    where = "old_logp" if one is run.first else "behavior_logp"
    slope = (
        f"; the spread of log s falls as T^{one.slope.value:.2f} (±{one.slope.error:.2f}), not T^-0.50"
        if one.slope
        else ""
    )
    if one.mismatch.between:
        told = f"responses differ by {number(one.mismatch.between)} per token as a whole{slope}: no length averages this out"
        return [Finding("response-level-noise", "warning", where, told)]
    if abs(one.inflation.value - 1) > 0.25 and one.inflation.distance(1) > BELIEVED:
        told = f"the variance of log s is {one.inflation.value:.1f} times what independent tokens give: neighbours are correlated"
        return [Finding("correlated-noise", "note", where, told)]
    return []


def _explained(run: Analysis) -> list[Finding]:
    """How much of a clip fraction is mismatch, and which range would not see it."""
    later = [one for one in run.minibatches if one.index > 0 and (one.observed or 0.0) > QUIET]
    if run.first is None or run.first.exact or run.gate is None or not later:
        return []
    shares = [one.explained or 0.0 for one in later]
    told = f"of the {span([one.observed or 0.0 for one in later])} clipped in later mini-batches, {span(shares)} is what mismatch alone predicts"
    if not any(one.beyond for one in later):
        told = f"{told}: nothing beyond it is significant"
    heavy = max(shares) >= 0.5
    # A bias that has a cause is mended, not given room.
    fix = _room(run) if heavy and not run.first.systematic else ""
    costs = "the clip fraction says little about how far the policy moved" if heavy else ""
    return [Finding("clip-explained", "warning" if heavy else "note", "clip", told, "GSPO-METRIC-1", costs, fix)]


def _room(run: Analysis) -> str:
    """The advice to widen the range to what noise needs; none for single tokens, whose tails are not normal."""
    if run.first is None or run.response_gate is None:
        return ""
    return widen(required_clip(run.first.mismatch, run.finite.length, 0.01, run.response_gate.ratio), 0.01)


def _rounded(run: Analysis) -> list[Finding]:
    """Log-probabilities whose bits are those of a shorter dtype."""
    if not run.reading.rounded:
        return []
    names, kinds = list(run.reading.rounded), {kind for kind, _ in run.reading.rounded.values()}
    inside = [name for name in names if name != "behavior_logp"]
    std = sum(run.reading.rounded[name][1] ** 2 for name in inside or names) ** 0.5
    length = float(sorted(run.rows.length)[run.rows.number // 2])
    told = f"every value of {' and '.join(names)} is exactly one of {' and '.join(sorted(kinds))}"
    if run.gate is None:
        return [Finding("rounded-logp", "warning", names[0], told, "GSPO-NUM-1")]
    width = min(run.gate.clip.low, run.gate.clip.high)
    at = length if run.gate.ratio != "token" else 1.0
    share = std / at**0.5 / width if width else math.inf
    severity = "note" if not inside else ("error" if share > 0.25 else "warning")
    part = f"{number(share)} of the nearer clip width" if width else "beyond a bound that is 1 itself"
    costs = f"rounding adds {number(std)} to the spread of a token: {part} at {thousands(length)} tokens"
    return [
        Finding(
            "rounded-logp",
            severity,
            names[0],
            told,
            "GSPO-NUM-1",
            costs,
            "keep log-probabilities in float32 from the log-softmax on",
        )
    ]


_RULES: tuple[Callable[[Analysis], list[Finding]], ...] = (
    _systematic,
    _first_minibatch,
    _rollout_engine,
    _rounded,
    _explained,
    _dependence,
)
