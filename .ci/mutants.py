"""Every mutant of the Python files that are named, a JSON line each: the operators of mutmut, at every expression that can matter.

    PYTHONPATH=.mutation/tool python .ci/mutants.py gspo_core/ratio.py

Left out, because no test could tell or none should: type annotations, aliases and casts, docstrings, `__all__`, imports, the
*text* of messages (literals in `raise`, in calls of `_LOG`, and the `meaning` of `check_shape`), and mutants that Python
compiles to the same program. mutmut itself mutates functions alone; constants, defaults and fields of classes are mutated here too.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libcst as cst
from libcst.metadata import ByteSpanPositionProvider, MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

Mutant = dict[str, Any]
_TYPES = {"TypeVar", "TypeAlias"}


class _Collector(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider, ByteSpanPositionProvider)

    def __init__(self, source: bytes) -> None:
        self.source, self.found = source, list[Mutant]()
        self._path: list[str] = []
        self._messages = 0
        self._meanings: set[int] = set()
        self._module = cst.parse_module(source)

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, (cst.ClassDef, cst.FunctionDef)):
            self._path.append(node.name.value)
        self._messages += _is_message(node)
        if _left_out(node) or id(node) in self._meanings:
            return False
        if isinstance(node, cst.Call) and _name(node.func) == "check_shape":
            self._meanings.add(id(node.args[-1].value))
        for kind, operator in mutation_operators:
            if isinstance(node, kind) and not (self._messages and isinstance(node, cst.BaseString)):
                for mutated in operator(node):
                    self._keep(node, mutated)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        self._messages -= _is_message(original_node)
        if isinstance(original_node, (cst.ClassDef, cst.FunctionDef)):
            self._path.pop()

    def _keep(self, node: cst.CSTNode, mutated: cst.CSTNode) -> None:
        span = self.get_metadata(ByteSpanPositionProvider, node)
        place = self.get_metadata(PositionProvider, node).start
        self.found.append({
            "function": ".".join(self._path),
            "line": place.line,
            "start": span.start,
            "length": span.length,
            "before": self.source[span.start : span.start + span.length].decode(),
            "after": self._module.code_for_node(mutated).strip(),
        })  # fmt: skip


def _name(node: cst.CSTNode) -> str:
    return node.value if isinstance(node, cst.Name) else ""


def _is_message(node: cst.CSTNode) -> bool:
    """Whether text below this node is written for people."""
    logs = isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute) and _name(node.func.value) == "_LOG"
    return logs or isinstance(node, cst.Raise)


def _left_out(node: cst.CSTNode) -> bool:
    if isinstance(node, (cst.Annotation, cst.Import, cst.ImportFrom, cst.Decorator, cst.Assert)):
        return True
    if isinstance(node, cst.AnnAssign):
        return node.value is None or _name(node.annotation.annotation) in _TYPES
    if isinstance(node, cst.Assign):
        made = _name(node.value.func) if isinstance(node.value, cst.Call) else ""
        return made in _TYPES or _name(node.targets[0].target) == "__all__"
    return isinstance(node, cst.Call) and _name(node.func) in {"cast", "len", "isinstance"}


def replaced(source: bytes, mutant: Mutant) -> bytes:
    """The source of a module with one mutant in it."""
    start = mutant["start"]
    return source[:start] + mutant["after"].encode() + source[start + mutant["length"] :]


def mutants(path: Path) -> Iterator[Mutant]:
    """The mutants of one file, in order of place, without those that do not compile or change nothing."""
    source = path.read_bytes()
    collector = _Collector(source)
    MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True).visit(collector)
    seen = {ast.dump(ast.parse(source))}
    for mutant in sorted(collector.found, key=lambda one: (one["start"], one["length"])):
        try:
            tree = ast.dump(ast.parse(replaced(source, mutant)))
        except SyntaxError:
            continue
        if tree not in seen:
            seen.add(tree)
            yield {"module": path.stem} | mutant


if __name__ == "__main__":
    for file in sys.argv[1:]:
        for one in mutants(Path(file)):
            sys.stdout.write(json.dumps(one, ensure_ascii=False) + "\n")
