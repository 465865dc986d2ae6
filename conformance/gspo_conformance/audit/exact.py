"""The loss and metrics of recorded calls once more, in float64, and how far a run's own arithmetic may be from them.

The stages are those of the reference that mutants are made of: written apart from `gspo_core`, and proved by every vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from gspo_core import Objective

from ..mutants.tape import stop
from ..mutants.whole import Reference
from ..target import METRICS, Case
from ..tensors import NumPyArray
from .shards import LOGPS
from .trace import Tokens

K, K_LONG, PER_U = 16.0, 64.0, 16
# Micro-batches of so many tokens are kept as they were read: hundreds of objectives are tried on them.
KEPT, MOST_KEPT = 32, 20_000
# What other programs call the metrics of the specification.
FOREIGN = {
    "actor/pg_clipfrac": "clip_fraction_range",
    "actor/pg_clipfrac_lower": "clip_fraction_dual",
    "clip_ratio/region_mean": "clipped_units",
    "clip_ratio/low_mean": "clipped_units_low",
    "clip_ratio/high_mean": "clipped_units_high",
}
# What the learning rate of a step is called.
LEARNING_RATES = ("learning_rate", "lr", "actor/lr", "actor_lr", "train/learning_rate", "train/lr")


def total(values: Iterable[float]) -> float:
    """Their sum, rounded once; NaN or infinite where they are, or where they are beyond every float."""
    given = [float(value) for value in values]
    try:
        return math.fsum(given)
    except (OverflowError, ValueError):
        return sum(given)


class NotComputable(Exception):
    """The trace lacks what the objective needs; the message says what."""


@dataclass(frozen=True)
class Exact:
    """One call, or the union of several, under the claimed objective, before its division by M.

    `numerator` / `count` + `apart` is the loss. What is apart is a penalty with an M of its own, of which `share` is a micro-batch's: 1 where that is the micro-batch's count.
    """

    numerator: float
    count: float
    reference: _Recount
    apart: float = 0.0
    share: float = 1.0

    @property
    def scale(self) -> float:
        """What rounding errors of the numerator are measured against."""
        return self.reference.scales[0]

    @property
    def apart_scale(self) -> float:
        """And those of what is apart."""
        return self.reference.scales[1]

    def loss(self, normalizer: float | None = None) -> float:
        """L, divided by M or by another normaliser."""
        divisor = self.count if normalizer is None else normalizer
        return self.numerator / divisor + self.share * self.apart if divisor else 0.0

    def tolerance(self, precision: float, normalizer: float | None = None) -> float:
        """How far the loss of arithmetic with unit roundoff `precision` may be off."""
        divisor = abs(self.count if normalizer is None else normalizer) or 1.0
        return self.reference.k * precision * (self.scale / divisor + self.share * self.apart_scale)

    def gradient(self, normalizer: float | None = None) -> NumPyArray:
        """d L / d log π_θ."""
        reference, (divisor, own) = self.reference.differentiable(), self._divisors(normalizer)
        policy = reference.gradient(reference.policy_term()) / divisor
        return policy + reference.gradient(reference.penalty_term()) / own

    def steepest_penalty(self, normalizer: float | None = None) -> float:
        """What the rounding of a gradient is relative to where the slopes of a penalty cancel, as those of k3 do near 0."""
        return self.reference.steepest_penalty() / self._divisors(normalizer)[1]

    def _divisors(self, normalizer: float | None) -> tuple[float, float]:
        """Of the policy's term and of the penalty's, as `_Recount` has them."""
        divisor = normalizer or self.count or 1.0
        return divisor, divisor if self.reference.shares_divisor() else 1.0 / (self.share or 1.0)


@lru_cache(maxsize=KEPT)
def _read(tokens: Tokens, names: tuple[str, ...]) -> dict[str, Any]:
    """What the reference makes of these arrays, whatever the objective."""
    reference = Reference(Case("policy_loss", {}, {}, dtype="float64"))
    reference.read_tokens({name: getattr(tokens, name) for name in names})
    reference.new = stop(reference.new)
    return vars(reference) | {"unit_ratios": {}}


# As plain values.
_fields = lru_cache(maxsize=256)(Objective.to_dict)


class _Recount(Reference):
    """The unmutated reference, asked for what an audit wants to know."""

    unit_ratios: dict[str, Any]

    def __init__(self, objective: Objective, tokens: Tokens, inputs: Mapping[str, Any]) -> None:
        parameters = {"objective": _fields(objective), "normalizer": 1.0}
        super().__init__(Case("policy_loss", parameters, inputs, dtype="float64", outputs=()))
        self.tokens = tokens
        self.read(dict(inputs), parameters)

    def read_tokens(self, arrays: dict[str, Any]) -> None:
        """Numbers without a tape: a loss is asked for far more often than its gradient."""
        names = tuple(name for name in (*LOGPS, "offsets") if name in arrays)
        kept = _read if self.tokens.count <= MOST_KEPT else _read.__wrapped__
        vars(self).update({**kept(self.tokens, names), "case": self.case})

    def differentiable(self) -> _Recount:
        """The same on a tape."""
        found = copy(self)
        found.new, found.unit_ratios = self.clean(self.leaf), {}
        return found

    def unit(self, kind: str) -> Any:
        """The log-ratio of the unit at every token, which is the same for all objectives with that ratio."""
        if kind not in self.unit_ratios:
            self.unit_ratios[kind] = super().unit(kind)
        return self.unit_ratios[kind]

    @cached_property
    def k(self) -> float:
        """How many roundings an error has: equal terms that are added one after the other are rounded alike, again and again."""
        return float(np.clip(self.lengths().max(initial=0) / PER_U, K, K_LONG))

    @cached_property
    def scales(self) -> tuple[float, float]:
        """What the rounding of the loss is relative to, and that of a penalty with its own M."""
        with np.errstate(all="ignore"):
            return self.magnitude(), 0.0 if self.shares_divisor() else self.penalty_magnitude()

    def total(self) -> float:
        """Σ_i ω_i Σ_t l_t, without a penalty that has its own M."""
        return float(stop(self.loss() if self.shares_divisor() else self.policy_term()))

    def apart(self) -> float:
        """A penalty that has its own M."""
        return 0.0 if self.shares_divisor() else float(stop(self.penalty_term()))

    def divisor(self) -> float:
        """M; 1 where the objective leaves it to the caller."""
        aggregation = self.objective["aggregation"]
        return 1.0 if aggregation["count"] == "given" else float(self.count(aggregation))

    def shares_divisor(self) -> bool:
        """Whether a penalty is divided by the M of the loss."""
        penalty, own = self.objective["penalty"], self.objective["aggregation"]
        return penalty is None or penalty["aggregation"] in (None, own)

    def steepest_penalty(self) -> float:
        """max_t β ω_i / M: how fast a token's term of the penalty moves the loss, before the slope of the estimator."""
        penalty = self.objective["penalty"]
        if penalty is None:
            return 0.0
        plain = {"estimator": "k1", "importance": None, "log_ratio_clamp": None, "value_clamp": None}
        taped = self.differentiable()
        slopes = taped.gradient(taped.penalty_value(penalty | plain))
        return penalty["coefficient"] * float(np.abs(slopes).max(initial=0.0))

    def magnitude(self) -> float:
        """Σ_i ω_i Σ_t |J_t| (1 + mean |d|), and the same of a penalty: what rounding is relative to."""
        drift = 2.0 + self.sequences.spread(self.mean_tokens(np.abs(stop(self.log_ratio()))))
        found = float(self.aggregate(np.abs(stop(self.values())) * drift, self.objective["aggregation"]))
        return found + (self.penalty_magnitude() if self.shares_divisor() else 0.0)

    def penalty_magnitude(self) -> float:
        """β Σ_i ω_i Σ_t (1 + |z_t|) times the importance, divided as the penalty is."""
        penalty = self.objective["penalty"]
        if penalty is None:
            return 0.0
        values = (1.0 + np.abs(stop(self.deviation()))) * np.abs(stop(self.importance(penalty["importance"])))
        aggregation = penalty["aggregation"] or self.objective["aggregation"]
        divisor = 1.0 if self.shares_divisor() else float(self.count(aggregation)) or 1.0
        return penalty["coefficient"] * float(self.aggregate(values, aggregation)) / divisor

    def near(self, slack: float) -> NumPyArray:
        """The counted tokens whose ratio is so close to a bound that rounding may decide."""
        clip = self.objective["surrogate"]
        clip = clip if clip["kind"] in ("clip", "cispo") else clip.get("gate") or {}
        x = stop(self.ratio(stop(self.unit_log_ratio())))
        edges = {"low": -1.0, "high": 1.0}
        bounds = [1 + sign * clip[name] for name, sign in edges.items() if clip.get(name) is not None]
        bounds += [clip["dual"]] if clip.get("dual") is not None else []
        found = np.zeros(x.shape, bool)
        for bound in bounds:
            found |= np.abs(x - bound) <= slack
        return found & self.sequences.counted

    def share_near(self, slack: float) -> float:
        """The share of counted tokens that `near` names."""
        return float(self.share(self.near(slack)))

    def metric_clip_fraction_range(self) -> float:
        """The share of tokens that the range holds; trainers count a dual bound apart, or not at all."""
        return float(self.share(self.clipped().low | self.clipped().high))

    def metric_clipped_units(self) -> float:
        """The share of responses that the range holds where a response has one ratio, else of tokens."""
        return self._units_held(self.clipped().low | self.clipped().high)

    def metric_clipped_units_low(self) -> float:
        """Held below."""
        return self._units_held(self.clipped().low)

    def metric_clipped_units_high(self) -> float:
        """Held above."""
        return self._units_held(self.clipped().high)

    def _units_held(self, held: NumPyArray) -> float:
        if self.objective["ratio"] == "token":
            return float(self.share(held))
        return float((self.sum_tokens(held.astype(float)) > 0).mean())


def inputs_of(objective: Objective, tokens: Tokens) -> tuple[Objective, dict[str, Any]]:
    """The arguments of the loss, and the objective in the form that its advantages allow; raises `NotComputable`."""
    needed = ["logp", "old_logp", "advantages"]
    needed += ["ref_logp"] if objective.penalty is not None else []
    needed += ["behavior_logp"] if objective.correction else []
    missing = [name for name in needed if getattr(tokens, name) is None]
    if missing:
        raise NotComputable(f"{', '.join(missing)} not recorded")
    arrays = {name: getattr(tokens, name) for name in (*needed, "offsets")}
    if tokens.groups is not None:
        arrays["groups"] = tokens.groups
    elif needs_groups(objective):
        arrays["groups"] = np.zeros(tokens.number, np.int64)
    if len(arrays["advantages"]) != tokens.number and objective.per_sequence:
        objective, arrays["advantages"] = _per_response(objective, tokens)
    return objective, arrays


def needs_groups(objective: Objective) -> bool:
    """Whether the loss is a mean over groups; where none are recorded all responses are one, as for a loss that is given none."""
    return objective.aggregation.mode == "group_token_mean"


def _per_response(objective: Objective, tokens: Tokens) -> tuple[Objective, NumPyArray]:
    """One advantage per response where a token's never differs from its response's; else GSPO in its token form."""
    advantages = tokens.advantages
    assert advantages is not None
    means = tokens.means(advantages)
    if np.abs(advantages - tokens.spread(means)).max(initial=0.0) <= 1e-5 * (1 + np.abs(means).max(initial=0.0)):
        return objective, means
    if objective.ratio != "sequence":
        raise NotComputable("advantages vary within responses, which the objective does not allow")
    return objective.replace(ratio="gspo_token"), advantages


def exact(objective: Objective, tokens: Tokens) -> Exact:
    """The loss of one call or of a union."""
    objective, arrays = inputs_of(objective, tokens)
    try:
        with np.errstate(all="ignore"):
            reference = _Recount(objective, tokens, arrays)
            return Exact(reference.total(), reference.divisor(), reference, reference.apart())
    except ValueError as error:
        raise NotComputable(str(error)) from None


def additive(objective: Objective) -> bool:
    """Whether the numerators of parts add up to that of their union."""
    own = None if objective.penalty is None else objective.penalty.aggregation
    return objective.aggregation.mode != "group_token_mean" and own in (None, objective.aggregation)


def own_name(name: str) -> str:
    """What a metric that a program reported is called here."""
    return FOREIGN.get(name, name.removeprefix("gspo/"))


def metric(found: Exact, name: str, precision: float, normalizer: float | None = None) -> tuple[float, float] | None:
    """A metric under any name that is known, and how far the run's may be off; None where the name is not known."""
    own = own_name(name)
    if own not in METRICS and own not in FOREIGN.values():
        return None
    reference = found.reference
    with np.errstate(all="ignore"):
        value = float(stop(getattr(reference, f"metric_{own}")()))
    if own == "kl_penalty" and reference.shares_divisor():
        value /= (found.count if normalizer is None else normalizer) or 1.0
    return value, _slack(found, own, value, precision)


def _slack(found: Exact, name: str, value: float, precision: float) -> float:
    reference, step = found.reference, found.reference.k * precision
    if name in ("num_sequences", "num_tokens", "ratio_is_one"):
        return 0.0
    if name.startswith("clip"):
        near = reference.share_near(step)
        units = reference.sequences.number if "units" in name else 1
        return step + (min(1.0, near * reference.sequences.counted.size) / units if near and units > 1 else near)
    if name == "approx_kl":
        return step * (1.0 + value)
    if name == "kl_penalty":
        return step * (1.0 + abs(value))
    return step * 4 * (1.0 + abs(value))
