"""The pages about trainers, from the records of their runs and the facts of their rooms: `gspo trainers pages`.

`index.md` compares; one page per trainer has its facts, both configurations, every cause with its worst vector, and how
the verdict changed over versions. Badges are drawn from the same records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..clauses import clauses
from .badge import badge
from .records import load
from .room import Room, rooms

Record = Mapping[str, Any]
AREAS = "ratio surrogate aggregation gradient stop-gradient mask numerics packing advantage reward penalty correction distribution"
BY_DESIGN = "by design: "
# A name of a program or its setting in a sentence: `loss_norm`, `algorithm.loss_agg_mode`, `beta=0.0`; not `s_i`.
_NAME = re.compile(r"(?:[A-Za-z]{2,}[\w.]*)?_\w+(?:='?\w+'?)?|[a-z]{2,}=[\w.]+|jnp\.\w+")

_INTRO = """# Trainers

What the GSPO of public trainers computes, measured on their own code: each trainer is installed at a pinned version, its
real functions answer the [golden vectors](../check.md), and every deviation is listed with its cause and its size. Nothing
here is a ranking. A trainer may leave the paper on purpose, and where it says so, so does this page.
"""

_READING = """
**As configured** is the paper's objective, with the settings that each trainer needs for it: how many of the
vectors at level MUST agree. **As it comes** is GSPO switched on as the trainer's documentation says, the clip range
set and nothing else: what a response of 1 token and one of 9 tokens weigh, relative to the paper, in a batch of
eight (`gspo explain aggregation/many-responses`).
"""

_SYMBOLS = """
✓ every vector that its settings can express agrees · ◐ some deviate, all by design · ✗ some deviate · – it has nothing of the
kind. Point at a symbol for the agreeing and deviating vectors, each in its dtypes.
"""

_ABSENT = """
## Without GSPO

prime-rl had it and removed it in November 2025
([pull request 1304](https://github.com/PrimeIntellect-ai/prime-rl/pull/1304)); it takes a loss of the user's own. open-instruct has
token ratios alone (dapo, cispo), LLaMA-Factory and SkyRL's JAX backend nothing of the kind. torchforge has a loss
(`GSPOLoss`) that has no adapter here yet.
"""


def pages() -> dict[str, str]:
    """Every file by its path below the folder of the pages."""
    found = [(room, records) for room in rooms().values() if (records := _records(room))]
    files = {"index.md": index(found)}
    for room, records in found:
        files[f"{room.name}.md"] = trainer(room, records)
        for record in records:
            files[f"badges/{room.name}-{record['version']}.svg"] = badge(room.title, record)
    return files


def _records(room: Room) -> list[Record]:
    """Newest first: the version that `gspo check NAME` takes, then the others as the room lists them."""
    names = [room.default, *(name for name in room.versions if name != room.default)]
    return [record for name in names if (record := load(room, room.versions[name]))]


def index(found: Sequence[tuple[Room, Sequence[Record]]]) -> str:
    """The comparison."""
    every = [(room, record) for room, records in found for record in records]
    dates = sorted({record["date"] for _, record in every})
    suites = sorted({f"{record['suite']['version']} ({record['suite']['vectors']} vectors)" for _, record in every})
    when = f"Run {' to '.join(dict.fromkeys((dates[0], dates[-1])))} with suite {', '.join(suites)}." if dates else ""
    return "\n".join(
        [
            _INTRO,
            "## At a glance",
            _READING,
            *_glance(every),
            "",
            "## By area",
            "",
            "With the settings that each objective needs.",
            _SYMBOLS,
            '<div class="matrix" markdown>',
            "",
            *_areas(found),
            "",
            "</div>",
            "",
            "## What changed between versions",
            "",
            *_changes(found),
            _ABSENT,
            "## Reproduce",
            "",
            "```console",
            "$ gspo trainers setup verl",
            "$ gspo check verl verl:default",
            "$ gspo check verl@path/to/environment     # a fork, a branch or another release, as it is installed there",
            "```",
            "",
            f"{when} [How a trainer is added](../howto/trainer.md).",
            "",
        ]
    )


def _glance(every: Iterable[tuple[Room, Record]]) -> list[str]:
    rows = ["| trainer | as configured | deviations by cause | as it comes: response of 1, of 9 tokens | in words |"]
    rows.append("|---|---|---|---|---|")
    for room, record in every:
        claims, name = record["claims"], f"[{room.title}]({room.name}.md) {record['version']}"
        rows.append(f"| {name} | {_faithful(record)} | {_split(claims)} | {_weights(record)} | {_words(record)} |")
    return rows


def _faithful(record: Record) -> str:
    if record["settings"]["faithful"] is None:
        return "no setting for it"
    counts = record["claims"]["gspo_must"]
    return f"{counts['passed']} of {counts['passed'] + counts['deviating']} agree"


def _split(variant: Record) -> str:
    chosen = sum(cause["reason"].startswith(BY_DESIGN) for cause in variant["causes"])
    other = len(variant["causes"]) - chosen
    parts = [f"{chosen} by design"] * (chosen > 0) + [f"{other} other"] * (other > 0)
    return ", ".join(parts) or "none"


def _weights(record: Record) -> str:
    found = record["default"]["factors"]
    if not found:
        return "–"
    return f"{_number(found['gradient'][0])}, {_number(found['gradient'][-1])}"


def _words(record: Record) -> str:
    """The cause that moves most vectors of the default configuration."""
    causes = record["default"]["causes"]
    if not causes:
        return "the paper's loss"
    return _linked(causes[0]["reason"].removeprefix(BY_DESIGN))


def _areas(found: Sequence[tuple[Room, Sequence[Record]]]) -> list[str]:
    areas = AREAS.split()
    rows = [f"| | {' | '.join(areas)} |", "|---|" + ":---:|" * len(areas)]
    for room, records in found:
        cells = " | ".join(_cell(records[0]["claims"], area) for area in areas)
        rows.append(f"| [{room.title}]({room.name}.md) | {cells} |")
    return rows


def _cell(variant: Record, area: str) -> str:
    counts = variant["areas"].get(area, {"passed": 0, "deviating": 0})
    good, bad = counts["passed"], counts["deviating"]
    if not good + bad:
        return "–"
    chosen = all(cause["reason"].startswith(BY_DESIGN) for cause in variant["causes"] if area in cause.get("areas", ()))
    symbol = "✓" if not bad else "◐" if chosen else "✗"
    return f'<span title="{good} agree, {bad} deviate">{symbol}</span>'


def _changes(found: Sequence[tuple[Room, Sequence[Record]]]) -> list[str]:
    rows = ["| trainer | version | as configured | as it comes: weights of responses | loss over the paper's |"]
    rows.append("|---|---|---|---|---|")
    for room, records in found:
        if len(records) > 1:
            for record in reversed(records):
                factors = record["default"]["factors"] or {"gradient": [], "loss": "–"}
                shown = " ".join(map(_number, factors["gradient"])) or "–"
                rows.append(
                    f"| {room.title} | {record['version']} | {_faithful(record)} | {shown} | {_number(factors['loss'])} |"
                )
    lengths = next((r["default"]["factors"]["lengths"] for _, rs in found for r in rs if r["default"]["factors"]), [])
    return [*rows, "", f"Weights are those of responses of {', '.join(map(str, lengths))} tokens; 1 is the paper's."]


def trainer(room: Room, records: Sequence[Record]) -> str:
    """One trainer's page: what it computes in two sentences, its facts, then what was measured on each version."""
    title, facts = (room.folder / "facts.md").read_text(encoding="utf-8").rstrip().split("\n", 1)
    parts = [title, "", _answer(room, records[0]), facts, ""]
    for record in records:
        parts += _version(room, record)
    return "\n".join(parts)


def _answer(room: Room, record: Record) -> str:
    """Is it the paper's GSPO where that is asked for, and as it comes?"""
    faithful = record["settings"]["faithful"] is not None
    asked = f"set as below, agrees with the paper in {_faithful(record).removesuffix(' agree')} vectors at level MUST"
    asked = f", {asked}" if faithful else " has no setting for the paper's objective"
    comes = f"as it comes it agrees in {_verdict(record['default']).removesuffix(' agree')}"
    main = f" Most deviations then have this cause: {_words(record)}." if record["default"]["causes"] else ""
    return f"**{room.title} {record['version']}**{asked}; {comes}.{main}"


def _version(room: Room, record: Record) -> Iterable[str]:
    name = f"{room.name}@{record['version']}"
    yield f"## Measured on {record['version']}"
    yield ""
    yield f"![{room.title} {record['version']}](badges/{room.name}-{record['version']}.svg)"
    yield ""
    commit = f", commit {record['commit']}" if record["commit"] else ""
    versions = ", ".join(f"{key} {value}" for key, value in record["implementation"].items() if key != "name")
    yield f"{record['date']}{commit}; {versions}; suite {record['suite']['version']}. Reproduce: `gspo check {name} {name}:default`."
    yield ""
    yield from _configurations(record)
    for variant, title in (("claims", "as configured"), ("default", "as it comes")):
        yield from _causes(record[variant], title)


def _configurations(record: Record) -> Iterable[str]:
    faithful, default = record["settings"]["faithful"], record["settings"]["default"]
    yield "| setting | the paper's objective | GSPO as it comes |"
    yield "|---|---|---|"
    for key in {**(faithful or {}), **(default or {})}:
        yield f"| `{key}` | {_value(faithful, key)} | {_value(default, key)} |"
    yield f"| **verdict** | {_faithful(record)} | {_verdict(record['default'])} |"
    yield ""
    factors = record["default"]["factors"]
    if factors:
        lengths, weights = (" ".join(map(_number, factors[name])) for name in ("lengths", "gradient"))
        yield f"As it comes, responses of {lengths} tokens weigh {weights} of what they weigh in the paper; the loss is {_number(factors['loss'])} times the paper's."
        yield ""


def _verdict(variant: Record) -> str:
    counts = variant["gspo_must"]
    return f"{counts['passed']} of {counts['passed'] + counts['deviating']} agree"


def _value(settings: Mapping[str, Any] | None, key: str) -> str:
    if settings is None:
        return "no setting"
    return f"`{json.dumps(settings[key])}`" if key in settings else "not set"


def _causes(variant: Record, title: str) -> Iterable[str]:
    counts = variant["all"]
    yield f"**Deviations, {title}**: {counts['deviating']} of {counts['deviating'] + counts['passed']} answers"
    yield ""
    if not variant["causes"]:
        yield "None."
        yield ""
        return
    yield "| cause | vectors | clause | worst vector | expected | got |"
    yield "|---|---:|---|---|---:|---:|"
    for cause in variant["causes"]:
        worst = cause["worst"]
        where = f"`{worst['id']}`, {worst['output']}" if worst["output"] else f"`{worst['id']}`"
        cells = (_linked(cause["reason"]), str(cause["vectors"]), ", ".join(map(_clause, cause["clauses"][:3])), where)
        yield "| " + " | ".join([*cells, _whole(worst["expected"]), _whole(worst["got"])]) + " |"
    yield ""


def _clause(id_: str) -> str:
    found = clauses().get(id_)
    return f"[{id_.removeprefix('GSPO-')}](../spec/{found.page}#{id_})" if found else id_


def _linked(text: str) -> str:
    """Addresses become links, names of programs code; bars would end a cell."""
    words = text.replace("|", "\\|").split(" ")
    return " ".join(_link(word) for word in words)


def _link(word: str) -> str:
    start = word.find("http")
    if start < 0:
        name = word.strip("(),;:.")
        return word.replace(name, f"`{name}`") if _NAME.fullmatch(name) else word
    address = word[start:].rstrip("),.;")
    tail = word[start + len(address) :]
    number = address.rstrip("/").rsplit("/", 1)[-1]
    kind = "pull request" if "/pull/" in address else "issue" if "/issues/" in address else "source"
    return f"{word[:start]}[{kind} {number if number.isdigit() else ''}]({address}){tail}".replace(" ]", "]")


def _whole(value: Any) -> str:
    """A number as its record has it."""
    return _number(value) if isinstance(value, str) else f"{value!r}".removesuffix(".0")


def _number(value: Any) -> str:
    if isinstance(value, str) or value is None:
        return (value or "–").replace("|", "\\|")
    return f"{value:.3g}"
