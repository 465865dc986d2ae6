"""Metrics that are right numbers and reported wrong: in another unit, of another sign, of the call before; gradients that never arrive."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from .claim import Claim
from .differences import FEWEST, TELLING, Difference, Ledger, Series
from .exact import metric
from .recomputed import Recomputed
from .steps import audit_step
from .trace import Trace
from .variants import Explanation

OF_BEFORE = "metric-of-before"
_MOST_STEPS = 8


def by_multiple(series: Series) -> Iterator[Explanation]:
    """The one number that a metric is multiplied by wherever it differs."""
    telling = [one for one in series.kept if abs(one.expected) > TELLING * one.tolerance]
    if len(telling) < FEWEST or not math.isfinite(sum(one.got for one in series.kept)):
        return
    factor = telling[0].got / telling[0].expected
    if all(abs(one.got - factor * one.expected) <= 2 * max(1.0, abs(factor)) * one.tolerance for one in series.kept):
        told = f"it is {factor:.6g} times what is due"
        yield Explanation("metric-factor", "", told, "what is read off its curve is off by this")


def by_call_before(series: Series, trace: Trace, claim: Claim, ledger: Ledger) -> Iterator[Explanation]:
    """The metric of the step, or of the micro-batch, before."""
    kept = [
        one for one in series.kept if one.step in sorted(series.steps)[:_MOST_STEPS] and one.step > trace.indices[0]
    ]
    if len(kept) < FEWEST:
        return
    indices = sorted(
        {one.step for one in kept} | {before for before, after in pairwise(trace.indices) if after in series.steps}
    )
    calls = {
        (one.part.step, one.part.rank, one.part.microbatch): one
        for index in indices[: 2 * _MOST_STEPS]
        for one in audit_step(trace.step(index), claim, ledger.again()).parts
    }
    for told, before in (("step", _step_before), ("micro-batch", _part_before)):
        found = [(one, calls.get(before(one, trace, calls))) for one in kept]
        if all(other is not None and _is(one, other, claim) for one, other in found):
            words = f"it is that of the {told} before"
            yield Explanation(OF_BEFORE, "", words, f"its curve lies one {told} behind")
            return


_Calls = dict[tuple[int, int, int], Recomputed]


def _step_before(one: Difference, trace: Trace, _: _Calls) -> tuple[int, int, int]:
    return max(index for index in trace.indices if index < one.step), one.rank or 0, one.microbatch or 0


def _part_before(one: Difference, _: Trace, calls: _Calls) -> tuple[int, int, int]:
    here = (one.step, one.rank or 0, one.microbatch or 0)
    return max((call for call in calls if call[1] == here[1] and call < here), default=here)


def _is(one: Difference, other: Recomputed, claim: Claim) -> bool:
    """Whether a reported number is what was due of another call."""
    due = metric(other.truth, one.what.removeprefix("metrics."), claim.precision, other.normalizer)
    return due is not None and abs(one.got - due[0]) <= due[1]


def by_no_gradient(series: Series, parts: Sequence[Recomputed]) -> Iterator[Explanation]:
    """Some micro-batches of every step have no gradient at all, and the others theirs."""
    alone = series.seen[1] - series.off[1]
    gradients = [one.part.tokens.gradient for one in parts]
    if parts and alone and all(gradient is not None and not gradient.any() for gradient in gradients):
        which = ", ".join(map(str, sorted(one for one in alone if one is not None)))
        told = f"no gradient arrives but from micro-batch {which} of a step: the losses of the others are not differentiated"
        yield Explanation(
            "no-gradient", "GSPO-AGG-8", told, "their responses are sampled and scored, and train nothing"
        )
