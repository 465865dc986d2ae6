"""What a name of the suite means, in words and numbers: a clause, a vector, a flag or a mutant."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from textwrap import fill, indent
from typing import Any

import numpy as np

from .clauses import Clause, clauses
from .flags import read_flags
from .formats import Expected, Vector, load_vectors
from .mutants import Mutant, mutants
from .tensors import NumPyArray
from .words import UsageError, columns, near, plural

_WIDTH = 100
_ROWS, _COLUMNS = 6, 10


def explain(name: str) -> str:
    """The explanation of `name`; an unknown one is an error that names the near one."""
    vectors = {vector.id: vector for vector in load_vectors()}
    wrong = {mutant.name: mutant for mutant in mutants()}
    flags, known = read_flags(), clauses()
    word = _canonical(name)
    if word in known:
        return _clause(known[word], list(vectors.values()), list(wrong.values()))
    if name in vectors:
        return _vector(vectors[name], known, flags)
    if name in flags:
        return _flag(name, flags[name], list(vectors.values()))
    if name.removeprefix("mutant:") in wrong:
        return _mutant(wrong[name.removeprefix("mutant:")], known)
    raise UsageError(_unknown(name, [*known, *vectors, *flags, *wrong]))


def _canonical(name: str) -> str:
    """`agg-1` and `AGG-1` are `GSPO-AGG-1`."""
    upper = name.upper()
    return upper if upper.startswith("GSPO-") else f"GSPO-{upper}"


def _unknown(name: str, known: list[str]) -> str:
    guess = near(name, known) or near(_canonical(name), known)
    hint = f"did you mean {guess!r}?" if guess else "`gspo vectors list` names vectors, `gspo mutants` mutants"
    return f"no clause, vector, flag or mutant is called {name!r}; {hint}"


def _clause(clause: Clause, vectors: list[Vector], wrong: list[Mutant]) -> str:
    testing = [vector for vector in vectors if clause.id in vector.clauses]
    testing.sort(key=lambda vector: (len(vector.clauses), vector.id))
    breaking = [mutant for mutant in wrong if mutant.clause == clause.id]
    testable = "" if clause.testable else ", not testable by a program"
    lines = [f"{clause.id}  {clause.title}  ({clause.level}{testable}; docs/spec/{clause.page})", "", clause.text, ""]
    lines += [f"code     {', '.join(clause.code)}"] if clause.code else []
    lines += _listed("vectors", [f"{vector.id}  {vector.title}" for vector in testing])
    lines += _listed("mutants", [f"{mutant.name}  {mutant.title}" for mutant in breaking])
    return _text(lines)


def _vector(vector: Vector, known: dict[str, Clause], flags: dict[str, Any]) -> str:
    narrow = f", log-probabilities stored in {vector.input_dtype}" if vector.input_dtype else ""
    lines = [
        f"{vector.id}  {vector.title}",
        "",
        f"{vector.level}, {vector.operation} in {' and '.join(vector.dtype)}{narrow}",
    ]
    lines += [f"  {id_}  {known[id_].title}" if id_ in known else f"  {id_}" for id_ in vector.clauses]
    lines += ["", fill(vector.note, columns(_WIDTH))] if vector.note else []
    lines += ["", "what it hunts"]
    for flag in vector.flags:
        story = flags.get(flag, {"hunts": "", "effect": ""})
        lines.append(
            fill(
                f"{flag}: {story['hunts']} {story['effect']}".strip(),
                columns(_WIDTH),
                initial_indent="  ",
                subsequent_indent="    ",
            )
        )
    lines += ["", "parameters", indent(_plain(vector.parameters), "  "), "", "inputs", *_inputs(vector.inputs, "  ")]
    lines += ["", "expected", *_expected(vector)]
    return _text(lines)


def _plain(parameters: dict[str, Any]) -> str:
    """JSON with its innermost objects on one line."""
    written = json.dumps(parameters, indent=2, ensure_ascii=False)
    return re.sub(r"\{[^{}]*\}", lambda match: " ".join(match[0].split()), written)


def _inputs(inputs: dict[str, Any], margin: str) -> Iterator[str]:
    for name, value in inputs.items():
        if isinstance(value, list):
            for i, part in enumerate(value):
                yield f"{margin}{name}[{i}]"
                yield from _inputs(part, f"{margin}  ")
        else:
            array = np.asarray(value)
            yield f"{margin}{name}  {array.dtype} {list(array.shape)}"
            yield indent(_numbers(array), f"{margin}  ")


def _expected(vector: Vector) -> Iterator[str]:
    if vector.refuses is not None:
        yield f"  an error that names `{vector.refuses}`"
    for name, entry in vector.expected.items():
        yield f"  {name}  {_rule(entry)}"
        yield indent(_numbers(entry.value) if entry.shape else str(entry.text), "    ")


def _rule(entry: Expected) -> str:
    if not entry.scale.size or not entry.scale.any():
        return "exactly"
    owed = int(np.count_nonzero(entry.scale == 0))
    exact = f", {plural(owed, 'element')} exactly" if owed else ""
    margin = "" if entry.kink_margin is None else f"; nearest kink {entry.kink_margin:.2g} away"
    return f"to {entry.compare.k:g} u × scale, scale up to {float(np.max(entry.scale)):.3g}{exact}{margin}"


def _numbers(array: NumPyArray) -> str:
    """Numbers in columns; large arrays are cut, and say so."""
    table = np.atleast_2d(array).reshape(-1, array.shape[-1] if array.ndim else 1) if array.size else np.zeros((0, 0))
    rows = [[_number(value) for value in row[:_COLUMNS]] for row in table[:_ROWS]]
    width = max((len(cell) for row in rows for cell in row), default=0)
    cut = "  …" if table.shape[1] > _COLUMNS else ""
    lines = ["  ".join(cell.rjust(width) for cell in row) + cut for row in rows]
    return "\n".join([*lines, *(["…"] if table.shape[0] > _ROWS else [])]) or "(empty)"


def _number(value: Any) -> str:
    return str(int(value)) if isinstance(value, (np.bool_, np.integer)) else f"{float(value):.9g}"


def _flag(name: str, story: dict[str, Any], vectors: list[Vector]) -> str:
    lines = [
        f"{name}  {story['title']}",
        "",
        fill(story["hunts"], columns(_WIDTH)),
        fill(story["effect"], columns(_WIDTH)),
        "",
    ]
    lines += _listed("seen", story["seen"]) + _listed("clauses", story["clauses"])
    return _text(lines + _listed("vectors", [f"{v.id}  {v.title}" for v in vectors if name in v.flags]))


def _mutant(mutant: Mutant, known: dict[str, Clause]) -> str:
    clause = known.get(mutant.clause)
    about = f"{mutant.clause}  {clause.title}" if clause else mutant.clause
    words = [f"It computes: {mutant.title}.", f"Then {mutant.consequence}." if mutant.consequence else "", mutant.story]
    words.append(f"In training: {mutant.effect}." if mutant.effect else "")
    lines = [f"{mutant.name}  a wrong implementation, on purpose", "", f"breaks   {about}", ""]
    lines += [fill(paragraph, columns(_WIDTH)) for paragraph in words if paragraph] + [""]
    lines += _listed("seen", mutant.links)
    return _text([*lines, f"killed by the vectors that `gspo check {mutant.target_name}` lists"])


def _listed(title: str, entries: Iterable[str]) -> list[str]:
    found = list(entries)
    shown = found[:12]
    more = [f"         and {len(found) - len(shown)} more"] if len(found) > len(shown) else []
    return [f"{title if i == 0 else '':8} {entry}" for i, entry in enumerate(shown)] + more


def _text(lines: Iterable[str]) -> str:
    return "\n".join(line.rstrip() for line in lines) + "\n"
