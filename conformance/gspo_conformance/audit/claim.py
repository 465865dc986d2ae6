"""What a run says it computes: from the command line, from the trace's header, or from the settings of its trainer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from gspo_core import Objective, group_advantages
from gspo_core.objective import PRESETS

from ..files import read_text
from ..judge import UNIT_ROUNDOFF
from ..lint.configuration import MAX_BYTES, read_configuration
from ..lint.detection import recognised
from ..trainers.dialect import Finding, Inexpressible, Reading
from ..trainers.room import find_room, rooms
from ..words import UsageError, choices, cut
from .shaped import shapes_of
from .trace import Trace

_SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Claim:
    """The objective and what surrounds it; `source` says in words who claims it.

    `advantages` are the keyword arguments of `group_advantages`, None where the run does not say, or says that they are
    `ungrouped`; `shapes` are what else its settings do to them. `micro_batches` and `rank_losses` ("sum" or "mean") say how losses become that of a step, None where the
    run does not say.
    """

    objective: Objective
    source: str
    advantages: Mapping[str, Any] | None = None
    dtype: str = "float32"
    micro_batches: str | None = None
    rank_losses: str | None = None
    ungrouped: bool = False
    shapes: frozenset[str] = frozenset()

    @property
    def precision(self) -> float:
        """u, the unit roundoff of the run's arithmetic."""
        return UNIT_ROUNDOFF[self.dtype]


def claim_of(
    trace: Trace, *, objective: str | None = None, config: list[str] | None = None, dialect: str | None = None
) -> Claim:
    """The claim that the trace is held against: what the caller names, else what the trace says of itself."""
    if objective is not None and config:
        raise UsageError("expected --objective or --config, got both")
    if dialect is not None and not config:
        raise UsageError("--dialect: says whose configuration --config is, and none was given")
    run = trace.run
    if objective is not None:
        found = Claim(parse_objective(objective), f"the objective that was asked for, {objective[:60]}")
    elif config:
        found = _from_files(config, dialect)
    elif run.get("objective"):
        found = Claim(_objective(run["objective"], "run.objective"), "the header of the trace")
    else:
        found = _from_trainer(run)
    rest = {name: run[name] for name in ("micro_batches", "rank_losses", "dtype") if run.get(name) is not None}
    if found.advantages is None and not found.ungrouped:
        said = run.get("advantages")
        rest["advantages"] = _advantages_of_trainer(run) if said is None else _settings(said)
    return replace(found, **rest)


def parse_objective(text: str) -> Objective:
    """A preset's name, a file of JSON, or JSON."""
    name = text.strip()
    if name in PRESETS:
        return getattr(Objective, name)()
    if not name.startswith("{"):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"--objective: {choices(name, PRESETS, 'preset')}, a file of JSON, or JSON")
        name = read_text(path, "an objective", MAX_BYTES)
    try:
        fields = json.loads(name)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--objective: not JSON: {error}") from None
    return _objective(fields, "--objective")


def _objective(fields: Any, place: str) -> Objective:
    try:
        return Objective.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{place}: {error}") from None


def _settings(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """Keyword arguments of `group_advantages`, as it accepts them itself."""
    names = [name for name in signature(group_advantages).parameters if name not in ("rewards", "groups", "valid")]
    for name in said:
        if name not in names:
            raise UsageError(f"run.advantages: {choices(name, names, 'setting')}")
    try:
        group_advantages(np.array([0.0, 1.0]), np.array([0, 0]), **said)
    except (TypeError, ValueError) as error:
        raise UsageError(f"run.advantages: {error}") from None
    return said


def _from_files(config: list[str], dialect: str | None) -> Claim:
    settings = read_configuration(config).settings
    name = recognised(config, settings)[0] if dialect is None else dialect
    return _from_reading(_read(name, settings, None), f"{', '.join(config)}, read as {name}")


def _from_trainer(run: Mapping[str, Any]) -> Claim:
    reading = _of_trainer(run)
    if reading is None:
        raise UsageError(
            "the trace says neither its objective nor the settings of a known trainer: "
            "name it with --objective, or with --config and --dialect"
        )
    return _from_reading(reading, f"the settings of {reading.trainer} in the header of the trace")


def _of_trainer(run: Mapping[str, Any]) -> Reading | None:
    """What the settings in the header mean; None where there are none of a known trainer."""
    trainer = run.get("trainer") or {}
    name, settings = trainer.get("name"), trainer.get("settings")
    return _read(name, settings, trainer.get("version")) if name in rooms() and settings else None


def findings_of_settings(run: Mapping[str, Any]) -> list[Finding]:
    """What the trainer's dialect knows of its settings and no objective can express, as notes."""
    try:
        reading = _of_trainer(run)
    except (UsageError, TypeError, ValueError, KeyError, ArithmeticError):
        return []
    return [replace(one, rule=f"settings/{one.rule}", severity="note") for one in (reading.findings if reading else ())]


def as_announced(findings: list[Finding]) -> list[Finding]:
    """With what the settings themselves say, and no objective expresses, as warnings: the run does what they say."""
    said = {name for one in findings for name in _ANNOUNCED.get(one.rule, ())}
    return [replace(one, severity="warning") if one.rule in said else one for one in findings]


# What a finding on settings announces of the losses.
_ANNOUNCED = {
    "settings/overlong-filter": ("truncated-dropped",),
    "settings/dynamic-sampling": ("dropped-group",),
    "settings/filter": ("correction.shrinks-response", "dropped-response", "dropped-group"),
    "settings/sequence-mask": ("dropped-response",),
    "settings/response-weight": ("response-weights",),
    "settings/correction-ignored": ("sampler-as-old",),
    "settings/off-policy-mask": ("dropped-response",),
    "settings/group-masking": ("dropped-group",),
    "settings/micro-batches": ("distribution.mean-of-means",),
    "settings/micro-batch-mean": ("distribution.mean-of-means",),
    "settings/micro-batches-add": ("distribution.mean-of-means",),
    "settings/weighted-penalty": ("penalty.corrected",),
    "settings/ratio-forced": ("ratio.always-one", "frozen-ratio"),
    "settings/kl-score": ("penalty-gradient",),
    "settings/kl-gradient": ("penalty-gradient",),
    "settings/sampler-as-old": ("sampler-as-old",),
}


def _advantages_of_trainer(run: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the trainer's settings say of advantages, where the objective comes from elsewhere."""
    try:
        return _from_trainer(run).advantages
    except UsageError:
        return None


def _read(name: str, settings: Mapping[str, Any], version: str | None) -> Reading:
    room = find_room(name)
    known = room.dialect.versions
    try:
        return room.dialect.read(settings, version if version in known else room.default)
    except Inexpressible as reason:
        raise UsageError(f"{name}: {cut(str(reason), 400)}") from None


def _from_reading(reading: Reading, source: str) -> Claim:
    objective = _objective({**reading.objective}, reading.trainer)
    dtype = _SHORT.get(reading.dtype, reading.dtype)
    known = dtype if dtype in UNIT_ROUNDOFF else "float32"
    shapes = shapes_of(reading)
    return Claim(objective, source, reading.advantages, known, ungrouped=reading.advantages is None, shapes=shapes)
