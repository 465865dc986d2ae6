"""Reverse-mode differentiation over NumPy: a mutant writes its loss, wrong as it is, and the wrong gradient follows.

A `Var` remembers where its value came from; `gradient` walks back. Everything here also takes plain
arrays and then returns plain arrays, so that constants cost nothing. A selection passes exactly 0 to
the branch not taken; a product passes 0 · inf = NaN, as in every framework: both matter to mutants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..tensors import NumPyArray

Pull = Callable[[NumPyArray], NumPyArray]


class Var:
    """An array that depends on the leaf; `sources` are what it was made of, each with its pull-back."""

    __slots__ = ("sources", "value")
    __array_ufunc__ = None

    def __init__(self, value: NumPyArray, sources: tuple[tuple[Var, Pull], ...] = ()) -> None:
        self.value = value
        self.sources = sources

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return self.value.shape

    def __add__(self, other: Any) -> Any:
        return make(value_of(self) + value_of(other), (self, lambda g: g), (other, lambda g: g))

    def __sub__(self, other: Any) -> Any:
        return make(value_of(self) - value_of(other), (self, lambda g: g), (other, lambda g: -g))

    def __rsub__(self, other: Any) -> Any:
        return make(value_of(other) - self.value, (self, lambda g: -g))

    def __mul__(self, other: Any) -> Any:
        a, b = self.value, value_of(other)
        return make(a * b, (self, lambda g: g * b), (other, lambda g: g * a))

    def __truediv__(self, other: Any) -> Any:
        a, b = self.value, value_of(other)
        return make(a / b, (self, lambda g: g / b), (other, lambda g: -g * a / (b * b)))

    def __rtruediv__(self, other: Any) -> Any:
        a, b = value_of(other), self.value
        return make(a / b, (self, lambda g: -g * a / (b * b)))

    def __neg__(self) -> Var:
        return make(-self.value, (self, lambda g: -g))

    __radd__ = __add__
    __rmul__ = __mul__


def make(value: NumPyArray, *sources: tuple[Any, Pull]) -> Any:
    """A `Var` over those sources that are one; the bare value where none is."""
    live: list[tuple[Var, Pull]] = []
    for source, pull in sources:
        if type(source) is Var:
            fits = source.value.shape == value.shape
            live.append((source, pull if fits else _fitted(pull, source.value.shape)))
    return Var(value, tuple(live)) if live else value


def _fitted(pull: Pull, shape: tuple[int, ...]) -> Pull:
    return lambda g: _summed(pull(g), shape)


def _summed(gradient: NumPyArray, shape: tuple[int, ...]) -> NumPyArray:
    """The gradient of a value that was broadcast: summed over what it was broadcast along."""
    gradient = np.asarray(gradient)
    while gradient.ndim > len(shape):
        gradient = gradient.sum(axis=0)
    for axis, size in enumerate(shape):
        if size == 1 and gradient.shape[axis] != 1:
            gradient = gradient.sum(axis=axis, keepdims=True)
    return gradient


def value_of(x: Any) -> Any:
    """The array behind x."""
    return x.value if isinstance(x, Var) else x


stop = value_of


def exp(x: Any) -> Any:
    """e^x."""
    found = np.exp(value_of(x))
    return make(found, (x, lambda g: g * found))


def log(x: Any) -> Any:
    """The natural logarithm."""
    value = value_of(x)
    return make(np.log(value), (x, lambda g: g / value))


def expm1(x: Any) -> Any:
    """e^x - 1, without cancellation."""
    value = value_of(x)
    return make(np.expm1(value), (x, lambda g: g * np.exp(value)))


def sign(x: Any) -> NumPyArray:
    """The sign of x; a constant."""
    return np.sign(value_of(x))


def where(condition: NumPyArray, x: Any, y: Any) -> Any:
    """x where the condition holds, else y; the branch not taken gets exactly 0."""
    return make(
        np.where(condition, value_of(x), value_of(y)),
        (x, lambda g: np.where(condition, g, 0.0)),
        (y, lambda g: np.where(condition, 0.0, g)),
    )


def times(x: Any, y: Any) -> Any:
    """x y, and 0 where either is 0, beside infinity too."""
    kept = (value_of(x) != 0) & (value_of(y) != 0)
    return where(kept, x, 0.0) * where(kept, y, 0.0)


def minimum(x: Any, y: Any) -> Any:
    """min(x, y); at a tie x has the gradient."""
    return where(value_of(x) <= value_of(y), x, y)


def maximum(x: Any, y: Any) -> Any:
    """max(x, y); at a tie x has the gradient."""
    return where(value_of(x) >= value_of(y), x, y)


def clip(x: Any, low: Any, high: Any) -> Any:
    """max(low, min(x, high)), None for no bound; inside and at a bound the gradient passes."""
    x = x if high is None else minimum(x, high)
    return x if low is None else maximum(x, low)


def total(x: Any) -> Any:
    """Σ x over everything."""
    value = value_of(x)
    return make(np.sum(value), (x, lambda g: np.broadcast_to(g, value.shape)))


def row_sums(x: Any) -> Any:
    """Σ over the second of two axes."""
    value = value_of(x)
    return make(value.sum(axis=1), (x, lambda g: np.broadcast_to(g[:, None], value.shape)))


def take(x: Any, places: NumPyArray) -> Any:
    """x[places]; `places` has every entry once."""
    value = value_of(x)

    def back(g: NumPyArray) -> NumPyArray:
        found = np.zeros_like(value)
        found[places] = g
        return found

    return make(value[places], (x, back))


def straight(x: Any, value: NumPyArray) -> Any:
    """`value`, with the derivative of x: rounding that a framework differentiates through."""
    return make(value, (x, lambda g: g))


def gradient(result: Any, leaf: Var) -> NumPyArray:
    """d result / d leaf; zeros where the result does not depend on it."""
    if not isinstance(result, Var):
        return np.zeros_like(leaf.value)
    pending: dict[Var, NumPyArray] = {result: np.ones_like(result.value)}
    found = np.zeros_like(leaf.value)
    for node in reversed(_order(result)):
        received = pending.pop(node)
        if node is leaf:
            found = received
        for source, pull in node.sources:
            given = pull(received)
            pending[source] = pending[source] + given if source in pending else given
    return found


def _order(result: Var) -> list[Var]:
    """Every node behind the result, sources first."""
    order: list[Var] = []
    seen: set[Var] = set()
    stack: list[tuple[Var, bool]] = [(result, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(source, False) for source, _ in node.sources if source not in seen]
    return order
