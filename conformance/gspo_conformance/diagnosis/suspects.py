"""Who would have answered like this: single mutants, in GSPO-token's form too, documented dialects, pairs of mutants.

An answer discriminates where it is wrong, or where a suspect would have been. A suspect's share is the
part of the discriminating answers that it returns too. Screening looks at a few answers, the verdict
at many.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

from ..mutants.atlas import Atlas, Row
from ..mutants.registry import Mutant, compose
from ..mutants.whole import Reference
from .constants import Unlisted, fitted
from .evidence import Evidence, spread

SCREENED = 32
FINALISTS = 12
JUDGED = 240
CONTROL = 160
TOLERATED = 8
LEFT = 16
FORMED = ("ratio", "mask", "gradient", "numerics")


class TokenForm(Reference):
    """The paper's GSPO written as GSPO-token, eq. 14: the same, as long as nothing is wrong with the ratio."""

    def choose(self, objective: dict[str, Any]) -> dict[str, Any]:
        chosen = super().choose(objective)
        return chosen | {"ratio": "gspo_token"} if chosen.get("ratio") == "sequence" else chosen


class InItsDtype(Reference):
    """Computed in the dtype of the case: where a wrong bound falls on a ratio, rounding tells on which side."""

    wide = False


FORM = Mutant("form.gspo-token", "GSPO-RATIO-3", TokenForm)
NARROW = Mutant("form.in-its-dtype", "GSPO-NUM-1", InItsDtype)


@dataclass(frozen=True)
class Suspect:
    """One explanation: a mutant, or several at once, and how many of the discriminating answers it returns."""

    parts: tuple[Mutant, ...]
    explained: int
    of: int

    @property
    def named(self) -> tuple[Mutant, ...]:
        """The mistakes: its parts but for the form in which they are written."""
        return tuple(part for part in self.parts if part is not FORM)

    @property
    def name(self) -> str:
        """`aggregation.token-mean+clip.range-swapped`."""
        return "+".join(part.name for part in self.named)

    @property
    def share(self) -> float:
        """The part explained."""
        return self.explained / self.of if self.of else 0.0


class Search:
    """The answers of one target, held against an atlas."""

    def __init__(self, atlas: Atlas, evidence: Sequence[Evidence]) -> None:
        self.atlas = atlas
        self.rounded = [item for item in evidence if not item.right and self._is_rounding(item)]
        beside = {item.question for item in self.rounded}
        evidence = [item for item in evidence if item.question not in beside]
        wrong = [item for item in evidence if not item.right]
        right = [item for item in evidence if item.right]
        self.sample = spread(wrong, atlas, SCREENED)
        self.control = spread(right, atlas, SCREENED)
        self.judged = spread(wrong, atlas, JUDGED) + spread(right, atlas, CONTROL)
        self.evidence = evidence

    def singles(self) -> list[Suspect]:
        """The best single mutants, best first."""
        return self._best([(mutant,) for mutant in self._screened()])

    def combinations(self, combined: Iterable[tuple[Mutant, ...]]) -> list[Suspect]:
        """Given combinations that explain most of a few answers, best first."""
        return self._best([parts for parts in combined if self._misses(parts) is not None])

    def formed(self) -> list[Suspect]:
        """Single mutants as an implementation in GSPO-token's form has them: its gradient does not pass through the ratio."""
        mutants = [mutant for mutant in self.atlas.mutants if mutant.name.partition(".")[0] in FORMED]
        return self.combinations((FORM, mutant) for mutant in mutants)

    def extended(self, suspects: Sequence[Suspect]) -> list[Suspect]:
        """Each suspect with the further mutants that explain what it leaves over."""
        found: list[tuple[Mutant, ...]] = []
        for suspect in suspects:
            left = spread([item for item in self.evidence if not self.explains(suspect.parts, item)], self.atlas, LEFT)
            for other in self.atlas.mutants:
                if other not in suspect.parts and self._moves(other, left):
                    found += [parts for parts in orders(suspect.parts, other) if self._all(parts, left)]
        return self._best(found[:FINALISTS])

    def _moves(self, mutant: Mutant, evidence: Sequence[Evidence]) -> bool:
        return bool(evidence) and all(self.atlas.bench.reaches(mutant, item.question) for item in evidence)

    def _all(self, parts: tuple[Mutant, ...], evidence: Sequence[Evidence]) -> bool:
        return all(self.explains(parts, item) for item in evidence)

    def explains(self, parts: tuple[Mutant, ...], item: Evidence) -> bool:
        """Whether the parts together give this answer."""
        row = self.predicted(parts, item.question)
        loose = sum(part.loose for part in parts if isinstance(part, Unlisted))
        return item.right if row is None else self.atlas.matches(item.question, item.row, [row], loose)[0]

    def pairs(self) -> list[Suspect]:
        """The best pairs, best first."""
        return self._best(self._pairs()[:FINALISTS])

    def fitted(self) -> list[Suspect]:
        """The reference with other constants. Long numbers, or several, may make up for something else: they have to explain everything."""
        found, short = fitted(self.evidence, self.atlas) or (None, False)
        return [one for one in self._best([found]) if short or one.share == 1] if found else []

    def _screened(self) -> list[Mutant]:
        scores: dict[int, int] = {}
        for item in self.sample:
            for index in self._matching(item):
                scores[index] = scores.get(index, 0) + 1
        ranked = sorted(scores, key=lambda index: -scores[index])
        bar = scores[ranked[min(FINALISTS, len(ranked)) - 1]] if ranked else 0
        return [self.atlas.mutants[index] for index in ranked if scores[index] >= bar][: 2 * FINALISTS]

    def _matching(self, item: Evidence) -> list[int]:
        """The mutants that alone return this answer."""
        rows = [(index, self.atlas.row(mutant, item.question)) for index, mutant in enumerate(self.atlas.mutants)]
        moved = [(index, row) for index, row in rows if row is not None]
        found = self.atlas.matches(item.question, item.row, [row for _, row in moved])
        return [index for (index, _), yes in zip(moved, found, strict=True) if yes]

    def _best(self, suspects: Iterable[tuple[Mutant, ...]]) -> list[Suspect]:
        """Judged by some answers and ranked; whoever comes out on top once more, by every answer there is."""
        found, heard = _ordered(self._judge(parts, self.judged) for parts in suspects), set[tuple[Mutant, ...]]()
        while level := [one for one in found if one.share == found[0].share and one.parts not in heard]:
            heard |= {one.parts for one in level}
            rest = [one for one in found if one not in level]
            found = _ordered([*(self._judge(one.parts, self.evidence) for one in level), *rest])
        return found

    def _judge(self, parts: tuple[Mutant, ...], evidence: Sequence[Evidence]) -> Suspect:
        missed = self.missed(parts, evidence)
        wrong = sum(not item.right for item in evidence)
        return Suspect(
            parts, wrong - sum(not item.right for item in missed), wrong + sum(item.right for item in missed)
        )

    def missed(self, parts: tuple[Mutant, ...], evidence: Sequence[Evidence]) -> list[Evidence]:
        """The answers that the parts do not return, few of them in their own dtype either."""
        missed = [item for item in evidence if not self.explains(parts, item)]
        return [item for item in missed if len(missed) > TOLERATED or not self._in_its_dtype(parts, item)]

    def _is_rounding(self, item: Evidence) -> bool:
        """Whether a wrong answer is so near the right one that nobody's mistake is to be seen in it."""
        return self.atlas.matches(item.question, item.row, [self.atlas.right(item.question)])[0]

    def _in_its_dtype(self, parts: tuple[Mutant, ...], item: Evidence) -> bool:
        if not all(part.kind.wide for part in parts):
            return False
        row = self.atlas.made(together((*parts, NARROW)), item.question)
        return self.atlas.matches(item.question, item.row, [row])[0]

    def predicted(self, parts: tuple[Mutant, ...], question: int) -> Row | None:
        """The answer of all parts at once; None where it is the right one."""
        reached = tuple(part for part in parts if self.atlas.bench.reaches(part, question))
        if len(reached) < 2:
            return self.atlas.row(reached[0], question) if reached else None
        if all(self.atlas.row(part, question) is None for part in reached):
            return None
        return self.atlas.made(together(reached), question)

    def _pairs(self) -> list[tuple[Mutant, ...]]:
        """Pairs that fit the sample: first by what each does alone, then by running both."""
        kept: list[tuple[int, tuple[Mutant, ...]]] = []
        for one, other in self._possible():
            for parts in orders((one,), other):
                misses = self._misses(parts)
                if misses is not None:
                    kept.append((misses, parts))
        return [parts for _, parts in sorted(kept, key=lambda entry: entry[0])]

    def _possible(self) -> list[tuple[Mutant, Mutant]]:
        """Pairs that no answer on which only one of the two acts speaks against, by more than an eighth."""
        moved, matching = self._alone(self.sample)
        allowed = len(self.sample) // TOLERATED
        quiet = self._quiet()
        found: list[tuple[Mutant, Mutant]] = []
        for i, j in combinations(quiet, 2):
            both = moved[i] & moved[j]
            only = (moved[i] & ~both & matching[i]) | (moved[j] & ~both & matching[j])
            if moved[i] and moved[j] and len(self.sample) - (both | only).bit_count() <= allowed:
                found.append((self.atlas.mutants[i], self.atlas.mutants[j]))
        return found

    def _alone(self, sample: Sequence[Evidence]) -> tuple[list[int], list[int]]:
        """Per mutant, as bits over the sample: where it acts, and where it alone returns the answer."""
        moved, matching = [0] * len(self.atlas.mutants), [0] * len(self.atlas.mutants)
        for place, item in enumerate(sample):
            for index, mutant in enumerate(self.atlas.mutants):
                moved[index] |= self.atlas.active(mutant, item.question) << place
            for index in self._matching(item):
                matching[index] |= 1 << place
        return moved, matching

    def _quiet(self) -> list[int]:
        """The mutants that act on few of the answers that were right."""
        loud = [sum(self.atlas.active(mutant, item.question) for item in self.control) for mutant in self.atlas.mutants]
        return [index for index, count in enumerate(loud) if count <= len(self.control) // TOLERATED]

    def _misses(self, parts: tuple[Mutant, ...]) -> int | None:
        """How many answers of the sample the parts do not return; None where they are too many."""
        misses, allowed = 0, len(self.sample) // TOLERATED
        for item in self.sample:
            misses += not self.explains(parts, item)
            if misses > allowed:
                return None
        return misses


def _ordered(suspects: Iterable[Suspect]) -> list[Suspect]:
    return sorted(suspects, key=lambda suspect: (-suspect.share, len(suspect.parts), suspect.name))


@cache
def together(parts: tuple[Mutant, ...]) -> Mutant:
    """All parts at once, the first outermost."""
    whole = parts[0]
    for part in parts[1:]:
        whole = compose(whole, part)
    return whole


def orders(parts: tuple[Mutant, ...], other: Mutant) -> list[tuple[Mutant, ...]]:
    """With `other` inside; outside too where a stage in common makes that another thing; not with a variant of itself."""
    if any(issubclass(part.kind, other.kind) or issubclass(other.kind, part.kind) for part in parts):
        return []
    shared = any(not other.stages.isdisjoint(part.stages) for part in parts)
    return [(*parts, other), (other, *parts)] if shared else [(*parts, other)]
