"""The files that a configuration stands on: `defaults: ../base.yaml`, `--config run.yaml`, `bash base.sh KEY=VALUE`, `python train.py --beta 0`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PARENTS, DEPTH = 6, 8
ENDINGS = (".yaml", ".yml", ".json", ".toml")
# Marks a file that was not found where other marks say which keys are computed.
ABSENT = "**"
_LAUNCH = re.compile(r"^(accelerate|bash|deepspeed|megatron|python3?|ray|sh|srun|swift|torchrun|trl|uv)$")
# Flags that a program of somebody's own hands on to `GRPOConfig`: what is not given has the default of that program.
_HANDED_ON = re.compile(
    r"--(beta|epsilon([_-]high)?|importance[_-]sampling[_-]level|loss[_-]type|num[_-](generations|iterations)|scale[_-]rewards)(=|$)"
)
_PYTHON = re.compile(r"^(accelerate|deepspeed|python3?|torchrun|uv)$")
_OF_TRAINER = re.compile(r"\$|\b(swift/cli|trl/scripts)/")
# Configurations that come with a trainer: their values are its defaults.
_OWN = ("ppo", "one_step_off", "fully_async", "_self_")


def tree_bases(settings: Mapping[str, Any]) -> list[str]:
    """The files that `defaults` of a YAML file names."""
    named = settings.get("defaults")
    names = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    return [name for name in names if isinstance(name, str) and _is_name(name)]


def chosen(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a defaults list of Hydra chooses beside its file, as group and name: `base`, `finetune: grpo`, `override finetune: grpo`."""
    named = settings.get("defaults")
    for entry in named if isinstance(named, list) else []:
        pairs = entry.items() if isinstance(entry, Mapping) else [("", entry)]
        for group, name in pairs:
            if isinstance(name, str) and not name.endswith(ENDINGS) and "@" not in f"{group}{name}":
                yield str(group), name


def choice(path: Path, group: str, name: str) -> Path | None:
    """The file of a choice, in the folder of the one that makes it."""
    place = path.parent / group / f"{name}.yaml"
    return place if "\0" not in f"{group}{name}" and found(str(place.absolute()), path) else None


def command_bases(settings: Mapping[str, Any]) -> list[str]:
    """The file that `--config FILE`, or `--config-path FOLDER --config-name NAME`, names."""
    named, folder = settings.get("config"), settings.get("config_path")
    if isinstance(named, str) and (named.endswith(ENDINGS) or "$" in named):
        return [named]
    name = settings.get("config_name")
    if isinstance(name, str) and not name.startswith(_OWN):
        return [f"{folder or '.'}/{name.removesuffix('.yaml')}.yaml"]
    return []


def script_bases(commands: Sequence[Sequence[str]]) -> Iterator[str]:
    """The scripts and programs that are run with settings of their own behind them, and the scripts that are left to start the training."""
    launched = any(_LAUNCH.match(word) for words in commands for word in words)
    for words in commands:
        if words and words[-1].endswith(".sh") and not launched:
            yield re.sub(r"^\$\{?\w+\}?/", "", words[-1])
        settings = [word for word in words[2:] if "=" in word or word.startswith("--")]
        if settings and words[0] in ("bash", "sh") and words[1].endswith(".sh"):
            yield words[1]
        yield from _program(words)


def _program(words: Sequence[str]) -> Iterator[str]:
    """The program of somebody's own to which a command hands settings."""
    flag = next((i for i, word in enumerate(words) if _HANDED_ON.match(word)), 0)
    if flag and _PYTHON.match(words[0]):
        yield from [word for word in words[:flag] if word.endswith(".py") and not _OF_TRAINER.search(word)][:1]


def is_given(name: str, words: Sequence[str]) -> bool:
    """Whether one of the files on the command line is meant by that name."""
    if "$" in name:
        return any(word.endswith(ENDINGS) for word in words)
    return any(Path(name).name == Path(word).name for word in words)


def found(name: str, path: Path) -> Path | None:
    """The file of that name beside the one that names it, or in a folder above; None where there is none."""
    if "$" in name or "\0" in name:
        return None
    folders = [path.parent, *list(path.absolute().parent.parents)[:PARENTS]]
    places = [Path(name)] if Path(name).is_absolute() else [folder / name for folder in folders]
    try:
        return next((place for place in places if place.is_file() and not place.samefile(path)), None)
    except OSError:
        return None


def _is_name(name: str) -> bool:
    return name.endswith(ENDINGS) and "@" not in name
