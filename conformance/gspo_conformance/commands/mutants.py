"""The suite's own score: which wrong implementation is killed by which vector, and whether the diagnosis names it.

A mutant is killed where a MUST or SHOULD vector refuses its answer by ten times the tolerance or more.
Exit code 1 where one survives, where a vector kills nothing, or where the diagnosis takes one for another.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from ..words import UsageError, near, plural
from . import counted, processes

if TYPE_CHECKING:
    from ..mutants import Mutant

SEED = 20250724


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gspo mutants`."""
    parser.add_argument("patterns", nargs="*", metavar="GLOB", help="only these mutants, or those of these clauses")
    parser.add_argument("--format", choices=("text", "md", "json"), default="text", help="how to report")
    parser.add_argument("--vectors", action="store_true", help="also which mutants each vector kills")
    parser.add_argument("--pairs", type=_pairs_wanted, metavar="N", help="diagnose N pairs of mutants instead")
    parser.add_argument("--seed", type=int, default=SEED, help="which pairs")
    parser.add_argument("--jobs", type=processes, default=min(os.cpu_count() or 1, 4), metavar="N", help="processes")


def _pairs_wanted(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more pairs, got {word}")
    return int(word)


def run(arguments: argparse.Namespace) -> int:
    """Examines every mutant, reports, and says whether the suite is complete."""
    from ..diagnosis.census import census
    from ..diagnosis.report import Report
    from ..formats import load_vectors
    from ..runner import epoch

    chosen, vectors, begin = choose(arguments.patterns), load_vectors(), time.perf_counter()
    if arguments.pairs:
        return _pairs(arguments, chosen)
    with counted("mutant") as progress:
        found = census(vectors, [mutant.name for mutant in chosen], workers=arguments.jobs, progress=progress)
    seconds = time.perf_counter() - begin if epoch() is None else 0.0
    report = Report(chosen, vectors, found, whole=not arguments.patterns, seconds=seconds)
    print(report.render(arguments.format, vectors=arguments.vectors), end="")
    return 0 if report.complete else 1


def choose(patterns: Sequence[str]) -> list[Mutant]:
    """The mutants whose name or clause matches one of the globs; all of them without globs."""
    from ..mutants import mutants

    everything = mutants()
    chosen = [mutant for mutant in everything if not patterns or any(_matches(mutant, glob) for glob in patterns)]
    if not chosen:
        guess = near(patterns[0], [mutant.name for mutant in everything])
        raise UsageError(f"no mutant matches {' '.join(patterns)}" + (f"; did you mean {guess!r}?" if guess else ""))
    return chosen


def _matches(mutant: Mutant, glob: str) -> bool:
    return any(fnmatchcase(name, glob) for name in (mutant.name, mutant.name.partition(".")[0], mutant.clause))


def _pairs(arguments: argparse.Namespace, chosen: Sequence[Any]) -> int:
    from ..diagnosis.census import census_of_pairs, sample_pairs
    from ..diagnosis.report import render_pairs
    from ..formats import load_vectors
    from ..mutants.atlas import Atlas
    from ..mutants.bench import bench

    vectors = load_vectors()
    names = sample_pairs(Atlas(bench(vectors), chosen), arguments.pairs, arguments.seed) if len(chosen) > 1 else []
    if not names:
        raise UsageError(f"no pair in {plural(len(chosen), 'mutant')}: expected two that are no variants of one")
    with counted("pair") as progress:
        found = census_of_pairs(vectors, names, workers=arguments.jobs, progress=progress)
    print(render_pairs(found, arguments.seed), end="")
    return 0 if sum(one.recognised for one in found.values()) >= 0.9 * len(found) else 1
