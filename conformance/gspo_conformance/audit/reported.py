"""Metrics that are right numbers and reported wrong: in another unit, of another sign, of the call before."""

from __future__ import annotations

import math
from collections.abc import Iterator
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
