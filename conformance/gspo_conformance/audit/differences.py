"""Where a run's own numbers and the recomputed ones part: since which step, how often, by how much."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

KEPT = 64
# Fewer differences than these are in one rank or micro-batch by chance.
FEWEST = 3
# An agreement tells something where the number is so much larger than its rounding.
TELLING = 100
MOST_REASONS = 200


@dataclass(frozen=True)
class Difference:
    """One number of the run that is not what its claim gives. `rank` and `microbatch` are None for a whole step."""

    what: str
    step: int
    got: float
    expected: float
    tolerance: float
    rank: int | None = None
    microbatch: int | None = None

    @property
    def size(self) -> float:
        """|got - expected|; infinite where only one of them is a number."""
        if self.got == self.expected or (math.isnan(self.got) and math.isnan(self.expected)):
            return 0.0
        size = abs(self.got - self.expected)
        return math.inf if math.isnan(size) else size

    @property
    def place(self) -> str:
        """`step 3, rank 1, micro-batch 0`."""
        words = [f"step {self.step}"]
        words += [] if self.rank is None else [f"rank {self.rank}"]
        words += [] if self.microbatch is None else [f"micro-batch {self.microbatch}"]
        return ", ".join(words)


@dataclass
class Series:
    """All comparisons of one quantity over a trace; the first `KEPT` differences are kept, and the worst."""

    what: str
    compared: int = 0
    different: int = 0
    kept: list[Difference] = field(default_factory=list)
    worst: Difference | None = None
    steps: set[int] = field(default_factory=set)
    # Of all comparisons: the last step, and the last in which one that is not all but 0 was right; of them, and of those that differ: ranks, micro-batches.
    last: int = 0
    last_right: int = -1
    seen: tuple[set[int | None], ...] = field(default_factory=lambda: (set(), set()))
    off: tuple[set[int | None], ...] = field(default_factory=lambda: (set(), set()))

    def add(self, one: Difference) -> bool:
        """Counts a comparison; whether it is a difference."""
        self.compared += 1
        self.last = max(self.last, one.step)
        for places, place in zip(self.seen, (one.rank, one.microbatch), strict=True):
            places.add(place)
        if one.size <= one.tolerance:
            if abs(one.expected) > TELLING * one.tolerance:
                self.last_right = max(self.last_right, one.step)
            return False
        self.different += 1
        for places, place in zip(self.off, (one.rank, one.microbatch), strict=True):
            places.add(place)
        self.steps.add(one.step)
        if len(self.kept) < KEPT:
            self.kept.append(one)
        if self.worst is None or one.size > self.worst.size:
            self.worst = one
        return True

    @property
    def since(self) -> int:
        """The first step that differs."""
        return min(self.steps)

    @property
    def here_and_there(self) -> bool:
        """Whether some are right from the first step on that differs: no setting of the whole run is wrong."""
        return bool(self.steps) and self.last_right >= self.since

    @property
    def only(self) -> str:
        """`, all at rank 1`: the one step, rank or micro-batch of all differences, where there are others without."""
        words = [f"step {self.since}"] if len(self.steps) == 1 < self.different and self.last > self.since else []
        for name, seen, off in zip(("rank", "micro-batch"), self.seen, self.off, strict=True):
            if len(off) == 1 < len(seen) and self.different >= FEWEST:
                words += [f"{name} {place}" for place in off]
        return f", all at {', '.join(words)}" if words else ""


@dataclass
class Ledger:
    """The series of a trace by quantity; what could not be compared, with the number of times; by what factor the
    gradient of each micro-batch is larger than that of the claim's loss, with its step and by what factor its own loss is; and whether gradients show
    that the loop weighs micro-batches by what they count, None where they do not tell. A step of fewer micro-batches
    than `usual`, or fewer than `ranks`, is not whole.
    """

    series: dict[str, Series] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    shares: Counter[str] = field(default_factory=Counter)
    factors: list[tuple[int, float, float]] = field(default_factory=list)
    weighed: bool | None = None
    usual: int = 0
    ranks: int = 0

    def again(self) -> Ledger:
        """An empty one, for a second look at a step that was seen."""
        return Ledger(shares=self.shares.copy(), usual=self.usual, ranks=self.ranks)

    def compare(self, one: Difference) -> bool:
        """Enters a comparison; whether it is a difference."""
        return self.series.setdefault(one.what, Series(one.what)).add(one)

    def miss(self, reason: str) -> None:
        """Enters something that could not be compared."""
        if len(self.missing) >= MOST_REASONS:
            reason = next((known for known in (reason, "other reasons") if known in self.missing), "other reasons")
        self.missing[reason] = self.missing.get(reason, 0) + 1

    @property
    def unchecked(self) -> list[tuple[str, int]]:
        """What is missing and how often, the most frequent first."""
        return sorted(self.missing.items(), key=lambda item: -item[1])

    def bad(self) -> Iterator[Series]:
        """The series with differences, losses first."""
        order = ("loss", "step loss", "gradient", "advantages")
        found = [one for one in self.series.values() if one.different]
        return iter(sorted(found, key=lambda one: order.index(one.what) if one.what in order else len(order)))
