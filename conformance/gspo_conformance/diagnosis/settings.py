"""What the questions with wrong answers have in common: a parameter's value, an input that is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..mutants.atlas import Atlas
from .evidence import Evidence

LAYOUT = ("mask", "offsets")
WHERE = "only where"
TOLD = 2


def of_settings(wrong: Sequence[Evidence], evidence: Sequence[Evidence], atlas: Atlas, most: int) -> tuple[str, int]:
    """Where alone answers are wrong, and how many are right there all the same, `most` at most; else nothing."""
    facts = [dict(_facts(item, atlas)) for item in wrong]
    if not facts:
        return "", 0
    common = {fact: rank for fact, rank in facts[0].items() if all(fact in other for other in facts[1:])}
    asked = {_operation(item, atlas) for item in wrong}
    good = [dict(_facts(item, atlas)) for item in evidence if item.right and _operation(item, atlas) in asked]
    right = Counter(fact for one in good for fact in one)
    telling = {fact: rank for fact, rank in common.items() if right[fact] <= most and right[fact] < len(good)}
    if not telling:
        return "", 0
    least = min((right[fact], rank) for fact, rank in telling.items())
    told = [fact for fact, rank in telling.items() if (right[fact], rank) == least][:TOLD]
    return f"{WHERE} {' and '.join(told)}", least[0]


# The lower a rank, the less a fact is likely to hold by chance.
GIVEN, WORD, NUMBER = range(3)


def _operation(item: Evidence, atlas: Atlas) -> str:
    return atlas.bench.questions[item.question].case.operation


def _facts(item: Evidence, atlas: Atlas) -> Iterator[tuple[str, int]]:
    """Each fact about a question, with its rank."""
    case = atlas.bench.questions[item.question].case
    for name in case.inputs:
        if name not in LAYOUT:
            yield f"`{name}` is given", GIVEN
    for name, value in case.parameters.items():
        yield from _leaves("" if name == "objective" else name, value)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, int]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _leaves(f"{name}.{key}" if name else str(key), entry)
    elif isinstance(value, list):
        yield (f"`{name}` has {len(value)} entries", GIVEN)
        for entry in value:
            yield from _leaves(name, entry)
    elif isinstance(value, bool) or value is None:
        yield f"`{name}` is {'null' if value is None else str(value).lower()}", WORD
    elif isinstance(value, str):
        yield f"`{name}` is {value}", WORD
    else:
        yield f"`{name}` is given", GIVEN
        if value in (0, 1):
            yield f"`{name}` is {value:g}", NUMBER
