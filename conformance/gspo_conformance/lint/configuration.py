"""Settings from the files that people have: YAML, JSON, TOML, Python calls, Hydra overrides, command lines. Nothing is executed."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import read_text
from ..words import UsageError, cut

MAX_BYTES = 1_000_000
MAX_SETTINGS = 100_000
MAX_LINE = 10_000
_OVERRIDE = re.compile(r"^(?:\+\+|\+|~)?([A-Za-z_][\w.@/\-\[\]]*)=(.*)$", re.S)
_NUMBER = re.compile(r"^[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?$")


@dataclass(frozen=True)
class Configuration:
    """Flat settings, dots for nesting; where each came from; and what could not be read because it is computed."""

    settings: Mapping[str, Any]
    places: Mapping[str, str] = field(default_factory=dict)
    computed: tuple[str, ...] = ()

    def merged(self, other: Configuration) -> Configuration:
        """Both, `other` winning."""
        return Configuration(
            {**self.settings, **other.settings}, {**self.places, **other.places}, self.computed + other.computed
        )


def read_configuration(words: Iterable[str]) -> Configuration:
    """Files and `KEY=VALUE` overrides, later ones winning."""
    found = Configuration({})
    for word in words:
        override = _OVERRIDE.match(word)
        if override and not _exists(word):
            try:
                found = found.merged(_from_words([word], "command line"))
            except ValueError as error:
                raise UsageError(f"{cut(word)}: {_line(error)}") from None
        else:
            found = found.merged(_read_file(Path(word)))
    return found


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except (OSError, ValueError):  # too long for a name, or with a NUL in it
        return False


def _read_file(path: Path) -> Configuration:
    text = read_text(path, "a configuration", MAX_BYTES)
    kind = path.suffix.lower()
    try:
        if kind in (".yaml", ".yml"):
            return _from_tree(_yaml(text), str(path))
        if kind == ".json":
            return _from_tree(json.loads(text, parse_constant=_no_constant), str(path))
        if kind == ".toml":
            return _from_tree(tomllib.loads(_short_lines(text)), str(path))
        if kind == ".py":
            return _from_python(text, str(path))
        return _from_shell(_short_lines(text), str(path))
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise UsageError(f"{path}: not readable as {kind[1:] or 'a script'}: {_line(error)}") from None


def _short_lines(text: str) -> str:
    """`text`, where none of its lines is so long that its parser takes the square of that."""
    longest = max(map(len, text.splitlines()), default=0)
    if longest > MAX_LINE:
        raise ValueError(f"expected lines of at most {MAX_LINE} characters, got {longest}")
    return text


def _yaml(text: str) -> Any:
    """One document with plain values alone; its size with every alias written out is looked at before it is made."""
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if not _fits(node, [MAX_SETTINGS]):
            raise ValueError(f"expected at most {MAX_SETTINGS} values, repetitions by aliases counted")
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


def _from_tree(tree: Any, place: str) -> Configuration:
    if tree is None:
        return Configuration({})
    if not isinstance(tree, Mapping):
        raise UsageError(f"{place}: expected keys and values, got a {type(tree).__name__}")
    flat = dict(_flat(tree))
    return Configuration(flat, dict.fromkeys(flat, place))


def _flat(tree: Mapping[Any, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, parse_value(value) if isinstance(value, str) else value


def _from_python(text: str, place: str) -> Configuration:
    """The literal keyword arguments of every call of something whose name ends in Config, Arguments or GRPOLoss."""
    found, places, computed = {}, {}, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the compiler thinks of the style of a stranger's file
        tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node).endswith(("Config", "Arguments", "Args", "GRPOLoss")):
            for keyword in node.keywords:
                if keyword.arg is None:
                    computed.append(f"{place}:{node.lineno}: **keywords of {_called(node)}")
                    continue
                try:
                    found[keyword.arg] = ast.literal_eval(keyword.value)
                    places[keyword.arg] = f"{place}:{keyword.value.lineno}"
                except (ValueError, TypeError, MemoryError, RecursionError):
                    computed.append(f"{place}:{keyword.value.lineno}: {keyword.arg}")
    if not found and not computed:
        raise UsageError(f"{place}: no call such as GRPOConfig(...) in it")
    return Configuration(found, places, tuple(computed))


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _from_shell(text: str, place: str) -> Configuration:
    joined = re.sub(r"\\\s*\n", " ", text)
    lines = [line for line in joined.splitlines() if not line.lstrip().startswith("#")]
    words: list[str] = []
    for line in lines:
        try:
            words += shlex.split(line, comments=True)
        except ValueError:
            continue
    return _from_words(words, place)


def _from_words(words: list[str], place: str) -> Configuration:
    """`a.b=1`, `+a.b=1`, `--flag value`, `--flag=value`, `--flag`."""
    found: dict[str, Any] = {}
    for i, word in enumerate(words):
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            following = words[i + 1] if i + 1 < len(words) else "--"
            found[name.replace("-", "_")] = parse_value(
                value if equals else "true" if following.startswith("--") else following
            )
        elif match := _OVERRIDE.match(word):
            found[match[1]] = parse_value(match[2])
    return Configuration(found, dict.fromkeys(found, place))


def parse_value(text: str) -> Any:
    """Numbers, booleans and null as YAML would read them, scientific notation without a dot included; else the string."""
    plain = text.strip().strip("\"'")
    words = {"true": True, "false": False, "null": None, "none": None, "~": None, "": None}
    if plain.lower() in words:
        return words[plain.lower()]
    if _NUMBER.match(plain):
        number = plain.replace("_", "")
        return int(number) if re.fullmatch(r"[+-]?\d+", number) else float(number)
    return plain


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
