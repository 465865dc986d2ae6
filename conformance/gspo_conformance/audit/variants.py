"""Losses of a run that no mutant gives as it stands: under another mask, divided by a number of the step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from gspo_core import Objective

from ..judge import UNIT_ROUNDOFF
from ..mutants.registry import Mutant, find
from ..tensors import NumPyArray
from .exact import NotComputable, exact
from .recomputed import Recomputed, exact_gradient
from .shards import LOGPS, TOKEN_ARRAYS, Broken
from .trace import Part, Tokens

SAME = 1e-4
ROUNDED = 2.0**-6
MOST_PADDED = 20_000_000


@dataclass(frozen=True)
class Explanation:
    """What a run computes instead. `name` is a mutant's, or one of the audit's own; `axes` the objective, where it is another one;
    `loss_alone` where the mutant of that name has another gradient than the loss that was found.
    """

    name: str
    clause: str
    told: str
    effect: str = ""
    axes: Objective | None = None
    loss_alone: bool = False


def from_mutant(mutant: Mutant) -> Explanation:
    """A mutant as an explanation."""
    return Explanation(mutant.name, mutant.clause, mutant.summary, mutant.effect)


Right = Callable[[Recomputed, float], bool]


def by_masks(few: Sequence[Recomputed], right: Right) -> Iterator[Explanation]:
    """Masks of which one place is wrong in every response; a response that they leave empty may count with s = 1."""
    for name, told, change in _MASKS:
        with suppress(NotComputable, Broken, ValueError, IndexError):
            if all(any(right(one, loss) for loss in _losses(one, change(one.part))) for one in few):
                clause = "GSPO-DATA-3" if name == "empty-counted" else "GSPO-DATA-4"
                rolled = change in (_rolled_right, _rolled_left)
                yield Explanation(name, clause, told) if told else replace(from_mutant(find(name)), loss_alone=rolled)


def _losses(one: Recomputed, tokens: Tokens) -> Iterator[float]:
    truth = one.anew(one.objective, tokens)
    divisor = one.normalizer or one.truth.count
    yield truth.loss(divisor)
    yield truth.loss()
    empty = tokens.lengths == 0
    if empty.any() and tokens.advantages is not None and len(tokens.advantages) == tokens.number:
        yield truth.loss(divisor) - float(tokens.advantages[empty].sum()) / divisor


def _kept(part: Part, keep: NumPyArray) -> Tokens:
    """The counted tokens of a part without some."""
    tokens = part.tokens
    arrays = {name: getattr(tokens, name) for name in TOKEN_ARRAYS}
    arrays = {name: None if values is None else values[keep] for name, values in arrays.items()}
    advantages = tokens.advantages
    if advantages is not None and len(advantages) != tokens.number:
        advantages = advantages[keep]
    offsets = np.append(0, np.cumsum(tokens.sums(keep))).astype(np.int64)
    return replace(tokens, offsets=offsets, advantages=advantages, **arrays)


def _without_last(part: Part) -> Tokens:
    keep = np.ones(part.tokens.count, bool)
    keep[(part.tokens.offsets[1:] - 1)[part.tokens.lengths > 0]] = False
    return _kept(part, keep)


def _without_first(part: Part) -> Tokens:
    keep = np.ones(part.tokens.count, bool)
    keep[part.tokens.offsets[:-1][part.tokens.lengths > 0]] = False
    return _kept(part, keep)


def _without_truncated(part: Part) -> Tokens:
    """Responses that end at the last column of their batch are taken for truncated."""
    mask = part.array("mask")
    if mask is None or mask.ndim != 2 or not 0 < mask[:, -1].sum() < len(mask):
        raise NotComputable("no response reaches the last column, or all do")
    return _kept(part, part.tokens.spread(~mask[:, -1].astype(bool)))


def _masked(part: Part, change: Callable[[NumPyArray], NumPyArray]) -> Tokens:
    """The tokens of another mask over padded arrays, or over segments with a mask."""
    mask, rows = _padded(part)
    other = change(mask)
    arrays = {name: values[other] for name, values in rows.items()}
    if not all(np.isfinite(values).all() for values in arrays.values()):
        raise NotComputable("nothing is recorded where this mask counts")
    offsets = np.append(0, np.cumsum(other.sum(axis=1))).astype(np.int64)
    # Advantages of tokens are those that were recorded where the other mask counts, such as 0 behind the response.
    advantages = arrays.pop("advantages", part.tokens.advantages)
    return Tokens(offsets, advantages=advantages, groups=part.tokens.groups, **arrays)


def _padded(part: Part) -> tuple[NumPyArray, dict[str, NumPyArray]]:
    """The mask and the token arrays, a response a row; packed ones with NaN behind their segments."""
    mask, offsets = part.array("mask"), part.array("offsets")
    arrays = {name: part.array(name) for name in LOGPS if name in part.names}
    rows = {name: values for name, values in arrays.items() if values is not None}
    advantages = part.array("advantages")
    if advantages is not None and advantages.shape == part.shape != part.tokens.lengths.shape:
        rows["advantages"] = advantages
    if mask is None:
        raise NotComputable("no mask")
    if offsets is None:
        return mask.astype(bool), rows
    lengths = np.diff(offsets)
    inside = np.arange(lengths.max(initial=0)) < lengths[:, None]
    if inside.size > MOST_PADDED:
        raise NotComputable("segments too long to be padded")

    def spread(values: NumPyArray, empty: float) -> NumPyArray:
        found = np.full(inside.shape, empty, values.dtype)
        found[inside] = values[: offsets[-1]]
        return found

    return spread(mask.astype(bool), False), {name: spread(values, np.nan) for name, values in rows.items()}


def _right(mask: NumPyArray) -> NumPyArray:
    return np.concatenate([np.zeros_like(mask[:, :1]), mask[:, :-1]], axis=1)


def _left(mask: NumPyArray) -> NumPyArray:
    return np.concatenate([mask[:, 1:], np.zeros_like(mask[:, :1])], axis=1)


def _rolled(part: Part, places: int) -> Tokens:
    mask, _ = _padded(part)
    if np.array_equal(mask, np.roll(mask, places, axis=1)):
        raise NotComputable("the mask counts whole rows")
    return _masked(part, lambda mask: np.roll(mask, places, axis=1))


def _rolled_right(part: Part) -> Tokens:
    return _rolled(part, 1)


def _rolled_left(part: Part) -> Tokens:
    return _rolled(part, -1)


def _behind(mask: NumPyArray) -> NumPyArray:
    return np.maximum.accumulate(mask, axis=1)


def _at_the_end(mask: NumPyArray) -> NumPyArray:
    return np.arange(mask.shape[1]) >= mask.shape[1] - mask.sum(axis=1, keepdims=True)


def _as_it_is(part: Part) -> Tokens:
    if not (part.tokens.lengths == 0).any():
        raise NotComputable("no empty response")
    return part.tokens


_MASKS: tuple[tuple[str, str, Callable[[Part], Tokens]], ...] = (
    ("empty-counted", "responses without a counted token add their advantage to the loss, as if s = 1", _as_it_is),
    ("mask.eos-dropped", "", _without_last),
    ("mask.first-dropped", "", _without_first),
    ("mask.shifted", "", lambda part: _masked(part, _right)),
    ("mask.shifted-left", "", lambda part: _masked(part, _left)),
    ("mask.shifted", "", _rolled_right),
    ("mask.shifted-left", "", _rolled_left),
    (
        "padding-counted",
        "everything from the first token of a response on is counted, padding behind it too",
        lambda part: _masked(part, _behind),
    ),
    (
        "token-behind-counted",
        "one token behind the last one of every response is counted too",
        lambda part: _masked(part, lambda mask: mask | _right(mask)),
    ),
    (
        "token-before-counted",
        "one token before the first one of every response is counted too",
        lambda part: _masked(part, lambda mask: mask | _left(mask)),
    ),
    (
        "mask-flipped",
        "the mask is that of rows read from their other end, as of padding on the other side",
        lambda part: _masked(part, lambda mask: mask[:, ::-1]),
    ),
    (
        "mask-flipped",
        "as many tokens as a response has are counted at the end of its row, as of padding on the other side",
        lambda part: _masked(part, _at_the_end),
    ),
    (
        "truncated-dropped",
        "responses that reach the last column are in the trace and not in the loss, as if truncated ones were masked",
        _without_truncated,
    ),
)


def by_divisors(
    parts: Sequence[Recomputed], others: Iterator[tuple[str, Objective]], precision: float
) -> Iterator[Explanation]:
    """Other objectives of which every micro-batch of a step is divided by one number, such as all tokens of the step."""
    steps: dict[int, list[Recomputed]] = defaultdict(list)
    for one in parts:
        steps[one.part.step].append(one)
    several = [ones for ones in steps.values() if len(ones) > 1][:3]
    if sum(map(len, several)) < 3:
        return
    for told, other in others:
        with suppress(NotComputable):
            divisors = [_divisor(ones, other, precision) for ones in several]
            if all(divisors):
                yield _divided(told, divisors, several)
                return


def _divided(told: str, divisors: Sequence[float], several: Sequence[Sequence[Recomputed]]) -> Explanation:
    tokens = [sum(one.part.tokens.count for one in ones) for ones in several]
    if all(abs(divisor / count - 1) < SAME for divisor, count in zip(divisors, tokens, strict=True) if count):
        known = from_mutant(find("aggregation.token-mean"))
        words = f"every micro-batch is a sum over tokens, divided by the {tokens[0]:,} of its step; {known.told}"
        return replace(known, told=words)
    where = f"{divisors[0]:.6g} at step {several[0][0].part.step}"
    words = f"it is the loss with {told}, each micro-batch of a step divided by the same number ({where})"
    return Explanation("objective", "", words)


def _divisor(ones: Sequence[Recomputed], other: Objective, precision: float) -> float:
    """The number that all micro-batches of a step are divided by, up to their rounding; 0 where there is none."""
    pairs = [(exact(other, one.part.tokens), one.part.loss or 0.0) for one in ones]
    usable = [(truth, loss) for truth, loss in pairs if abs(truth.numerator) > 1e3 * precision * truth.scale and loss]
    if len(usable) < 2:
        return 0.0
    found = [truth.numerator / loss for truth, loss in usable]
    rounding = max(truth.tolerance(precision, abs(truth.numerator)) for truth, _ in usable)
    return found[0] if found[0] > 0 and max(found) - min(found) <= min(SAME, 2 * rounding) * found[0] else 0.0


def by_definitions(few: Sequence[Recomputed], name: str) -> Iterator[Explanation]:
    """A clip fraction by another definition than the specification's that no mutant has."""

    def given(by_token: bool) -> bool:
        return bool(few) and all(abs(_outside(one, by_token) - one.part.metrics[name]) <= 1e-5 for one in few)

    if given(by_token=False):
        told = "the share of responses whose ratio is outside the range, whatever the sign of their advantages"
        yield Explanation(
            "clip-two-sided-by-response", "GSPO-METRIC-1", told, "it counts responses that keep their gradient"
        )
    elif given(by_token=True):
        # The mutant leaves out advantages of 0.
        yield from_mutant(find("metrics.clip-two-sided"))


def _outside(one: Recomputed, by_token: bool) -> float:
    """The share of tokens, or of responses, whose ratio is outside the range."""
    tokens = one.part.tokens
    low, high = (getattr(one.objective.surrogate, name, None) for name in ("low", "high"))
    if low is None or high is None or tokens.logp is None or tokens.old_logp is None or not tokens.count:
        return float("nan")
    d = np.asarray(tokens.logp, np.float64) - tokens.old_logp
    if not by_token:
        d = tokens.means(d)
    elif one.objective.ratio != "token":
        d = tokens.spread(tokens.means(d))
    s = np.exp(d)
    return float(np.mean((s < 1 - low) | (s > 1 + high)))


def by_record(few: Sequence[Recomputed], precision: float) -> Iterator[Explanation]:
    """No difference larger than the rounding of the record."""
    if kept := _coarsely_kept(few, precision):
        told = f"no difference is larger than what {kept}, rounds away"
        yield Explanation(
            "coarse-record", "GSPO-NUM-1", told, "a fault that is smaller than this rounding does not show"
        )


def by_precision(few: Sequence[Recomputed], precision: float) -> Iterator[Explanation]:
    """No difference larger than the rounding of bfloat16, if nothing else fits."""
    shortest = 2.0**-8
    if precision < shortest and _within(few, shortest / 4) and all(map(_looks_rounded, few)):
        told = "no difference is larger than rounding to bfloat16 explains: the loss may be computed in bfloat16 or float16"
        effect = "1.0003 and 0.9997 are both 1.0 in bfloat16: the clip range does not exist in it"
        yield Explanation("low-precision", "GSPO-NUM-1", told, effect)


def _coarsely_kept(few: Sequence[Recomputed], precision: float) -> str:
    """The dtype of what was recorded, where it has fewer bits than the loss and that explains every difference, and what it is of."""
    kinds = {
        name: max((one.part.stored.get(name, "float32") for one in few), key=UNIT_ROUNDOFF.__getitem__)
        for name in ("advantages", "logp", "old_logp")
    }
    name, kind = max(kinds.items(), key=lambda item: UNIT_ROUNDOFF[item[1]])
    if UNIT_ROUNDOFF[kind] <= precision or not _within(few, UNIT_ROUNDOFF[kind]):
        return ""
    return f"{kind}, in which {'advantages' if name == 'advantages' else 'log-probabilities'} were recorded"


def _within(few: Sequence[Recomputed], precision: float) -> bool:
    """Whether arithmetic of this precision explains every difference."""
    return all(
        abs((one.part.loss or 0.0) - one.expected) <= one.truth.tolerance(precision, one.normalizer) for one in few
    )


def _looks_rounded(one: Recomputed) -> bool:
    """Whether a micro-batch looks computed in few bits: its gradient errs by rounding alone, or its loss has few bits itself."""
    gradient = one.part.tokens.gradient
    if gradient is not None:
        want, _ = exact_gradient(one, 2.0**-24)
        far = ~one.truth.reference.near(2.0**-7)[one.truth.reference.sequences.counted] if want is not None else None
        if want is not None and far is not None and far.shape == want.shape and np.any(far & (want != 0)):
            got, want = np.asarray(gradient, np.float64)[far], want[far]
            factor = float(got @ want / max(want @ want, 1e-300))
            return factor > 0 and bool((np.abs(got - factor * want) <= ROUNDED * np.abs(factor * want)).all())
    loss = np.float32(one.part.loss or 0.0)
    return not loss.view(np.uint32) & 0xFFFF or np.float32(np.float16(loss)) == loss
