"""Every mutant under examination: who kills it, and whether the diagnosis names it; the same for pairs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from ..formats import Vector, vector_from_json
from ..mutants.atlas import Atlas, Row, row_of
from ..mutants.bench import Bench, bench, same
from ..mutants.registry import Mutant, compose, find, mutants
from ..mutants.score import margin
from .evidence import Evidence
from .suspects import orders
from .verdict import diagnose_evidence

Progress: TypeAlias = Callable[[int, int, str], None]
TRIES = 20
T = TypeVar("T")


@dataclass(frozen=True)
class Examined:
    """What became of a mutant or a pair: margins by vector, and who the diagnosis says it is."""

    name: str
    margins: dict[str, float] = field(repr=False)
    named: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()
    confidence: float = 0.0
    sentence: str = ""

    @property
    def recognised(self) -> bool:
        """Named, alone or among those that these vectors cannot tell apart."""
        own = set(self.name.split("+"))
        return any(set(names) == own for names in (self.named, *(other.split("+") for other in self.alike)))


@dataclass(frozen=True)
class Account:
    """All that one mutant answers: the margins of the vectors that kill it, and its row per question (None: the right answer)."""

    name: str
    margins: dict[str, float]
    rows: dict[int, Row | None]
    asked: dict[str, int]


def account_of(at: Bench, mutant: Mutant) -> Account:
    """What a mutant answers to every vector: in float32, in float64 too where only that kills it."""
    margins: dict[str, float] = {}
    rows: dict[int, Row | None] = {}
    asked: dict[str, int] = {}
    for index, question in enumerate(at.questions):
        id_ = question.vector.id
        if id_ in margins:
            continue
        answer, right = at.ask(mutant, index), at.right(index)
        rows[index] = None if same(answer, right) else row_of(question, answer)
        found = margin(question, answer, right)
        if found > 1:
            margins[id_] = found
        if found > 1 or id_ not in asked:
            asked[id_] = index
    return Account(mutant.name, margins, rows, asked)


def examine(atlas: Atlas, told: Account) -> Examined:
    """What the diagnosis makes of an account."""
    evidence = [
        Evidence(index, told.rows[index] or atlas.right(index), id_ not in told.margins)
        for id_, index in told.asked.items()
    ]
    found = diagnose_evidence(evidence, atlas)
    if found is None:
        return Examined(told.name, told.margins)
    return Examined(told.name, told.margins, found.names, found.equivalents, found.confidence, found.sentence)


def census(
    vectors: Sequence[Vector], names: Sequence[str], *, workers: int = 1, progress: Progress | None = None
) -> dict[str, Examined]:
    """Mutants examined by name. All give their account first, so that the diagnosis finds every answer in the atlas."""
    atlas = Atlas(bench(vectors), mutants())
    told: dict[str, Account] = {}
    for account in _pooled(_account, vectors, [mutant.name for mutant in mutants()], workers):
        told[account.name] = account
        atlas.keep(account.name, account.rows)
        if progress is not None:
            progress(len(told), len(mutants()), account.name)
    return {name: examine(atlas, told[name]) for name in names}


def census_of_pairs(
    vectors: Sequence[Vector], names: Sequence[str], *, workers: int = 1, progress: Progress | None = None
) -> dict[str, Examined]:
    """Pairs, `a+b`, examined one by one."""
    found: dict[str, Examined] = {}
    for one in _pooled(_examine, vectors, names, workers):
        found[one.name] = one
        if progress is not None:
            progress(len(found), len(names), one.name)
    return {name: found[name] for name in names}


def _pooled(work: Callable[[str], T], vectors: Sequence[Vector], names: Sequence[str], workers: int) -> Iterator[T]:
    if workers < 2:
        _HERE[:] = [Atlas(bench(vectors), mutants())]
        yield from map(work, names)
        return
    raws = [(vector.raw, vector.folder) for vector in vectors]
    with ProcessPoolExecutor(workers, get_context("spawn"), _prepare, (raws,)) as pool:
        for future in as_completed([pool.submit(work, name) for name in names]):
            yield future.result()


_HERE: list[Atlas] = []


def _prepare(raws: list[tuple[dict[str, Any], Path]]) -> None:
    _HERE[:] = [Atlas(bench(vector_from_json(raw, folder) for raw, folder in raws), mutants())]


def _account(name: str) -> Account:
    return account_of(_HERE[0].bench, find(name))


def _examine(name: str) -> Examined:
    return examine(_HERE[0], _account(name))


def sample_pairs(atlas: Atlas, count: int, seed: int) -> list[str]:
    """`count` pairs drawn from all that differ from both of their members on some vector."""
    source, found = random.Random(seed), dict[str, None]()
    for _ in range(count * TRIES):
        if len(found) == count:
            break
        one, other = source.sample(range(len(atlas.mutants)), 2)
        pair = (atlas.mutants[min(one, other)], atlas.mutants[max(one, other)])
        if compatible(atlas, *pair):
            found["+".join(mutant.name for mutant in pair)] = None
    return list(found)


def compatible(atlas: Atlas, one: Mutant, other: Mutant) -> bool:
    """Whether both show: the pair differs from each of the two alone on some vector."""
    if not orders((one,), other):
        return False
    pair, unseen = compose(one, other), [one, other]
    for index in range(len(atlas.bench.questions)):
        acting = [mutant for mutant in (one, other) if atlas.bench.reaches(mutant, index)]
        if not acting:
            continue
        row = atlas.made(pair, index) if len(acting) == 2 else atlas.row(acting[0], index) or atlas.right(index)
        unseen = [mutant for mutant in unseen if _same(atlas, index, row, mutant)]
        if not unseen:
            return True
    return False


def _same(atlas: Atlas, index: int, row: Row, mutant: Mutant) -> bool:
    return atlas.matches(index, row, [atlas.row(mutant, index) or atlas.right(index)])[0]
