"""Terms: numbers with their scales, one by one, in columns and in nested lists; and what a wrong call is told."""

from collections.abc import Sequence
from typing import Any

from mpmath import fsum, mpf

from .exact import as_dtype, exact
from .scales import Output

Term = tuple[mpf, mpf]
Outputs = dict[str, Output]
NOTHING: Term = (mpf(0), mpf(0))


def sized(value: mpf) -> Term:
    """A number that one operation has rounded: its scale is its size."""
    return value, abs(value)


def total(terms: list[Term]) -> Term:
    """The sum of terms, and of their scales."""
    return fsum(value for value, _ in terms), fsum(scale for _, scale in terms)


def held(value: Any, low: mpf, high: mpf) -> Term:
    """clip(v, low, high): a value inside is owed exactly, and so is a bound that float32 holds; another is rounded once."""
    infinite = value in (float("inf"), float("-inf"), "inf", "-inf")
    number = mpf(value) if infinite else exact(value)
    if low <= number <= high:
        return number, mpf(0)
    bound = low if number < low else high
    return bound, mpf(0) if as_dtype(bound, "float32") == bound else abs(bound)


def mapped(function: Any, tree: Any, *others: Any) -> Any:
    """f of the leaves of nested lists of one shape."""
    if not isinstance(tree, list):
        return function(tree, *others)
    if any(not isinstance(other, list) or len(other) != len(tree) for other in others):
        raise ValueError(f"expected arrays of one shape, got lengths {[len(tree), *map(_length, others)]}")
    return [mapped(function, *branches) for branches in zip(tree, *others, strict=True)]


def _length(tree: Any) -> Any:
    return len(tree) if isinstance(tree, list) else "none"


def laid(tree: Any) -> Output:
    """Nested lists of terms -> nested values and nested scales."""
    return Output(mapped(lambda term: term[0], tree), mapped(lambda term: term[1], tree))


def one_of(name: str, value: Any, known: Sequence[Any]) -> None:
    """Refuse a word that is not known."""
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(map(str, known))}, got {value!r}")


def one_each(name: str, values: Sequence[Any], of: Sequence[Any]) -> None:
    """Refuse a column of another length."""
    if len(values) != len(of):
        raise ValueError(f"{name}: expected {len(of)} values, one for each response, got {len(values)}")
