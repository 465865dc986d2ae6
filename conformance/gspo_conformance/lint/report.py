"""What the lint found, for people (text), programs (JSON) and code hosts (SARIF 2.1.0)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..trainers.dialect import PAPER, SEVERITIES, Finding, Reading
from ..words import json_text, plural, printable
from .bases import ABSENT
from .configuration import Configuration
from .formula import formula
from .uncertain import counts, is_file

FORMATS = ("text", "json", "sarif")


def render(reading: Reading, found: Sequence[Finding], configuration: Configuration, form: str) -> str:
    """The report in one of `FORMATS`."""
    if form == "json":
        return json_text(_plain(_record(reading, found, configuration)))
    if form == "sarif":
        return json_text(_sarif(found, configuration))
    return printable(_text(reading, found, configuration))


def _plain(value: Any) -> Any:
    """What JSON can say: dates, keys that are numbers, NaN and infinities become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    finite = isinstance(value, (str, bool, int)) or value is None or (isinstance(value, float) and math.isfinite(value))
    return value if finite else str(value)


def _text(reading: Reading, found: Sequence[Finding], configuration: Configuration) -> str:
    lines = [
        f"{reading.trainer} {reading.version}",
        "",
        f"  {formula(reading.objective)}",
        f"  {_advantage(reading)}{', then normalised over all tokens of the batch' if reading.whiten else ''}",
        "",
    ]
    for one in found:
        lines.append(f"  {one.severity:7} {one.rule:22} {one.message}")
        details = [
            ("where", ", ".join(filter(None, (one.key, *_places(one, configuration))))),
            ("costs", one.consequence),
            ("fix", one.fix),
            ("clause", one.clause),
        ]
        lines += [f"          {name:6} {text}" for name, text in details if text]
    unread = [one for one in configuration.computed if counts(one.rpartition(": ")[2], reading)]
    lines += [_unread(one) for one in unread]
    rest = [", with a clip range of its own"] * (reading.objective["surrogate"] != PAPER["surrogate"])
    rest += [", as far as it was read"] * bool(unread)
    end = "" if found else f"  nothing to say: this is the paper's objective{''.join(rest)}"
    return "\n".join([*lines, end, summary(found)]) + "\n"


def _places(one: Finding, configuration: Configuration) -> list[str]:
    """Where the settings that a finding names are set, `file:line`; those that are defaults are nowhere."""
    places = (configuration.places.get(key, "") for key in one.key.split(", "))
    return list(dict.fromkeys(filter(None, places)))


def _unread(one: str) -> str:
    place, _, key = one.rpartition(": ")
    if not is_file(key):
        return f"  not read, because it is computed: {place}: {key.removeprefix(ABSENT)}"
    return f"  not read, because it is not here: {key.removeprefix(ABSENT)}, on which {place} stands; give it as a CONFIG before that"


def _advantage(reading: Reading) -> str:
    if reading.advantages is None:
        return f"A: from {reading.estimator}"
    center = {"mean": "r_i - mean", "none": "r_i", "leave_one_out": "r_i - mean of the others"}
    spread = {"batch_std": "std of the batch", "leave_one_out_std": "std of the others"}
    text = center[reading.advantages.get("center", "mean")]
    if reading.advantages.get("scale", "std") == "none":
        return f"A_i = {text}"
    ddof, eps = reading.advantages.get("ddof", 1), reading.advantages.get("eps", 1e-6)
    scale = reading.advantages.get("scale", "std")
    return f"A_i = ({text}) / ({spread.get(scale, scale)} (ddof {ddof}) + {eps:g})"


def summary(found: Sequence[Finding]) -> str:
    """`  1 error, 0 warnings, 2 notes`."""
    counts = Counter(one.severity for one in found)
    return "  " + ", ".join(plural(counts[name], name) for name in SEVERITIES)


def _record(reading: Reading, found: Sequence[Finding], configuration: Configuration) -> dict[str, Any]:
    return {
        "version": 1,
        "trainer": reading.trainer,
        "release": reading.version,
        "formula": formula(reading.objective),
        "objective": dict(reading.objective),
        "advantages": None if reading.advantages is None else dict(reading.advantages),
        "estimator": reading.estimator,
        "settings": {key: reading.settings[key] for key in sorted(reading.settings)},
        "given": sorted(reading.given),
        "computed": list(configuration.computed),
        "findings": [{**asdict(one), "places": _places(one, configuration)} for one in found],
    }


def _sarif(found: Sequence[Finding], configuration: Configuration) -> dict[str, Any]:
    rules = {one.rule: one for one in found}
    driver = {
        "name": "gspo lint",
        "rules": [{"id": name, "shortDescription": {"text": one.message}} for name, one in sorted(rules.items())],
    }
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": [_result(one, configuration) for one in found]}],
    }


def _result(one: Finding, configuration: Configuration) -> dict[str, Any]:
    places = [*_places(one, configuration), *sorted(set(configuration.places.values()))]
    file, _, line = (places[0] if places else "").rpartition(":")
    file, line = (file, line) if line.isdigit() else (f"{file}:{line}" if file else line, "1")
    parts = (one.message, one.consequence, f"fix: {one.fix}" if one.fix else "")
    text = " ".join(f"{_capitalised(part)}." for part in parts if part)
    location = {"artifactLocation": {"uri": file}, "region": {"startLine": int(line)}}
    return {
        "ruleId": one.rule,
        "level": one.severity,
        "message": {"text": text},
        "locations": [{"physicalLocation": location}],
    }


def _capitalised(text: str) -> str:
    """A sentence with its first letter large, unless its first word is the name of a setting."""
    return text if re.match(r"\w*[_.]\w", text) else text[:1].upper() + text[1:]
