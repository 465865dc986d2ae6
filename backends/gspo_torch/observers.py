"""Who is told of every call of the loss: the recorders that are open. Empty, and costing nothing, unless one is."""

from __future__ import annotations

from typing import Any, Protocol


class Observer(Protocol):
    """What a recorder offers."""

    def observe(self, objective: Any, logp: Any, arguments: dict[str, Any], found: Any) -> None:
        """A call of the loss with what it was given and what it returned."""
        ...


OBSERVERS: list[Observer] = []


def tell(objective: Any, logp: Any, arguments: dict[str, Any], found: Any) -> None:
    """Passes a call of the loss on."""
    for observer in OBSERVERS:
        observer.observe(objective, logp, arguments, found)
