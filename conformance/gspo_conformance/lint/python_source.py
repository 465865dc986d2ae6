"""Settings from Python and from notebooks: literals, constants of the file, and plain arithmetic on them. Nothing is executed."""

from __future__ import annotations

import ast
import json
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .python_names import Change, called, changes, constants

ENDINGS = ("Config", "Arguments", "Args", "GRPOLoss", "create_gspo_policy_loss")
# Trainers of which the class itself is the algorithm.
ALGORITHMS = ("GRPO", "GSPO", "CISPO")
# Configurations that stand beside that of the policy's training, and share names of keys with it.
OTHERS = ("SFT", "DPO", "KTO", "ORPO", "CPO", "Reward", "Lora", "BitsAndBytes", "Quantization", "Model")
# The sections of trainers that are configured by nested dictionaries.
ROOTS = ("actor", "actor_rollout_ref", "algorithm", "grpo", "loss_fn")
# Arguments of a trainer that is put together from functions.
FUNCTIONS = ("loss_fn", "advantage_fn")
# Calls that declare an argument of the program itself.
DECLARATIONS = ("add_argument", "add_option", "argument", "option", "Argument", "Option")
_ALGORITHM = re.compile(r"GRPO|GSPO|CISPO|PPO|RLHF|gspo")
_FUNCTION = re.compile(r"policy_loss|advantages")
_FLAT = re.compile(r"^(actor|actor_rollout_ref|algorithm|grpo|loss_fn|trainer\.algorithm)\.\w")
MAX_PARTS = 100_000
_MAGIC = re.compile(r"^(\s*)[%!].*$", re.M)
_SHELL_CELL = re.compile(r"\s*%%(bash|sh|shell|script (ba)?sh)\b[^\n]*\n")
_SHELL_LINE = re.compile(r"^[ \t]*!((?:.*\\\n)*.*)$", re.M)
_INSTALLS = re.compile(r"\s*(apt|apt-get|cd|curl|git|ls|pip3?|uv pip|wget)\b")
_ARGUMENTS = re.compile(r"\s*(--[a-z]|\+{0,2}\w+(\.\w+)+=)")
_PLAIN = re.compile(r"^\w+ *= *[-+.\w\"']+ *$", re.M)
_CALL = re.compile(r"\b\w*(Config|Arguments|Args|GRPOLoss)\(")
MAX_BRACKETS, MAX_CALL = 300, 10_000
_OPERATIONS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_ERRORS = (ValueError, TypeError, KeyError, ArithmeticError, MemoryError, RecursionError)


def notebook_source(text: str) -> str:
    """The code of a notebook's cells, as far as Python can read them; all of it where it can read none."""
    plain = _cells(text)
    return "\n".join([cell for cell in plain if _readable(cell)] or plain)


def notebook_commands(text: str) -> str:
    """The commands that a notebook gives to a shell, by `!` or by `%%bash`, those that install or fetch left out."""
    found: list[str] = []
    for cell in _cells(text):
        opened = _SHELL_CELL.match(cell)
        typed = [line for line in _SHELL_LINE.findall(cell) if not _INSTALLS.match(line)]
        found += [cell[opened.end() :]] if opened else typed
    return "\n".join(found)


def _cells(text: str) -> list[str]:
    tree = json.loads(text)
    cells = tree.get("cells") if isinstance(tree, dict) else None
    some = [cell for cell in cells if isinstance(cell, dict)] if isinstance(cells, list) else []
    code = [cell.get("source") for cell in some if cell.get("cell_type") == "code"]
    return ["".join(map(str, source)) if isinstance(source, list) else str(source or "") for source in code]


def _readable(cell: str) -> bool:
    try:
        parsed(cell)
    except SyntaxError:
        return False
    return True


def python_settings(text: str) -> tuple[dict[str, Any], dict[str, int], list[tuple[int, str]], dict[str, int]]:
    """Settings, their lines, (line, key) of what is computed, and the first line of what two such calls set differently.

    The keyword arguments of every call of something whose name ends as a configuration's does, `reward_norm=NormConfig(...)`
    in them as `reward_norm.KEY`; dictionaries with a trainer's sections; and what is set later on either.
    """
    tree = parsed(text)
    reader = _Reader(constants(tree), changes(tree))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_configuration(node)]
    calls.sort(key=lambda call: call.lineno)
    inner = {id(word.value) for call in calls for word in call.keywords}
    outer = [call for call in calls if id(call) not in inner]
    for call in outer:
        reader.call(call)
    for nested in _sectioned(tree):
        reader.mapping(nested, "")
    _later(tree, reader)
    return reader.found, reader.lines, reader.computed, _repeated(outer)


def _repeated(calls: Iterable[ast.Call]) -> dict[str, int]:
    """What calls of one algorithm's configuration are given with different values, and the line of the first."""
    first: dict[tuple[str, str], ast.expr] = {}
    found: dict[str, int] = {}
    for call in filter(_is_of_algorithm, calls):
        for word in call.keywords:
            before = first.setdefault((called(call), word.arg or ""), word.value)
            if word.arg and before is not word.value and ast.dump(before) != ast.dump(word.value):
                found.setdefault(word.arg, before.lineno)
    return found


def command_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """The words of every list or string that begins as the arguments of a command do, `--flag` or `a.b=`; what is put into it stands as `$`.

    Flags that the program declares or looks for are none.
    """
    inside: set[int] = set()
    for node in ast.walk(parsed(text)):
        if id(node) in inside:
            continue
        if isinstance(node, ast.Compare) or (isinstance(node, ast.Call) and called(node) in DECLARATIONS):
            inside |= set(map(id, ast.walk(node)))
            continue
        parts = node.elts if isinstance(node, (ast.List, ast.Tuple)) else [node]
        words = [_written(part) for part in parts]
        if any(map(_ARGUMENTS.match, words)):
            inside |= {id(below) for part in parts for below in ast.walk(part)}
            yield getattr(node, "lineno", 1), [word for text in words for word in text.split()]


def _written(node: ast.AST) -> str:
    """A string as it stands; empty where there is none."""
    values = node.values if isinstance(node, ast.JoinedStr) else [node]
    parts = [str(part.value) if isinstance(part, ast.Constant) else "$" for part in values]
    plain = isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    return "".join(parts) if plain else ""


def parsed(text: str) -> ast.Module:
    """The tree of a program; of one that this Python cannot read, that of its plain assignments and calls of configurations."""
    if "\0" in text:
        raise ValueError("expected text, got a NUL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the compiler thinks of the style of a stranger's file
        for attempt in (text, _MAGIC.sub(r"\1pass", text)):  # a notebook that was saved as a script
            try:
                return ast.parse(attempt)
            except SyntaxError as found:
                error = found
        left = [MAX_BRACKETS]
        calls = [part for match in _CALL.finditer(text) if (part := _closed(text, match.start(), left))]
        if not calls:
            raise error
        return ast.parse("\n".join([match[0] for match in _PLAIN.finditer(text)] + calls))


def _closed(text: str, begin: int, left: list[int]) -> str:
    """The call that begins there, up to the bracket that makes it one; empty where none does, or too many were tried."""
    end = begin
    while left[0] > 0:
        left[0] -= 1
        end = text.find(")", end) + 1
        if not end or end - begin > MAX_CALL:
            return ""
        try:
            ast.parse(text[begin:end])
        except SyntaxError:
            continue
        return text[begin:end]
    return ""


class _Reader:
    """Collects settings in the order of the file; a later one wins, and takes the place of a computed one."""

    def __init__(self, names: Mapping[str, ast.expr], changes: Mapping[str, list[Change]]) -> None:
        self.names = names
        self.changes = changes
        self.left = [MAX_PARTS]
        self.found: dict[str, Any] = {}
        self.lines: dict[str, int] = {}
        self.computed: list[tuple[int, str]] = []

    def call(self, node: ast.Call, prefix: str = "") -> None:
        """The keywords of a call, those of configurations inside it below their own."""
        if called(node) in ALGORITHMS:
            self.found["algo"], self.lines["algo"] = called(node), node.lineno
        for word in node.keywords:
            if word.arg is None:
                self._unpacked(word.value, node, prefix)
            elif word.arg in FUNCTIONS and called(node) == "Trainer":
                self._function(word.arg, word.value)
            elif isinstance(word.value, ast.Call) and _is_configuration(word.value):
                self.call(word.value, f"{prefix}{word.arg}.")
            else:
                self.setting(prefix + word.arg, word.value)

    def setting(self, key: str, value: ast.expr) -> None:
        """One key, where its value can be told."""
        try:
            self.found[key] = _value(value, self.names, self.left)
            self.computed = [one for one in self.computed if one[1] != key]
        except _ERRORS:
            self.found.pop(key, None)
            self.computed.append((value.lineno, key))
        self.lines[key] = value.lineno

    def _function(self, key: str, value: ast.expr) -> None:
        """The name of a function that is handed over; what makes it, a factory or `partial`, gives settings of its own."""
        for _ in range(8):
            if isinstance(value, ast.Name) and value.id in self.names:
                value = self.names[value.id]
        if isinstance(value, ast.Call):
            self.call(value)
            value = value.args[0] if called(value) == "partial" and value.args else value.func
        name = value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", "")
        self.setting(key, ast.copy_location(ast.Constant(name), value) if _FUNCTION.search(name) else value)

    def _unpacked(self, value: ast.expr, node: ast.Call, prefix: str) -> None:
        changed: list[Change] = []
        for _ in range(8):
            if isinstance(value, ast.Name) and value.id in self.names:
                changed += self.changes.get(value.id, [])
                value = self.names[value.id]
        if isinstance(value, ast.Call) and called(value) == "dict" and not value.args:
            self.call(value, prefix)
        elif isinstance(value, ast.Dict) and all(isinstance(key, ast.Constant) for key in value.keys):
            self.mapping(value, prefix)
        else:
            changed = [("", node)]
        for key, item in changed:
            if key:
                self.setting(prefix + key, item)
            else:
                self.computed.append((item.lineno, f"**keywords of {called(node)}"))

    def mapping(self, value: ast.Dict, prefix: str) -> None:
        """The keys of a dictionary, those of dictionaries in it below their own."""
        for key, item in zip(value.keys, value.values, strict=True):
            name = f"{prefix}{getattr(key, 'value', '')}"
            if isinstance(item, ast.Dict) and item.keys and all(isinstance(one, ast.Constant) for one in item.keys):
                self.mapping(item, f"{name}.")
            elif isinstance(key, ast.Constant):
                self.setting(name, item)
            else:
                self.computed.append((value.lineno, f"**keywords of {prefix or 'a dictionary'}"))


def _sectioned(tree: ast.AST) -> list[ast.Dict]:
    """The dictionaries that hold a trainer's sections, each with all that is below it."""
    found: list[ast.Dict] = []
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict) and id(node) not in inside and any(map(_is_section, node.keys, node.values)):
            inside |= {id(below) for below in ast.walk(node)}
            found.append(node)
    return found


def _is_section(key: ast.expr | None, value: ast.expr) -> bool:
    name = key.value if isinstance(key, ast.Constant) else None
    below = value.keys if isinstance(value, ast.Dict) else []
    typed = name == "trainer" and any(isinstance(one, ast.Constant) and one.value == "trainer_type" for one in below)
    nested = typed or (name in ROOTS and isinstance(value, ast.Dict))
    return isinstance(name, str) and (nested or _FLAT.match(name) is not None)


def _later(tree: ast.AST, reader: _Reader) -> None:
    """What is set behind the call that `args` is bound to, in the order of the file."""
    assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    made = [node for node in assigned if isinstance(node.value, ast.Call) and _is_configuration(node.value)]
    bound = {target.id for node in made for target in node.targets if isinstance(target, ast.Name)}
    values = {id(target): node.value for node in assigned for target in node.targets}
    found = [one for node in ast.walk(tree) for one in _set_by(node, bound, values)]
    for key, value in sorted(found, key=lambda one: one[1].lineno):
        if key:
            reader.setting(key, value)
        else:
            reader.computed.append((value.lineno, "**keywords of replace"))


def _set_by(node: ast.AST, bound: set[str], values: Mapping[int, ast.expr]) -> Iterator[tuple[str, ast.expr]]:
    """`args.beta = 0.0`, `setattr(args, "beta", 0.0)`, `replace(args, beta=0.0)`; `config["algorithm"]["gamma"] = 1.0`."""
    if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
        value = values.get(id(node), node)  # what is not assigned but added, say, cannot be told
        path = _subscripts(node) if isinstance(node, ast.Subscript) else []
        if path and path[0] in ROOTS:
            yield ".".join(path), value
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in bound:
            yield node.attr, value
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Name) and node.args[0].id in bound:
        if called(node) == "replace":
            yield from ((word.arg or "", word.value) for word in node.keywords)
        elif called(node) == "setattr" and len(node.args) == 3 and isinstance(node.args[1], ast.Constant):
            yield str(node.args[1].value), node.args[2]


def _subscripts(node: ast.expr) -> list[str]:
    """`a`, `b` of `config["a"]["b"]`; nothing where one of them is no string."""
    path: list[str] = []
    while isinstance(node, ast.Subscript):
        if not isinstance(node.slice, ast.Constant) or not isinstance(node.slice.value, str):
            return []
        path.insert(0, node.slice.value)
        node = node.value
    return path if len(path) > 1 else []


def _value(node: ast.expr, names: Mapping[str, ast.expr], left: list[int]) -> Any:
    """What an expression of literals, names and arithmetic is; raises where it is anything else, or of too many parts."""
    left[0] -= 1
    if left[0] < 0:
        raise ValueError("too many parts")
    if isinstance(node, ast.Name):
        return _value(names[node.id], names, left)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return _value(names[f"{node.value.id}.{node.attr}"], names, left)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        sides = (_number(_value(side, names, left)) for side in (node.left, node.right))
        return _OPERATIONS[type(node.op)](*sides)
    if isinstance(node, (ast.Tuple, ast.List)):
        items = [_value(item, names, left) for item in node.elts]
        return tuple(items) if isinstance(node, ast.Tuple) else items
    return ast.literal_eval(node)


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or abs(value) > 1e18:
        raise ValueError("not a number")
    return value


def _is_configuration(node: ast.Call) -> bool:
    name = called(node)
    configured = name in ALGORITHMS or (name.endswith(ENDINGS) and not name.startswith(OTHERS))
    functions = name == "Trainer" and any(word.arg == "advantage_fn" for word in node.keywords)
    return configured or functions or (name == "train" and any(map(_is_loss, node.keywords)))


def _is_of_algorithm(call: ast.Call) -> bool:
    return _ALGORITHM.search(called(call)) is not None


def _is_loss(word: ast.keyword) -> bool:
    """Whether an argument of `backend.train(...)` says which loss is trained with."""
    return word.arg == "importance_sampling_level" or (
        word.arg == "loss_fn" and getattr(word.value, "value", None) in ("cispo", "ppo")
    )
