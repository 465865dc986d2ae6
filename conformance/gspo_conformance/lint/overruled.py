"""Settings of a YAML file that the trainer never reads, because the default of a flag stands before them."""

from __future__ import annotations

import re
from dataclasses import replace

from ..trainers.dialect import Dialect, Finding
from .configuration import Configuration

_FILE = re.compile(r"\.ya?ml(:\d+)?$")


def overruled(configuration: Configuration, dialect: Dialect) -> tuple[Configuration, list[Finding]]:
    """The configuration with the defaults of `dialect.settled_by_flags` in place of what a file says, and a finding for each."""
    flags = dialect.settled_by_flags
    settings, places = configuration.settings, configuration.places
    idle = {key: value for key, value in flags.items() if key in settings and _FILE.search(places.get(key, ""))}
    found = [_finding(key, settings[key], value) for key, value in idle.items() if settings[key] != value]
    return replace(configuration, settings={**settings, **idle}), found


def _finding(key: str, asked: object, default: object) -> Finding:
    told = (
        f"{key}: {asked} is never read: the flag has the default {default}, and a file is asked only for what has none"
    )
    return Finding("key-ignored", "error", key, told, fix=f"--{key.replace('_', '-')} {asked} on the command line")
