"""What an author writes: a case in a few lines. Everything else in a vector is derived from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


# The objectives of the family, as their JSON; written out here because truth imports nothing of the core.
def clip(low: float = 3e-4, high: float = 4e-4, dual: float | None = None) -> dict[str, Any]:
    """The surrogate of PPO, GRPO and GSPO."""
    return {"kind": "clip", "low": low, "high": high, "dual": dual}


def aggregation(mode: str = "sequence_mean_token_mean", count: str = "all", constant: float = 1.0) -> dict[str, Any]:
    """How token values become one number."""
    return {"mode": mode, "count": count, "constant": constant}


def penalty(estimator: str = "k3", coefficient: float = 0.125, **fields: Any) -> dict[str, Any]:
    """A KL term; its coefficient is large, so that a slip in it is too."""
    rest = {"importance": None, "aggregation": None, "log_ratio_clamp": None, "value_clamp": None}
    return {"estimator": estimator, "coefficient": coefficient} | rest | fields


def correction(level: str, action: str, **fields: Any) -> dict[str, Any]:
    """A weight for the mismatch between sampler and old policy."""
    return {
        "level": level,
        "action": action,
        "low": None,
        "high": None,
        "numerator": "old",
        "negative_only": False,
    } | fields


def objective(
    ratio: str = "sequence",
    surrogate: Mapping[str, Any] | None = None,
    mode: str | Mapping[str, Any] = "sequence_mean_token_mean",
    *,
    penalty: Mapping[str, Any] | None = None,
    correction: Sequence[Mapping[str, Any]] = (),
    log_ratio_cap: float | None = None,
) -> dict[str, Any]:
    """An objective as JSON; the paper's GSPO where nothing is said."""
    return {
        "ratio": ratio,
        "surrogate": dict(surrogate or clip()),
        "aggregation": aggregation(mode) if isinstance(mode, str) else dict(mode),
        "penalty": penalty,
        "correction": list(correction),
        "log_ratio_cap": log_ratio_cap,
    }


def gspo(low: float = 3e-4, high: float = 4e-4) -> dict[str, Any]:
    """GSPO, eq. 5."""
    return objective("sequence", clip(low, high))


def gspo_token(low: float = 3e-4, high: float = 4e-4) -> dict[str, Any]:
    """GSPO-token, eq. 13."""
    return objective("gspo_token", clip(low, high))


def grpo(low: float = 0.2, high: float = 0.27) -> dict[str, Any]:
    """GRPO, eq. 2."""
    return objective("token", clip(low, high))


@dataclass(frozen=True)
class Case:
    """An operation with its parameters, its inputs, and the outputs that get a truth.

    `exact` names outputs without tolerance; `store` the file that large arrays share; `refuses` the
    argument that the right answer is an error about.
    """

    operation: str
    parameters: dict[str, Any]
    inputs: dict[str, Any]
    outputs: tuple[str, ...]
    dtype: tuple[str, ...] = ("float32", "float64")
    input_dtype: str | None = None
    exact: tuple[str, ...] = ()
    k: float | None = None
    store: str | None = None
    refuses: str | None = None


@dataclass(frozen=True)
class Recipe:
    """A vector before truth. `case` is called at build time; `version` is raised when its inputs change."""

    id: str
    title: str
    clauses: tuple[str, ...]
    flags: tuple[str, ...]
    case: Callable[[], Case]
    level: str = "MUST"
    note: str = ""
    version: int = 1


def loss(
    objective: Mapping[str, Any],
    inputs: Mapping[str, Any],
    outputs: Sequence[str] = ("loss", "gradient"),
    *,
    normalizer: float | None = None,
    **fields: Any,
) -> Case:
    """A case of `policy_loss`."""
    parameters: dict[str, Any] = {"objective": dict(objective)}
    if normalizer is not None:
        parameters["normalizer"] = normalizer
    return Case("policy_loss", parameters, dict(inputs), tuple(outputs), **fields)


def call(
    operation: str, inputs: Mapping[str, Any], *outputs: str, fields: Mapping[str, Any] | None = None, **parameters: Any
) -> Case:
    """A case of any other operation; `parameters` are its keyword arguments."""
    return Case(operation, dict(parameters), dict(inputs), tuple(outputs), **dict(fields or {}))


class Shelf(list[Recipe]):
    """The recipes of one area, in the order they are written."""

    def __init__(self, area: str) -> None:
        super().__init__()
        self.area = area

    def add(self, slug: str, title: str, clauses: str, flags: str, case: Callable[[], Case], **fields: Any) -> None:
        """One recipe; `clauses` and `flags` are words, `GSPO-` left out of the former."""
        named = tuple(f"GSPO-{clause}" for clause in clauses.split())
        self.append(Recipe(f"{self.area}/{slug}", title, named, tuple(flags.split()), case, **fields))
