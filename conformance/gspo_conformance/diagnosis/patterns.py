"""What is wrong, in numbers, whoever the culprit is: factors, signs, zeros, and where it happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import numpy as np

from ..judge import UNIT_ROUNDOFF
from ..mutants.atlas import Atlas
from ..tensors import NumPyArray
from .evidence import Evidence

PAPER_RATIOS = ("sequence", "gspo_token")


def factors(evidence: Sequence[Evidence], atlas: Atlas, output: str = "gradient") -> tuple[float, float] | None:
    """The smallest and the largest got / expected of an output where it is wrong, over the paper's objective where it is there."""
    chosen = [item for item in evidence if not item.right and _has(item, atlas, output)]
    paper = [item for item in chosen if _is_paper(item, atlas)]
    found = [_quotients(item, atlas, output) for item in (paper or chosen)]
    whole = np.concatenate(found) if found else np.zeros(0)
    return (float(whole.min()), float(whole.max())) if whole.size else None


def _has(item: Evidence, atlas: Atlas, output: str) -> bool:
    vector = atlas.bench.questions[item.question].vector
    return item.result is not None and output in vector.expected and output in item.result.answer


def _is_paper(item: Evidence, atlas: Atlas) -> bool:
    objective = atlas.bench.questions[item.question].case.objective or {}
    paper = objective.get("ratio") in PAPER_RATIOS and objective["surrogate"]["kind"] == "clip"
    return paper and objective["penalty"] is None and not objective["correction"]


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
    return f"{noun} {_times(low)} to {_times(high)} here"


def _times(factor: float) -> str:
    return f"{factor:.3g}x"


def observed(evidence: Sequence[Evidence], atlas: Atlas) -> list[str]:
    """Patterns of the wrong answers, in words, the most telling first."""
    wrong = [item for item in evidence if not item.right]
    found = [*_of_numbers(wrong), *_of_factors(wrong, atlas), *_of_places(wrong, evidence, atlas)]
    return list(dict.fromkeys(text for text in found if text))


def _of_numbers(wrong: Sequence[Evidence]) -> list[str]:
    odd = [item for item in wrong if item.row.odd]
    broken = [item for item in wrong if not item.row.odd and not np.isfinite(item.row.numbers[item.row.present]).all()]
    return [
        f"{len(odd)} of {len(wrong)} wrong answers have the wrong shape" if odd else "",
        f"{len(broken)} of {len(wrong)} wrong answers hold NaN or infinity" if broken else "",
    ]


def _of_factors(wrong: Sequence[Evidence], atlas: Atlas) -> list[str]:
    texts = []
    for output in ("loss", "gradient"):
        span = factors(wrong, atlas, output)
        if span is None:
            continue
        low, high = span
        if low == high == 0:
            texts.append(f"the {output} is zero")
        elif abs(low + 1) < 1e-3 and abs(high + 1) < 1e-3:
            texts.append(f"the {output} has the wrong sign")
        elif low not in (-inf, inf):
            texts.append(factor_text(span, output))
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
            if alike < len(good) and alike * 4 <= len(wrong):
                found.append(f"only {noun} {name}")
    return found


def _gap(item: Evidence, atlas: Atlas) -> str | None:
    inputs = atlas.bench.questions[item.question].case.inputs
    if "mask" not in inputs or inputs["mask"].ndim != 2:
        return None
    steps = np.abs(np.diff(inputs["mask"].astype(int), axis=1)).sum(axis=1)
    return "gaps or left padding in the mask" if (steps > 1).any() else "no gaps in the mask"


TRAITS: dict[str, Callable[[Evidence, Atlas], str | None]] = {
    "in": lambda item, atlas: atlas.bench.questions[item.question].case.dtype,
    "with layout": lambda item, atlas: atlas.bench.questions[item.question].case.layout,
    "where there are": _gap,
    "in the area": lambda item, atlas: atlas.bench.questions[item.question].vector.area,
    "in the operation": lambda item, atlas: atlas.bench.questions[item.question].vector.operation,
}
