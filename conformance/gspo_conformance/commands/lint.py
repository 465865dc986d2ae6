"""Reads a trainer's configuration and says what it really optimises, and where that leaves the paper.

    gspo lint grpo.py
    gspo lint run.sh --trainer-version 0.9.1
    gspo lint config.yaml --dialect areal actor.eps_clip=3e-4

CONFIG is a YAML, JSON or TOML file, Python or a notebook with a call such as GRPOConfig(...), a shell
script, or KEY=VALUE; later ones win. Files are read, never executed; variables that a script sets,
constants of a program and references between keys are put in their places. A file that a configuration
stands on (`defaults: base.yaml`, `--config run.yaml`) is read below it; where it is not here, nothing that it may
settle is an error. Exit code: 0 clean, 1 errors found (--fail-on sets from which severity on), 2 usage.
"""

from __future__ import annotations

import argparse
import sys

from ..lint.configuration import read_configuration
from ..lint.report import FORMATS, render
from ..trainers.dialect import SEVERITIES, Inexpressible, is_release, nearest
from ..trainers.room import Room, find_room, rooms
from ..words import UsageError, choices, cut

INTERMIXED = True  # overrides may follow options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gspo lint`."""
    parser.add_argument("configuration", nargs="+", metavar="CONFIG", help="files, and KEY=VALUE overrides")
    parser.add_argument("--dialect", metavar="NAME", help=f"whose, where it cannot be recognised: {', '.join(rooms())}")
    parser.add_argument("--trainer-version", metavar="V", help="of the trainer, where its meaning changed")
    parser.add_argument("--format", choices=FORMATS, default="text", help="how to report")
    parser.add_argument("--fail-on", choices=SEVERITIES, default="error", help="the mildest severity that fails")


def run(arguments: argparse.Namespace) -> int:
    """Reads, reports, and returns 1 where something was found that fails."""
    from ..lint.detection import recognised
    from ..lint.overruled import overruled
    from ..lint.reading import read_settings
    from ..lint.sections import unnested
    from ..lint.spelling import misspelt, repeated
    from ..lint.uncertain import doubted, unset

    configuration = read_configuration(arguments.configuration)
    name, how = arguments.dialect, ""
    if name is None:
        name, how = recognised(arguments.configuration, configuration.settings)
    room = find_room(name)
    configuration, idle = overruled(unnested(configuration, room.dialect), room.dialect)
    version = _version(room, arguments.trainer_version or room.default)
    try:
        reading, found = read_settings(room.dialect, configuration.settings, version)
        found = [*misspelt(configuration.settings, reading), *doubted(found, configuration.unread, reading)]
        found += [*idle, *repeated(configuration), *unset(reading, configuration.unread, arguments.configuration)]
        found.sort(key=lambda one: SEVERITIES.index(one.severity))
    except Inexpressible as reason:
        switch = room.dialect.fixes.get("ratio", "")
        raise UsageError(f"{cut(str(reason), 400)}{f'; GSPO is {switch}' if switch else ''}") from None
    if how:
        print(f"{room.name}, recognised by {cut(how)}; --dialect names another", file=sys.stderr)
    print(render(reading, found, configuration, arguments.format), end="")
    failing = SEVERITIES[: SEVERITIES.index(arguments.fail_on) + 1]
    return int(any(one.severity in failing for one in found))


def _version(room: Room, asked: str) -> str:
    """A version that the dialect knows; another release is read as the next known one, and that is said."""
    known = room.dialect.versions
    if asked in known:
        return asked
    if not is_release(asked) or not any(map(is_release, known)):
        raise UsageError(choices(asked, known, f"version of {room.name}"))
    version = nearest(asked, known)
    print(f"{room.name} {asked} is not among the versions that are known: read as {version}", file=sys.stderr)
    return version
