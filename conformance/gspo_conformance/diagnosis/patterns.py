"""What is wrong, in numbers, whoever the culprit is: factors, signs, zeros, and where it happens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from math import inf

import numpy as np

from ..flags import read_flags
from ..judge import UNIT_ROUNDOFF
from ..mutants.atlas import Atlas
from ..tensors import NumPyArray
from ..words import cut, uncapitalised
from .clips import held_loss, held_weights
from .evidence import NAMELESS, REFUSED, Evidence
from .laws import of_responses, of_tokens, of_weights
from .responses import losses, tokens
from .settings import of_settings

PAPER_RATIOS, TOKENS = ("sequence", "gspo_token"), ("token",)
FEW = 4
MANY = 400
CUT = "every number of a wrong answer comes with at most"
DIGITS = {"float32": 9, "float64": 17}
SPARE, GRID, LONG = 3, 12, 256
LOSS = ("loss", "gradient")
SINGULAR = {name: name for name in (*LOSS, "ratio", "value")} | {
    f"{name}s": name for name in ("advantage", "return", "reward", "value")
}
BITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
_NARROW = re.compile(r"expected (float\d+), got (\w+)")


def factors(evidence: Sequence[Evidence], atlas: Atlas, output: str = "gradient") -> tuple[float, float] | None:
    """The smallest and the largest got / expected of an output where it is wrong, over the paper's objective where it is there."""
    chosen = [item for item in evidence if not item.right and _has(item, atlas, output)]
    paper = [item for item in chosen if is_paper(item, atlas)]
    found = [_quotients(item, atlas, output) for item in (paper or chosen)]
    whole = np.concatenate(found) if found else np.zeros(0)
    return (float(whole.min()), float(whole.max())) if whole.size else None


def _has(item: Evidence, atlas: Atlas, output: str) -> bool:
    vector = atlas.bench.questions[item.question].vector
    return item.result is not None and output in vector.expected and output in item.result.answer


def is_paper(item: Evidence, atlas: Atlas) -> bool:
    """Whether a question is one of the paper's objective."""
    return _is_clipped(item, atlas, PAPER_RATIOS)


def _is_clipped(item: Evidence, atlas: Atlas, ratios: Sequence[str], kind: str = "clip") -> bool:
    """Whether the objective of a question is the surrogate of such a ratio, clipped in one way, and nothing beside it."""
    objective = atlas.bench.questions[item.question].case.objective or {}
    clipped = objective.get("ratio") in ratios and objective["surrogate"]["kind"] == kind
    return clipped and objective["penalty"] is None and not objective["correction"]


def _quotients(item: Evidence, atlas: Atlas, output: str) -> NumPyArray:
    assert item.result is not None
    expected = atlas.bench.questions[item.question].vector.expected[output]
    got = np.asarray(item.result.answer[output], dtype=float)
    if got.shape != expected.shape:
        return np.zeros(0)
    rounding = UNIT_ROUNDOFF[atlas.bench.questions[item.question].case.dtype] * expected.scale
    there = (np.abs(expected.value) > 1e5 * rounding) & np.isfinite(expected.value) & np.isfinite(got)
    return got[there] / expected.value[there]


def factor_text(span: tuple[float, float] | None, noun: str = "gradient") -> str:
    """`gradient 0.44x to 1.61x`, `gradient 2x throughout`, nothing where it is right."""
    if span is None:
        return ""
    low, high = span
    if abs(high - low) <= 1e-3 * max(abs(low), abs(high)):
        return "" if abs(low - 1) < 1e-3 else f"{noun} {_times(low)} throughout"
    alike = _times(low) == _times(high)
    return f"{noun} {_times(low, 6 if alike else 3)} to {_times(high, 6 if alike else 3)} here"


def _times(factor: float, digits: int = 3) -> str:
    return f"{factor + 0.0:.{digits}g}x"  # -0 is 0


def observed(evidence: Sequence[Evidence], atlas: Atlas) -> list[str]:
    """Patterns of the wrong answers, in words, the most telling first."""
    wrong = [item for item in evidence if not item.right]
    numbers = [item for item in wrong if not item.row.odd]
    paper = [item for item in evidence if is_paper(item, atlas)]
    weighted = [item for item in evidence if _is_clipped(item, atlas, TOKENS, "cispo")]
    found = [
        *_of_errors(wrong),
        *_of_forms(wrong),
        *_of_numbers(numbers, len(wrong)),
        *(_of_bits(numbers, atlas) or _of_digits(numbers, atlas)),
        *(
            of_responses(paper, atlas)
            if paper
            else of_tokens([i for i in evidence if _is_clipped(i, atlas, TOKENS)], atlas)
        ),
        held_loss([one for item in paper if (one := losses(item, atlas))]),
        held_weights([one for item in weighted for one in tokens(item, atlas)]),
        *of_weights(weighted, atlas),
    ]
    found += [*_of_outputs(numbers), *_of_factors(numbers, atlas)]
    found += [*_of_flags(wrong, evidence, atlas)]
    found += _of_places(wrong, evidence, atlas)
    found += [] if any("tokens and more" in text for text in found) else _of_lengths(wrong, evidence, atlas)
    return list(dict.fromkeys(text for text in found if text))


def _of_errors(wrong: Sequence[Evidence]) -> list[str]:
    """Errors where an answer was due, and the one that is met most."""
    raised = [item.result.reason if item.result else "" for item in wrong if item.row is REFUSED]
    if not raised:
        return []
    (reason, _), *_ = Counter(raised).most_common(1)
    told = f", most often {cut(reason, 160)}" if reason else ""
    return [f"{len(raised)} of {len(wrong)} questions end in an error{told}"]


def _of_forms(wrong: Sequence[Evidence]) -> list[str]:
    """Answers of another shape or a narrower dtype, and inputs that are refused without their name, or not at all."""
    shaped = [item for item in wrong if " of shape " in item.row.odd]
    answered = [item for item in wrong if item.row.odd == "answered"]
    nameless = [item for item in wrong if item.row is NAMELESS]
    reasons = [judged.reason for item in wrong if item.result for judged in item.result.judged]
    narrow = Counter(match.groups() for match in map(_NARROW.fullmatch, reasons) if match)
    texts = [f"{len(shaped)} of {len(wrong)} wrong answers have the wrong shape" if shaped else ""]
    texts += [f"{count} outputs come in {got} where {due} is due" for (due, got), count in narrow.most_common()]
    texts += [f"{len(nameless)} errors do not name the input that is to be refused" if nameless else ""]
    return [*texts, f"{len(answered)} inputs are accepted that are to be refused" if answered else ""]


def _of_bits(wrong: Sequence[Evidence], atlas: Atlas) -> list[str]:
    """An output every wrong number of which is one of a narrower dtype, where the truth is none; NaN is of no dtype."""
    texts = []
    for output, noun in SINGULAR.items():
        there = [item for item in wrong if _has(item, atlas, output) and not _ok(item, output)]
        got = [np.ravel(np.asarray(item.result.answer[output], float)) for item in there if item.result]
        due = [np.ravel(atlas.bench.questions[item.question].vector.expected[output].value) for item in there]
        if any(np.isnan(one).any() for one in got):
            continue
        wide = max((BITS[atlas.bench.questions[item.question].case.dtype] for item in there), default=0)
        for dtype, bits in BITS.items():
            if len(there) < FEW or bits >= wide or _within(due, bits) or (output not in LOSS and _plain(got, bits)):
                continue
            # Of numbers that need far fewer bits, such as a bound or a half, nobody knows in how many they were computed.
            if _within(got, bits) and not _within(got, bits - SPARE):
                texts.append(f"every wrong {noun} is a {dtype} number: it is computed or stored too narrowly")
                break
    return texts


def _plain(got: Sequence[NumPyArray], bits: int) -> bool:
    """Whether sums and differences of short inputs may have as few bits, whatever they are computed in."""
    whole = 2.0**GRID * np.concatenate(got)
    return bits >= BITS["float32"] or bool((whole == np.rint(whole)).all())


def _of_digits(wrong: Sequence[Evidence], atlas: Atlas) -> list[str]:
    """Whether the numbers of wrong answers were all cut to a few decimal digits on their way."""
    for dtype, needed in DIGITS.items():
        there = [item for item in wrong if item.result and atlas.bench.questions[item.question].case.dtype == dtype]
        got = [
            np.ravel(np.asarray(value, float)) for item in there if item.result for value in item.result.answer.values()
        ]
        if len(there) >= FEW and (digits := _digits(np.concatenate(got))) and digits <= needed - 2:
            return [f"{CUT} {digits} significant digits: {dtype} needs {needed}"]
    return []


def _digits(values: NumPyArray) -> int:
    """The fewest decimal digits that give back every number; 0 where there are hardly any numbers."""
    numbers = np.unique(values[np.isfinite(values) & (values != 0)]).tolist()[:MANY]
    if len(numbers) < MANY // 10:
        return 0
    return next((n for n in range(4, 17) if all(float(f"{value:.{n}g}") == value for value in numbers)), 17)


def _ok(item: Evidence, output: str) -> bool:
    """Whether an output is right, or wrong in its dtype alone, which is said elsewhere."""
    judged = [one for one in item.result.judged if one.output == output] if item.result else []
    return all(one.ok or _NARROW.fullmatch(one.reason) for one in judged)


def _within(arrays: Sequence[NumPyArray], bits: int) -> bool:
    """Whether `bits` significant bits hold all the numbers, which are not all 0."""
    whole = np.concatenate(arrays)
    whole = whole[np.isfinite(whole)]
    scaled = np.ldexp(np.frexp(whole)[0], bits)
    return bool(whole.any() and (scaled == np.rint(scaled)).all())


def _of_outputs(wrong: Sequence[Evidence]) -> list[str]:
    """Whether metrics alone are wrong; else whether the loss, or the gradient, is right wherever an answer has both."""
    judged = [{one.output: one.ok for one in item.result.judged} for item in wrong if item.result]
    missed = list(dict.fromkeys(name for one in judged for name, ok in one.items() if not ok))
    if missed and all(name.startswith("metrics.") for name in missed):
        return [f"only metrics are wrong: {', '.join(name.removeprefix('metrics.') for name in missed[:FEW])}"]
    both = [one for one in judged if {*LOSS} <= set(one)]
    right = [name for name in LOSS if all(one[name] for one in both)]
    if not both or len(right) != 1:
        return []
    return [f"the {right[0]} is right, the {'gradient' if right == ['loss'] else 'loss'} is not"]


def _of_numbers(wrong: Sequence[Evidence], of: int) -> list[str]:
    broken = [item for item in wrong if not np.isfinite(item.row.numbers[item.row.present]).all()]
    return [f"{len(broken)} of {of} wrong answers hold NaN or infinity"] if broken else []


def _of_factors(wrong: Sequence[Evidence], atlas: Atlas) -> list[str]:
    texts = []
    missed = [one.output for item in wrong if item.result for one in item.result.judged if not one.ok]
    metrics = dict.fromkeys(name for name in missed if name.startswith("metrics."))
    for output in (*SINGULAR, *metrics):
        span = factors(wrong, atlas, output)
        if span is None:
            continue
        low, high = span
        name = output.removeprefix("metrics.")
        many = SINGULAR.get(name, name) != name
        if low == high == 0:
            texts.append(f"the {name} {'are' if many else 'is'} zero")
        elif abs(low + 1) < 1e-3 and abs(high + 1) < 1e-3:
            texts.append(f"the {name} {'have' if many else 'has'} the wrong sign")
        elif low not in (-inf, inf):
            texts.append(factor_text(span, name))
    return texts


def _of_places(wrong: Sequence[Evidence], evidence: Sequence[Evidence], atlas: Atlas) -> list[str]:
    """Properties that every wrong answer has, that make most answers wrong, and that some right answer lacks."""
    found = []
    for noun, trait in TRAITS.items():
        bad = {trait(item, atlas) for item in wrong}
        good = [trait(item, atlas) for item in evidence if item.right]
        if len(bad) == 1 and None not in bad:
            (name,) = bad
            alike = good.count(name)
            if alike < len(good) and (alike * 4 <= len(wrong) or (noun == "in" and _twinned(wrong, evidence, atlas))):
                found.append(f"only {noun} {name}")
    return found


def _of_lengths(wrong: Sequence[Evidence], evidence: Sequence[Evidence], atlas: Atlas) -> list[str]:
    """The length from which on answers are wrong, where those with the longest responses are, and none of the rest is near."""
    right = [_longest(item, atlas) for item in evidence if item.right]
    least = min((_longest(item, atlas) for item in wrong), default=0)
    return [f"only with responses of {least:,} tokens and more"] if least > LONG > max(right, default=least) else []


def _longest(item: Evidence, atlas: Atlas) -> int:
    """The most counted tokens that a response of a question has; 0 where it has no mask."""
    mask = atlas.bench.questions[item.question].case.inputs.get("mask")
    return int(mask.sum(axis=-1).max()) if mask is not None and mask.ndim == 2 else 0


def _twinned(wrong: Sequence[Evidence], evidence: Sequence[Evidence], atlas: Atlas) -> bool:
    """Whether every question with a wrong answer has a right one in another dtype."""
    right = {atlas.bench.questions[item.question].vector.id for item in evidence if item.right}
    return all(atlas.bench.questions[item.question].vector.id in right for item in wrong)


def _of_flags(wrong: Sequence[Evidence], evidence: Sequence[Evidence], atlas: Atlas) -> list[str]:
    """What every question with a wrong answer has, or is there for, and fewest with a right one: hardly any, or few where few are wrong."""
    flags = [set(atlas.bench.questions[item.question].vector.flags) for item in wrong]
    right = Counter(
        flag for item in evidence if item.right for flag in atlas.bench.questions[item.question].vector.flags
    )
    flag = min(sorted(set.intersection(*flags)) if flags else [], key=lambda flag: right[flag], default="")
    most = 2 * len(wrong) if len(wrong) <= FEW else len(wrong) // 4
    where, others = of_settings(wrong, evidence, atlas, min(most, len(wrong)))
    if not (flag and right) or right[flag] > most or (where and right[flag] >= others):
        return [where]
    return [where, f"only questions that hunt `{flag}`, {uncapitalised(read_flags()[flag]['title'])}"]


def _gap(item: Evidence, atlas: Atlas) -> str | None:
    inputs = atlas.bench.questions[item.question].case.inputs
    if "mask" not in inputs or inputs["mask"].ndim != 2:
        return None
    mask = inputs["mask"].astype(bool)
    before = (mask[:, 1:] > mask[:, :-1]).any()  # a counted token behind one that does not count
    return "gaps or left padding in the mask" if before else "no gaps in the mask"


TRAITS: dict[str, Callable[[Evidence, Atlas], str | None]] = {
    "in": lambda item, atlas: atlas.bench.questions[item.question].case.dtype,
    "with layout": lambda item, atlas: atlas.bench.questions[item.question].case.layout,
    "where there are": _gap,
    "in the area": lambda item, atlas: atlas.bench.questions[item.question].vector.area,
    "in the operation": lambda item, atlas: atlas.bench.questions[item.question].vector.operation,
}
