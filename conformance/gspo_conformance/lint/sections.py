"""Settings below a section of somebody's own, `grpo: {epsilon: 3e-4}`, for trainers whose own keys have none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..trainers.dialect import Dialect
from .configuration import Configuration

SECTION = re.compile(
    r"^(algo|algorithm|args|config|gspo|grpo|(grpo|trainer|training)_(args|config)|hyperparameters|method|rl|rlhf|train|trainer|training|trl)$"
)


def own_names(settings: Mapping[str, Any], dialect: Dialect) -> dict[str, str]:
    """What a key below a section is called by the trainer itself."""
    known = dialect.read({}, dialect.versions[-1]).settings
    if any("." in key for key in known):
        return {}
    found: dict[str, str] = {}
    for key in settings:
        section, _, name = key.rpartition(".")
        if SECTION.match(section.rpartition(".")[2]) and name in known and name not in settings:
            found[key] = name
    return found


def unnested(configuration: Configuration, dialect: Dialect) -> Configuration:
    """The configuration with the trainer's own names."""
    names = own_names(configuration.settings, dialect)
    settings = {names.get(key, key): value for key, value in configuration.settings.items()}
    return replace(
        configuration, settings=settings, places={names.get(key, key): at for key, at in configuration.places.items()}
    )
