"""The score as text, as Markdown with the story of every mutant, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any

from ..formats import Vector
from ..mutants import ABSENT
from ..mutants.registry import Mutant
from ..mutants.score import ENOUGH, Score, Scored
from ..words import plural
from .census import Examined


@dataclass(frozen=True)
class Report:
    """Every mutant with what killed it; `whole` where all of them were examined, so that idle vectors show."""

    mutants: Sequence[Mutant]
    vectors: Sequence[Vector]
    examined: Mapping[str, Examined]
    whole: bool
    seconds: float

    @cached_property
    def score(self) -> Score:
        """Who kills whom."""
        by_id = {vector.id: vector for vector in self.vectors}
        return Score([Scored(m, self.examined[m.name].margins, by_id) for m in self.mutants], self.vectors)

    @property
    def mistaken(self) -> list[str]:
        """The mutants that the diagnosis takes for another."""
        return [name for name, one in self.examined.items() if not one.recognised]

    @property
    def idle(self) -> list[str]:
        """The vectors that kill nothing."""
        return [vector.id for vector in self.score.idle] if self.whole else []

    @property
    def complete(self) -> bool:
        """Nothing survives, nothing is idle, nobody is mistaken."""
        return not (self.score.survivors or self.idle or self.mistaken)

    def render(self, form: str, *, vectors: bool = False) -> str:
        """In one of the formats."""
        return {"text": self.text, "md": self.markdown, "json": self.json}[form](vectors)

    def text(self, vectors: bool) -> str:
        """One line per mutant, then what it adds up to."""
        rows = [("mutant", "clause", "killed by", "margin", "for one by", "named")]
        rows += [self._row(item) for item in self.score.scored]
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        if vectors:
            lines += ["", *(f"{id_}: {', '.join(names) or '-'}" for id_, names in self.score.kills.items())]
        return "\n".join([*lines, "", *self.summary, ""])

    def _row(self, item: Scored) -> tuple[str, ...]:
        one, witness = self.examined[item.mutant.name], self.witness(item)
        named = "yes" if one.named == (one.name,) else f"or {one.named[0]}" if one.recognised else "NO"
        killed = str(len(item.owed)) if item.killed else "SURVIVES"
        return item.mutant.name, item.mutant.clause, killed, show_margin(item.owed.get(witness, 0.0)), witness, named

    def witness(self, item: Scored) -> str:
        """The vector that tells most: of the mutant's clause, killing few others, with room to spare."""
        kills = self.score.kills

        def worth(id_: str) -> tuple[bool, bool, int, str]:
            foreign = item.mutant.clause not in item.vectors[id_].clauses
            return item.owed[id_] < ENOUGH, foreign, len(kills[id_]), id_

        return min(item.owed, key=worth, default="")

    @property
    def summary(self) -> list[str]:
        """What it adds up to."""
        scored, survivors = self.score.scored, self.score.survivors
        killed = len(scored) - len(survivors)
        least = min((item for item in scored if item.killed), key=lambda item: item.margin, default=None)
        lines = [
            f"{killed} of {plural(len(scored), 'mutant')} killed ({_percent(killed, len(scored))}) by "
            f"{plural(len(self.vectors), 'vector')}, each by {ENOUGH:g} times the tolerance or more"
            + (f"; least {show_margin(least.margin)} ({least.mutant.name})" if least else ""),
            f"{len(self.examined) - len(self.mistaken)} of {len(self.examined)} recognised by the diagnosis",
        ]
        lines += [f"survives: {item.mutant.name}: needs {item.missing}" for item in survivors]
        lines += [f"mistaken: {name} for {' '.join(self.examined[name].named) or 'nothing'}" for name in self.mistaken]
        idle = f"idle, kills nothing: {' '.join(self.idle)}" if self.idle else "every vector kills something"
        return [*lines, *([idle] if self.whole else []), f"{self.seconds:.0f} s"]

    def markdown(self, vectors: bool) -> str:
        """The gallery: what each mutant computes, why somebody writes it, what it does, who kills it, where it was seen."""
        lines = ["# Wrong implementations", "", " ".join(self.summary[:2]) + ".", ""]
        family = ""
        for item in self.score.scored:
            head = item.mutant.name.partition(".")[0]
            if head != family:
                family = head
                lines += [f"## {family}", ""]
            lines += [*self._story(item), ""]
        if self.whole:
            lines += ["## Not here, and why", "", *(f"- {what[:1].upper()}{what[1:]}: {why}." for what, why in ABSENT.items()), ""]  # fmt: skip
        if vectors:
            lines += ["## Vectors", "", *(f"- `{i}`: {_code(names)}" for i, names in self.score.kills.items()), ""]
        return "\n".join(lines)

    def _story(self, item: Scored) -> list[str]:
        mutant, witness, others = item.mutant, self.witness(item), len(item.owed) - 1
        body = " ".join(text for text in (f"{mutant.summary}.", mutant.story) if text)
        lines = [f"### `{mutant.name}` {{#{mutant.name}}}", "", body, ""]
        lines += [f"- Breaks [{mutant.clause}](../spec/index.md#{mutant.clause}).", f"- Effect: {mutant.effect}."]
        more = f" and {others} more" if others else ""
        lines += [f"- Killed by `{witness}` (margin {show_margin(item.owed.get(witness, 0.0))}){more}."]
        return lines + ([f"- Seen: {', '.join(f'<{link}>' for link in mutant.links)}."] if mutant.links else [])

    def json(self, vectors: bool) -> str:
        """Everything, as one JSON object; an infinite margin is the string "inf"."""
        whole: dict[str, Any] = {
            "mutants": [self._entry(item) for item in self.score.scored],
            "vectors": self.score.kills,
            "survivors": [item.mutant.name for item in self.score.survivors],
            "idle": self.idle,
            "mistaken": self.mistaken,
            "seconds": round(self.seconds, 3),
        }
        return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def _entry(self, item: Scored) -> dict[str, Any]:
        mutant, one = item.mutant, self.examined[item.mutant.name]
        told = {"name": mutant.name, "title": mutant.title, "consequence": mutant.consequence, "story": mutant.story}
        margins = {id_: "inf" if margin == inf else margin for id_, margin in item.margins.items()}
        rest = {"clause": mutant.clause, "effect": mutant.effect, "links": list(mutant.links), "kills": margins}
        return told | rest | {"killed": item.killed, "named": list(one.named), "recognised": one.recognised}


def render_pairs(found: Mapping[str, Examined], seed: int) -> str:
    """How many pairs the diagnosis recognises, and those that it does not."""
    right = [one for one in found.values() if one.recognised]
    exact = [one for one in right if set(one.named) == set(one.name.split("+"))]
    lines = [f"{name}: taken for {' + '.join(one.named) or 'nothing'} ({one.confidence:.1%})" for name, one in found.items() if not one.recognised]  # fmt: skip
    share = _percent(len(right), len(found))
    lines += [
        f"{len(right)} of {plural(len(found), 'pair')} recognised ({share}), {len(exact)} by name alone; seed {seed}"
    ]
    return "\n".join([*lines, ""])


def show_margin(margin: float) -> str:
    """A margin for reading."""
    return "exact" if margin == inf else f"{margin:.0f}x" if margin < 1e6 else ">1e6x"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.4g}%" if whole else "-"


def _code(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
