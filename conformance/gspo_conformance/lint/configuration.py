"""Settings from the files that people have: YAML, JSON, TOML, Python, notebooks, scripts, command lines. Nothing is executed."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..files import read_text
from ..words import UsageError, cut, read_json
from .bases import ABSENT, DEPTH, choice, chosen, command_bases, found, is_given, script_bases, tree_bases
from .python_source import command_lines, notebook_commands, notebook_source, python_settings
from .references import resolved
from .scalar import parse_value
from .shell import commands, flag_value, word_lines

MAX_BYTES, MAX_NOTEBOOK = 1_000_000, 20_000_000
MAX_SETTINGS = 100_000
OVERRIDES = 5
MAX_LINE = 10_000
NONE: Mapping[str, str] = {}
_OVERRIDE = re.compile(r"^(?:\+\+|\+|~)?([A-Za-z_][\w.@/\-\[\]]*)=(.*)$", re.S)
_HANDS_ON = re.compile(r"\b(TrlParser|HfArgumentParser)\b.*Config\b")
_PARSERS = re.compile(r"\b(TrlParser|HfArgumentParser|ArgumentParser|OmegaConf|hydra)\b")


@dataclass(frozen=True)
class Configuration:
    """Flat settings, dots for nesting; where each came from; what could not be read because it is computed; where a key stood before."""

    settings: Mapping[str, Any]
    places: Mapping[str, str] = field(default_factory=dict)
    computed: tuple[str, ...] = ()
    repeated: Mapping[str, int] = field(default_factory=dict)

    @property
    def unread(self) -> frozenset[str]:
        """The keys that something sets, to what cannot be told without running it."""
        return frozenset(one.rpartition(": ")[2] for one in self.computed) - set(self.settings)

    def below(self, group: str) -> Configuration:
        """The same under a key."""
        if not group:
            return self
        prefix = f"{group.replace('/', '.')}."

        def under(each: Mapping[str, Any]) -> dict[str, Any]:
            return {prefix + key: value for key, value in each.items()}

        return Configuration(under(self.settings), under(self.places), self.computed, under(self.repeated))

    def merged(self, other: Configuration) -> Configuration:
        """Both, `other` winning."""
        return Configuration(
            {**self.settings, **other.settings},
            {**self.places, **other.places},
            self.computed + other.computed,
            {**self.repeated, **other.repeated},
        )


def read_configuration(words: Iterable[str]) -> Configuration:
    """Files and `KEY=VALUE` overrides, later ones winning."""
    words = list(words)
    whole = Configuration({})
    for word in words:
        if word == "-":
            raise UsageError("-: expected a file, whose ending says how it is to be read")
        override = _OVERRIDE.match(word)
        if override and not _exists(word):
            try:
                whole = whole.merged(_from_words([word], "command line"))
            except ValueError as error:
                raise UsageError(f"{cut(word)}: {_line(error)}") from None
        else:
            whole = whole.merged(_read_file(Path(word), words))
    return _without_references(whole)


def _without_references(whole: Configuration) -> Configuration:
    """References replaced by what they refer to; those that refer to nothing here are computed elsewhere."""
    for key, value in whole.settings.items():
        try:
            str(value)
        except ValueError:  # a number that Python does not write out
            raise UsageError(f"{whole.places.get(key, '')}: {cut(key)}: a number beyond every float") from None
    settings, unknown = resolved(whole.settings)
    computed = [f"{whole.places.get(key, '')}: {key}" for key in unknown]
    return replace(whole, settings=settings, computed=(*whole.computed, *computed))


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except (OSError, ValueError):  # too long for a name, or with a NUL in it
        return False


def _read_file(path: Path, given: Sequence[str], depth: int = DEPTH, above: Mapping[str, str] = NONE) -> Configuration:
    """One file, on top of those that it stands on; `given` are read anyhow, `above` is what files that stand on this one choose."""
    own, names = _read_alone(path)
    below, choices = Configuration({}), list(chosen(own.settings))
    own_above = {group.removeprefix("override "): name for group, name in choices if group.startswith("override ")}
    above = {**own_above, **above}
    for group, name in choices:
        place = choice(path, group, above.get(group, name)) if depth else None
        if place is not None:
            below = below.merged(_read_file(place, given, depth - 1, above).below(group))
    for name in names:
        if is_given(name, given):
            continue
        base = found(name, path) if depth else None
        try:
            read = _read_file(base, given, depth - 1) if base else _absent(path, name)
        except UsageError:
            hands_on = base is not None and _HANDS_ON.search(_text(base))
            read = Configuration({}) if hands_on else _absent(path, name)
        below = below.merged(read)
    return below.merged(own)


def _absent(path: Path, name: str) -> Configuration:
    return Configuration({}, {}, (f"{path}: {ABSENT}{name}",))


def _read_alone(path: Path) -> tuple[Configuration, list[str]]:
    """The settings of a file, and the names of the files that it stands on."""
    text = _text(path)
    kind = path.suffix.lower()
    try:
        if kind in (".yaml", ".yml"):
            lines: dict[str, int] = {}
            repeated: dict[str, int] = {}
            tree = _from_tree(_yaml(text, lines, repeated), str(path), lines)
            return replace(tree, repeated=repeated), tree_bases(tree.settings)
        if kind == ".json":
            return _from_tree(read_json(text), str(path)), []
        if kind == ".toml":
            return _from_tree(tomllib.loads(_short_lines(text)), str(path)), []
        if kind in (".py", ".ipynb"):
            program = (_from_notebook if kind == ".ipynb" else _from_python)(text, str(path))
            return program, command_bases(program.settings)
        script = _from_shell(_short_lines(text), str(path))
        run = [words for _, words in commands(text)]
        return script, [*script_bases(run), *command_bases(_launch(run, script.settings))]
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise UsageError(f"{path}: not readable as {kind[1:] or 'a script'}: {_line(error)}") from None


def _launch(run: Sequence[list[str]], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the commands that have overrides such as `a.b=1`, where one has many: `--config` of a server beside them is no base."""
    many = [words for words in run if sum("." in word.partition("=")[0] and "=" in word for word in words) >= OVERRIDES]
    return {key: value for words in many for key, value in _from_words(words, "").settings.items()} or settings


def source_text(path: Path) -> str:
    """What somebody wrote: a file, of a notebook the code of its cells."""
    text = _text(path)
    if path.suffix.lower() != ".ipynb":
        return text
    try:
        return f"{notebook_source(text)}\n{notebook_commands(text)}"
    except (ValueError, RecursionError):
        return text[:MAX_BYTES]


def _text(path: Path) -> str:
    notebook = path.suffix.lower() == ".ipynb"  # which holds its pictures too
    return read_text(path, "a configuration", MAX_NOTEBOOK if notebook else MAX_BYTES).removeprefix("\ufeff")


def _short_lines(text: str) -> str:
    """`text`, where none of its lines is so long that its parser takes the square of that."""
    longest = max(map(len, text.splitlines()), default=0)
    if longest > MAX_LINE:
        raise ValueError(f"expected lines of at most {MAX_LINE} characters, got {longest}")
    return text


def _yaml(text: str, lines: dict[str, int], repeated: dict[str, int]) -> Any:
    """One document with plain values alone, and the `lines` of its keys, the first of those that are `repeated`; its size with every alias written out is looked at before it is made."""
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if not _fits(node, [MAX_SETTINGS]):
            raise ValueError(f"expected at most {MAX_SETTINGS} values, repetitions by aliases counted")
        _note_lines(node, "", lines, repeated)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _fits(node: Any, left: list[int]) -> bool:
    """Whether a YAML node stands for at most `left` values: a few lines of aliases can stand for billions."""
    left[0] -= 1
    if left[0] < 0 or isinstance(node.value, str):
        return left[0] >= 0
    items = (part for item in node.value for part in (item if isinstance(item, tuple) else (item,)))
    return all(_fits(item, left) for item in items)


def _note_lines(node: Any, prefix: str, lines: dict[str, int], repeated: dict[str, int]) -> None:
    """The line of every key of a YAML node, flat."""
    own: set[str] = set()
    for key, value in node.value if node.id == "mapping" else ():
        name = f"{prefix}{key.value}"
        if name in own and key.value != "<<":
            repeated.setdefault(name, lines[name])
        own.add(name)
        lines[name] = key.start_mark.line + 1
        _note_lines(value, f"{name}.", lines, repeated)


def _from_tree(tree: Any, place: str, lines: Mapping[str, int] | None = None) -> Configuration:
    if tree is None:
        return Configuration({})
    if isinstance(tree, list) and tree and all(isinstance(one, str) and _OVERRIDE.match(one) for one in tree):
        return _from_words(tree, place)  # the overrides of a run, as Hydra keeps them
    if not isinstance(tree, Mapping):
        raise UsageError(f"{place}: expected keys and values, got a {type(tree).__name__}")
    flat = dict(_flat(tree))
    return Configuration(flat, {key: f"{place}:{lines[key]}" if lines and key in lines else place for key in flat})


def _flat(tree: Mapping[Any, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, parse_value(value) if isinstance(value, str) else value


def _from_python(text: str, place: str) -> Configuration:
    found, lines, computed, repeated = python_settings(text)
    if not found and not computed:
        return _from_strings(text, place)
    places = {key: f"{place}:{line}" for key, line in lines.items()}
    return Configuration(found, places, tuple(f"{place}:{line}: {key}" for line, key in computed), repeated)


def _from_notebook(text: str, place: str) -> Configuration:
    """The settings of a notebook's code; without any, or any code, those of the commands that it gives to a shell."""
    try:
        return _from_python(notebook_source(text), place)
    except (UsageError, SyntaxError):
        typed = _from_shell(notebook_commands(text), place)
        if not typed.settings:
            raise
        return typed


def _from_strings(text: str, place: str) -> Configuration:
    """The settings of a program that puts a command line together."""
    whole = _from_commands(command_lines(text), place)
    if not whole.settings:
        outside = "; it takes its settings from a command line: give that" if _PARSERS.search(text) else ""
        raise UsageError(f"{place}: no call such as GRPOConfig(...) in it, and no command line{outside}")
    return whole


def _from_shell(text: str, place: str) -> Configuration:
    """The settings of every command; `A=1` at its beginning is a variable, unless the file has nothing else."""
    whole = _from_commands(commands(text), place)
    if not whole.settings:
        whole = _from_commands(commands(text, variables=False), place)
    lines = word_lines(text)
    return replace(
        whole, places={key: f"{place}:{lines[key]}" if key in lines else at for key, at in whole.places.items()}
    )


def _from_commands(found: Iterable[tuple[int, list[str]]], place: str) -> Configuration:
    """The settings of commands with their lines, later ones winning."""
    whole = Configuration({})
    for line, words in found:
        whole = whole.merged(_from_words(words, f"{place}:{line}"))
    return whole


def _from_words(words: list[str], place: str) -> Configuration:
    """`a.b=1`, `+a.b=1`, `--flag value`, `--flag=value`, `--flag`, `--flag 1 2`."""
    found: dict[str, Any] = {}
    for i, word in enumerate(words):
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            following = value.rstrip(")") if equals else flag_value(words[i + 1 : i + 9], _OVERRIDE)
            found[name.replace("-", "_")] = _parsed("true" if following is None else following)
        elif match := _OVERRIDE.match(word):
            found[match[1]] = parse_value(match[2])
    return Configuration(found, dict.fromkeys(found, place))


def _parsed(value: str | list[str]) -> Any:
    return parse_value(value) if isinstance(value, str) else [parse_value(one) for one in value]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
