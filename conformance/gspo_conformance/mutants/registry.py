"""The registry of mutants: a name, a story and a class that overrides one stage of the reference.

@mutant("aggregation.token-mean", "GSPO-AGG-1", effect="long responses dominate the step")
class TokenMean(Reference):
    \"\"\"The mean over all tokens of the batch: each response is weighted by its length.\"\"\"

    def choose(self, objective): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from inspect import cleandoc
from typing import Any, TypeVar

from ..target import Capabilities, Case
from ..words import UsageError, choices
from .whole import Reference

Kind = TypeVar("Kind", bound=type[Reference])
PREFIX = "mutant:"
FILES = (
    "ratio",
    "turns",
    "clip",
    "relatives",
    "aggregation",
    "advantage",
    "advantage_edges",
    "advantage_use",
    "returns",
    "reward",
    "mask",
    "penalty",
    "correction",
    "gradient",
    "numerics",
    "packing",
    "distribution",
    "metrics",
)
_FOUND: dict[str, Mutant] = {}


@dataclass(frozen=True)
class Mutant:
    """A wrong implementation. It is a target too; `stages` are the methods of the reference that it replaces.

    `title` says what it computes, `consequence` what follows at once, `effect` what that does to
    training, `seen` where: `owner/repository#issue` or `owner/repository@commit`.
    """

    name: str
    clause: str
    kind: type[Reference] = field(repr=False, compare=False)
    effect: str = ""
    seen: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What it computes, in a few words."""
        return self.summary.partition(": ")[0]

    @property
    def consequence(self) -> str:
        """What follows from it."""
        return self.summary.partition(": ")[2]

    @property
    def story(self) -> str:
        """What the code looks like and why somebody writes it."""
        return " ".join(self._text.partition("\n\n")[2].split())

    @property
    def links(self) -> tuple[str, ...]:
        """Where it was seen, as URLs."""
        return tuple(_url(place) for place in self.seen)

    @cached_property
    def stages(self) -> frozenset[str]:
        """The names that it redefines in the reference."""
        return stages_of(self.kind)

    @property
    def target_name(self) -> str:
        """The name under which `gspo check` knows it."""
        return PREFIX + self.name

    @property
    def version(self) -> dict[str, str]:
        """A mutant has none."""
        return {}

    @property
    def capabilities(self) -> Capabilities:
        """Everything."""
        return Capabilities.everything()

    def run(self, case: Case) -> dict[str, Any]:
        """The wrong answer."""
        return self.kind(case).answer()

    @property
    def summary(self) -> str:
        """Title and consequence in one sentence, without its full stop."""
        return " ".join(self._text.partition("\n\n")[0].split()).removesuffix(".")

    @property
    def _text(self) -> str:
        return cleandoc(self.kind.__doc__ or "")


def mutant(name: str, clause: str, *, effect: str = "", seen: Iterable[str] = ()) -> Callable[[Kind], Kind]:
    """Registers a class as the mutant of that name."""

    def register(kind: Kind) -> Kind:
        if isinstance(seen, str):
            raise TypeError(f"seen: expected a tuple of places, got {seen!r}")
        if name in _FOUND:
            raise ValueError(f"mutant: expected a new name, got {name!r} twice")
        _FOUND[name] = Mutant(name, clause, kind, effect, tuple(seen))
        return kind

    return register


@cache
def mutants() -> tuple[Mutant, ...]:
    """Every mutant, in the order of the files and within each as written, whichever was imported first."""
    modules = [import_module(f"{__package__}.wrong.{file}").__name__ for file in FILES]
    return tuple(sorted(_FOUND.values(), key=lambda one: modules.index(one.kind.__module__)))


def find(name: str) -> Mutant:
    """The mutant of that name, or the composition of two: `a+b`."""
    known = {mutant.name: mutant for mutant in mutants()}
    parts = name.removeprefix(PREFIX).split("+")
    for part in parts:
        if part not in known:
            raise UsageError(choices(part, known, "mutant"))
    first, *rest = (known[part] for part in parts)
    for other in rest:
        first = compose(first, other)
    return first


def compose(first: Mutant, second: Mutant) -> Mutant:
    """Both mutations at once, the first outermost; one may not be a variant of the other."""
    if issubclass(first.kind, second.kind) or issubclass(second.kind, first.kind):
        raise UsageError(f"{first.name} and {second.name}: expected two mutants, got variants of one")
    kind = type(
        f"{first.kind.__name__}{second.kind.__name__}", (first.kind, second.kind), {"__doc__": first.kind.__doc__}
    )
    return Mutant(f"{first.name}+{second.name}", first.clause, kind, first.effect, first.seen + second.seen)


def stages_of(kind: type[Reference]) -> frozenset[str]:
    """The names of the reference that `kind` and its bases redefine."""
    own = set(Reference.__mro__)
    names = (name for base in kind.__mro__ if base not in own for name in vars(base))
    return frozenset(name for name in names if not name.startswith("_") and hasattr(Reference, name))


def _url(place: str) -> str:
    for mark, path in (("#", "issues"), ("@", "commit")):
        if mark in place:
            repository, _, rest = place.partition(mark)
            return f"https://github.com/{repository}/{path}/{rest}"
    return place if place.startswith("https://") else f"https://arxiv.org/abs/{place.removeprefix('arXiv:')}"
