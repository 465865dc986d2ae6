"""Moments of a set of numbers: mean, mean size and standard deviation, and what dividing by the last does to a scale."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from mpmath import fsum, mpf, sqrt

from .ratio import mean
from .terms import NOTHING, Term


class Spread(NamedTuple):
    """A standard deviation, None where it is undefined, and what a rounded one misses in units of roundoff."""

    deviation: mpf | None
    missed: mpf


@dataclass(frozen=True)
class Moments:
    """n values, their mean, mean|r| and sum of squared deviations; `equal` where max == min (GSPO-ADV-3)."""

    count: int
    mean: mpf
    size: mpf
    squares: mpf
    equal: bool

    def spread(self, ddof: mpf, *, merged: bool = False) -> Spread:
        """sqrt(sum (r - mean)^2 / (n - ddof)), and what a rounded one misses beyond u std (GSPO-ADV-1).

        An error of the mean, u mean|r|, shifts every deviation by one number; they sum to 0, so it does not show unless
        std is 0 too, or the moments were merged from batches, whose means differ.
        """
        freedom = self.count - ddof
        if freedom <= 0:
            return Spread(None, mpf(0))
        return Spread(sqrt(self.squares / freedom), self.size if self.equal or merged else mpf(0))

    def centred(self, value: mpf) -> Term:
        """r - mean, and |r - mean| + mean|r|, since a rounded mean errs by u mean|r|; exactly 0 among equals."""
        return NOTHING if self.equal else (value - self.mean, abs(value - self.mean) + self.size)


def moments(values: list[mpf]) -> Moments:
    """Two passes: the mean, then squares about it; no values are equal values."""
    average = mean(values)
    squares = fsum((value - average) ** 2 for value in values)
    return Moments(len(values), average, mean([abs(value) for value in values]), squares, len(set(values)) < 2)


def divided(term: Term, spread: Spread, eps: mpf, placement: str = "std") -> Term:
    """x / (std + eps) or x / sqrt(var + eps); x itself where std is undefined, or eps and it are 0 (GSPO-ADV-1, GSPO-ADV-2).

    The scale is divided alike, and is |x| at least: a rounded std errs by u std, and by what its spread misses.
    """
    deviation, missed = spread
    if deviation is None or not (divisor := _divisor(deviation, eps, placement)):
        return term
    value, scale = term
    shadow = missed * (deviation / divisor if placement == "variance" else 1) / divisor
    return value / divisor, (max(scale, abs(value)) + abs(value) * shadow) / divisor


def _divisor(deviation: mpf, eps: mpf, placement: str) -> mpf:
    return deviation + eps if placement == "std" else sqrt(deviation**2 + eps)


def members(keys: list[Any]) -> list[list[int]]:
    """The indices of each group: ids in any order, groups of any size (GSPO-ADV-5)."""
    found: dict[Any, list[int]] = {}
    for index, key in enumerate(keys):
        found.setdefault(key, []).append(index)
    return list(found.values())
