"""The loss as a chain of small stages, each one a method that a mutant overrides.

Written apart from `gspo_core`, in the plainest way: every quantity has one entry per token, laid out
flat, a per-response value at each of its tokens. Unmutated it is right, and it is one of the correct
variants that must pass the suite; a mutant is a subclass with one method changed, and two mutants
together are a class with both as bases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..target import Case
from ..tensors import NumPyArray
from . import tape
from .metrics import Metrics
from .sequences import Sequences, sequences_of, token_count
from .surrogates import Surrogates
from .tape import Var, exp, expm1, sign, stop, times, where

Fields = Mapping[str, Any]
TOKENWISE = ("old_logp", "ref_logp", "behavior_logp", "mask")


class LossReference(Surrogates, Metrics):
    """One case of `policy_loss`, and the operations that are parts of it. `wide`: float64 inside, whatever the case
    asks; `computed`: the advantages come from this pipeline, not from the caller.
    """

    wide = True
    computed = False
    objective: dict[str, Any]
    sequences: Sequences
    given: NumPyArray
    old_logp: Any
    ref_logp: Any
    behavior_logp: Any
    normalizer: Any = None
    groups: NumPyArray | None = None

    def __init__(self, case: Case) -> None:
        self.case = case

    def policy_loss(self) -> dict[str, Any]:
        """The loss, its gradient and the metrics that are wanted."""
        parameters = self.case.parameters
        self.read(self.inputs(dict(self.case.inputs)), parameters)
        answer = self.metrics(self.case.outputs)
        if len(answer) < len(self.case.outputs):
            loss = self.loss()
            answer["loss"] = stop(loss)
            if any(name.startswith("gradient") for name in self.case.outputs):
                answer["gradient"] = self.gradient(loss).reshape(self.sequences.shape)
        return answer

    def read(self, arrays: dict[str, Any], parameters: Fields) -> None:
        """Every argument, cleaned; all but `logp` are constants (GSPO-DATA-6)."""
        self.objective = self.choose(dict(parameters["objective"]))
        self.normalizer = self.positive(parameters.get("normalizer"))
        self.read_tokens(arrays)
        self.groups = arrays.get("groups")
        self.advantages = self.unit_advantages(arrays["advantages"])

    def positive(self, normalizer: float | None) -> float | None:
        """A given normaliser, which is a positive number (GSPO-AGG-8)."""
        if normalizer is not None and not normalizer > 0:
            raise ValueError(f"normalizer: expected a positive number, got {normalizer}")
        return normalizer

    def read_tokens(self, arrays: dict[str, Any]) -> None:
        """The log-probabilities and where they live; `leaf` is what the gradient is with respect to."""
        arrays = self.fitted(arrays)
        self.sequences, self.given = self.layout(arrays), sequences_of(arrays).counted
        self.leaf = Var(self.checked("logp", arrays))
        self.new = self.clean(self.leaf)
        for name in ("old_logp", "ref_logp", "behavior_logp"):
            setattr(self, name, self.clean(self.checked(name, arrays)) if name in arrays else None)

    def fitted(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Token arrays and mask of the shape of `logp`: nothing is broadcast."""
        for name in TOKENWISE:
            if name in arrays and np.shape(arrays[name]) != np.shape(arrays["logp"]):
                raise ValueError(f"{name}: expected the shape of logp, got {np.shape(arrays[name])}")
        return arrays

    def checked(self, name: str, arrays: dict[str, Any]) -> NumPyArray:
        """A token array, finite where it counts by the mask that was given."""
        values = self.number(arrays[name])
        self.refuse(name, values[self.given])
        return values

    def refuse(self, name: str, values: NumPyArray) -> None:
        """An error where a counted input is not finite (GSPO-NUM-6)."""
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: expected finite numbers at counted tokens")

    def inputs(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The arrays as they were given."""
        return arrays

    def choose(self, objective: dict[str, Any]) -> dict[str, Any]:
        """The objective as it was given."""
        return objective

    def layout(self, arrays: dict[str, Any]) -> Sequences:
        """Where the tokens live and which count."""
        if "offsets" in arrays:
            self.check_offsets(np.asarray(arrays["offsets"]), token_count(arrays))
        return sequences_of(arrays)

    def check_offsets(self, offsets: NumPyArray, size: int) -> None:
        """From 0, never falling, to at most the number of tokens."""
        if offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] > size:
            raise ValueError(f"offsets: expected to rise from 0 to at most {size}, got {offsets.tolist()}")

    def number(self, values: NumPyArray) -> NumPyArray:
        """Flat, in the dtype of the arithmetic."""
        return np.asarray(values).astype(np.float64 if self.wide else self.case.dtype).ravel()

    def working(self, x: Any) -> Any:
        """A quantity of the loss as the arithmetic holds it."""
        return x

    def clean(self, values: Any) -> Any:
        """v at counted tokens, 0 elsewhere, by selection (GSPO-NUM-5)."""
        return where(self.sequences.counted, values, 0.0)

    def unit_advantages(self, advantages: NumPyArray) -> NumPyArray:
        """A at every token; one per token only where the surrogate is per token (GSPO-ADV-14)."""
        values = self.number(advantages)
        if advantages.ndim == len(self.sequences.shape) and values.size != self.sequences.number:
            if self.per_sequence:
                raise ValueError("advantages: expected one per response, got one per token")
            self.refuse("advantages", values[self.given])
            return self.clean(values)
        if not self.computed:
            self.refuse("advantages", values)
        return self.clean(self.sequences.spread(values))

    @property
    def per_sequence(self) -> bool:
        """Whether one surrogate value stands for a whole response."""
        kind, ratio = self.objective["surrogate"]["kind"], self.objective["ratio"]
        return kind == "gmpo" or (ratio in ("sequence", "product") and kind not in ("reinforce", "cispo", "vespo"))

    def lengths(self) -> NumPyArray:
        """T_i, the number of counted tokens (GSPO-RATIO-4)."""
        return self.sequences.lengths.astype(stop(self.new).dtype)

    def divisors(self) -> NumPyArray:
        """What a sum over a response is divided by for its mean: T_i, 1 where that is 0."""
        return np.maximum(self.lengths(), 1)

    def sum_tokens(self, values: Any) -> Any:
        """Σ_t v_t over counted tokens."""
        return self.sequences.sum(self.clean(values))

    def mean_tokens(self, values: Any) -> Any:
        """(1/T_i) Σ_t v_t."""
        return self.sum_tokens(values) / self.divisors()

    def log_ratio(self) -> Any:
        """d_t = log π_θ - log π_old (GSPO-RATIO-1, GSPO-RATIO-5)."""
        return self.working(self.new - self.old_logp)

    def sequence_log_ratio(self) -> Any:
        """log s_i = mean_t d_t (GSPO-RATIO-2)."""
        return self.working(self.mean_tokens(self.log_ratio()))

    def unit(self, kind: str) -> Any:
        """The log-ratio of the unit at every token, by the kind of ratio."""
        return getattr(self, f"{kind}_unit")()

    def token_unit(self) -> Any:
        """log w_t (GSPO-RATIO-1)."""
        return self.log_ratio()

    def sequence_unit(self) -> Any:
        """log s_i (GSPO-RATIO-2)."""
        return self.sequences.spread(self.sequence_log_ratio())

    def gspo_token_unit(self) -> Any:
        """sg[log s_i] + log π_θ - sg[log π_θ] (GSPO-RATIO-3)."""
        return self.sequences.spread(stop(self.sequence_log_ratio())) + (self.new - stop(self.new))

    def product_unit(self) -> Any:
        """Σ_t d_t (GSPO-RATIO-7)."""
        return self.sequences.spread(self.sum_tokens(self.log_ratio()))

    def capped(self, log_ratio: Any) -> Any:
        """min(ℓ, c), no gradient above (GSPO-RATIO-6)."""
        cap = self.objective["log_ratio_cap"]
        return log_ratio if cap is None else where(stop(log_ratio) <= cap, log_ratio, cap)

    def unit_log_ratio(self) -> Any:
        """The ℓ of the objective, at every token."""
        return self.clean(self.capped(self.unit(self.objective["ratio"])))

    def values(self) -> Any:
        """J at every token, the correction in it."""
        surrogate = self.objective["surrogate"]
        return self.surrogate(surrogate["kind"])(self.unit_log_ratio(), self.effective(), surrogate)

    def effective(self) -> Any:
        """w A: J is homogeneous in A, and a weight of 0 is exact."""
        return self.clean(self.corrected(self.weights())) if self.objective["correction"] else self.advantages

    def corrected(self, weights: Any) -> Any:
        """w A; 0 where A is 0, whatever the weight (GSPO-SURR-12)."""
        return times(weights, self.advantages)

    def weights(self) -> Any:
        """The product of the correction weights at every token, detached (GSPO-CORR-4)."""
        weights: Any = np.ones_like(self.advantages)
        for fields in self.objective["correction"]:
            weights = times(weights, self.correction(fields))
        return weights

    def correction(self, fields: Fields) -> Any:
        """One weight at every token; 1 where it does not apply (GSPO-CORR-6)."""
        weight = self.cut(self.raw_weight(self.mismatch(fields), fields["level"]), fields)
        return where(self.advantages < 0, weight, 1.0) if fields["negative_only"] else weight

    def mismatch(self, fields: Fields) -> Any:
        """e_t = log π_num - log μ (GSPO-CORR-5)."""
        numerator = self.old_logp if fields["numerator"] == "old" else stop(self.new)
        return numerator - self.behavior_logp

    def raw_weight(self, mismatch: Any, level: str) -> Any:
        """exp e_t, exp Σ e_t or exp mean e_t (GSPO-CORR-1, GSPO-CORR-7)."""
        if level == "token":
            return exp(mismatch)
        reduce = self.sum_tokens if level == "sequence" else self.mean_tokens
        return self.sequences.spread(exp(reduce(mismatch)))

    def cut(self, weight: Any, fields: Fields) -> Any:
        """Clamped, masked or replaced by 1 and 0 (GSPO-CORR-2, GSPO-CORR-3)."""
        low, high = fields["low"], fields["high"]
        if fields["action"] == "clamp":
            return tape.clip(weight, low, high)
        inside = (stop(weight) >= (-np.inf if low is None else low)) & (
            stop(weight) <= (np.inf if high is None else high)
        )
        return where(inside, weight if fields["action"] == "mask" else 1.0, 0.0)

    def aggregate(self, values: Any, aggregation: Fields) -> Any:
        """(1/M) Σ_i ω_i Σ_t l_t; 0 where M is 0 (GSPO-AGG-1 to GSPO-AGG-8)."""
        count = self.count(aggregation) if self.normalizer is None else self.normalizer
        return tape.total(self.omega(aggregation) * self.sum_tokens(values)) / (count if count else 1.0)

    def omega(self, aggregation: Fields) -> NumPyArray:
        """ω_i by mode."""
        lengths, mode = self.lengths(), aggregation["mode"]
        if mode == "sequence_mean_token_mean":
            return (lengths > 0) / self.divisors()
        if mode == "token_mean":
            return np.ones_like(lengths)
        if mode == "group_token_mean":
            return (lengths > 0) / np.maximum(self.group_lengths(), 1)
        return np.ones_like(lengths) / aggregation["constant"]

    def count(self, aggregation: Fields) -> Any:
        """M by mode (GSPO-AGG-2, GSPO-AGG-7)."""
        if aggregation["count"] == "given":
            raise ValueError("normalizer: expected a number, since the aggregation counts as given")
        lengths, mode = self.lengths(), aggregation["mode"]
        if mode == "token_mean":
            return lengths.sum()
        if mode == "token_sum":
            return 1.0
        members = lengths
        if mode == "group_token_mean":
            keys = self.keys()
            members = np.array([lengths[keys == key].sum() for key in np.unique(keys)])
        return float(len(members) if aggregation["count"] == "all" else np.count_nonzero(members))

    def keys(self) -> NumPyArray:
        """The group of each response; the batch is one group where there are none."""
        return np.zeros(self.sequences.number, int) if self.groups is None else np.asarray(self.groups)

    def group_lengths(self) -> NumPyArray:
        """Σ_{j in group(i)} T_j."""
        lengths, keys = self.lengths(), self.keys()
        return np.array([lengths[keys == key].sum() for key in keys])

    def divergence(self, penalty: Fields) -> Any:
        """KL_t times its importance (GSPO-KL-5)."""
        return self.estimated(penalty) * self.importance(penalty["importance"])

    def deviation(self) -> Any:
        """z_t = log π_θ - log π_ref (GSPO-KL-1)."""
        return self.new - self.ref_logp

    def estimated(self, penalty: Fields) -> Any:
        """The estimator of z behind its clamps; no gradient where one holds (GSPO-KL-8)."""
        z, bound, cut = self.deviation(), penalty["log_ratio_clamp"], penalty["value_clamp"]
        if bound is not None:
            z = where(self.within(z, bound), z, sign(z) * bound)
        value = self.estimate(penalty["estimator"], z)
        return value if cut is None else where(self.within(value, cut), value, sign(value) * cut)

    def within(self, values: Any, bound: float) -> NumPyArray:
        """Whether a clamp leaves a value alone: its bounds are closed (GSPO-KL-8)."""
        return np.abs(stop(values)) <= bound

    def estimate(self, estimator: str, z: Any) -> Any:
        """k1 = z, k2 = z²/2, k3 = e^{-z} + z - 1, k3+ with the gradient of k2, |z| (GSPO-KL-1 to GSPO-KL-4)."""
        if estimator == "k1":
            return z
        if estimator == "abs":
            return sign(z) * z
        k2, k3 = z * z / 2, expm1(-z) + z
        if estimator == "k3_plus":
            return stop(k3) + (k2 - stop(k2))
        return k2 if estimator == "k2" else k3

    def importance(self, kind: str | None) -> Any:
        """1, w_t or s_i, differentiable (GSPO-KL-5)."""
        if kind is None:
            return 1.0
        return exp(self.log_ratio() if kind == "token" else self.sequence_unit())

    def penalty_value(self, penalty: Fields) -> Any:
        """The aggregated KL before its coefficient; an aggregation of its own has its own M (GSPO-KL-6)."""
        own = penalty["aggregation"]
        if own is None or own == self.objective["aggregation"]:
            return self.aggregate(self.divergence(penalty), self.objective["aggregation"])
        given, self.normalizer = self.normalizer, None
        value = self.aggregate(self.divergence(penalty), own)
        self.normalizer = given
        return value

    def policy_term(self) -> Any:
        """-J aggregated."""
        return -self.aggregate(self.values(), self.objective["aggregation"])

    def penalty_term(self) -> Any:
        """β KL, outside gate, minimum and advantage; 0 without a penalty (GSPO-KL-6, GSPO-KL-7)."""
        penalty = self.objective["penalty"]
        return 0.0 if penalty is None else self.penalty_value(penalty) * penalty["coefficient"]

    def loss(self) -> Any:
        """L, to be minimised."""
        return self.policy_term() + self.penalty_term()

    def gradient(self, loss: Any) -> NumPyArray:
        """d L / d log π_θ."""
        return tape.gradient(loss, self.leaf)

    def step(self) -> dict[str, Any]:
        """The parts of a step, each with the normaliser of the whole; losses add (GSPO-DIST-1)."""
        answers = [self.part(dict(arrays)) for arrays in self.case.inputs["parts"]]
        return self.combine([a["loss"] for a in answers], [a["gradient"] for a in answers])

    def part(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The loss and gradient of one part."""
        return type(self)(replace(self.case, operation="policy_loss", inputs=arrays)).policy_loss()

    def combine(self, losses: list[Any], gradients: list[NumPyArray]) -> dict[str, Any]:
        """What the optimiser sees of the parts."""
        return {"loss": sum(losses)} | {f"gradient.{i}": gradient for i, gradient in enumerate(gradients)}
