"""Segmented scans by doubling: ⌈log₂ n⌉ steps over whole arrays, whatever the lengths of the segments.

Step s merges every partial result with the one s places away, where that lies in the same segment.
Values are selected, never subtracted or multiplied away, so a NaN in one segment cannot reach another
(GSPO-NUM-3), the rounding of a sum grows with log₂ n only, and no shape depends on data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from .arrays import Array, namespace_of

State: TypeAlias = tuple[Array, ...]
Combine: TypeAlias = Callable[[State, State], State]


def segmented_scan(combine: Combine, state: State, reach: Array, longest: int, *, backward: bool = False) -> State:
    """y_i = x_first ∘ … ∘ x_i within each segment, for an associative ∘, along the last axis.

    Args: `state` a tuple of arrays, the x_i; `combine` takes the merged state nearer to the start of
    the scan, then the other; `reach` the number of places before i (behind, where `backward`) in the
    segment of i; `longest` a bound on the length of a segment, a Python integer.
    """
    xp = namespace_of(reach)
    step = 1
    while step < longest:
        shift = -step if backward else step
        away = tuple(xp.roll(values, shift, axis=-1) for values in state)
        inside = reach >= step
        merged = combine(away, state)
        state = tuple(xp.where(inside, new, old) for new, old in zip(merged, state, strict=True))
        step *= 2
    return state


def add(first: State, second: State) -> State:
    """x + y, for each part of the state."""
    return tuple(a + b for a, b in zip(first, second, strict=True))


def affine(first: State, second: State) -> State:
    """(g, x) of y ↦ x + g y, `second` after `first`: the step of a linear recurrence."""
    return second[0] * first[0], second[1] + second[0] * first[1]


def merge_moments(first: State, second: State) -> State:
    """(n, mean, Σ(x - mean)²) of two sets together; every term is a sum of squares, nothing cancels.

    Chan, Golub & LeVeque, https://doi.org/10.1080/00031305.1983.10483115.
    """
    (n, mean, squares), (m, other, more) = first, second
    xp = namespace_of(n)
    share = m / xp.where(n + m > 0, n + m, 1.0)
    step = other - mean
    return n + m, mean + step * share, squares + more + step * step * n * share
