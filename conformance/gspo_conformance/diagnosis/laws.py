"""What is wrong, response by response, in words: which ones the gradient misses, by what factor, from which ratio on.

Near ratio 1 a wrong ratio, clip or exponential hardly shows, so a factor there is one of lengths, counts and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import exp, log
from typing import TypeAlias

import numpy as np

from ..judge import UNIT_ROUNDOFF
from ..mutants.atlas import Atlas
from ..words import plural
from .clips import ENOUGH, FAR, MOST, NEAR, clip_range, of_one_place, of_one_sign
from .evidence import Evidence
from .responses import Response, responses, tokens

CLOSE, FEW, APART = 1e-2, 3, 1.2
ROUGH, LEAST = 0.2, 2.0**-13
NARROW = ("float16", "bfloat16")
OTHERWISE = "the responses of a batch are off by one factor, other batches by another"

POWERS = {0: "", 1: ", times the number of responses", -1: ", by the number of responses too"}

Law: TypeAlias = Callable[[Response], float]


def _length(one: Response) -> float:
    return one.length


def _place(one: Response) -> float:
    return one.at


FACTORS: dict[str, Law] = {
    "divided by the number of responses": lambda one: 1 / one.responses,
    "multiplied by the number of responses": lambda one: one.responses,
    "that of a mean over one response too few": lambda one: one.responses / max(1, one.responses - 1),
    "that of a mean over one response too many": lambda one: one.responses / (one.responses + 1),
    "that of a mean over the responses with A other than 0": lambda one: one.responses / one.learning,
    "that of advantages of size 1": lambda one: 1 / abs(one.advantage),
    "multiplied by the length of the response": lambda one: one.length,
    "divided by the length of the response": lambda one: 1 / one.length,
    "multiplied by the root of the length": lambda one: one.length**0.5,
    "divided by the root of the length": lambda one: one.length**-0.5,
    "that of the padded width in place of the length": lambda one: one.length / one.width,
    "that of a mean over all tokens": lambda one: one.length * one.responses / one.tokens,
    "divided by the number of tokens": lambda one: 1 / one.tokens,
    "that of a sum over all tokens": lambda one: one.length * one.responses,
    "multiplied by the number of tokens": lambda one: one.tokens,
    "multiplied by 1 + the mean log-probability: the ratio times log π, both differentiated": lambda one: (
        1 + one.level or np.nan
    ),
}
SIDES: dict[str, Callable[[Response], bool]] = {
    "where A < 0": lambda one: one.advantage < 0,
    "where A > 0": lambda one: one.advantage > 0,
    "where it is due to be clipped": lambda one: one.clipped,
    "in responses with gaps in the mask": lambda one: one.holes,
    "in responses with gaps or left padding in the mask": lambda one: one.gaps,
    "in batches of more than one response": lambda one: one.responses > 1,
    "in batches of one response": lambda one: one.responses == 1,
    "in batches without padding": lambda one: one.tokens == one.responses * one.width,
    "in responses shorter than the batch is wide": lambda one: one.length < one.width,
    "in responses as long as the batch is wide": lambda one: one.length == one.width,
}
SIZES: dict[str, Callable[[Response], float]] = {
    "in responses of {:,.0f} tokens and more": _length,
    "from counted token {:,.0f} of a response on": _place,
    "where |A| is {:.3g} and more": lambda one: abs(one.advantage),
    "where a token's |log-ratio| is {:.3g} and more": lambda one: one.farthest,
    "where the mean |log-ratio| is {:.3g} and more": lambda one: abs(one.log_ratio),
    "where s |A| is {:.3g} and more": lambda one: abs(one.advantage) * exp(min(one.log_ratio, 80.0)),
}
LARGEST: dict[str, Callable[[Response], float]] = {
    "the most tokens, {:,.0f}": _length,
    "the largest |A|, {:.3g}": lambda one: abs(one.advantage),
    "the largest |log-ratio| of a token, {:.3g}": lambda one: one.farthest,
    "the largest mean |log-ratio|, {:.3g}": lambda one: abs(one.log_ratio),
}
SIGNS: dict[str, Callable[[Response], bool]] = {
    "": lambda one: True,
    "with A < 0 ": lambda one: one.advantage < 0,
    "with A > 0 ": lambda one: one.advantage > 0,
}


def of_responses(evidence: Sequence[Evidence], atlas: Atlas) -> list[str]:
    """Where the gradient of the paper's objective is wrong, and by which factor, in words."""
    return _told([one for item in evidence for one in responses(item, atlas)], "log s", _steady(evidence))


def of_tokens(evidence: Sequence[Evidence], atlas: Atlas) -> list[str]:
    """The same of an objective with clipped token ratios."""
    return _told([one for item in evidence for one in tokens(item, atlas)], "log w", _steady(evidence))


def of_weights(evidence: Sequence[Evidence], atlas: Atlas) -> list[str]:
    """The factor alone, of an objective whose weights are constants."""
    found = [one for item in evidence for one in tokens(item, atlas) if one.advantage != 0]
    wrong = [one for one in found if not one.right]
    return [_factor(found, wrong)] if wrong else []


def _steady(evidence: Sequence[Evidence]) -> bool:
    return all(item.steady for item in evidence)


def _told(everything: Sequence[Response], ratio: str, steady: bool) -> list[str]:
    found = [one for one in everything if one.advantage != 0]
    wrong = [one for one in found if not one.right]
    idle = [one for one in everything if one.advantage == 0 and one.live]
    if not wrong:
        return []
    if common := _common(everything):
        return [common]
    factor = _factor(found, wrong)
    told = [_uneven(wrong), of_one_place(found, wrong), of_one_sign(found), factor]
    if not factor:
        told.append(_rounding(found) if steady else "")
        told += [clip_range(found), _beside(idle), _power(found, ratio) or _side(found, wrong)]
    return [text for text in told if text]


def _common(everything: Sequence[Response]) -> str:
    """Whether all responses of a batch have one gradient, though their advantages differ."""
    batches: dict[int, list[Response]] = {}
    for one in everything:
        batches.setdefault(one.question, []).append(one)
    several = [batch for batch in batches.values() if len({one.advantage for one in batch}) > 1]
    slopes = [[one.slope for one in batch] for batch in several]
    alike = [each for each in slopes if np.ptp(each) <= CLOSE * abs(each[0])]
    live = any(one for each in alike for one in each)
    fits = live and len(alike) >= max(FEW, MOST * len(several))
    return "all tokens of a batch have one gradient, as where the ratio is one of the whole batch" if fits else ""


def _uneven(wrong: Sequence[Response]) -> str:
    many = [one for one in wrong if one.uneven]
    if 4 * len(many) <= len(wrong):
        return ""
    for place in ("first", "last"):
        odd = [one.oddity for one in many if one.odd == place]
        whole = [one for one in many if one.length > 2]
        if odd and len(odd) >= MOST * len(whole) and np.ptp(odd) <= CLOSE * max(map(abs, odd)):
            times = f"{np.median(odd):.3g}x the" if any(odd) else "no"
            return f"the {place} counted token of a response has {times} gradient" + (
                " of the others" if any(odd) else ""
            )
    return "" if many[0].at else "the gradient differs between tokens of one response"


def _factor(found: Sequence[Response], wrong: Sequence[Response]) -> str:
    """The law that fits most of the factors near ratio 1."""
    whole = [one for one in found if np.isfinite(one.factor) and one.factor != 0]
    near = [one for one in whole if abs(one.log_ratio) < NEAR]
    if len(near) < ENOUGH:
        return _seldom(whole, wrong)
    if _fit(near, lambda one: 1.0) >= MOST:
        return _epsilon(near) or _seldom(whole, wrong)
    middle, words, law = _law(near)
    if _fit(near, law) < MOST:
        return _advantages(near)
    far = [one for one in whole if abs(one.log_ratio) >= NEAR]
    if words != f"{middle:.3g}x":
        return f"near ratio 1 the gradient is {words}"
    if far and _fit(far, lambda one: 1.0) >= MOST:
        return f"inside the clip range the gradient is {words}, outside it is right"
    if not far or _fit(far, law) >= MOST:
        return ""
    if len(whole) >= MOST * len(wrong) and _by_batch(whole):
        return OTHERWISE
    scaled = _fit(far, lambda one: middle * exp((middle - 1) * one.log_ratio)) >= MOST
    return f"near ratio 1 the gradient is {words}, farther away another multiple{': the log-ratio is scaled' if scaled else ''}"


def _law(found: Sequence[Response]) -> tuple[float, str, Law]:
    """The middle of the factors, and the law that fits most of them, in words: that of one factor before all others."""
    middle = float(np.median([one.factor for one in found]))
    laws: dict[str, Law] = {f"{middle:.3g}x": lambda one: middle, **FACTORS, **_constants(found)}
    words = max(laws, key=lambda words: _fit(found, laws[words]))
    return middle, words, laws[words]


def _by_batch(whole: Sequence[Response]) -> bool:
    """Whether every batch has a factor of its own, for several of its responses."""
    batches: dict[int, list[float]] = {}
    for one in whole:
        batches.setdefault(one.question, []).append(one.factor)
    several = [factors for factors in batches.values() if len(factors) > 1]
    return len(several) >= FEW and all(np.ptp(factors) <= CLOSE * abs(factors[0]) for factors in several)


def _epsilon(near: Sequence[Response]) -> str:
    """Whether the factors are a little below 1, the more so the shorter the response: what was added to the length."""
    added = [one.length / one.factor - one.length for one in near]
    middle = float(np.median(added))
    same = sum(abs(one - middle) <= ROUGH * middle for one in added) >= MOST * len(added)
    return f"near ratio 1 the gradient is that of a length with {middle:.1g} added to it" if same and middle > 0 else ""


def _power(found: Sequence[Response], ratio: str) -> str:
    """Where the gradient is right near ratio 1 and elsewhere that of another ratio, as in GSPO-token's form: what becomes of its logarithm."""
    far = [one for one in found if FAR < abs(one.log_ratio) < 1 / FAR and one.factor > 0]
    near = [one for one in found if abs(one.log_ratio) < NEAR and one.live]
    if len(far) < ENOUGH or not near or _fit(near, lambda one: 1.0) < MOST:
        return ""
    powers = [_power_of(one) for one in far]
    if sum(abs(one.factor) < CLOSE for one in powers) >= MOST * len(powers):
        return f"{ratio} is 0: the ratio is 1, however far the policy has moved"
    powers = [one for one in powers if abs(one.factor) >= CLOSE]
    middle, words, law = _law(powers)
    fits = abs(middle - 1) > CLOSE and _fit(powers, law) >= MOST
    return f"{ratio} is {words}" if fits else ""


def _power_of(one: Response) -> Response:
    """The response with the factor of its log s in place of that of its gradient."""
    return one._replace(factor=1 + log(one.factor) / one.log_ratio)


def _constants(near: Sequence[Response]) -> dict[str, Law]:
    """Laws with a number in them that the factors tell."""
    extra = round(float(np.median([one.length / one.factor - one.length for one in near])))
    count = float(np.median([one.responses / one.factor for one in near]))
    width = float(np.median([one.length / one.factor for one in near]))
    side = "large" if extra > 0 else "small"
    longer: dict[str, Law] = {
        f"that of a length that is {abs(extra)} too {side}": lambda one: one.length / max(1, one.length + extra)
    }
    fixed: dict[str, Law] = {
        f"divided by {count:.4g} in place of the number of responses": lambda one: one.responses / count,
        f"divided by {width:.4g} in place of the length": lambda one: one.length / width,
    }
    return {**fixed, **longer} if extra > max(one.length for one in near) else {**longer, **fixed}


def _seldom(whole: Sequence[Response], wrong: Sequence[Response]) -> str:
    """A law that holds everywhere, but differs from 1 in few places."""
    for words, law in FACTORS.items():
        moves = all(abs(law(one) - 1) > CLOSE for one in wrong)
        if moves and len(wrong) >= FEW and all(one in whole for one in wrong) and _fit(whole, law) == 1:
            return f"the gradient is {words}"
    return _bounded(whole, wrong)


def _bounded(whole: Sequence[Response], wrong: Sequence[Response]) -> str:
    """Whether all that are wrong have the gradient of one |A|, below their own, that no right one has more than."""
    used = [abs(one.advantage * one.factor) for one in wrong if 0 < one.factor < 1]
    sizes = {abs(one.advantage) for one in wrong}
    if len(used) < max(2, len(wrong)) or len(sizes) < 2 or np.ptp(used) > CLOSE * max(used):
        return ""
    signs = {one.advantage > 0 for one in wrong}
    right = [abs(one.advantage) for one in whole if one.right and (one.advantage > 0) in signs]
    side = "±" if len(signs) == 2 else "" if True in signs else "-"
    fits = bool(right) and max(right) <= max(used) * (1 + CLOSE)
    return f"the gradient is that of advantages held to {side}{np.median(used):.3g}" if fits else ""


def _fit(near: Sequence[Response], law: Law) -> float:
    return sum(abs(one.factor / law(one) - 1) < CLOSE for one in near) / len(near)


def _advantages(near: Sequence[Response]) -> str:
    """Whether the factors are those of advantages that were changed on the way: held to a bound, centred, interchanged."""
    bound = float(np.quantile([abs(one.advantage * one.factor) for one in near], MOST))
    if _fit(near, lambda one: min(1.0, bound / abs(one.advantage))) >= MOST:
        return f"near ratio 1 the advantages are held to ±{bound:.3g}"
    batches: dict[int, dict[int, Response]] = {}
    for one in near:
        batches.setdefault(one.question, {})[one.place] = one
    whole = [[*batch.values()] for batch in batches.values()]
    whole = [batch for batch in whole if len(batch) == batch[0].responses > 1]
    whole = [batch for batch in whole if _fit(batch, lambda one: 1.0) < 1]
    if len(whole) < FEW:
        return ""
    moved = [batch for batch in whole if not _balanced([one.advantage for one in batch])]
    if len(moved) >= FEW and all(_balanced(_used(batch)) for batch in moved):
        scaled = _scaled(map(_used, moved))
        also = "" if scaled is None else f" and divided by its standard deviation{scaled}"
        return f"near ratio 1 the gradient is that of advantages centred over the batch{also or ', or of ratios divided by their mean'}"
    if all(map(_interchanged, whole)):
        return "responses have the advantages of others"
    if not all(np.ptp([one.factor for one in batch]) <= CLOSE * abs(batch[0].factor) for batch in whole):
        return ""
    scaled = _scaled(map(_used, whole))
    return OTHERWISE if scaled is None else f"the advantages are divided by the standard deviation of the batch{scaled}"


def _used(batch: Iterable[Response]) -> list[float]:
    """The advantages that the gradients tell."""
    return [one.advantage * one.factor for one in batch]


def _scaled(batches: Iterable[Sequence[float]]) -> str | None:
    """Whether every batch has a standard deviation of 1, of a population or of a sample, or of a power of its size, which is said."""
    values = [*batches]
    sizes = np.array([[len(batch)] for batch in values], float)
    spreads = np.array([(np.std(batch), np.std(batch, ddof=1)) for batch in values])
    for power, words in POWERS.items():
        told = power == 0 or bool(np.ptp(sizes))
        if told and (np.abs(spreads / sizes**power - 1) < CLOSE).all(axis=0).any():
            return words
    return None


def _balanced(values: Sequence[float]) -> bool:
    return abs(sum(values)) <= CLOSE * sum(map(abs, values))


def _interchanged(batch: Sequence[Response]) -> bool:
    given = sorted(one.advantage for one in batch)
    return bool(np.allclose(given, sorted(_used(batch)), rtol=CLOSE))


def _rounding(found: Sequence[Response]) -> str:
    """Whether factors scatter on both sides of 1, whatever the ratio, as far from it as rounding to a narrow dtype goes."""
    close = [one for one in found if np.isfinite(one.factor) and one.factor != 0 and abs(one.log_ratio) < FAR]
    off = [one.factor - 1 for one in close]
    if len({f"{value:.1e}" for value in off}) < ENOUGH or min(off) > -LEAST or max(off) < LEAST:
        return ""
    if abs(np.corrcoef(off, [one.log_ratio for one in close])[0, 1]) > MOST:
        return ""
    farthest = max(map(abs, off))
    dtype = next((dtype for dtype in NARROW if farthest <= UNIT_ROUNDOFF[dtype] * (1 + CLOSE)), "")
    told = f"the gradient is off by up to {100 * farthest:.2g}% to both sides, as rounding to {dtype} or a small term beside it does"
    return told if dtype else ""


def _beside(idle: Sequence[Response]) -> str:
    return "responses with A = 0 have a gradient: something besides the surrogate is in the loss" if idle else ""


def _side(found: Sequence[Response], wrong: Sequence[Response]) -> str:
    """What every response with a wrong gradient has and a number of right ones have not."""
    right = [one for one in found if one.right and one.live]
    if len(wrong) == 1 and right:
        return _alone(wrong[0], right)
    if not wrong or not right:
        return ""
    for sign, side in SIGNS.items():
        others = [one for one in right if side(one)]
        if all(map(side, wrong)) and len(others) >= (2 if sign else 1) and (told := _size(wrong, others)):
            return f"the gradient is wrong only {sign}{told}"
    lengths, others = {one.length for one in wrong}, {one.length for one in right}
    if len(lengths) == 1 and not lengths & others and len(right) >= ENOUGH:
        return f"the gradient is wrong only in responses of {plural(max(lengths), 'token')}"
    if max(lengths) < min(others) and len(right) >= ENOUGH:
        return f"the gradient is wrong only in responses of {max(lengths)} tokens and fewer"
    if len(right) >= ENOUGH and APART * max(abs(one.advantage) for one in wrong) < min(
        abs(one.advantage) for one in right
    ):
        return f"the gradient is wrong only where |A| is {max(abs(one.advantage) for one in wrong):.3g} and less"
    words = _shared(found, wrong)
    middle = float(np.median([one.factor for one in wrong]))
    times = f", {middle:.3g}x there" if words and _fit(wrong, lambda one: middle or np.nan) == 1 else ""
    return f"the gradient is wrong only {words}{times}" if words else ""


def _alone(one: Response, right: Sequence[Response]) -> str:
    """The only wrong one, by what it has more of than any that is right: several such sizes, of which nobody knows which it is."""
    most = [words for words, size in LARGEST.items() if size(one) > APART * max(map(size, right))]
    told = " and ".join(words.format(LARGEST[words](one)) for words in most)
    factor = f", {one.factor:.3g}x there" if np.isfinite(one.factor) and one.factor else ""
    noun = "token" if one.at else "response"
    return f"the gradient is wrong in one {noun} alone, that with {told}{factor}" if told else ""


def _shared(found: Sequence[Response], wrong: Sequence[Response]) -> str:
    """What all wrong responses have, and of the right ones the fewest: no more than are wrong."""
    told: dict[str, int] = {}
    for sign, of_sign in SIGNS.items():
        for words, side in SIDES.items():
            among = [one for one in found if of_sign(one) and side(one)]
            if len(found) - len(among) >= ENOUGH and all(of_sign(one) and side(one) for one in wrong):
                told.setdefault(words if words.startswith("where A") else sign + words, len(among) - len(wrong))
    best = min(told, key=lambda words: told[words], default="")
    return best if best and told[best] <= len(wrong) else ""


def _size(wrong: Sequence[Response], right: Sequence[Response]) -> str:
    """A size that every wrong response has and no right one comes near."""
    for words, size in SIZES.items():
        least, most = min(map(size, wrong)), max(map(size, right))
        if least > max(most if size in (_length, _place) else most * APART, NEAR):
            return words.format(least)
    return ""
