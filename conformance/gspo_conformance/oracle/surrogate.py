"""Surrogates: what one token or one response adds to the objective J, and how fast it moves."""

from collections.abc import Callable
from functools import partial
from typing import Any

from mpmath import exp, mpf

from .exact import each
from .ratio import Ratio, mean

Surrogate = dict[str, Any]

PER_TOKEN_SURROGATES = ("reinforce", "cispo", "vespo")


def decision(clip: Surrogate, x: mpf, advantage: mpf) -> str | None:
    """The bound that closes the gate: high if A > 0, x > 1+high; low if A < 0, x < 1-low; dual if A < 0, x > c (GSPO-SURR-2, -4, -5)."""
    if advantage > 0 and x > 1 + clip["high"]:
        return "high"
    if advantage < 0 and x < 1 - clip["low"]:
        return "low"
    if advantage < 0 and clip["dual"] is not None and x > clip["dual"]:
        return "dual"
    return None


def unit_decision(surrogate: Surrogate, ratio: Ratio, advantage: mpf) -> str | None:
    """Which bound a unit fell to, None inside or without advantage (GSPO-METRIC-1, GSPO-SURR-12)."""
    kind = surrogate["kind"]
    if advantage == 0:
        return None
    if kind == "clip":
        return decision(surrogate, ratio.value, advantage)
    if kind == "reinforce" and surrogate["gate"] is not None:
        return decision(surrogate["gate"], ratio.value, advantage)
    if kind == "cispo":
        return _outside(ratio.value, *cispo_bounds(surrogate))
    if kind == "gmpo":
        return _gmpo_decision(surrogate, ratio.log, advantage)
    return None


def _outside(x: mpf, low: mpf | None, high: mpf) -> str | None:
    if low is not None and x < low:
        return "low"
    return "high" if x > high else None


def _gmpo_decision(surrogate: Surrogate, log_ratio: mpf, advantage: mpf) -> str | None:
    if advantage > 0:
        return "high" if log_ratio > surrogate["high"] else None
    return "low" if log_ratio < -surrogate["low"] else None


def clip_value(clip: Surrogate, x: mpf, advantage: mpf) -> mpf:
    """J = min(x A, clip(x, 1-low, 1+high) A); with a dual bound c and A < 0, J = max(J, c A) (GSPO-SURR-1, -3, -5)."""
    inside = min(max(x, 1 - clip["low"]), 1 + clip["high"])
    value = min(x * advantage, inside * advantage)
    if clip["dual"] is not None and advantage < 0:
        value = max(value, clip["dual"] * advantage)
    return value


def reinforce_gate(surrogate: Surrogate, x: mpf, advantage: mpf) -> int:
    """gate(x, A): 1 without a gate, else 1 inside and 0 where the clip closes (GSPO-SURR-7)."""
    gate = surrogate["gate"]
    return 1 if gate is None or decision(gate, x, advantage) is None else 0


def cispo_bounds(surrogate: Surrogate) -> tuple[mpf | None, mpf]:
    """(1 - low, 1 + high), no lower bound when low is None (GSPO-SURR-8)."""
    low = surrogate["low"]
    return None if low is None else 1 - low, 1 + surrogate["high"]


def cispo_weight(surrogate: Surrogate, x: mpf) -> mpf:
    """clip(x, 1-low, 1+high) (GSPO-SURR-8)."""
    low, high = cispo_bounds(surrogate)
    return min(x if low is None else max(x, low), high)


def sapo_temperature(surrogate: Surrogate, advantage: mpf) -> mpf:
    """tau by the sign of A (GSPO-SURR-10)."""
    return surrogate["tau_pos"] if advantage > 0 else surrogate["tau_neg"]


def sigmoid(z: mpf) -> mpf:
    """1 / (1 + e^-z)."""
    return 1 / (1 + exp(-z))


def vespo_shape(surrogate: Surrogate, advantage: mpf) -> tuple[mpf, mpf]:
    """(k, lambda) by the sign of A (GSPO-SURR-11)."""
    sign = "pos" if advantage >= 0 else "neg"
    return surrogate[f"k_{sign}"], surrogate[f"lam_{sign}"]


def vespo_weight(surrogate: Surrogate, x: mpf, advantage: mpf) -> mpf:
    """x^k e^{lambda (1 - x)} (GSPO-SURR-11)."""
    k, lam = vespo_shape(surrogate, advantage)
    return x**k * exp(lam * (1 - x))


def gmpo_log_ratio(surrogate: Surrogate, log_ratio: mpf, advantage: mpf) -> mpf:
    """n_t = min(d_t, high) if A > 0, max(d_t, -low) if A < 0 (GSPO-SURR-9)."""
    return min(log_ratio, surrogate["high"]) if advantage > 0 else max(log_ratio, -surrogate["low"])


def gmpo_value(surrogate: Surrogate, ratios: list[Ratio], advantage: mpf) -> mpf:
    """J = exp(mean_t n_t) A (GSPO-SURR-9)."""
    return exp(mean([gmpo_log_ratio(surrogate, ratio.log, advantage) for ratio in ratios])) * advantage


def _sapo_value(surrogate: Surrogate, x: mpf, advantage: mpf) -> mpf:
    """J = (4/tau) sigmoid(tau (x - 1)) A (GSPO-SURR-10)."""
    tau = sapo_temperature(surrogate, advantage)
    return 4 / tau * sigmoid(tau * (x - 1)) * advantage


def _sapo_slope(surrogate: Surrogate, x: mpf, advantage: mpf) -> mpf:
    """dJ/dl = 4 p (1 - p) x A, p = sigmoid(tau (x - 1)) (GSPO-SURR-10)."""
    p = sigmoid(sapo_temperature(surrogate, advantage) * (x - 1))
    return 4 * p * (1 - p) * x * advantage


# (surrogate, live ratio, frozen ratio, A, live log-probability) -> J of one unit
_VALUES: dict[str, Callable[[Surrogate, mpf, mpf, mpf, mpf], mpf]] = {
    "clip": lambda s, live, frozen, a, logp: clip_value(s, live, a),
    "unclipped": lambda s, live, frozen, a, logp: live * a,
    "reinforce": lambda s, live, frozen, a, logp: reinforce_gate(s, frozen, a) * a * logp,
    "cispo": lambda s, live, frozen, a, logp: cispo_weight(s, frozen) * a * logp,
    "sapo": lambda s, live, frozen, a, logp: _sapo_value(s, live, a),
    "vespo": lambda s, live, frozen, a, logp: vespo_weight(s, frozen, a) * a * logp,
}
# (surrogate, ratio, A) -> dJ/dl, or dJ/dlogp_t where the surrogate moves with the log-probability itself
_SLOPES: dict[str, Callable[[Surrogate, mpf, mpf], mpf]] = {
    "clip": lambda s, x, a: mpf(0) if decision(s, x, a) else x * a,
    "unclipped": lambda s, x, a: x * a,
    "reinforce": lambda s, x, a: reinforce_gate(s, x, a) * a,
    "cispo": lambda s, x, a: cispo_weight(s, x) * a,
    "sapo": _sapo_slope,
    "vespo": lambda s, x, a: vespo_weight(s, x, a) * a,
}


def unit_value(surrogate: Surrogate, live: Ratio, frozen: Ratio, advantage: mpf, logp: mpf) -> mpf:
    """J of one unit; exactly 0 where A = 0 (GSPO-SURR-1, -6 to -8, -10 to -12)."""
    if advantage == 0:
        return mpf(0)
    return _VALUES[surrogate["kind"]](surrogate, live.value, frozen.value, advantage, logp)


def unit_slope(surrogate: Surrogate, ratio: Ratio, advantage: mpf) -> mpf:
    """dJ/dl (dJ/dlogp_t for reinforce, cispo, vespo); exactly 0 where A = 0 or the gate is closed (GSPO-GRAD-1, -2)."""
    if advantage == 0:
        return mpf(0)
    return _SLOPES[surrogate["kind"]](surrogate, ratio.value, advantage)


def response_values(
    surrogate: Surrogate, live: list[Ratio], frozen: list[Ratio], advantages: list[mpf], logp: list[mpf]
) -> list[mpf]:
    """J at every counted token of one response; the value of a response stands at each of them (GSPO-SURR-9)."""
    if surrogate["kind"] == "gmpo":
        zero = not advantages or advantages[0] == 0
        return [mpf(0) if zero else gmpo_value(surrogate, live, advantages[0])] * len(live)
    moving = logp if surrogate["kind"] in PER_TOKEN_SURROGATES else [mpf(0)] * len(live)
    return each(partial(unit_value, surrogate), live, frozen, advantages, moving)
