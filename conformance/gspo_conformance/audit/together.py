"""How micro-batches and ranks were put together, where the loss of a step is not that of their union though each part is right."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from .claim import Claim
from .differences import Ledger, Series
from .exact import NotComputable, exact, total
from .neighbours import neighbours
from .steps import StepAudit, audit_step, by_rank, claim_tolerance, reduce_losses
from .trace import Trace
from .variants import Explanation

_LOCAL = (
    "each rank divides by the number of its own {unit}, and ranks are averaged: responses on a rank with few weigh more"
)
_TOLD = {
    "step.rank-local-normaliser": ("GSPO-DIST-2", _LOCAL),
    "distribution.mean-of-means": (
        "GSPO-DIST-1",
        "each micro-batch divides by the number of its own {unit}, and micro-batches are averaged: responses in a small one weigh more",
    ),
    "step.summed-micro-batches": (
        "GSPO-DIST-1",
        "micro-batches are summed where they should be averaged: the step grows with their number",
    ),
    "distribution.divided-again": (
        "GSPO-DIST-2",
        "shares of the whole are averaged once more: the step shrinks with their number",
    ),
    "step.summed-ranks": (
        "GSPO-DIST-2",
        "ranks are summed where they should be averaged: the step grows with their number",
    ),
    "step.other-normaliser": ("GSPO-AGG-8", "it divides by {recorded:.6g} where the union has {count:.6g}"),
}


def explain_step(trace: Trace, claim: Claim, series: Series, shares: Counter[str]) -> list[Explanation]:
    """The ways that give the recorded loss of every step that differs, the first few of them looked at."""
    steps = [audit_step(trace.step(index), claim, Ledger(shares=shares.copy())) for index in sorted(series.steps)[:6]]
    steps = [one for one in steps if one.reduced is not None]
    unit = "tokens" if claim.objective.aggregation.mode.startswith("token") else "responses"
    found = []
    for name, (clause, told) in _TOLD.items():
        if steps and all(any(_fits(one, value, claim) for value in _ways(name, one)) for one in steps):
            first = steps[0]
            share = (first.reduced or 0.0) - first.apart
            recorded = first.numerator / share if share else math.inf
            effect = "the gradient of a step depends on how it was cut into parts"
            found.append(
                Explanation(name, clause, told.format(unit=unit, recorded=recorded, count=first.count), effect)
            )
    return found[:1] or list(_by_objectives(steps, claim))


def _by_objectives(steps: list[StepAudit], claim: Claim) -> Iterator[Explanation]:
    """Objectives that differ from the claim in one axis and give the loss of every step."""
    for told, other in neighbours(claim.objective):
        with suppress(NotComputable):
            if steps and all(_fits(one, exact(other, one.step.tokens()).loss(), claim) for one in steps):
                yield Explanation("objective", "", f"it is the loss with {told}", axes=other)
                return


def _fits(one: StepAudit, value: float, claim: Claim) -> bool:
    assert one.reduced is not None
    return abs(one.reduced - value) <= claim_tolerance(one, claim) * max(1.0, abs(value) / (abs(one.truth) or 1.0))


def _ways(name: str, one: StepAudit) -> Iterator[float]:
    """What the loss of a step would be."""
    own = by_rank(one.parts, lambda part: part.truth.loss())
    ranks, parts = len(own), len(one.parts)
    if name == "step.rank-local-normaliser" and ranks > 1:
        yield total(_rank_losses(one)) / ranks
        yield total(_rank_losses(one))
    elif name == "distribution.mean-of-means" and parts > ranks:
        yield reduce_losses(own, "mean", "mean")
        yield reduce_losses(own, "mean", "sum")
    elif name == "step.summed-micro-batches" and parts > ranks:
        yield reduce_losses(own, "sum", "mean")
        yield reduce_losses(own, "sum", "sum")
    elif name == "distribution.divided-again":
        yield from (one.truth / number for number in {ranks, parts} - {1})
    elif name == "step.summed-ranks" and ranks > 1:
        yield one.truth * ranks
    elif name == "step.other-normaliser":
        # Every part was divided by the same recorded number.
        recorded = {part.part.normalizer for part in one.parts}
        number = recorded.pop() if len(recorded) == 1 else None
        yield from (one.numerator / (number * times) + one.apart for times in {1, ranks, parts} if number)


def _rank_losses(one: StepAudit) -> Iterator[float]:
    """The loss of every rank, divided by the rank's M."""
    for rank in sorted({part.part.rank for part in one.parts}):
        mine = [part.truth for part in one.parts if part.part.rank == rank]
        count = total(truth.count for truth in mine)
        yield total(truth.numerator for truth in mine) / count if count else 0.0
