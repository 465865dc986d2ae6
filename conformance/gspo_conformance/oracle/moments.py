"""Moments of a set of numbers: mean, mean size and standard deviation, and what dividing by the last does to a scale."""

from dataclasses import dataclass
from typing import Any

from mpmath import fsum, mpf, sqrt

from .ratio import mean
from .terms import NOTHING, Term


@dataclass(frozen=True)
class Moments:
    """n values, their mean, mean|r| and sum of squared deviations; `equal` where max == min (GSPO-ADV-3)."""

    count: int
    mean: mpf
    size: mpf
    squares: mpf
    equal: bool

    def deviation(self, ddof: mpf) -> mpf:
        """sqrt(sum (r - mean)^2 / (n - ddof)); 0 where it is undefined, n <= ddof (GSPO-ADV-1)."""
        freedom = self.count - ddof
        return sqrt(self.squares / freedom) if freedom > 0 and not self.equal else mpf(0)

    def centred(self, value: mpf) -> Term:
        """r - mean, and |r - mean| + mean|r|, since a rounded mean errs by u mean|r|; exactly 0 among equals."""
        return NOTHING if self.equal else (value - self.mean, abs(value - self.mean) + self.size)


def moments(values: list[mpf]) -> Moments:
    """Two passes: the mean, then squares about it; no values are equal values."""
    average = mean(values)
    squares = fsum((value - average) ** 2 for value in values)
    return Moments(len(values), average, mean([abs(value) for value in values]), squares, len(set(values)) < 2)


def divided(term: Term, deviation: mpf, eps: mpf, placement: str = "std") -> Term:
    """x / (std + eps) or x / sqrt(var + eps); x itself where std is 0 or undefined (GSPO-ADV-1, GSPO-ADV-2).

    The scale is divided alike: std errs by u std only, since an error of the mean shifts every deviation by one number
    and the deviations sum to 0; that much is in the scale of x already, which is at least |x|.
    """
    if deviation == 0:
        return term
    divisor = deviation + eps if placement == "std" else sqrt(deviation**2 + eps)
    return term[0] / divisor, term[1] / divisor


def members(keys: list[Any]) -> list[list[int]]:
    """The indices of each group: ids in any order, groups of any size (GSPO-ADV-5)."""
    found: dict[Any, list[int]] = {}
    for index, key in enumerate(keys):
        found.setdefault(key, []).append(index)
    return list(found.values())
