"""Why no vector, or hardly one, applies to a target, as far as its objective says: the nearest objective that vectors have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ..applicability import OBJECTIVE
from ..formats import Vector, load_vectors
from ..run import UNSUPPORTED, Run
from ..words import plural

NOTHING = "not one vector applies to what this target claims to do; see its capabilities"
RANGE = {"surrogate.low", "surrogate.high"}
MANY = 5
SETTING = "where the range is a setting, check the loss with that one"


def why(capabilities: Mapping[str, Any]) -> str:
    """One sentence; `NOTHING` where objectives do not explain it."""
    claimed = capabilities.get("objectives") or ()
    found = [(differences(one, vector), vector) for one in claimed for vector in load_vectors() if _has_loss(vector)]
    if not found:
        return NOTHING
    least = min(_distance(differing) for differing, _ in found)
    nearest = [(differing, vector) for differing, vector in found if _distance(differing) == least]
    if not any(least):
        missing = min((_lacking(vector, capabilities) for _, vector in nearest), key=len)
        return f"{NOTHING}: vectors with its objective need {', '.join(missing)}" if missing else NOTHING
    (differing, count) = Counter(differing for differing, _ in nearest).most_common(1)[0]
    told = ", ".join(f"{name} {theirs} for {own}" for name, own, theirs in differing)
    advice = f"; {SETTING}" if {name for name, _, _ in differing} <= RANGE else ""
    return (
        f"no vector has the objective of this target; the nearest, with {plural(count, 'vector')}, has {told}{advice}"
    )


def more(capabilities: Mapping[str, Any]) -> str:
    """Where most vectors of the objective of a target have another clip range than its own: which; else nothing."""
    claimed = capabilities.get("objectives") or ()
    if not claimed or any(one.get("surrogate") != claimed[0].get("surrogate") for one in claimed):
        return ""
    found = [
        min((differences(one, vector) for one in claimed), key=_distance)
        for vector in load_vectors()
        if _has_loss(vector)
    ]
    own = sum(not differing for differing in found)
    others = Counter(differing for differing in found if differing and {name for name, _, _ in differing} <= RANGE)
    (differing, count), *_ = others.most_common(1) or [((), 0)]
    if count < MANY * own:
        return ""
    bounds = {name.partition(".")[2]: theirs for name, _, theirs in differing}
    told = " and ".join(f"{name} {theirs}" for name, theirs in bounds.items())
    return f"few vectors have its clip range: {own}, where {count} have {told}; {SETTING}"


def unasked(run: Run) -> list[str]:
    """The functions that a target claims and no vector of the suite asks it for, with what most of theirs need besides."""
    found: list[str] = []
    vectors = Counter(vector.operation for vector in load_vectors())
    for operation in run.capabilities.get("operations", ()):
        of = [result for result in run.results if result.operation == operation]
        idle = len({result.id for result in of}) == vectors[operation] and all(one.verdict == UNSUPPORTED for one in of)
        needs = Counter(result.reason for result in of if result.dtype in run.capabilities.get("dtypes", ()))
        if idle and needs and OBJECTIVE not in needs:
            ((need, count),) = needs.most_common(1)
            found.append(f"nothing is asked of `{operation}`: its questions need {need} ({count} of {needs.total()})")
    return found


def _distance(differing: tuple[tuple[str, str, str], ...]) -> tuple[bool, int]:
    """Another kind of surrogate is farther away than any number of other fields."""
    return any(name == "surrogate" for name, _, _ in differing), len(differing)


def _has_loss(vector: Vector) -> bool:
    return vector.operation == "policy_loss" and vector.refuses is None


def _lacking(vector: Vector, capabilities: Mapping[str, Any]) -> list[str]:
    taken = capabilities.get("inputs")
    return [] if taken is None else [f"the input {name}" for name in vector.raw["inputs"] if name not in taken]


def differences(claimed: Mapping[str, Any], vector: Vector) -> tuple[tuple[str, str, str], ...]:
    """Every field of `claimed` that the vector's objective has otherwise: its name, the claimed value, the vector's."""
    return tuple(_differing("", claimed, vector.parameters["objective"]))


def _differing(name: str, claimed: Any, found: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(claimed, Mapping) and isinstance(found, Mapping) and claimed.get("kind") == found.get("kind"):
        for key, value in claimed.items():
            yield from _differing(f"{name}.{key}" if name else key, value, found.get(key))
    elif isinstance(claimed, Mapping) and isinstance(found, Mapping):
        yield name, str(claimed["kind"]), str(found["kind"])
    elif (list(claimed) if isinstance(claimed, tuple) else claimed) != found:
        yield name, str(claimed), str(found)
