"""The KL penalty: an estimator of the distance to a reference policy at every counted token."""

from collections.abc import Callable
from typing import Any

from mpmath import exp, mpf, sign

from .ratio import mean, sequence_log_ratio, token_log_ratios

Penalty = dict[str, Any]

# z = log pi - log pi_ref -> (value, d value / dz)
ESTIMATORS: dict[str, Callable[[mpf], tuple[mpf, mpf]]] = {
    "k1": lambda z: (z, mpf(1)),
    "k2": lambda z: (z**2 / 2, z),
    "k3": lambda z: (exp(-z) + z - 1, 1 - exp(-z)),
    "k3_plus": lambda z: (exp(-z) + z - 1, z),
    "abs": lambda z: (abs(z), sign(z)),
}


def clamped(value: mpf, bound: mpf | None) -> tuple[mpf, bool]:
    """clip(v, -c, c), and whether v lies inside, where the derivative passes (GSPO-KL-8)."""
    if bound is None or abs(value) <= bound:
        return value, True
    return bound * sign(value), False


def estimate(penalty: Penalty, z: mpf) -> tuple[mpf, mpf]:
    """(kl, d kl / dlogp) of one token: both clamps in place, no importance weight (GSPO-KL-1, -2, -3, -4, -8)."""
    z, moves = clamped(z, penalty["log_ratio_clamp"])
    value, slope = ESTIMATORS[penalty["estimator"]](z)
    value, passes = clamped(value, penalty["value_clamp"])
    return value, slope if moves and passes else mpf(0)


def live_estimate(penalty: Penalty, live: mpf, frozen: mpf) -> mpf:
    """kl as a function whose derivative is the contract's: k3_plus holds the value of k3 and moves as z^2/2 (GSPO-KL-4)."""
    value, slope = estimate(penalty, frozen)
    if penalty["estimator"] != "k3_plus":
        return estimate(penalty, live)[0]
    moved = clamped(live, penalty["log_ratio_clamp"])[0] ** 2 - clamped(frozen, penalty["log_ratio_clamp"])[0] ** 2
    return value + moved / 2 if slope else value


def importance(penalty: Penalty, logp: list[mpf], old_logp: list[mpf]) -> list[mpf]:
    """1, r_t = exp(d_t), or s = exp(mean d) at every counted token; differentiable (GSPO-KL-5)."""
    kind = penalty["importance"]
    if kind is None:
        return [mpf(1)] * len(logp)
    if kind == "token":
        return [exp(log) for log in token_log_ratios(logp, old_logp)]
    return [exp(sequence_log_ratio(logp, old_logp))] * len(logp)


def response_penalties(
    penalty: Penalty, live: list[mpf], frozen: list[mpf], ref_logp: list[mpf], old_logp: list[mpf]
) -> list[mpf]:
    """kl_t times its importance weight at every counted token of one response (GSPO-KL-5, GSPO-KL-6)."""
    weights = importance(penalty, live, old_logp)
    tokens = zip(live, frozen, ref_logp, weights, strict=True)
    return [weight * live_estimate(penalty, new - ref, base - ref) for new, base, ref, weight in tokens]


def response_slopes(penalty: Penalty, logp: list[mpf], ref_logp: list[mpf], old_logp: list[mpf]) -> list[mpf]:
    """d (sum_u kl_u) / dlogp_t: kl', r_t (kl'_t + kl_t), or s (kl'_t + mean_u kl_u) (GSPO-KL-5)."""
    pairs = [estimate(penalty, new - ref) for new, ref in zip(logp, ref_logp, strict=True)]
    weights = importance(penalty, logp, old_logp)
    shared = mean([value for value, _ in pairs])
    through_weight = {None: lambda value: mpf(0), "token": lambda value: value, "sequence": lambda value: shared}
    extra = through_weight[penalty["importance"]]
    return [weight * (slope + extra(value)) for (value, slope), weight in zip(pairs, weights, strict=True)]
