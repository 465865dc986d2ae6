"""A micro-batch and its truth, and what it has of the step that it is a part of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from gspo_core import Aggregation, Objective

from .exact import Exact, exact, inputs_of, total
from .shards import LOGPS
from .trace import Part, Tokens

SAME, NEARER = 1e-3, 0.01


@dataclass(frozen=True)
class Recomputed:
    """A micro-batch and its truth. `normalizer` is what it divides by: as recorded, or what fits of what it may be.

    `choices` are all that it may be where nothing was recorded, None for its own count; `sure` whether one of them alone fits.
    `together` are all micro-batches that a recorded normaliser counts, where it counts more than this one.
    """

    part: Part
    objective: Objective
    truth: Exact
    normalizer: float | None = None
    choices: tuple[float | None, ...] = ()
    sure: bool = True
    together: tuple[Tokens, ...] = ()

    @property
    def expected(self) -> float:
        """The loss of the claim."""
        return self.truth.loss(self.normalizer)

    @cached_property
    def recorded(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The objective, in plain values, and the arrays as they were recorded, padding included; raises `NotComputable`."""
        objective, arrays = inputs_of(self.objective, self.part.tokens)
        wanted = ({*LOGPS} & arrays.keys()) | ({*LOGPS, "mask", "offsets"} & self.part.names)
        inputs = {name: self.part.array(name) for name in wanted} | {"advantages": arrays["advantages"]}
        inputs |= {"groups": arrays["groups"]} if "groups" in arrays else {}
        recorded = self.part.array("advantages")
        if recorded is not None and recorded.shape == self.part.shape and not objective.per_sequence:
            inputs["advantages"] = recorded
        return objective.to_dict(), inputs

    def anew(self, objective: Objective, tokens: Tokens) -> Exact:
        """The truth of another objective, or of other tokens; a penalty with an M of its own is divided as far as this one's losses are."""
        truth = exact(objective, tokens)
        if objective.penalty is None or not self.together:
            return truth
        own = objective.penalty.aggregation or objective.aggregation
        return replace(truth, share=_counted(own, [tokens]) / (_counted(own, self.together) or 1.0))


def _counted(aggregation: Aggregation, several: Sequence[Tokens]) -> float:
    """The M of several micro-batches, where it adds up; 1 where it does not, or is 1."""
    if aggregation.mode == "token_mean":
        return float(sum(one.count for one in several))
    if not aggregation.mode.startswith("sequence"):
        return 1.0
    return float(sum(one.number if aggregation.count == "all" else np.count_nonzero(one.lengths) for one in several))


def as_share(one: Recomputed, parts: Sequence[Recomputed]) -> Recomputed:
    """With what its losses are shares of, where their M is that of all parts, or of all of the rank.

    Some loops divide a penalty by what the micro-batch counts all the same, which their losses are then much nearer to.
    """
    for others in (parts, [other for other in parts if other.part.rank == one.part.rank]):
        count = total(other.truth.count for other in others) or 1.0
        if len(others) > 1 and abs((one.normalizer or 0.0) / count - 1) < SAME:
            shared = replace(one, together=tuple(other.part.tokens for other in others))
            shared = replace(shared, truth=shared.anew(one.objective, one.part.tokens))
            return one if _off(one) < NEARER * _off(shared) else shared
    return one


def _off(one: Recomputed) -> float:
    return abs(one.expected - (one.expected if one.part.loss is None else one.part.loss))


def exact_gradient(one: Recomputed, precision: float) -> tuple[np.ndarray | None, np.ndarray]:
    """d loss / d logp of the claim, and the tokens where rounding may decide a gate."""
    reference = one.truth.reference
    with np.errstate(all="ignore"):
        gradient = one.truth.gradient(one.normalizer)
        slack = 4 * reference.k * precision
        uncertain = reference.near(slack)
    return gradient, uncertain
