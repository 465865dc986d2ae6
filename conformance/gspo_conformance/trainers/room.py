"""The rooms of the trainers, read from `trainer.toml`, and what `NAME[@VERSION][:VARIANT]` means.

Nothing here imports a trainer: that happens in its own environment, behind JSON lines.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

from ..words import UsageError, choices
from .dialect import Dialect

ROOMS = Path(__file__).resolve().parent
VARIANTS = {
    "": "every objective that its settings can express, each run with those settings",
    "default": "GSPO switched on as its documentation says, everything else as it comes",
}


@dataclass(frozen=True)
class Version:
    """One version of a trainer: the tails of the `pip install` commands that make its environment, in order."""

    name: str
    install: tuple[str, ...]
    commit: str = ""
    source: str = ""


@dataclass(frozen=True)
class Room:
    """A trainer. `source` is the address of a repository that the user checks out where no package holds the code.

    `alias` is the name that people write where it is not a Python identifier.
    """

    name: str
    title: str
    homepage: str
    framework: str
    default: str
    versions: Mapping[str, Version]
    source: str = ""
    quick: bool = False
    alias: str = ""

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return ROOMS / self.name

    @property
    def dialect(self) -> Dialect:
        """Its `DIALECT`; needs none of its packages."""
        return import_module(f"{__package__}.{self.name}.dialect").DIALECT

    def known(self, version: str, variant: str) -> Path | None:
        """The file of its expected failures, where it has one."""
        names = [f"{version}-{variant}.txt" if variant else f"{version}.txt", f"{variant or 'claims'}.txt"]
        return next((path for name in names if (path := self.folder / "known" / name).is_file()), None)


@dataclass(frozen=True)
class Choice:
    """A trainer in one version and one variant; or, with `python`, whatever that interpreter or environment imports as it."""

    room: Room
    version: Version
    variant: str
    python: Path | None = None

    @property
    def attribute(self) -> str:
        """What `gspo_conformance.serve` loads."""
        return f"{__package__}.{self.room.name}.adapter:{self.variant or 'claims'}"


@cache
def rooms() -> dict[str, Room]:
    """Every trainer by name."""
    return {path.parent.name: _read(path) for path in sorted(ROOMS.glob("*/trainer.toml"))}


def _names() -> dict[str, Room]:
    return rooms() | {room.alias: room for room in rooms().values() if room.alias}


def find_room(name: str) -> Room:
    """The trainer of that name or alias; a misspelt one is an error that names the near one."""
    if name not in _names():
        raise UsageError(choices(name, rooms(), "trainer"))
    return _names()[name]


def is_trainer(spec: str) -> bool:
    """Whether a target begins with the name of a trainer."""
    return spec.partition(":")[0].partition("@")[0] in _names()


def choose(spec: str) -> Choice:
    """`verl`, `verl@0.9.0`, `verl:default`, `verl@0.9.0:default`, `verl@path/to/environment:default`."""
    head, _, variant = spec.partition(":")
    name, _, version = head.partition("@")
    room = find_room(name)
    if variant not in VARIANTS:
        raise UsageError(f"target {spec!r}: {choices(variant, [v for v in VARIANTS if v], 'variant')}")
    if _is_path(version):
        return Choice(room, _packaged(room, spec), variant, Path(version).expanduser())
    chosen = version or room.default
    if chosen not in room.versions:
        raise UsageError(
            f"target {spec!r}: {choices(chosen, room.versions, f'version of {name}')}; "
            f"another release, or a fork, is checked in its own environment: {name}@path/to/environment"
        )
    return Choice(room, room.versions[chosen], variant)


def _is_path(version: str) -> bool:
    return "/" in version or "\\" in version or version in (".", "..", "~")


def _packaged(room: Room, spec: str) -> Version:
    """The version whose adapter runs code of the user's own: the default, where a package holds the code."""
    if room.source:
        raise UsageError(
            f"target {spec!r}: {room.title} is a checkout, not a package: `gspo trainers setup {room.name} --source DIR` takes yours"
        )
    return room.versions[room.default]


def _read(path: Path) -> Room:
    """A room from its `trainer.toml`; one that is not whole is an error that names the file and what it lacks."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        versions = {
            name: Version(
                **{"name": name, "source": table.get("source", ""), **entry, "install": tuple(entry["install"])}
            )
            for name, entry in table.pop("versions").items()
        }
        return Room(name=path.parent.name, versions=versions, **table)
    except KeyError as error:
        raise UsageError(f"{path}: expected a field {error}, as the other rooms have it") from None
    except (TypeError, AttributeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
