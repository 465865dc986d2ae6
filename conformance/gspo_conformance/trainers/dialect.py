"""A dialect: what a trainer's configuration keys mean as an objective, and which keys make it optimise a given one.

A trainer's `dialect.py` has one object `DIALECT` with these two directions. `gspo lint` reads with it,
the trainer's adapter writes with it; neither needs the trainer installed.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

SEVERITIES = ("error", "warning", "note")

PAPER: dict[str, Any] = {
    "ratio": "sequence",
    "surrogate": {"kind": "clip", "low": 3e-4, "high": 4e-4, "dual": None},
    "aggregation": {"mode": "sequence_mean_token_mean", "count": "all", "constant": 1.0},
    "penalty": None,
    "correction": [],
    "log_ratio_cap": None,
}


# Rule, message and clause of what trainers do to rewards and responses beside the loss.
ASIDES: dict[str, tuple[str, str, str]] = {
    "equal": (
        "dynamic-sampling",
        "groups whose rewards are all equal are left out (dynamic sampling): not of the paper, and compatible with it",
        "GSPO-REWARD-6",
    ),
    "overlong": (
        "overlong-penalty",
        "responses near the limit of length, or cut off by it, lose reward: not of the paper",
        "GSPO-REWARD-5",
    ),
    "truncated": (
        "overlong-filter",
        "truncated responses are masked out of the loss; a mean over responses still counts them",
        "GSPO-AGG-7",
    ),
}


class Inexpressible(Exception):
    """No setting of this trainer optimises that objective; the message says which part of it."""


@dataclass(frozen=True)
class Finding:
    """One point where a configuration leaves the paper, or does not do what it says.

    `rule` is permanent (`aggregation`, `inherited-clip-range`, ...), `key` the setting that causes it,
    `consequence` what it costs in numbers, `fix` the setting that mends it.
    """

    rule: str
    severity: str
    key: str
    message: str
    clause: str = ""
    consequence: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Reading:
    """What a configuration really optimises.

    `objective` in the form of `Objective.to_dict`; `advantages` the keyword arguments of `group_advantages`, or None
    where the advantages come from elsewhere (`estimator` says from where); `settings` every key that was read with the
    value that holds, `given` those of them that the configuration itself sets; `findings` what only
    this dialect can know.
    """

    trainer: str
    version: str
    objective: Mapping[str, Any]
    advantages: Mapping[str, Any] | None = None
    estimator: str = "group"
    whiten: bool = False
    dtype: str = "float32"
    updates_per_rollout: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    findings: tuple[Finding, ...] = ()

    def with_findings(self, *findings: Finding) -> Reading:
        """The same reading with more to say."""
        return replace(self, findings=(*self.findings, *findings))


def completed(
    settings: Mapping[str, Any], defaults: Mapping[str, Any], *prefixes: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that have a default, as they are or behind one of `prefixes`, and the defaults with these over them."""
    given = {}
    for key, value in settings.items():
        whole = next((one for one in (key, *(prefix + key for prefix in prefixes)) if one in defaults), None)
        if whole is not None:
            given[whole] = value
    return given, {**defaults, **given}


def bare(key: str, sections: Iterable[str]) -> str:
    """A key without the section that stands before it."""
    return next((key.removeprefix(section) for section in sections if key.startswith(section)), key)


def asides(every: Mapping[str, Any], keys: Mapping[str, str]) -> list[Finding]:
    """Notes on what `keys` do to rewards and responses beside the loss, where they are set: the names of `ASIDES` by key."""
    return [
        Finding(ASIDES[rule][0], "note", key, ASIDES[rule][1], ASIDES[rule][2])
        for key, rule in keys.items()
        if every.get(key) not in (None, False, 0, "", "none")
    ]


def lone(key: str, cost: str, fix: str, why: str = "every response is a group of its own") -> Finding:
    """An error where a prompt has one response, which then has nothing to be compared with."""
    return Finding("group-size", "error", key, f"one response per prompt: {why}", "GSPO-ADV-4", cost, fix)


def entropy_bonus(key: str, coefficient: float, fix: str, more: str = "") -> Finding:
    """A warning of a term that the paper does not have."""
    told = f"an entropy bonus with the coefficient {coefficient:g} where the paper has none{more}"
    return Finding("entropy-bonus", "warning", key, told, "GSPO-AGG-1", fix=fix)


def kl_in_reward(key: str, coefficient: float, fix: str) -> Finding:
    """A warning of a KL term that makes the advantages of a response differ from token to token."""
    told = f"a KL term of {coefficient:g} enters the rewards, token by token, and with it the advantages"
    return Finding("kl-in-reward", "warning", key, told, "GSPO-REWARD-4", fix=fix)


def clamped(key: str, bounds: str, bound: float, group: int, scaled: bool, fix: str) -> Finding:
    """Rewards that are clamped once they are compared with their group: a bound of the advantages, where one can reach it."""
    told = f"rewards are clamped to {bounds} after they are normalised, not before"
    widest = (group - 1) / group**0.5
    if scaled and widest <= bound:
        reach = f"it cannot bind: |A| is at most {widest:.2f} in groups of {group}"
        return Finding("reward-clip", "note", key, told, "GSPO-REWARD-1", reach, fix)
    return Finding("reward-clip", "warning", key, told, "GSPO-REWARD-1", "", fix)


def updates(parts: int, accumulation: int) -> int:
    """Optimiser steps that see one rollout of so many micro-batches; 1 only where no step falls between two of them."""
    return 1 if accumulation % parts == 0 else max(2, -(-parts // accumulation))


def bound_inside(
    kind: str, cap: tuple[str, float], dual: tuple[str, float | None], high: float | None = None
) -> Iterator[Finding]:
    """Where a bound of CISPO's weight is a clip range, or one that is meant as a dual clip ends the range.

    `cap` and `dual` are keys with their values; `high` is the upper width of the clip, where `cap` is not its key too.
    """
    key, bound = cap if kind == "cispo" else dual
    high = cap[1] if high is None else high
    if bound is None:
        return
    if kind == "cispo" and bound < 1:
        told = f"cispo bounds the weight itself by {key}: nearly every token has the weight {bound:g}, for which the formula says 1"
        yield Finding("cispo-bound", "error", key, told, "GSPO-SURR-8", fix=f"{key}=5.0, which is 1 + 4")
    if kind == "clip" and bound < 1 + high:
        told = f"{key} = {bound:g} is inside the clip range, and ends it for positive advantages"
        yield Finding("bound-inside-range", "warning", key, told, "GSPO-SURR-5", fix=f"{key} above {1 + high:g}")


def nearest(release: str, versions: Sequence[str]) -> str:
    """The one of `versions` whose keys a release that is not among them has: the next later, else the last."""
    if release in versions:
        return release
    numbered = sorted(filter(is_release, versions), key=_numbers)
    later = [version for version in numbered if _numbers(version) >= _numbers(release)]
    return (later or [*numbered[-1:], *versions])[0]


def is_release(version: str) -> bool:
    """Whether this is a number such as 1.16.0, and no commit."""
    return bool(_numbers(version))


def _numbers(version: str) -> tuple[int, ...]:
    """1, 16, 0 for 1.16.0.dev3; nothing for a commit."""
    found = re.match(r"\d+(\.\d+)+", version)
    return tuple(map(int, found.group().split("."))) if found else ()


class Dialect(ABC):
    """Both directions, and how the trainer's own documentation switches GSPO on."""

    name: ClassVar[str]
    """That of its room."""
    versions: ClassVar[tuple[str, ...]]
    """Those of the room that it was written for."""
    clip_keys: ClassVar[tuple[str, ...]] = ()
    """The widths of the clip range, where their names do not say so."""
    group: ClassVar[tuple[str, str]] = ("", "")
    """How many responses a prompt has, and what it costs if that is 1."""
    fixes: ClassVar[dict[str, str]] = {}
    """By part of the objective, or of what is beside it: the setting that makes it the paper's."""
    settled_by_flags: ClassVar[dict[str, Any]] = {}
    """The defaults of flags, which stand before what a file says."""
    in_programs_alone: ClassVar[bool] = False
    """Whether its settings are arguments in a program that names the trainer, and of no file."""

    @abstractmethod
    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """Flat settings, keys as the trainer spells them (dots for nesting), to what they optimise."""

    @abstractmethod
    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The settings that optimise this objective; raises `Inexpressible`."""

    @abstractmethod
    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """GSPO as the documentation says, with this clip range, and everything else left as it comes."""


def is_gspo(objective: Mapping[str, Any] | None) -> bool:
    """Whether an objective is the paper's, whatever its clip range."""
    if objective is None:
        return False
    surrogate = objective.get("surrogate", {})
    plain = surrogate.get("kind") == "clip" and surrogate.get("dual") is None
    rest = {name: value for name, value in PAPER.items() if name != "surrogate"}
    return plain and all(objective.get(name, value) == value for name, value in rest.items())
