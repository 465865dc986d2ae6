"""Which known deviation gives the numbers that a run recorded: wrong implementations are run on the trace itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gspo_core import Objective

from ..mutants.registry import Mutant, mutants
from ..noise.words import percent, plain
from ..target import Case
from ..tensors import NumPyArray
from ..words import plural
from .exact import NotComputable, own_name
from .factors import by_factor, by_one_factor, by_rough_factor
from .fitted import by_numbers
from .implied import by_gradients
from .nearby import by_groups, by_lengths, by_other_batches, by_responses, by_rounding
from .neighbours import neighbours
from .paired import by_pairs
from .recomputed import Recomputed, exact_gradient
from .replaced import by_advantages, by_gradient_terms, by_no_loss, by_other_tokens, by_sampler, by_terms
from .trace import Trace
from .variants import Explanation, by_definitions, by_divisors, by_masks, by_precision, by_record, from_mutant
from .withheld import by_lost_responses, by_ratios

FAMILIES = (
    "aggregation",
    "mask",
    "ratio",
    "clip",
    "loss",
    "penalty",
    "correction",
    "packing",
    "reinforce",
    "cispo",
    "gmpo",
    "sapo",
    "vespo",
    "numerics",
    "distribution",
)
# Of several that give the same numbers, what people leave on comes before what they would have to write.
LIKELY = ("clip.default-range", "mask.eos-dropped", "ratio.token-level")
# They differ from a simpler mistake where a weight is outside its band, or a batch has several groups.
NARROW = ("aggregation.by-group", "correction.mask-unweighted")
MOST_PARTS, MORE_PARTS, MOST_TOKENS = 5, 64, 400_000
# A loss that is less than this share of what it is a sum of is what is left of terms that cancel.
CANCELLED = 0.1
_CLIPPED = "metrics.clip_fraction"
# They change how parts are put together, of which a part alone shows nothing.
_UNFIT = ("distribution.mean-of-means", "distribution.divided-again", "distribution.last-part-only")


def explain_loss(
    parts: Sequence[Recomputed], precision: float, trace: Trace, others: Sequence[Recomputed] = ()
) -> list[Explanation]:
    """What gives the recorded losses of all these micro-batches; of the `others`, which are right, it should change none."""
    found = _of_losses(parts, precision, trace)
    if not others:
        return found
    right = partial(_right_loss, precision=precision)
    spared = [one for one in found if _spares(one, _few(others), precision)]
    return spared or (list(by_one_factor(parts, right)) if parts else []) or found


def _spares(explained: Explanation, few: Sequence[Recomputed], precision: float) -> bool:
    """Whether an explanation that tells the loss of any micro-batch gives what these recorded."""
    if explained.axes is not None:
        return all(_right_loss(one, _loss_of(explained.axes, one), precision) for one in few)
    known = [one for one in mutants() if one.name == explained.name]
    right = partial(_right_answer, precision=precision)
    given = all(_right(part, one, ("loss",), right, True) for one in known for part in few)
    return given and explained.name != "factor"


def _of_losses(parts: Sequence[Recomputed], precision: float, trace: Trace) -> list[Explanation]:
    """What gives these losses, divided as the run says or as it may have been.

    Where their gradients were recorded, what gives another gradient is an explanation only if nothing else is one.
    """
    recorded = [one for one in parts if one.part.loss is not None]
    parts = [one for one in recorded if math.isfinite(one.part.loss or 0.0)]
    if lost := list(by_no_loss(recorded)):
        return lost
    if not parts:
        return []
    few = _few(parts)
    # Losses of 0 are those of many mistakes.
    if all(_right_loss(one, 0.0, precision) for one in few) and (coarse := list(by_record(few, precision))):
        return coarse
    others, one_factor = _divided_otherwise(parts), partial(by_factor, trace=trace)
    base = [(explain, parts) for explain in (_known_ones, one_factor)]
    rest = [(explain, chosen) for explain in (one_factor, _known_ones) for chosen in others]
    of_loss: list[Explanation] = []
    for explain, chosen in (*base, *rest, *((_variants, chosen) for chosen in (parts, *others))):
        explained = list(explain(chosen, precision))
        fits = [one for one in explained if _gives_gradient(one, _few(chosen), precision) is not False]
        if of_loss:
            fits = [one for one in fits if _gives_gradient(one, _few(chosen), precision)]
        if fits:
            return fits
        of_loss = of_loss or ([] if _gradients_are_right(_few(chosen), precision) else explained)
    if of_loss:
        return [replace(one, told=f"{one.told}; its gradients are not those recorded") for one in of_loss]
    if not few:
        return []
    right = partial(_right_loss, precision=precision)
    found = list(by_other_batches(trace, few, right)) or list(by_record(few, precision))
    found = found or list(by_precision(few, precision)) or list(by_lost_responses(few, right))
    several = [_few(chosen) for chosen in (parts, *others)]
    found = found or sorted((one for ones in several for one in by_gradients(trace, ones)), key=_unrecorded)[:1]
    return found or next(filter(None, (list(by_ratios(ones)) for ones in several)), [])


def _unrecorded(one: Explanation) -> bool:
    """Advantages that nobody has may be those of somebody under another normaliser."""
    return one.name == "advantage.unrecorded"


def _gives_gradient(explained: Explanation, few: Sequence[Recomputed], precision: float) -> bool | None:
    """Whether an explanation gives the recorded gradients too; None where they were not recorded, or it does not tell."""
    if not few or not all("gradient" in one.part.names for one in few):
        return None
    if explained.loss_alone:
        return None
    if explained.axes is None:
        known = explained.name in {one.name for one in mutants()}
        return bool(explain_gradient(few, precision, frozenset((explained.name,)))) if known else None
    with suppress(NotComputable):
        wrong = [replace(one, truth=one.anew(explained.axes, one.part.tokens)) for one in few]
        return all(_gradient_is_right(one, precision) for one in wrong)
    return None


def _gradients_are_right(few: Sequence[Recomputed], precision: float) -> bool:
    return all("gradient" in one.part.names and _gradient_is_right(one, precision) for one in few)


def _gradient_is_right(one: Recomputed, precision: float) -> bool:
    """Whether the recorded gradient is that of the claim, or of another truth."""
    want, uncertain = exact_gradient(one, precision)
    got = one.part.tokens.gradient
    if want is None or got is None:
        return False
    return _parallel(np.asarray(got, np.float64), want, ~uncertain, precision, _penalty_slack(one, precision))


def _penalty_slack(one: Recomputed, precision: float) -> float:
    return 16 * precision * one.truth.steepest_penalty(one.normalizer)


def _parallel(got: NumPyArray, want: NumPyArray, usable: NumPyArray, precision: float, slack: float) -> bool:
    """Whether one is a positive multiple of the other, up to rounding and `slack`, or both are 0."""
    got, want = got[usable], want[usable]
    if not got.any() and not want.any():
        return True
    factor = float(got @ want / max(want @ want, 1e-300))
    return factor > 0 and bool(
        np.abs(got - factor * want).max(initial=0.0) <= factor * (64 * precision * np.abs(want).max() + slack)
    )


def _divided_otherwise(parts: Sequence[Recomputed]) -> list[list[Recomputed]]:
    """The micro-batches with each of the other normalisers that they may have had."""
    number = min(len(one.choices) for one in parts)
    others = ([replace(one, normalizer=one.choices[at]) for one in parts] for at in range(number))
    by_divisors = {tuple(one.normalizer or one.truth.count for one in ones): ones for ones in (*others, list(parts))}
    return list(by_divisors.values())[:-1]


def _known_ones(parts: Sequence[Recomputed], precision: float) -> list[Explanation]:
    few, right = _few(parts), partial(_right_loss, precision=precision)
    found = [*by_groups(few, right), *_by_mutants(few, parts, precision)] if few else []
    return sorted(found, key=lambda one: (one.name in NARROW, one.name == _less_likely(parts), one.name not in LIKELY))


def _less_likely(parts: Sequence[Recomputed]) -> str:
    """Of the two aggregations that differ in what they divide by alone, the one whose count is further from what the run divides by."""
    first = [one for one in parts if one.part.step == parts[0].part.step and (one.normalizer or 0.0) > 0]
    if not first:
        return ""
    tokens, responses = (sum(count(one) for one in first) for count in (_tokens, _responses))
    normalizer = first[0].normalizer or 1.0
    to_tokens, to_responses = (abs(math.log(normalizer / max(number, 1))) for number in (tokens, responses))
    return "aggregation.token-mean" if to_responses < to_tokens else "aggregation.token-sum"


def _tokens(one: Recomputed) -> int:
    return one.part.tokens.count


def _responses(one: Recomputed) -> int:
    return one.part.tokens.number


def _variants(parts: Sequence[Recomputed], precision: float) -> list[Explanation]:
    few, right = _few(parts), partial(_right_loss, precision=precision)
    if not few:
        return []
    found = [*by_masks(few, right), *_by_objectives(few, precision)]
    found = found or [*by_sampler(few, right), *by_advantages(few, right), *by_rounding(few, right)]
    found = found or [*by_lengths(few, right), *by_numbers(few, right), *by_responses(few, right)]
    found = found or list(by_other_tokens(few, right))
    found = found or list(by_pairs(few, right))
    terms = [*by_rough_factor(few, right), *by_terms(few, right)] if not found else []
    return found or [*terms, *by_divisors(parts, neighbours(few[0].objective), precision)]


Only = frozenset[str] | None


def explain_metric(parts: Sequence[Recomputed], name: str, precision: float, only: Only = None) -> list[Explanation]:
    """What gives a recorded metric; of the mutants in `only`, where given."""
    own = own_name(name).replace("clipped_units", "clip_fraction").removesuffix("_range")
    few, output = _few(parts), f"metrics.{own}"

    def right(one: Recomputed, answer: Mapping[str, Any]) -> bool:
        return abs(float(answer[output]) - one.part.metrics[name]) <= 64 * precision * (1 + abs(float(answer[output])))

    known = known_mutants(("metrics", *FAMILIES), only)
    found = [_told(one, few) for one in known if few and _all(few, one, (output,), right)]
    return found or list(by_definitions(few, name) if own == "clip_fraction" and only is None else ())


def explain_gradient(parts: Sequence[Recomputed], precision: float, only: Only = None) -> list[Explanation]:
    """What gives the direction of the recorded gradients; of the mutants in `only`, where given, else of those that give the losses too."""
    few = _few(parts)
    outputs = ("gradient", "loss") if only is None else ("gradient",)

    def right(one: Recomputed, answer: Mapping[str, Any]) -> bool:
        loss = answer.get("loss") if one.part.loss is not None else None
        told = loss is None or _right_loss(one, float(loss), precision)
        return told and same_direction(one, np.asarray(answer["gradient"]).ravel(), precision)

    known = known_mutants(("gradient", *FAMILIES), only)
    found = [_told(one, few) for one in known if few and _all(few, one, outputs, right)]
    return found or (list(by_gradient_terms(few, precision)) if only is None else [])


def known_mutants(families: Sequence[str], only: Only) -> list[Mutant]:
    """The mutants of some families, in the order of the families."""
    order = {family: i for i, family in enumerate(families)}
    found = [one for one in mutants() if one.name.partition(".")[0] in order and one.name not in _UNFIT]
    found = [one for one in found if only is None or one.name in only]
    return sorted(found, key=lambda one: order[one.name.partition(".")[0]])


def same_direction(one: Recomputed, want: NumPyArray, precision: float) -> bool:
    """Whether the recorded gradient, padding included, is a positive multiple of `want`, gates that rounding decides left out."""
    got = one.part.array("gradient")
    assert got is not None
    got = got.ravel().astype(np.float64)
    if got.shape != want.shape or not np.isfinite(want).all():
        return False
    _, uncertain = exact_gradient(one, precision)
    counted, usable = _counted(one), np.ones(got.size, bool)
    usable[np.flatnonzero(counted)[uncertain]] = False
    return _parallel(got, want, usable, precision, _penalty_slack(one, precision))


def _counted(one: Recomputed) -> NumPyArray:
    mask, offsets, shape = one.part.array("mask"), one.part.array("offsets"), one.part.shape or (0,)
    if offsets is None:
        assert mask is not None
        return mask.ravel()
    counted = np.ones(shape, bool) if mask is None else mask.copy()
    counted[offsets[-1] :] = False
    return counted


def _few(parts: Sequence[Recomputed]) -> list[Recomputed]:
    """A few of the smallest, and the one of the most responses that is not much larger: what one response explains, chance does."""
    small = sorted(
        (one for one in parts if one.part.tokens.count <= MOST_TOKENS), key=lambda one: one.part.tokens.count
    )
    few, rest = small[: MOST_PARTS - 1], small[MOST_PARTS - 1 :]
    near = [one for one in rest if one.part.tokens.count <= max(4096, 4 * few[-1].part.tokens.count)]
    few += [max(near, key=_responses)] if near else rest[:1]
    return sorted(few, key=lambda one: one.part.step)


def _by_mutants(few: Sequence[Recomputed], parts: Sequence[Recomputed], precision: float) -> Iterator[Explanation]:
    """Who gives the losses of a few, of more where that tells them apart."""
    right = partial(_right_answer, precision=precision)
    found = [mutant for mutant in known_mutants(FAMILIES, None) if _all(few, mutant, ("loss",), right)]
    more = [one for one in parts if one.part.tokens.count <= MOST_TOKENS // MORE_PARTS][:: -(-len(parts) // MORE_PARTS)]
    kept = [mutant for mutant in found if more and len(found) > 1 and _all(more, mutant, ("loss",), right)]
    for mutant in kept or found:
        yield _told(mutant, more if kept else few)


def _told(mutant: Mutant, few: Sequence[Recomputed]) -> Explanation:
    """A mutant as an explanation; how often the default range clips depends on the run."""
    found = from_mutant(mutant)
    if mutant.name != "clip.default-range":
        return found
    known = [(_tokens(one), float(answer_of(one, mutant, (_CLIPPED,), True)[_CLIPPED])) for one in few]
    share = sum(count * clipped for count, clipped in known) / max(sum(count for count, _ in known), 1)
    words = f"{plain(percent(share))} of the tokens are clipped" if share else "nothing is clipped"
    told = f"{mutant.title}: {words} in the {plural(len(few), 'micro-batch', 'micro-batches')} looked at"
    return replace(found, told=told, effect="" if share or few[0].objective.ratio == "token" else found.effect)


def _right_loss(one: Recomputed, loss: float, precision: float) -> bool:
    assert one.part.loss is not None
    return abs(loss - one.part.loss) <= one.truth.tolerance(precision, one.normalizer) * _slack(one, loss)


def _right_answer(one: Recomputed, answer: Mapping[str, Any], precision: float) -> bool:
    return _right_loss(one, float(answer["loss"]), precision)


def _slack(one: Recomputed, loss: float) -> float:
    """A wrong loss that is larger is off by more: rounding goes with what it is a sum of. Where the claim's nearly cancels, its quotient with that tells no size beyond a sum over responses."""
    size = one.truth.tolerance(1.0, one.normalizer) / one.truth.reference.k or 1.0
    times = abs(loss) / abs(one.expected) if abs(one.expected) > 1e-12 else 1.0
    most = one.part.tokens.number if abs(one.expected) < CANCELLED * size else times
    return max(1.0, abs(loss) / size, min(times, most))


def _all(
    few: Sequence[Recomputed],
    mutant: Mutant,
    outputs: tuple[str, ...],
    right: Callable[[Recomputed, Mapping[str, Any]], bool],
) -> bool:
    """Whether a mutant gives what every part recorded, divided as the run says or by its own count."""
    for normalized in (True, False):
        if all(_right(one, mutant, outputs, right, normalized) for one in few):
            return True
        if all(one.normalizer is None for one in few):
            return False
    return False


def _right(one: Recomputed, mutant: Mutant, outputs: tuple[str, ...], right: Any, normalized: bool) -> bool:
    try:
        answer = answer_of(one, mutant, outputs, normalized)
        return all(np.isfinite(value).all() for value in answer.values()) and right(one, answer)
    except (ValueError, IndexError, KeyError, NotImplementedError, ZeroDivisionError, NotComputable, AttributeError):
        return False


def answer_of(one: Recomputed, mutant: Mutant, outputs: tuple[str, ...], normalized: bool) -> dict[str, Any]:
    """What a mutant computes of a part as it was recorded, padding included."""
    objective, inputs = one.recorded
    parameters: dict[str, Any] = {"objective": objective}
    if normalized and one.normalizer is not None:
        parameters["normalizer"] = one.normalizer
    answer = mutant.kind(Case("policy_loss", parameters, inputs, dtype="float64", outputs=outputs)).answer()
    if not normalized and "loss" in answer and one.normalizer is not None:
        answer["loss"] = answer["loss"] * one.truth.count / one.normalizer
    return answer


def _by_objectives(few: Sequence[Recomputed], precision: float) -> Iterator[Explanation]:
    """Objectives that differ from the claim in one axis: another ratio, range, aggregation, or no penalty or correction."""
    for told, other in neighbours(few[0].objective):
        with suppress(NotComputable):
            if all(_right_loss(one, _loss_of(other, one), precision) for one in few):
                yield Explanation("objective", "", f"it is the loss with {told}", axes=other)


def _loss_of(objective: Objective, one: Recomputed) -> float:
    """With the normaliser of the run, or with the other objective's own where that gives the recorded loss."""
    truth = one.anew(objective, one.part.tokens)
    scale = one.truth.count / one.normalizer if one.normalizer else 1.0
    choices = (truth.loss(one.normalizer), truth.loss() * scale, truth.loss())
    return min(choices, key=lambda loss: abs(loss - (one.part.loss or 0.0)))
