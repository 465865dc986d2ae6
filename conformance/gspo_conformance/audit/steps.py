"""Every step of a trace recomputed: its micro-batches by themselves, then the step they make together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from gspo_core import Objective

from ..judge import UNIT_ROUNDOFF
from ..words import cut
from .claim import Claim
from .coverage import absent_parts
from .differences import Difference, Ledger
from .exact import LEARNING_RATES, NotComputable, additive, exact, metric, needs_groups, total
from .recomputed import Recomputed, as_share, exact_gradient
from .shards import Broken
from .trace import Part, Step, joined

FACTOR = 1e-3


@dataclass
class StepAudit:
    """A step: its parts, the truth of their union, and the loss that the run's parts make together."""

    step: Step
    parts: list[Recomputed] = field(default_factory=list)
    numerator: float = 0.0
    count: float = 0.0
    scale: float = 0.0
    apart: float = 0.0
    reduced: float | None = None
    whole: bool = True

    @property
    def truth(self) -> float:
        """The loss of the union of the step's responses."""
        return self.numerator / self.count + self.apart if self.count else 0.0


def audit_step(step: Step, claim: Claim, ledger: Ledger) -> StepAudit:
    """Compares one step and enters what differs."""
    there = len(step.parts) >= ledger.usual and len(step.ranks) >= ledger.ranks
    found = StepAudit(step, whole=there and not absent_parts(step))
    for part in step.parts:
        recomputed = _recompute(part, claim, ledger)
        if recomputed is not None:
            found.parts.append(recomputed)
    if len(found.parts) == len(step.parts) and found.parts:
        _union(found, claim)
        found.parts = _with_normalizers(found, claim, ledger)
        found.parts = [as_share(one, found.parts) for one in found.parts]
    factors = [_compare_part(one, claim, ledger) for one in found.parts if not _left_out(one, found, claim, ledger)]
    factors += [None] * (len(found.parts) - len(factors))
    whole = found.whole and len(found.parts) == len(step.parts)
    if whole and claim.micro_batches is None:
        _weigh(found, factors, ledger)
    for one, factor in zip(found.parts, factors, strict=True):
        if factor is not None and one.sure:
            share = found.count / one.truth.count if ledger.weighed and one.truth.count else 1.0
            ledger.factors.append((step.index, factor * share, _ratio(one)))
    if whole:
        _compare_step(found, claim, ledger)
    elif not found.whole:
        ledger.miss("step loss: micro-batches of the step are missing")
    return found


def _ratio(one: Recomputed) -> float:
    """By what factor the recorded loss is larger than what is due; 1 where one of them is 0."""
    return (one.part.loss or 0.0) / (one.expected or 1.0) or 1.0


def _left_out(one: Recomputed, found: StepAudit, claim: Claim, ledger: Ledger) -> bool:
    """Whether a micro-batch alone does not tell its loss: its groups go on in others, or were not recorded and are not one; or
    others are missing that may be in what it divides by.
    """
    unknown = not found.whole and one.part.normalizer is None
    if one.part.loss is None or not (unknown or needs_groups(one.objective)):
        return False
    if abs(one.part.loss - one.expected) <= one.truth.tolerance(claim.precision, one.normalizer):
        return False
    if unknown:
        ledger.miss("loss: what it divides by was not recorded, and micro-batches of the step are missing")
        return True
    groups, others = one.part.tokens.groups, [other.part.tokens.groups for other in found.parts if other is not one]
    if groups is None:
        ledger.miss("loss: groups not recorded, and the objective averages over them")
        return True
    if any(other is not None and np.isin(groups, other).any() for other in others):
        ledger.miss("loss: groups are spread over micro-batches; the step alone is compared")
        return True
    return False


def _weigh(found: StepAudit, factors: list[float | None], ledger: Ledger) -> None:
    """Enters whether the loop weighs micro-batches, each a mean of its own, by what they count: their gradients say so, once for the run."""
    if len(found.parts) < 2 or not all(one.normalizer is None for one in found.parts):
        return
    ones = [
        (one.truth.count, factor)
        for one, factor in zip(found.parts, factors, strict=True)
        if factor and one.truth.count
    ]
    if len({count for count, _ in ones}) > 1:
        rates = [factor / count for count, factor in ones]
        ledger.weighed = max(rates) <= (1 + FACTOR) * min(rates) and ledger.weighed is not False


def _recompute(part: Part, claim: Claim, ledger: Ledger) -> Recomputed | None:
    objective = _objective_of(part, claim)
    try:
        return Recomputed(part, objective, exact(objective, part.tokens), part.normalizer)
    except NotComputable as reason:
        ledger.miss(f"loss: {reason}")
    except Broken as error:
        ledger.miss(f"{error}")
    return None


def _objective_of(part: Part, claim: Claim) -> Objective:
    """The claim; a part that was called with an objective of its own is held against that."""
    own = part.fields.get("objective")
    if not own:
        return claim.objective
    try:
        return Objective.from_dict(dict(own))
    except (TypeError, ValueError):
        return claim.objective


def _union(found: StepAudit, claim: Claim) -> None:
    if additive(claim.objective) or len(found.parts) == 1:
        truths = [one.truth for one in found.parts]
    else:
        truths = [exact(claim.objective, joined([one.part.tokens for one in found.parts]))]
    found.numerator = total(one.numerator for one in truths)
    # Where the caller gives M there is one, for the step as for its parts.
    aggregation = claim.objective.aggregation
    given = aggregation.count == "given" or aggregation.mode == "token_sum"
    found.count = max(one.count for one in truths) if given else total(one.count for one in truths)
    found.scale = total(one.scale for one in truths)
    found.apart = total(one.apart for one in truths)


def _with_normalizers(found: StepAudit, claim: Claim, ledger: Ledger) -> list[Recomputed]:
    """With normalisers, where the run recorded none and its losses are shares of the step or of the rank.

    Several may fit a loss near 0: the one that fits the run's other losses too is taken, and for a loss that none fits the
    one that the others have, or the nearest.
    """
    open_ones = {at: _choices(one, found) for at, one in enumerate(found.parts) if _unsaid(one, found)}
    fitting = {
        at: [name for name, value in choices.items() if _off(one, value) <= one.truth.tolerance(claim.precision, value)]
        for at, choices in open_ones.items()
        for one in [found.parts[at]]
    }
    for names in fitting.values():
        ledger.shares.update(names)
    parts = list(found.parts)
    for at, choices in open_ones.items():
        name = _chosen(parts[at], found, choices, fitting[at], ledger)
        sure = len({choices[one] or parts[at].truth.count for one in fitting[at]}) == 1
        parts[at] = replace(parts[at], normalizer=choices[name], choices=tuple(choices.values()), sure=sure)
    return [replace(one, sure=False) if one.part.loss is None and len(parts) > 1 else one for one in parts]


def _unsaid(one: Recomputed, found: StepAudit) -> bool:
    return one.part.normalizer is None and one.part.loss is not None and len(found.parts) > 1


def _choices(one: Recomputed, found: StepAudit) -> dict[str, float | None]:
    mine = _of_rank(one, found)
    rank = total(other.truth.count for other in mine)
    # Ranks that are averaged divide by the step's count per rank.
    share = found.count / len(found.step.ranks)
    return {"own": None, "rank": rank, "step": found.count, "mean": len(mine) * one.truth.count, "share": share}


def _chosen(
    one: Recomputed, found: StepAudit, choices: dict[str, float | None], fitting: list[str], ledger: Ledger
) -> str:
    if fitting:
        return max(fitting, key=lambda name: ledger.shares[name])
    usual = ledger.shares.most_common(1)
    mine = _of_rank(one, found)
    return usual[0][0] if usual else min(choices, key=lambda name: sum(_off(other, choices[name]) for other in mine))


def _of_rank(one: Recomputed, found: StepAudit) -> list[Recomputed]:
    return [other for other in found.parts if other.part.rank == one.part.rank]


def _off(one: Recomputed, normalizer: float | None) -> float:
    return abs(one.truth.loss(normalizer) - (one.part.loss or 0.0))


def _compare_part(one: Recomputed, claim: Claim, ledger: Ledger) -> float | None:
    """Compares a micro-batch; by what factor its gradient is larger than that of its loss, None where that was not recorded."""
    part, u = one.part, claim.precision
    place = {"step": part.step, "rank": part.rank, "microbatch": part.microbatch}
    if part.loss is None:
        ledger.miss("loss: what the run computed was not recorded")
    else:
        tolerance = one.truth.tolerance(u, one.normalizer)
        ledger.compare(Difference("loss", got=part.loss, expected=one.expected, tolerance=tolerance, **place))
    several = (claim_ranks := part.shard.header.get("run", {}).get("ranks") or 1) > 1
    for name, got in part.metrics.items():
        if name in LEARNING_RATES:
            continue
        known = metric(one.truth, name, u, one.normalizer)
        if known is None or (several and name.startswith("clip_ratio/")):
            ledger.miss(
                f"metrics.{cut(name)}: {f'over {claim_ranks} ranks' if known else 'a name with no definition here'}"
            )
            continue
        ledger.compare(Difference(f"metrics.{name}", got=got, expected=known[0], tolerance=known[1], **place))
    if "gradient" not in part.names:
        ledger.miss("gradient: not recorded")
        return None
    _compare_masked(one, ledger)
    return _compare_gradient(one, claim, ledger)


def _compare_gradient(one: Recomputed, claim: Claim, ledger: Ledger) -> float | None:
    """Up to one positive factor, which accumulation and averaging over ranks may bring: the direction is what the loss decides."""
    got = np.asarray(one.part.tokens.gradient, np.float64)
    want, uncertain = exact_gradient(one, claim.precision)
    if want is None or not want.size:
        return None
    usable = ~uncertain
    if not usable.any():
        ledger.miss("gradient: every ratio is within rounding of a bound")
        return None
    scale = np.abs(want[usable]).max(initial=0.0)
    factor = float(got[usable] @ want[usable] / max(want[usable] @ want[usable], 1e-300)) if scale else 1.0
    stored = UNIT_ROUNDOFF[one.part.stored["gradient"]]
    known = factor if scale and factor > 0 and stored < FACTOR / 8 else None
    # None at all where one is due is no multiple of it, unless it is too small for what holds it.
    lost = not got.any() and scale > 1e-6
    factor = 1.0 if lost else max(factor, 0.0)
    worst = int(np.argmax(np.where(usable, np.abs(got - factor * want), -1.0)))
    # A gradient that arrived in fewer bits than the loss was computed in is rounded once more.
    tolerance = (64 * claim.precision + (2 * stored if stored > claim.precision else 0)) * max(factor * scale, 1e-30)
    tolerance += 16 * claim.precision * factor * one.truth.steepest_penalty(one.normalizer)
    ledger.compare(
        Difference(
            "gradient",
            one.part.step,
            float(got[worst]),
            factor * float(want[worst]),
            tolerance,
            one.part.rank,
            one.part.microbatch,
        )
    )
    return known


def _compare_masked(one: Recomputed, ledger: Ledger) -> None:
    """No gradient where no token counts (GSPO-GRAD-2)."""
    gradient, mask = one.part.array("gradient"), one.part.array("mask")
    if gradient is None or mask is None or gradient.shape != mask.shape:
        return
    outside = np.abs(np.where(mask, 0.0, gradient))
    worst = float(outside.max(initial=0.0))
    place = (one.part.rank, one.part.microbatch)
    ledger.compare(Difference("gradient at uncounted tokens", one.part.step, worst, 0.0, 0.0, *place))


def _compare_step(found: StepAudit, claim: Claim, ledger: Ledger) -> None:
    """The loss that the parts make together, as the run says that they do, against that of their union."""
    losses = by_rank(found.parts, lambda one: one.part.loss)
    if any(loss is None for values in losses.values() for loss in values) or len(found.parts) < 2:
        return
    expected_ranks = found.step.parts[0].shard.header.get("run", {}).get("ranks")
    if expected_ranks is not None and len(losses) < expected_ranks:
        ledger.miss(f"step loss: {len(losses)} of {expected_ranks} ranks recorded")
        return
    options = list(_reductions(claim, max(map(len, losses.values())), len(losses)))
    tolerance = claim_tolerance(found, claim)
    values = {name: reduce_losses(losses, *name) for name in options}
    best = min(values, key=lambda name: abs(values[name] - found.truth))
    if abs(values[best] - found.truth) > tolerance:
        if len(found.parts) > len(losses) and _means(found, claim, ledger):
            told = "their gradients say: by what they count" if ledger.weighed else "that was not recorded"
            ledger.miss(f"step loss: how the loop weighs micro-batches that are means of their own: {told}")
            return
        best = _as_right_ones(found, options, best, tolerance)
    found.reduced = values[best]
    ungrouped = any(needs_groups(one.objective) and one.part.tokens.groups is None for one in found.parts)
    if ungrouped and abs(values[best] - found.truth) > tolerance:
        ledger.miss("step loss: groups not recorded, and the objective averages over them")
        return
    if len(options) > 1 and sum(abs(value - found.truth) <= tolerance for value in values.values()) < 2:
        kinds = {"micro-batches": len(found.parts) > len(losses), "ranks": len(losses) > 1}
        words = [f"{kind} {way}" for (kind, several), way in zip(kinds.items(), best, strict=True) if several]
        ledger.miss(f"step loss: how losses combine was not recorded; {', '.join(words)} fits best")
    ledger.compare(Difference("step loss", found.step.index, values[best], found.truth, tolerance))


def _means(found: StepAudit, claim: Claim, ledger: Ledger) -> bool:
    """Whether every micro-batch is a right mean of its own, and nobody says that these are averaged."""
    if claim.micro_batches is not None or ledger.weighed is False:
        return False
    return all(
        one.part.normalizer is None
        and one.part.loss is not None
        and abs(one.part.loss - one.truth.loss()) <= one.truth.tolerance(claim.precision)
        for one in found.parts
    )


def _as_right_ones(
    found: StepAudit, options: list[tuple[str, str]], nearest: tuple[str, str], tolerance: float
) -> tuple[str, str]:
    """How losses combine where no way gives the loss of the union: as the right ones would.

    Where these do not either, shares of a step are summed and means are averaged: a chance likeness tells nothing.
    """
    right = by_rank(found.parts, lambda one: one.expected)
    off = {name: abs(reduce_losses(right, *name) - found.truth) for name in options}
    best = min(off, key=lambda name: off[name])
    if off[best] <= tolerance:
        return best
    shares = all(one.normalizer is not None for one in found.parts)
    return next((name for name in options if name[0] == ("sum" if shares else "mean")), nearest)


def claim_tolerance(found: StepAudit, claim: Claim) -> float:
    """How far the loss of a step may be off."""
    return 32 * claim.precision * found.scale / (found.count or 1.0)


def _reductions(claim: Claim, micro_batches: int, ranks: int) -> Iterator[tuple[str, str]]:
    """What the run says, or every way where it does not."""
    parts = [claim.micro_batches] if claim.micro_batches or micro_batches == 1 else ["sum", "mean"]
    over = [claim.rank_losses] if claim.rank_losses or ranks == 1 else ["mean", "sum"]
    return ((part or "sum", rank or "sum") for part in parts for rank in over)


def by_rank(parts: Iterable[Recomputed], number: Callable[[Recomputed], float | None]) -> dict[int, list[float | None]]:
    """A number of every part, by the rank of the part."""
    found: dict[int, list[float | None]] = {}
    for one in parts:
        found.setdefault(one.part.rank, []).append(number(one))
    return found


def reduce_losses(losses: dict[int, list[float | None]], micro_batches: str, ranks: str) -> float:
    """One loss of those of all parts."""
    given = ([float(loss) for loss in values if loss is not None] for values in losses.values())
    each = [total(values) / (len(values) if micro_batches == "mean" else 1) for values in given]
    return total(each) / (len(each) if ranks == "mean" else 1)
