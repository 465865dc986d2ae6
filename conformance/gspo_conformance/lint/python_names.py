"""The names of a program: what they are bound to where that can be told without running it, and what changes it later."""

from __future__ import annotations

import ast
from collections.abc import Iterator

CHANGING = ("clear", "pop", "popitem", "setdefault", "update")
# A key and what it is set to; no key where a change cannot be told.
Change = tuple[str, ast.expr]


def constants(tree: ast.AST) -> dict[str, ast.expr]:
    """Names that are bound once, or always to the same."""
    found: dict[str, ast.expr] = {}
    written: dict[str, str] = {}
    for name, value in _bindings(tree):
        text = "" if value is None else ast.dump(value)
        found |= {} if value is None else {name: value}
        written[name] = text if written.get(name, text) == text else ""
    return {name: value for name, value in found.items() if written[name]} | _attributes(tree)


def _attributes(tree: ast.AST) -> dict[str, ast.expr]:
    """`Name.value` of a class with constants; `args.epsilon` by the default of its argument. What is set later is neither."""
    found: dict[str, ast.expr] = {}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    defaults = {
        flag: word.value for call in calls for flag in _flags(call) for word in call.keywords if word.arg == "default"
    }
    later: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            later.add(ast.unparse(node))
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{name}": value
                for name, value in _bindings(ast.Module(node.body, []))
                if value is not None
            }
        if isinstance(node, ast.Assign) and (name := _parsed_into(node)):
            found |= {f"{name}.{flag}": value for flag, value in defaults.items()}
    return {name: value for name, value in found.items() if name not in later}


def _parsed_into(node: ast.Assign) -> str:
    """The name that is given to the arguments of a command line, `args` in `args, _ = parser.parse_known_args()`."""
    if not isinstance(node.value, ast.Call) or called(node.value) not in ("parse_args", "parse_known_args"):
        return ""
    target = node.targets[0]
    first = target.elts[0] if isinstance(target, ast.Tuple) and target.elts else target
    return first.id if isinstance(first, ast.Name) else ""


def _flags(call: ast.Call) -> list[str]:
    """The names under which an argument of a command line is found later."""
    if called(call) != "add_argument":
        return []
    words = [word.value for word in call.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
    return [word.lstrip("-").replace("-", "_") for word in words if word.startswith("--")]


def _bindings(tree: ast.AST) -> Iterator[tuple[str, ast.expr | None]]:
    """Every name that something is bound to; None where it is not a plain assignment of one value."""
    plain: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and node.value is not None:
                    plain.add(id(target))
                    yield target.id, node.value
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in plain:
            yield node.id, None
        elif isinstance(node, ast.arg):
            yield node.arg, None


def changes(tree: ast.AST) -> dict[str, list[Change]]:
    """What is done to dictionaries by their names, in the order of the file: `settings["beta"] = 0`, `settings.update(beta=0)`."""
    found: dict[str, list[tuple[int, Change]]] = {}
    for node in ast.walk(tree):
        for name, change in _changes(node):
            found.setdefault(name, []).append((getattr(node, "lineno", 0), change))
    return {name: [change for _, change in sorted(each, key=lambda one: one[0])] for name, each in found.items()}


def _changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    """The dictionaries that one statement or call changes."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Subscript):
                key = target.slice.value if isinstance(target.slice, ast.Constant) else ""
                yield (
                    _root(target),
                    (key if isinstance(target.value, ast.Name) and isinstance(key, str) else "", node.value),
                )
    elif isinstance(node, (ast.AugAssign, ast.Delete)):
        for target in node.targets if isinstance(node, ast.Delete) else [node.target]:
            if isinstance(target, ast.Subscript):
                yield _root(target), ("", target)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING:
        plain = node.func.attr == "update" and not node.args and all(word.arg for word in node.keywords)
        for key, value in [(word.arg or "", word.value) for word in node.keywords] if plain else [("", node)]:
            yield _root(node.func.value), (key, value)


def _root(node: ast.expr) -> str:
    """`a` of `a["b"]["c"]`."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def called(node: ast.Call) -> str:
    """The last name of what is called."""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
