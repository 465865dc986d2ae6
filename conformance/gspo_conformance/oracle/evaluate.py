"""The policy loss, evaluated: loss, gradient, sum and count, metrics, intermediate quantities, each with its scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mpmath import mpf

from .exact import at_digits
from .gradient import gradient
from .kinks import kink_margin
from .layout import PerToken
from .loss import Response, loss_at, loss_scale, penalty_terms, responses, surrogate_weighting
from .metrics import metrics
from .problem import Problem, read_problem
from .ratio import sequence_log_ratio, token_log_ratios
from .scales import Output, ratio_scale


@dataclass(frozen=True)
class Result:
    """The truth about one batch. Token outputs have the layout of `logp`; `kink_margin` is infinite where nothing is decided."""

    loss: Output
    gradient: Output
    sum: Output
    count: Output
    metrics: dict[str, Output]
    intermediates: dict[str, Any]
    kink_margin: mpf

    @property
    def outputs(self) -> dict[str, Output]:
        """Every output by name, metrics as `metrics.NAME`."""
        named = {"loss": self.loss, "gradient": self.gradient, "sum": self.sum, "count": self.count}
        return named | {f"metrics.{name}": output for name, output in self.metrics.items()}


@at_digits
def evaluate(objective: Mapping[str, Any] | str, inputs: Mapping[str, Any]) -> Result:
    """L, dL/dlogp, L = sum / count and the metrics of one batch (GSPO-GRAD-1, GSPO-AGG-8, GSPO-METRIC-1)."""
    return solve(read_problem(objective, inputs))


def solve(problem: Problem) -> Result:
    """`evaluate` at the precision in force."""
    found = responses(problem)
    loss = Output(loss_at(problem, problem.logp, problem.logp), loss_scale(problem, found))
    slopes, slope_scales = gradient(problem, found)
    count = surrogate_weighting(problem).count
    scatter = problem.layout.scatter
    return Result(
        loss=loss,
        gradient=Output(scatter(slopes, mpf(0)), scatter(slope_scales, mpf(0))),
        sum=Output(loss.value * count, loss.scale * count),
        count=Output(count, mpf(0)),
        metrics=metrics(problem, found),
        intermediates=_intermediates(problem, found),
        kink_margin=kink_margin(problem, found),
    )


def _intermediates(problem: Problem, found: list[Response]) -> dict[str, Any]:
    """Log-ratios, ratios, decisions, surrogate values, weights: neutral values at uncounted positions (GSPO-RATIO-1)."""
    named = {**_log_ratios(problem), **_units(problem, found), **_decisions(problem, found)}
    scatter, weighting = problem.layout.scatter, surrogate_weighting(problem)
    weights = [one.weights for one in found], [one.weight_scales for one in found]
    named["correction"] = Output(scatter(weights[0], mpf(1)), scatter(weights[1], mpf(0)))
    named["omega"], named["normalizer"] = weighting.omega, weighting.count
    if problem.objective["penalty"] is not None:
        named["kl"] = scatter(penalty_terms(problem, problem.logp, problem.logp), mpf(0))
    return named


def _log_ratios(problem: Problem) -> dict[str, Output]:
    """d_{i,t} with scale |d|, and m_i with scale mean|d| (GSPO-RATIO-1, GSPO-RATIO-2)."""
    differences = [token_log_ratios(*row) for row in zip(problem.logp, problem.old_logp, strict=True)]
    sizes = [[abs(d) for d in row] for row in differences]
    scatter = problem.layout.scatter
    means = [sequence_log_ratio(*row) for row in zip(problem.logp, problem.old_logp, strict=True)]
    mean_sizes = [sum(row, mpf(0)) / max(len(row), 1) for row in sizes]
    return {
        "token_log_ratio": Output(scatter(differences, mpf(0)), scatter(sizes, mpf(0))),
        "sequence_log_ratio": Output(means, mean_sizes),
    }


def _units(problem: Problem, found: list[Response]) -> dict[str, Output]:
    """l and x, one per response for the sequence and product ratios, else one per token."""
    ratios = [response.ratios for response in found]
    logs = _laid(problem, [[one.log for one in row] for row in ratios], mpf(0))
    spreads = _laid(problem, [[one.spread for one in row] for row in ratios], mpf(0))
    values = _laid(problem, [[one.value for one in row] for row in ratios], mpf(1))
    sizes = _laid(problem, [[ratio_scale(one) for one in row] for row in ratios], mpf(0))
    return {"log_ratio": Output(logs, spreads), "ratio": Output(values, sizes)}


def _laid(problem: Problem, rows: list[list[Any]], neutral: Any, *, per_response: bool | None = None) -> list[Any]:
    """One value per response, or one per token in the layout of the inputs."""
    if per_response is None:
        per_response = problem.objective["ratio"] in ("sequence", "product")
    return [row[0] if row else neutral for row in rows] if per_response else problem.layout.scatter(rows, neutral)


def _decisions(problem: Problem, found: list[Response]) -> dict[str, Any]:
    """The bound that each unit fell to, its gate (0 closed, or A = 0), and its surrogate value."""
    whole = problem.unit_is_sequence
    by_token = whole and problem.objective["surrogate"]["kind"] != "gmpo"
    fell = [one.decisions for one in found]
    gates = [
        [int(a != 0 and not _closes(problem, d)) for a, d in zip(o.advantages, o.decisions, strict=True)] for o in found
    ]
    values = _laid(problem, [one.values for one in found], mpf(0), per_response=whole)
    sizes = _laid(problem, [one.value_scales for one in found], mpf(0), per_response=whole)
    return {
        "decision": _laid(problem, fell, None, per_response=by_token),
        "gate": _laid(problem, gates, 0, per_response=by_token),
        "surrogate": Output(values, sizes),
    }


def _closes(problem: Problem, decision: str | None) -> bool:
    """Whether a decision stops the gradient: the weight clip of CISPO does not (GSPO-SURR-8)."""
    return decision is not None and problem.objective["surrogate"]["kind"] != "cispo"


@at_digits
def evaluate_step(
    objective: Mapping[str, Any] | str, parts: Sequence[Mapping[str, Any]]
) -> tuple[Result, list[Output]]:
    """The union of the parts of an optimiser step: its result, and the gradient of each part (GSPO-DIST-1, GSPO-DIST-2)."""
    return solve_step([read_problem(objective, part) for part in parts])


def solve_step(problems: list[Problem]) -> tuple[Result, list[Output]]:
    """`evaluate_step` at the precision in force."""
    union = _union(problems)
    whole = solve(union)
    gradients, start = [], 0
    values, sizes = gradient(union, responses(union))
    for problem in problems:
        stop = start + len(problem.logp)
        scatter = problem.layout.scatter
        gradients.append(Output(scatter(values[start:stop], mpf(0)), scatter(sizes[start:stop], mpf(0))))
        start = stop
    return whole, gradients


def _union(problems: list[Problem]) -> Problem:
    """All responses of all parts as ragged rows; a group id means the same group in every part (GSPO-DIST-4)."""

    def joined(name: str) -> Any:
        columns = [getattr(problem, name) for problem in problems]
        return None if any(column is None for column in columns) else [row for column in columns for row in column]

    names = ("logp", "old_logp", "advantages", "advantage_scales", "ref_logp", "behavior_logp", "groups")
    fields: dict[str, PerToken] = {name: joined(name) for name in names}
    rows = tuple(tuple((i, t) for t in range(len(row))) for i, row in enumerate(fields["logp"]))
    layout = replace(problems[0].layout, widths=tuple(map(len, rows)), packed=False, counted=rows)
    return replace(problems[0], layout=layout, **fields)
