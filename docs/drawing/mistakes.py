"""The gallery of mistakes, a page per area, from the mutants: `python docs/drawing/mistakes.py [--check]`.

witnesses.json remembers which vector shows which mutant; one that is missing or no longer kills is chosen anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from html import escape
from importlib import import_module
from itertools import groupby

import numpy as np
from generated import DOCS, asked_to_check, settle
from witness import MOST, VISIBLE, Sight, best, choose, indices

from gspo_conformance.clauses import clauses
from gspo_conformance.formats import load_vectors
from gspo_conformance.mutants import Mutant, mutants
from gspo_conformance.mutants.bench import bench

REMEMBERED = "mistakes/witnesses.json"
TITLES = {
    "advantage_edges": "Edges of advantages",
    "advantage_use": "Use of advantages",
    "clip": "Clipping",
    "distribution": "Micro-batches and ranks",
}
SPEC = "../spec"
HEIGHT, MIDDLE = 64, 32


def plot(sight: Sight) -> str:
    """Dashes where the numbers should be, dots where they are."""
    right, wrong, told = np.atleast_2d(sight.right), np.atleast_2d(sight.wrong), sight.output
    small = sight.change < VISIBLE
    if small:
        right, wrong, told = np.zeros(right.shape), wrong - right, f"error of {told}"
    top = float(np.max(np.abs(wrong if small else right))) or float(np.nanmax(np.abs(wrong), initial=0.0)) or 1.0
    top = top if small else min(max(top, float(np.nanmax(np.abs(np.where(np.isfinite(wrong), wrong, 0.0))))), 3 * top)
    step = min(16.0, 290 / (right.size + right.shape[0]))
    rights, dots, stems, x = [], [], [], 6.0
    for good, bad in zip(right / top, wrong / top, strict=True):
        for one, other in zip(good, bad, strict=True):
            rights.append(f"M{x - 4:.0f} {_y(one)}h8")
            dots.append(f"M{x:.0f} {_y(other)}h0" if np.isfinite(other) else "")
            stems.append(_stem(x, one, other))
            x += step
        x += step
    words = escape(f"{told}: dashes right, dots of the mutant", quote=True)
    paths = {"b": f"M0 {MIDDLE}H{x:.0f}", "r": "".join(rights), "w": "".join(stems), "d": "".join(dots)}
    drawn = "".join(f'<path class="{kind}" d="{path}"/>' for kind, path in paths.items() if path)
    return f'<svg class="mistake-plot" viewBox="0 0 300 {HEIGHT}" role="img" aria-label="{words}">{drawn}</svg>'


def _stem(x: float, right: float, wrong: float) -> str:
    """From the right number to the wrong one; a cross where it is no finite number."""
    if not np.isfinite(wrong):
        return f"M{x - 3:.0f} 3l6 6m0-6l-6 6"
    return f"M{x:.0f} {_y(right)}V{_y(wrong)}" if _y(right) != _y(wrong) else ""


def _y(value: float) -> str:
    return f"{MIDDLE - 27 * min(max(value, -1.0), 1.0):.0f}"


def shown(sight: Sight) -> str:
    """The plot and what it shows, or words where there is nothing to draw."""
    if sight.refused or not 1 < sight.right.size <= MOST:
        return f'<p class="mistake-plot">{escape(sight.refused or numbers(sight))}</p>'
    drawn = (
        f"error of {sight.output}, at most {sight.change:.1g} of the largest"
        if sight.change < VISIBLE
        else sight.output
    )
    return f"<figure>{plot(sight)}<figcaption>{escape(drawn)} on <code>{sight.vector.id}</code></figcaption></figure>"


def numbers(sight: Sight) -> str:
    """A single number beside the right one, or the largest error of many."""
    if sight.right.size == 1:
        return f"{sight.output} is {float(sight.wrong.flat[0]):.6g} where {float(sight.right.flat[0]):.6g} is due"
    return f"{sight.output}: off by up to {sight.change:.2g} of the largest of {sight.right.size:,} numbers"


def factor(sight: Sight) -> str:
    """The margin in words."""
    margin = sight.margin
    if not np.isfinite(margin):
        due = "these numbers are due exactly" if np.isfinite(sight.wrong).all() else "a finite number is due"
        return "" if sight.refused else f", where {due}"
    exponent = int(np.floor(np.log10(margin)))
    return f" by {margin:,.0f} times the tolerance" if margin < 1e5 else f" by 10^{exponent}^ times the tolerance".replace("^", "<sup>", 1).replace("^", "</sup>", 1)  # fmt: skip


def entry(mutant: Mutant, sight: Sight) -> str:
    """One mistake: what, how it shows, who had it, which vector catches it."""
    clause = clauses()[mutant.clause]
    text = [f"**{mutant.title}.** {_sentence(mutant.consequence)} {mutant.story}".strip()]
    text.append(f"In training: {mutant.effect}.")
    text.append(
        f"Breaks [{clause.id}]({SPEC}/{clause.page}#{clause.id}), {_inner(clause.title)}. Caught by `{sight.vector.id}`{factor(sight)}."
    )
    if mutant.links:
        text.append("Seen in " + ", ".join(f"[{_place(one)}]({link})" for one, link in zip(mutant.seen, mutant.links, strict=True)) + ".")  # fmt: skip
    body = "\n\n".join(" ".join(paragraph.split()) for paragraph in text)
    return f"## {mutant.name} {{#{mutant.name}}}\n\n{shown(sight)}\n\n{body}\n"


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}." if words else ""


def _inner(words: str) -> str:
    return words[0].lower() + words[1:] if words[1:2].islower() else words


def _place(seen: str) -> str:
    repository, mark, commit = seen.partition("@")
    return f"{repository}@{commit[:8]}" if mark else seen


def area(mutant: Mutant) -> str:
    """The file it is written in."""
    return mutant.kind.__module__.rpartition(".")[2]


def title(name: str) -> str:
    """What an area is called."""
    return TITLES.get(name, name.capitalize())


def about(name: str) -> str:
    """What is wrong in an area, in a sentence."""
    return (import_module(f"gspo_conformance.mutants.wrong.{name}").__doc__ or "").partition("\n")[0]


def pages(sights: Mapping[str, Sight]) -> dict[str, str]:
    """Every page of the gallery by its name below docs/."""
    grouped = {name: list(group) for name, group in groupby(mutants(), key=area)}
    found = {}
    for name, group in grouped.items():
        entries = "\n".join(entry(mutant, sights[mutant.name]) for mutant in group)
        found[f"mistakes/{name}.md"] = (
            f"# Mistakes: {_inner(title(name))}\n\n{about(name)} [How to read a plot](index.md#how-to-read-a-plot).\n\n{entries}"
        )
    found["mistakes/index.md"] = index(grouped)
    return found


def index(grouped: Mapping[str, list[Mutant]]) -> str:
    """The first page: what there is, and how to read it."""
    number = sum(len(group) for group in grouped.values())
    seen = sum(bool(mutant.links) for group in grouped.values() for mutant in group)
    rows = [f"| [{title(name)}]({name}.md) | {len(group)} | {about(name)} |" for name, group in grouped.items()]
    return f"""# Mistakes

{number} wrong implementations of GSPO and its relatives, written on purpose: the suite is measured by whether it catches each of them, and the diagnosis
names a trainer's mistake by comparing its answers with theirs. {seen} were seen in public code; the others are the slips next to those.

| area | mistakes | |
|---|---:|---|
{chr(10).join(rows)}

## How to read a plot

Each shows one output of the vector that catches the mistake, element by element, rows apart: dashes are where the numbers
should be, dots where the mistake puts them, a cross is no finite number. An error too small to see beside the numbers is drawn by itself, enlarged.

```console
$ gspo explain {next(iter(grouped.values()))[0].name}                 # the same in a terminal
$ gspo check mutant:{next(iter(grouped.values()))[0].name}            # what the suite says to it
$ gspo mutants                                         # the whole score
```
"""


def witnessed(remembered: Mapping[str, str], anew: bool) -> dict[str, Sight]:
    """A sight of every mutant; where nothing is remembered, or it shows nothing, chosen `anew` or left out."""
    asked = bench(load_vectors())
    places, found = indices(asked), {}
    for mutant in mutants():
        sight = best(asked, mutant, places.get(remembered.get(mutant.name, ""), ()))
        if sight or anew:
            found[mutant.name] = sight or choose(asked, mutant)
    return found


def missing(sights: Iterable[str]) -> list[str]:
    """The mutants without a sight."""
    return sorted({mutant.name for mutant in mutants()} - set(sights))


def main() -> int:
    """Writes or checks every page."""
    check, path = asked_to_check(__doc__), DOCS / REMEMBERED
    remembered = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    sights = witnessed(remembered, anew=not check)
    if lost := missing(sights):
        sys.stderr.write(f"no vector is remembered for {', '.join(lost)}: run {sys.argv[0]}\n")
        return 1
    chosen = {name: sight.vector.id for name, sight in sorted(sights.items())}
    return settle(pages(sights) | {REMEMBERED: json.dumps(chosen, indent=1) + "\n"}, check)


if __name__ == "__main__":
    sys.exit(main())
