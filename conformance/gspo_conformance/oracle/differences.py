"""A second opinion: derivatives by central differences of a loss whose stop-gradients are held fixed, and re-runs at twice the precision."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mpmath import mp, mpf

from .evaluate import Result
from .exact import at_digits, exact
from .layout import PerToken
from .loss import loss_at
from .problem import Problem, read_problem
from .scales import Output

Tokens = list[Any]


class Disagreement(AssertionError):
    """Two ways to the same number gave two numbers."""


@at_digits
def differentiate(objective: Mapping[str, Any] | str, inputs: Mapping[str, Any], *, direction: Any = None) -> Any:
    """(L(logp + h) - L(logp - h)) / 2h: d L / d logp in the layout of `logp`, or one slope along `direction`.

    h is 10^-(digits/2) at twice the digits, so both the truncation h^2 L''' and the rounding stay far below 10^-digits.
    Valid where the kink margin is positive: stop-gradients hold their value at logp (GSPO-GRAD-5).
    """
    problem = read_problem(objective, inputs)
    digits = mp.dps
    with mp.workdps(2 * digits):
        step = mpf(10) ** (-(digits // 2) - 2)
        if direction is not None:
            return _slope(problem, problem.layout.gather(direction), step)
        return problem.layout.scatter(_every_slope(problem, step), mpf(0))


def _slope(problem: Problem, direction: PerToken, step: mpf) -> mpf:
    ahead, behind = (loss_at(problem, _moved(problem.logp, direction, sign * step), problem.logp) for sign in (1, -1))
    return (ahead - behind) / (2 * step)


def _moved(logp: PerToken, direction: PerToken, step: mpf) -> PerToken:
    rows = zip(logp, direction, strict=True)
    return [[value + step * way for value, way in zip(row, ways, strict=True)] for row, ways in rows]


def _every_slope(problem: Problem, step: mpf) -> PerToken:
    """One token at a time."""
    slopes = [[mpf(0)] * len(row) for row in problem.logp]
    for row, tokens in enumerate(problem.logp):
        for column in range(len(tokens)):
            direction = [[mpf(0)] * len(other) for other in problem.logp]
            direction[row][column] = mpf(1)
            slopes[row][column] = _slope(problem, direction, step)
    return slopes


@at_digits
def along(gradient: Sequence[Any], direction: Sequence[Any]) -> mpf:
    """sum_t g_t v_t over tokens of one layout: what a directional difference measures."""
    flat = zip(flattened(gradient), flattened(direction), strict=True)
    return sum((exact(g) * exact(v) for g, v in flat if g != 0), mpf(0))


def flattened(tree: Any) -> list[Any]:
    """Nested lists -> their leaves, in order."""
    return [leaf for branch in tree for leaf in flattened(branch)] if isinstance(tree, list | tuple) else [tree]


def verify(function: Callable[..., Any], *arguments: Any, digits: int = 50, agree: int = 30, **keywords: Any) -> Any:
    """f at `digits` and at twice as many must agree to `agree` digits in every value and scale; returns the sharper result."""
    once = function(*arguments, digits=digits, **keywords)
    twice = function(*arguments, digits=2 * digits, **keywords)
    with mp.workdps(2 * digits):
        for name, output in _outputs(once).items():
            _compare(name, output, _outputs(twice)[name], mpf(10) ** -agree)
    return twice


def verify_gradient(
    objective: Mapping[str, Any] | str, inputs: Mapping[str, Any], result: Result, *, agree: int = 30
) -> None:
    """The closed form must agree with differences to `agree` digits of the scale of each token."""
    other = differentiate(objective, inputs)
    with mp.workdps(2 * agree):
        _compare("gradient", result.gradient, Output(other, result.gradient.scale), mpf(10) ** -agree)


def _outputs(result: Any) -> dict[str, Output]:
    return result.outputs


def _compare(name: str, one: Output, other: Output, tolerance: mpf) -> None:
    rows = zip(*(flattened(tree) for tree in (one.value, other.value, one.scale, other.scale)), strict=True)
    for a, b, scale, second in rows:
        if isinstance(a, bool) or isinstance(b, bool):
            close = a == b
        else:
            close = abs(a - b) <= tolerance * max(abs(b), second) and abs(scale - second) <= tolerance * second
        if not close:
            raise Disagreement(f"{name}: {mp.nstr(a, 40)} and {mp.nstr(b, 40)} at scale {mp.nstr(second, 5)}")
