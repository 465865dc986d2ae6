"""What is maximised, per unit of the ratio: J as a function of the log-ratio ℓ, the ratio x = e^ℓ and the advantage A.

A *unit* is a token, or a whole response where the ratio is one scalar per sequence. Two families:

* `RatioSurrogate`: J is a function of x, differentiated through it; `slope` is dJ/dℓ in closed form.
* `LogProbSurrogate`: J = sg[weight(x, A)] · A · log π_θ(y_t), always per token; d J / d log π_θ = weight · A.

`min` and `clip` are written as a selection by the gate, never as `minimum` and `clip`: frameworks
disagree on the derivative of those at a tie, the gate does not (GSPO-SURR-4). The selection happens
before `exp`, because a branch that is not taken still spoils a derivative when it overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from .arrays import Array, clamp, compute_dtype, namespace_of, times
from .backend import backend_of
from .validation import check_array, check_field, check_floating, check_kind, check_same_namespace, check_shape

StopGradient: TypeAlias = Callable[[Array], Array]


class Clipped(NamedTuple):
    """Which units are clipped, by cause; three boolean arrays."""

    low: Array
    high: Array
    dual: Array


class Evaluation(NamedTuple):
    """J, dJ/dℓ, and which units are clipped."""

    value: Array
    slope: Array
    clipped: Clipped


@dataclass(frozen=True)
class Clip:
    """J = min(x A, clip(x, 1-low, 1+high) A), and for A < 0 at least dual·A where `dual` is given.

    Clauses GSPO-SURR-1 to GSPO-SURR-5. The gate is one-sided: A > 0 is clipped above, A < 0 below.
    """

    low: float
    high: float
    dual: float | None = None

    def __post_init__(self) -> None:
        check_field(self, "low", low=0.0)
        check_field(self, "high", low=0.0)
        if self.dual is not None:
            check_field(self, "dual", low=1.0, strict=True)

    def clipped(self, ratio: Array, advantages: Array) -> Clipped:
        """Where the gate is 0: strictly outside the range, on the side where J would grow (GSPO-SURR-2)."""
        negative = advantages < 0
        high = (advantages > 0) & (ratio > 1 + self.high)
        low = negative & (ratio < 1 - self.low)
        dual = negative & (ratio > self.dual) if self.dual is not None else low & high
        return Clipped(low, high, dual)

    def value(self, log_ratio: Array, advantages: Array, stop: StopGradient) -> Array:
        """J, differentiable in `log_ratio`."""
        xp = namespace_of(log_ratio)
        still = xp.exp(stop(log_ratio))
        clipped = self.clipped(still, advantages)
        open_ = _open(clipped, advantages)
        ratio = xp.exp(xp.where(open_, log_ratio, 0.0))
        return xp.where(open_, ratio, self._bound(clipped, still)) * advantages

    def slope(self, log_ratio: Array, advantages: Array) -> Array:
        """dJ/dℓ = x A gate(x, A)."""
        xp = namespace_of(log_ratio)
        ratio = xp.exp(log_ratio)
        open_ = _open(self.clipped(ratio, advantages), advantages)
        # Both are selected: a correction's weight may have overflowed, and 0·inf is no 0 (GSPO-GRAD-2).
        return xp.where(open_, ratio, 0.0) * xp.where(open_, advantages, 0.0)

    def evaluate(self, log_ratio: Array, advantages: Array) -> Evaluation:
        """All three at once, without a derivative."""
        xp = namespace_of(log_ratio)
        ratio = xp.exp(log_ratio)
        clipped = self.clipped(ratio, advantages)
        open_ = _open(clipped, advantages)
        value = xp.where(open_, ratio, self._bound(clipped, ratio)) * advantages
        return Evaluation(value, xp.where(open_, value, 0.0), clipped)

    def _bound(self, clipped: Clipped, ratio: Array) -> Array:
        """What a clipped ratio is held at; finite whatever the ratio is."""
        bound = backend_of(ratio).held(ratio, 1 - self.low, 1 + self.high)
        return bound if self.dual is None else namespace_of(ratio).where(clipped.dual, self.dual, bound)


@dataclass(frozen=True)
class Unclipped:
    """J = x A: importance weighting alone. Clause GSPO-SURR-6."""

    def clipped(self, ratio: Array, advantages: Array) -> Clipped:  # noqa: ARG002
        """Nothing is."""
        return _nothing(ratio)

    def value(self, log_ratio: Array, advantages: Array, stop: StopGradient) -> Array:  # noqa: ARG002
        """J, differentiable in `log_ratio`; exactly 0 where A is 0."""
        xp = namespace_of(log_ratio)
        return xp.exp(xp.where(advantages != 0, log_ratio, 0.0)) * advantages

    def slope(self, log_ratio: Array, advantages: Array) -> Array:
        """dJ/dℓ = x A."""
        return self.value(log_ratio, advantages, lambda values: values)


@dataclass(frozen=True)
class Gmpo:
    """J_i = exp((1/|y_i|) Σ_t n_t) A_i, n_t = min(d_t, high) for A > 0 and max(d_t, -low) for A < 0.

    Clause GSPO-SURR-9 (arXiv 2507.20673). The clip acts on each token in log space, before the mean;
    a clipped token keeps its bound in the mean and gets no gradient.
    """

    low: float = 0.4
    high: float = 0.4

    def __post_init__(self) -> None:
        check_field(self, "low", low=0.0)
        check_field(self, "high", low=0.0)

    def clipped_tokens(self, log_ratio: Array, advantages: Array) -> Clipped:
        """Which tokens are held at a bound."""
        low = (advantages < 0) & (log_ratio < -self.low)
        high = (advantages > 0) & (log_ratio > self.high)
        return Clipped(low, high, low & high)

    def clip_tokens(self, log_ratio: Array, advantages: Array) -> Array:
        """n_t, differentiable in d_t inside the range only."""
        xp = namespace_of(log_ratio)
        clipped = self.clipped_tokens(log_ratio, advantages)
        held = xp.where(clipped.low, -self.low, log_ratio)
        return xp.where(clipped.high, self.high, held)

    def clipped(self, ratio: Array, advantages: Array) -> Clipped:  # noqa: ARG002
        """No whole response is."""
        return _nothing(ratio)

    value = Unclipped.value
    slope = Unclipped.slope


@dataclass(frozen=True)
class Sapo:
    """J = (4/τ) σ(τ (x - 1)) A, τ = tau_pos for A > 0 and tau_neg for A < 0. Clause GSPO-SURR-10 (arXiv 2511.20347)."""

    tau_pos: float = 1.0
    tau_neg: float = 1.05

    def __post_init__(self) -> None:
        check_field(self, "tau_pos", low=0.0, strict=True)
        check_field(self, "tau_neg", low=0.0, strict=True)

    def clipped(self, ratio: Array, advantages: Array) -> Clipped:  # noqa: ARG002
        """The gate is soft: nothing is."""
        return _nothing(ratio)

    def value(self, log_ratio: Array, advantages: Array, stop: StopGradient) -> Array:
        """J, differentiable in `log_ratio`."""
        xp = namespace_of(log_ratio)
        tau = self._tau(log_ratio, advantages)
        log_ratio = xp.where(self._moves(log_ratio, advantages, stop), log_ratio, stop(_below(log_ratio)))
        return 4 / tau * _sigmoid(tau * (xp.exp(log_ratio) - 1)) * advantages

    def slope(self, log_ratio: Array, advantages: Array) -> Array:
        """dJ/dℓ = 4 p (1 - p) x A, p = σ(τ (x - 1))."""
        xp = namespace_of(log_ratio)
        tau = self._tau(log_ratio, advantages)
        ratio = xp.exp(_below(log_ratio))
        falling = xp.exp(-xp.abs(tau * (ratio - 1)))
        return times(4 * falling / (1 + falling) ** 2 * ratio, advantages)

    def _tau(self, like: Array, advantages: Array) -> Array:
        xp = namespace_of(like)
        return xp.where(advantages > 0, self.tau_pos, xp.full_like(like, self.tau_neg))

    def _moves(self, log_ratio: Array, advantages: Array, stop: StopGradient) -> Array:
        return (advantages != 0) & ~(stop(log_ratio) > _SATURATED)


@dataclass(frozen=True)
class Reinforce:
    """J = sg[gate(x, A)] A log π_θ(y_t): REINFORCE, with the gate of `gate` where one is given. Clause GSPO-SURR-7."""

    gate: Clip | None = None

    def __post_init__(self) -> None:
        if self.gate is not None:
            check_kind("gate", self.gate, Clip)

    def clipped(self, ratio: Array, advantages: Array) -> Clipped:
        """Where the gate is 0."""
        return _nothing(ratio) if self.gate is None else self.gate.clipped(ratio, advantages)

    def weight(self, log_ratio: Array, advantages: Array) -> Array:
        """1, or the gate."""
        xp = namespace_of(log_ratio)
        if self.gate is None:
            return xp.ones_like(log_ratio)
        # 1, and NaN where the ratio is (GSPO-NUM-6).
        return xp.where(_open(self.clipped(xp.exp(log_ratio), advantages), advantages), 1 + 0 * log_ratio, 0.0)


@dataclass(frozen=True)
class Cispo:
    """J = sg[clip(x, 1-low, 1+high)] A log π_θ(y_t): the weight is clipped, the gradient never. Clause GSPO-SURR-8.

    `low` None is no lower bound (arXiv 2506.13585).
    """

    low: float | None = None
    high: float = 4.0

    def __post_init__(self) -> None:
        if self.low is not None:
            check_field(self, "low", low=0.0)
        check_field(self, "high", low=0.0)

    def clipped(self, ratio: Array, advantages: Array) -> Clipped:
        """Where the weight is held at a bound, whatever the sign of A; A = 0 is not counted."""
        moved, nothing = advantages != 0, _nothing(ratio)
        low = nothing.low if self.low is None else moved & (ratio < 1 - self.low)
        return Clipped(low, moved & (ratio > 1 + self.high), nothing.dual)

    def weight(self, log_ratio: Array, advantages: Array) -> Array:  # noqa: ARG002
        """clip(x, 1-low, 1+high)."""
        xp = namespace_of(log_ratio)
        low = None if self.low is None else 1 - self.low
        return clamp(xp.exp(log_ratio), low, 1 + self.high)


@dataclass(frozen=True)
class Vespo:
    """J = sg[x^k e^{λ(1-x)}] A log π_θ(y_t), (k, λ) by the sign of A. Clause GSPO-SURR-11 (arXiv 2602.10693)."""

    k_pos: float = 2.0
    lam_pos: float = 3.0
    k_neg: float = 3.0
    lam_neg: float = 2.0

    def __post_init__(self) -> None:
        for name in ("k_pos", "lam_pos", "k_neg", "lam_neg"):
            check_field(self, name, low=0.0)

    def clipped(self, ratio: Array, advantages: Array) -> Clipped:  # noqa: ARG002
        """The kernel is smooth: nothing is."""
        return _nothing(ratio)

    def weight(self, log_ratio: Array, advantages: Array) -> Array:
        """x^k e^{λ(1-x)}, in log space; with λ > 0 it vanishes where x is too large for the dtype."""
        xp = namespace_of(log_ratio)
        positive = advantages >= 0
        k = xp.where(positive, self.k_pos, xp.full_like(log_ratio, self.k_neg))
        lam = xp.where(positive, self.lam_pos, xp.full_like(log_ratio, self.lam_neg))
        return xp.exp(k * log_ratio + lam * (1 - xp.exp(_below(log_ratio))))


RatioSurrogate: TypeAlias = Clip | Unclipped | Gmpo | Sapo
LogProbSurrogate: TypeAlias = Reinforce | Cispo | Vespo
Surrogate: TypeAlias = RatioSurrogate | LogProbSurrogate

# e^30 is far past where σ(τ(x-1)) is 1 in float64 for every τ worth using, and far below overflow.
_SATURATED = 30.0


def clipped_surrogate(ratio: Array, advantages: Array, clip: Clip) -> Array:
    """min(x A, clip(x, 1-low, 1+high) A), with `clip.dual` for A < 0; to be maximised.

    Clauses GSPO-SURR-1 to GSPO-SURR-5. Args: `ratio`, `advantages` of one shape, NaN and infinities as in `kl_penalty`.
    At a bound the derivative in `ratio` is A, strictly outside it is 0, in every framework.

    >>> import numpy as np
    >>> clipped_surrogate(np.asarray([0.5, 1.5, 0.5, 1.5]), np.asarray([1.0, 1.0, -1.0, -1.0]), Clip(0.2, 0.3))
    array([ 0.5,  1.3, -0.8, -1.5])
    """
    xp = check_array("ratio", ratio)
    check_kind("clip", clip, Clip)
    check_same_namespace(xp, ratio=ratio, advantages=advantages)
    check_floating("ratio", ratio)
    check_floating("advantages", advantages)
    check_shape("advantages", advantages, tuple(ratio.shape), "like ratio")
    dtype = compute_dtype(ratio, advantages)
    ratio, advantages = xp.astype(ratio, dtype), xp.astype(advantages, dtype)
    clipped = clip.clipped(ratio, advantages)
    open_ = _open(clipped, advantages)
    return xp.where(open_, ratio, clip._bound(clipped, ratio)) * advantages  # pyright: ignore[reportPrivateUsage]


def _open(clipped: Clipped, advantages: Array) -> Array:
    return (advantages != 0) & ~(clipped.low | clipped.high | clipped.dual)


def _nothing(like: Array) -> Clipped:
    xp = namespace_of(like)
    none = xp.zeros_like(like, dtype=xp.bool)
    return Clipped(none, none, none)


def _sigmoid(u: Array) -> Array:
    """σ(u) from e^{-|u|}, which does not overflow; |u| by selection, for its derivative at 0."""
    xp, positive = namespace_of(u), u >= 0
    falling = xp.exp(xp.where(positive, -u, u))
    return xp.where(positive, 1.0, falling) / (1 + falling)


def _below(log_ratio: Array) -> Array:
    xp = namespace_of(log_ratio)
    return xp.where(log_ratio > _SATURATED, _SATURATED, log_ratio)
