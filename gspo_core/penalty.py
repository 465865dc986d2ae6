"""KL penalties on sampled tokens: the estimators, their derivatives, and the importance-corrected forms.

z_t = log π_θ(y_t) - log π_ref(y_t). The paper has no KL term (GSPO-KL-7); where one is used it stays
outside the gate, the minimum and the advantage (GSPO-KL-6).
"""

from __future__ import annotations

from dataclasses import dataclass

from .aggregation import Aggregation, as_aggregation
from .arrays import Array, clamp, compute_dtype, namespace_of
from .backend import backend_of
from .sequences import Layout
from .validation import check_array, check_choice, check_field, check_floating, check_same_namespace, check_shape

ESTIMATORS = ("k1", "k2", "k3", "k3_plus", "abs")
IMPORTANCE = (None, "token", "sequence")


@dataclass(frozen=True)
class Penalty:
    """+ coefficient · aggregate(KL_t), in the loss. Clauses GSPO-KL-1 to GSPO-KL-8.

    `estimator`: "k1", "k2", "k3", "k3_plus" or "abs", as in `kl_penalty`. `importance`, "token" or "sequence",
    multiplies each token's KL by that differentiable ratio.
    `aggregation`, or the name of its mode; None is the objective's own. Clamps hold the value and cut the gradient outside.
    """

    estimator: str = "k3"
    coefficient: float = 0.001
    importance: str | None = None
    aggregation: Aggregation | None = None
    log_ratio_clamp: float | None = None
    value_clamp: float | None = None

    def __post_init__(self) -> None:
        check_choice("estimator", self.estimator, ESTIMATORS)
        check_choice("importance", self.importance, IMPORTANCE)
        check_field(self, "coefficient", low=0.0)
        if self.aggregation is not None:
            object.__setattr__(self, "aggregation", as_aggregation(self.aggregation, "aggregation"))
        for name in ("log_ratio_clamp", "value_clamp"):
            if getattr(self, name) is not None:
                check_field(self, name, low=0.0, strict=True)


def kl_penalty(logp: Array, ref_logp: Array, estimator: str = "k3") -> Array:
    """Per token: k1 = z, k2 = z²/2, k3 = e^{-z} + z - 1, k3_plus (value k3, gradient k2), abs = |z|.

    Clauses GSPO-KL-1 to GSPO-KL-4. Args: `logp`, `ref_logp` of one shape. Which of them count is not known here, so that
    a NaN or an infinity is no error: `aggregate` leaves out those of uncounted tokens and refuses the others.

    >>> import numpy as np
    >>> kl_penalty(np.asarray([-1.0]), np.asarray([-3.0]), "k2")
    array([2.])
    """
    xp = check_array("logp", logp)
    check_choice("estimator", estimator, ESTIMATORS)
    check_same_namespace(xp, logp=logp, ref_logp=ref_logp)
    check_floating("logp", logp)
    check_floating("ref_logp", ref_logp)
    check_shape("ref_logp", ref_logp, tuple(logp.shape), "like logp")
    dtype = compute_dtype(logp, ref_logp)
    return estimate(estimator, xp.astype(logp, dtype) - xp.astype(ref_logp, dtype))


def estimate(estimator: str, z: Array) -> Array:
    """The value of an estimator, differentiable in z; `expm1` keeps the digits that e^{-z} - 1 cancels."""
    backend = backend_of(z)
    if estimator == "k1":
        return z
    if estimator == "k2":
        return z * z / 2
    if estimator == "abs":
        return _sign(z) * z
    k3 = backend.exp_remainder(-z)
    if estimator == "k3":
        return k3
    stop = backend.stop_gradient
    k2 = z * z / 2
    return stop(k3) + (k2 - stop(k2))


def estimate_slope(estimator: str, z: Array) -> Array:
    """d(estimator)/dz: 1, z, 1 - e^{-z}, z, sign z."""
    xp = namespace_of(z)
    if estimator == "k1":
        return xp.ones_like(z)
    if estimator == "abs":
        return _sign(z)
    return -backend_of(z).expm1(-z) if estimator == "k3" else z


def penalty_values(penalty: Penalty, layout: Layout, logp: Array, old_logp: Array, ref_logp: Array) -> Array:
    """The KL of each counted token, differentiable in `logp`; arrays are clean (0 at uncounted positions)."""
    xp = layout.xp
    z, inside = _clamped(penalty, logp - ref_logp)
    if penalty.value_clamp is None:
        values = estimate(penalty.estimator, z)
    else:
        # What is held leaves the graph before `exp`, whose overflow would spoil the derivative (GSPO-NUM-3).
        beyond = estimate(penalty.estimator, layout.backend.stop_gradient(z))
        within = estimate(penalty.estimator, xp.where(inside, z, 0.0))
        values = xp.where(inside, within, clamp(beyond, -penalty.value_clamp, penalty.value_clamp))
    return layout.clean(values * _importance(penalty, layout, logp - old_logp))


def penalty_slope(penalty: Penalty, layout: Layout, logp: Array, old_logp: Array, ref_logp: Array) -> Array:
    """dΣ_t KL_t / d log π_θ(y_u) within the sequence of u, in closed form."""
    xp, log_ratio = layout.xp, logp - old_logp
    z, inside = _clamped(penalty, logp - ref_logp)
    slope = xp.where(inside, estimate_slope(penalty.estimator, z), 0.0)
    if penalty.importance is None:
        return layout.clean(slope)
    values, weight = penalty_values(penalty, layout, logp, old_logp, ref_logp), _importance(penalty, layout, log_ratio)
    if penalty.importance == "token" and penalty.estimator == "k3":
        # k3' + k3 is z: as a sum it would lose the digits that e^{-z} does not leave (GSPO-KL-5).
        return layout.clean(xp.where(inside, z * weight, values))
    own = layout.clean(slope * weight)
    if penalty.importance == "token":
        return own + values
    return layout.clean(own + layout.spread(layout.mean_tokens(values)))


def _clamped(penalty: Penalty, z: Array) -> tuple[Array, Array]:
    """z held to the log-ratio clamp (no gradient outside), and where a gradient flows at all."""
    xp = namespace_of(z)
    inside = xp.ones_like(z, dtype=xp.bool)
    if penalty.log_ratio_clamp is not None:
        inside = ~(xp.abs(z) > penalty.log_ratio_clamp)
        z = xp.where(inside, z, _sign(z) * penalty.log_ratio_clamp)
    if penalty.value_clamp is not None:
        inside = inside & ~(xp.abs(estimate(penalty.estimator, z)) > penalty.value_clamp)
    return z, inside


def _sign(z: Array) -> Array:
    """±1, 0 at 0, NaN at NaN, as a constant; `sign` for PyTorch indexes by booleans, which `torch.func.vmap` does not allow."""
    xp, still = namespace_of(z), backend_of(z).stop_gradient(z)
    return xp.where(still > 0, 1.0, xp.where(still < 0, -1.0, still))


def _importance(penalty: Penalty, layout: Layout, log_ratio: Array) -> Array | float:
    if penalty.importance is None:
        return 1.0
    if penalty.importance == "token":
        return layout.xp.exp(log_ratio)
    return layout.spread(layout.xp.exp(layout.mean_tokens(log_ratio)))
