"""What is maximised: J at every token as a function of the log-ratio ℓ and the advantage, one method per surrogate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..tensors import NumPyArray
from . import tape
from .tape import exp, stop, where

Fields = Mapping[str, Any]


class Outside(NamedTuple):
    """Which tokens are held, by cause."""

    low: NumPyArray
    high: NumPyArray
    dual: NumPyArray

    @property
    def any(self) -> NumPyArray:
        """Held at all."""
        return self.low | self.high | self.dual


class Surrogates:
    """The stages between ratio and aggregation. A is constant unless a mutant says otherwise."""

    if TYPE_CHECKING:
        new: Any
        sequences: Any
        working: Callable[[Any], Any]
        mean_tokens: Callable[[Any], Any]

    def surrogate(self, kind: str) -> Callable[[Any, Any, Fields], Any]:
        """The surrogate of that kind."""
        return getattr(self, f"{kind}_value")

    def ratio(self, log_ratio: Any) -> Any:
        """x = e^ℓ."""
        return self.working(exp(log_ratio))

    def bounds(self, clip: Fields) -> tuple[Any, Any]:
        """1 - low and 1 + high (GSPO-SURR-3)."""
        return 1 - clip["low"], 1 + clip["high"]

    def outside(self, x: NumPyArray, advantages: Any, clip: Fields) -> Outside:
        """One-sided: A > 0 is held above, A < 0 below and beyond the dual bound (GSPO-SURR-2, GSPO-SURR-5)."""
        low, high = self.bounds(clip)
        positive, negative = stop(advantages) > 0, stop(advantages) < 0
        dual = negative & self.beyond(clip["dual"], x) if clip["dual"] is not None else np.zeros_like(positive)
        return Outside(negative & self.beyond(x, low), positive & self.beyond(high, x), dual)

    def beyond(self, smaller: Any, larger: Any) -> NumPyArray:
        """Strictly: the range is closed (GSPO-SURR-4)."""
        return smaller < larger

    def gate(self, log_ratio: Any, advantages: Any, clip: Fields) -> Outside:
        """What the value of each token is held by."""
        return self.outside(self.ratio(stop(log_ratio)), advantages, clip)

    def clip_value(self, log_ratio: Any, advantages: Any, clip: Fields) -> Any:
        """min(x A, clip(x) A), for A < 0 at least dual A (GSPO-SURR-1)."""
        outside = self.gate(log_ratio, advantages, clip)
        open_ = (stop(advantages) != 0) & ~outside.any
        return self.held(open_, self.ratio(where(open_, log_ratio, 0.0)), outside, clip) * advantages

    def held(self, open_: NumPyArray, ratio: Any, outside: Outside, clip: Fields) -> Any:
        """x where the gate is open, the bound where it is not."""
        low, high = self.bounds(clip)
        bound = np.where(outside.low, low, np.where(outside.high, high, 0.0))
        bound = np.where(outside.dual, clip["dual"] or 0.0, bound).astype(stop(ratio).dtype)
        return where(open_, ratio, bound)

    def unclipped_value(self, log_ratio: Any, advantages: Any, fields: Fields) -> Any:
        """x A (GSPO-SURR-6)."""
        return self.ratio(where(stop(advantages) != 0, log_ratio, 0.0)) * advantages

    def reinforce_value(self, log_ratio: Any, advantages: Any, fields: Fields) -> Any:
        """sg[gate] A log π_θ (GSPO-SURR-7)."""
        weight = np.ones_like(stop(log_ratio))
        if fields["gate"] is not None:
            weight = weight * ~self.outside(self.ratio(stop(log_ratio)), advantages, fields["gate"]).any
        return self.weighted(weight, advantages)

    def weighted(self, weight: Any, advantages: Any) -> Any:
        """weight A log π_θ, exactly 0 where A is."""
        return where(stop(advantages) != 0, weight, 0.0) * advantages * self.new

    def weight_bounds(self, fields: Fields) -> tuple[Any, Any]:
        """CISPO's bounds: 1 - low where there is one, and 1 + high."""
        return None if fields["low"] is None else 1 - fields["low"], 1 + fields["high"]

    def cispo_value(self, log_ratio: Any, advantages: Any, fields: Fields) -> Any:
        """sg[clip(x)] A log π_θ (GSPO-SURR-8)."""
        return self.weighted(tape.clip(self.ratio(stop(log_ratio)), *self.weight_bounds(fields)), advantages)

    def held_tokens(self, log_ratio: NumPyArray, advantages: Any, fields: Fields) -> Outside:
        """Which tokens GMPO holds, by the sign of A."""
        positive, negative = stop(advantages) > 0, stop(advantages) < 0
        low, high = negative & self.beyond(log_ratio, -fields["low"]), positive & self.beyond(fields["high"], log_ratio)
        return Outside(low, high, np.zeros_like(low))

    def gmpo_value(self, log_ratio: Any, advantages: Any, fields: Fields) -> Any:
        """exp(mean_t of the log-ratios held at log-space bounds) A (GSPO-SURR-9)."""
        outside = self.held_tokens(stop(log_ratio), advantages, fields)
        held = where(outside.low, -fields["low"], where(outside.high, fields["high"], log_ratio))
        return self.ratio(self.sequences.spread(self.mean_tokens(held))) * advantages

    def temperature(self, advantages: Any, fields: Fields) -> NumPyArray:
        """τ by the sign of A."""
        return np.where(stop(advantages) > 0, fields["tau_pos"], fields["tau_neg"])

    def sapo_value(self, log_ratio: Any, advantages: Any, fields: Fields) -> Any:
        """(4/τ) σ(τ (x - 1)) A (GSPO-SURR-10)."""
        tau = self.temperature(advantages, fields)
        moves = (stop(advantages) != 0) & (stop(log_ratio) <= 30.0)
        log_ratio = where(moves, log_ratio, np.minimum(stop(log_ratio), 30.0))
        return 4 / tau / (1 + exp((self.ratio(log_ratio) - 1) * -tau)) * advantages

    def shape(self, advantages: Any, fields: Fields) -> tuple[NumPyArray, NumPyArray]:
        """VESPO's (k, λ) by the sign of A."""
        positive = stop(advantages) >= 0
        return np.where(positive, fields["k_pos"], fields["k_neg"]), np.where(
            positive, fields["lam_pos"], fields["lam_neg"]
        )

    def kernel(self, log_ratio: Any, advantages: Any, fields: Fields) -> Any:
        """x^k e^{λ(1-x)}."""
        k, lam = self.shape(advantages, fields)
        return exp(log_ratio * k + (1 - exp(log_ratio)) * lam)

    def vespo_value(self, log_ratio: Any, advantages: Any, fields: Fields) -> Any:
        """sg[x^k e^{λ(1-x)}] A log π_θ (GSPO-SURR-11)."""
        return self.weighted(self.kernel(stop(log_ratio), advantages, fields), advantages)
