"""What a step reports beside its loss: one method per metric, of which a mutant overrides one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..tensors import NumPyArray
from .surrogates import Outside
from .tape import stop


class Metrics:
    """The metrics of a case whose arguments have been read."""

    if TYPE_CHECKING:
        advantages: NumPyArray
        new: Any
        objective: dict[str, Any]
        old_logp: Any
        sequences: Any
        beyond: Callable[[Any, Any], NumPyArray]
        bounds: Callable[..., Any]
        held_tokens: Callable[..., Outside]
        lengths: Callable[[], NumPyArray]
        outside: Callable[..., Outside]
        penalty_value: Callable[..., Any]
        ratio: Callable[[Any], Any]
        sum_tokens: Callable[[Any], Any]
        unit_log_ratio: Callable[[], Any]
        weight_bounds: Callable[..., Any]

    def metrics(self, wanted: Sequence[str]) -> dict[str, Any]:
        """Those metrics that are asked for."""
        names = [name.removeprefix("metrics.") for name in wanted if name.startswith("metrics.")]
        return {f"metrics.{name}": getattr(self, f"metric_{name}")() for name in names}

    def clipped(self) -> Outside:
        """Which tokens a bound holds, A = 0 never (GSPO-METRIC-1)."""
        surrogate, log_ratio = self.objective["surrogate"], stop(self.unit_log_ratio())
        none = np.zeros(log_ratio.shape, bool)
        if surrogate["kind"] == "gmpo":
            return self.held_tokens(log_ratio, self.advantages, surrogate)
        if surrogate["kind"] == "cispo":
            low, high = self.weight_bounds(surrogate)
            x, moved = self.ratio(log_ratio), self.advantages != 0
            return Outside(none if low is None else moved & self.beyond(x, low), moved & self.beyond(high, x), none)
        clip = surrogate if surrogate["kind"] == "clip" else surrogate.get("gate")
        return Outside(none, none, none) if clip is None else self.outside(self.ratio(log_ratio), self.advantages, clip)

    def share(self, tokens: NumPyArray) -> Any:
        """The share of counted tokens; 0 of none."""
        return self.sum_tokens(tokens.astype(float)).sum() / max(self.lengths().sum(), 1)

    def metric_clip_fraction(self) -> Any:
        """Held at any bound."""
        return self.share(self.clipped().any)

    def metric_clip_fraction_low(self) -> Any:
        """Held below."""
        return self.share(self.clipped().low)

    def metric_clip_fraction_high(self) -> Any:
        """Held above."""
        return self.share(self.clipped().high)

    def metric_clip_fraction_dual(self) -> Any:
        """Held at the dual bound."""
        return self.share(self.clipped().dual)

    def units(self) -> NumPyArray:
        """The ratios of the units: counted tokens, or responses with a token (GSPO-METRIC-2)."""
        ratio = self.ratio(stop(self.unit_log_ratio()))
        if self.objective["ratio"] == "token":
            return ratio[self.sequences.counted]
        firsts = [self.sequences.tokens(i)[:1] for i in range(self.sequences.number)]
        return ratio[np.concatenate([*firsts, np.zeros(0, np.int64)])]

    def metric_ratio_mean(self) -> Any:
        """Mean ratio; 1 of none."""
        return self.units().mean() if self.units().size else 1.0

    def metric_ratio_min(self) -> Any:
        """Smallest ratio."""
        return self.units().min(initial=np.inf) if self.units().size else 1.0

    def metric_ratio_max(self) -> Any:
        """Largest ratio."""
        return self.units().max(initial=-np.inf) if self.units().size else 1.0

    def metric_effective_sample_size(self) -> Any:
        """(Σx)² / Σx² (GSPO-METRIC-4)."""
        units = self.units()
        scaled = units / units.max(initial=1.0)
        return scaled.sum() ** 2 / (scaled @ scaled) if units.size else 0.0

    def moved(self) -> NumPyArray:
        """d_t at the counted tokens, without a gradient."""
        return (stop(self.new) - self.old_logp)[self.sequences.counted]

    def metric_approx_kl(self) -> Any:
        """Token mean of e^d - 1 - d (GSPO-METRIC-3)."""
        moved = self.moved()
        return (np.expm1(moved) - moved).mean() if moved.size else 0.0

    def metric_kl_penalty(self) -> Any:
        """The aggregated KL before its coefficient (GSPO-METRIC-5)."""
        penalty = self.objective["penalty"]
        return 0.0 if penalty is None else stop(self.penalty_value(penalty))

    def metric_num_sequences(self) -> Any:
        """S (GSPO-METRIC-6)."""
        return float(self.sequences.number)

    def metric_num_tokens(self) -> Any:
        """Σ T_i."""
        return self.lengths().sum()

    def metric_ratio_is_one(self) -> Any:
        """Whether no counted token moved (GSPO-METRIC-7)."""
        return float(not np.any(self.moved()))
