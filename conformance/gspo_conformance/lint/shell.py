"""Settings from shell scripts: flags and overrides, the script's own variables put in their places. Nothing is executed."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator

MAX_VALUE, MAX_LINES, MAX_EXPANDED = 20_000, 200, 100_000
_DEFAULTED = re.compile(r"\$\{(\w+):?=([^{}]*)\}")
_PART = re.compile(
    r"'[^']*'|\\\$|\$\(\(([^()]*(?:\([^()]*\)[^()]*)*)\)\)|\$\{(\w+)(?::?[-=]([^{}]*))?\}|\$([A-Za-z_]\w*)", re.S
)
_ARITHMETIC = re.compile(r"^[\d\s+\-*/%()]{1,100}$")
_ARRAY = re.compile(r"\b\w+\+?=\((?!\()")
_CLOSED = re.compile(r"\)\s*$")
_CONTINUED = re.compile(r"\\\s*$")
# An assignment with a quote that is still open at the end of its line, and a # that begins no comment.
_OPENED = re.compile(r"""^\s*(?:(?:export|local|readonly|declare)\s+)?[A-Za-z_]\w*\+?=(["'])((?!\1).)*$""")
_WITHIN = re.compile(r"(?<=[^\s;])#")
_OUTPUT = re.compile(r"`[^`]*`|\$\((?!\()[^()`]*\)")
_BETWEEN = frozenset(("then", "else", "do", "&&", "||", "{", "}", "|", "&"))
_SHELLS = frozenset(("bash", "sh", "zsh", "eval"))
_SCRIPT = re.compile(r"^-[a-z]*c$")
_WORD = re.compile(r"--[\w.\-]+|[A-Za-z_][\w.@/\-\[\]]*")
# What begins something else than a value: redirections, the next command, an array of words, the arguments of a script.
_ENDS = re.compile(r"^(\d?>.*|\|.*|&.*|;.*|\)|\(|<.*|\$\{\w+\[[@*]\].*|\$\{?[@*]\}?)$")
_NUMBER = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")


def commands(text: str, variables: bool = True) -> Iterator[tuple[int, list[str]]]:
    """The words of every command with the number of its first line, its variables replaced where the script sets them.

    Without `variables`, `A=1` at the beginning of a line is a word like any other.
    """
    bound: dict[str, str | None] = {}
    inside = not variables
    for number, line in _joined(text):
        for name, value in _DEFAULTED.findall(line):
            _bind(bound, name, _unquoted(_expanded(value, bound)))
        line = _without_outputs(_expanded(line, bound))
        before, inside = inside, not variables or _in_array(line, inside)
        array = before or _ARRAY.search(line) is not None
        for part in _simple(_words(_ARRAY.sub(" ", _CLOSED.sub("", line)) if array else line)):
            own, script = _handed_on(part)
            yield number, own if array else _assignments(own, bound)
            yield from ((number, words) for _, words in commands(script, variables))


def _without_outputs(line: str) -> str:
    """`$(date)` and its like, which are known to nobody, as `$_`; what stands inside another goes first."""
    for _ in range(3):
        line = _OUTPUT.sub("$_", line)
    return line


def _words(line: str) -> list[str]:
    """The words of a line; where its quotes do not close, those between its spaces."""
    try:
        return [word.replace("\0", "#") for word in shlex.split(_WITHIN.sub("\0", line), comments=True)]
    except ValueError:
        return [word.strip("\"'") for word in line.split()]


def _simple(words: list[str]) -> Iterator[list[str]]:
    """A line cut where one command ends and another begins."""
    part: list[str] = []
    for word in words:
        if word in _BETWEEN:
            yield part
            part = []
            continue
        part.append(word.rstrip(";") if word.endswith(";") else word)
        if word.endswith(";"):
            yield part
            part = []
    yield part


def _handed_on(words: list[str]) -> tuple[list[str], str]:
    """The words before `bash -c "..."` or `eval "..."`, and the script in the quotes."""
    at = next((at for at, word in enumerate(words) if word.rpartition("/")[2] in _SHELLS), len(words))
    rest = words[at + 1 :]
    flag = next((i for i, one in enumerate(rest) if _SCRIPT.match(one)), len(rest))
    script = [one for one in rest if one != "eval"] if words[at : at + 1] == ["eval"] else rest[flag + 1 : flag + 2]
    return (words[:at], " ".join(script)) if script else (words, "")


def word_lines(text: str) -> dict[str, int]:
    """The last line outside comments on which a key stands, flags spelt as settings."""
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.lstrip().startswith("#"):
            for word in _WORD.findall(line):
                flag = word.startswith("--")
                found[word[2:].replace("-", "_") if flag else word] = number
    return found


def _joined(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their continuations, without comments; a comment ends a continued line, as it does in a shell."""
    parts: list[str] = []
    begin = 1
    for number, line in _quoted(text.splitlines()):
        comment = line.lstrip().startswith("#")
        goes_on = not comment and _CONTINUED.search(line) is not None
        if not parts:
            begin = number
        if not comment:
            parts.append(_CONTINUED.sub(" ", line))
        if parts and not goes_on:
            yield begin, "".join(parts)
            parts = []
    if parts:
        yield begin, "".join(parts)


def _quoted(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, the value of `NAME="...` up to its closing quote as one of them."""
    at = 0
    while at < len(lines):
        opened = _OPENED.match(lines[at])
        rest = range(at + 1, min(at + MAX_LINES, len(lines))) if opened else ()
        end = next((i for i in rest if opened and opened[1] in lines[i]), at)
        yield at + 1, " ".join([*(_CONTINUED.sub(" ", line) for line in lines[at:end]), lines[end]])
        at = end + 1


def _in_array(line: str, inside: bool) -> bool:
    """Whether the next line stands in `NAME=( ... )`, where words with an equals sign are no assignments."""
    plain = re.sub(r"\"[^\"]*\"|'[^']*'|\$\([^)]*\)|\s#.*$", "", line)
    if re.search(r"\w\+?=\([^)]*$", plain):
        return True
    return inside and ")" not in plain


def _assignments(words: list[str], variables: dict[str, str | None]) -> list[str]:
    """Binds `A=1 B=2` at the beginning of a command; the words behind them."""
    rest = words[1:] if words and words[0] in ("export", "local", "readonly", "declare") else words
    while rest and (match := re.match(r"^([A-Za-z_]\w*)(\+?)=(.*)$", rest[0], re.S)):
        _bind(variables, match[1], f"{variables.get(match[1]) or ''}{match[3]}" if match[2] else match[3])
        rest = rest[1:]
    return rest


def _bind(variables: dict[str, str | None], name: str, value: str) -> None:
    """A name that gets two values has none that can be told: which branch runs is not known. Settings may be added to others."""
    old = variables.get(name, value)
    added = old is not None and ("=" in old or "--" in old) and old in value
    variables[name] = value if old == value or added else None


def _expanded(line: str, variables: dict[str, str | None]) -> str:
    """What the script itself says of `$A`, `${A}`, `${A:-1}` and `$((A / 4))` in its place; all else stays."""

    def put(match: re.Match[str]) -> str:
        sum_, name, default, bare = match[1], match[2], match[3], match[4]
        if sum_ is not None:
            return _arithmetic(sum_, variables) or match[0]
        if (name or bare) is None:
            return match[0]
        value = variables.get(name or bare)
        if value is None and (name or bare) not in variables and default is not None:
            value = _unquoted(_expanded(default, variables)) if default else None
        return match[0] if value is None or len(value) > MAX_VALUE else value

    whole = _PART.sub(put, line)
    return whole if len(whole) <= MAX_EXPANDED else line


def _arithmetic(text: str, variables: dict[str, str | None]) -> str | None:
    """The value of a sum of integers."""
    plain = re.sub(r"\$?\{?([A-Za-z_]\w*)\}?", lambda match: variables.get(match[1]) or "?", text)
    if not _ARITHMETIC.match(plain) or "**" in plain:
        return None
    try:
        return str(_integer(ast.parse(plain.strip(), mode="eval").body))
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _integer(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.UnaryOp):
        return -_integer(node.operand) if isinstance(node.op, ast.USub) else _integer(node.operand)
    if not isinstance(node, ast.BinOp):
        raise ValueError("not a sum")
    left, right = _integer(node.left), _integer(node.right)
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    if isinstance(node.op, ast.Mult):
        return left * right
    whole = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
    return whole if isinstance(node.op, (ast.Div, ast.FloorDiv)) else left - right * whole


def _unquoted(text: str) -> str:
    return text.strip().strip("\"'")


def flag_value(following: list[str], override: re.Pattern[str]) -> str | list[str] | None:
    """What stands behind a flag: nothing, a word, or several numbers."""
    taken: list[str] = []
    for word in following:
        if word.startswith("--") or _ENDS.match(word) or (override.match(word) and not word.startswith("[")):
            break
        taken.append(word.rstrip(");"))
    if len(taken) > 1 and all(map(_NUMBER.match, taken)):
        return taken
    return taken[0] if taken else None
