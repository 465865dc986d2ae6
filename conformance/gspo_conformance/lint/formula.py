"""An objective as one formula in Unicode, the way the specification writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RATIOS = {
    "token": ("w_it", "w_it = π_θ(y_it)/π_old(y_it)"),
    "sequence": ("s_i", "s_i = exp(mean_t log π_θ(y_it)/π_old(y_it))"),
    "gspo_token": ("s_it", "s_it = sg[s_i]·π_θ(y_it)/sg[π_θ(y_it)], s_i = exp(mean_t log π_θ/π_old)"),
    "product": ("u_i", "u_i = Π_t π_θ(y_it)/π_old(y_it)"),
}
OUTER = {
    "sequence_mean_token_mean": "1/G Σ_i 1/|y_i| Σ_t ",
    "sequence_mean_token_sum": "1/G Σ_i Σ_t ",
    "token_mean": "1/Σ|y_i| Σ_i Σ_t ",
    "token_sum": "Σ_i Σ_t ",
    "group_token_mean": "mean over groups of 1/Σ|y_i| Σ_i Σ_t ",
}
ESTIMATORS = {
    "k1": "z",
    "k2": "z²/2",
    "k3": "(e^-z + z - 1)",
    "k3_plus": "(e^-z + z - 1) with the gradient of z²/2",
    "abs": "|z|",
}


def formula(objective: Mapping[str, Any]) -> str:
    """`L = -1/G Σ_i min(s_i A_i, clip(s_i, 1-0.0003, 1+0.0004) A_i),  s_i = ...`."""
    ratio, where = RATIOS[objective["ratio"]]
    unit = _surrogate(objective, ratio)
    outer = OUTER[objective["aggregation"]["mode"]]
    constant = objective["aggregation"]["constant"]
    per_response = objective["ratio"] in ("sequence", "product") and objective["surrogate"]["kind"] in ("clip", "sapo")
    alike = per_response and not objective["correction"]  # all tokens of a response have the same term
    if alike and objective["aggregation"]["mode"] == "sequence_mean_token_mean":
        outer = "1/G Σ_i "
    corrections = objective["correction"]
    names = ["ρ_it"] if len(corrections) == 1 else [f"ρ{n}_it" for n in range(1, len(corrections) + 1)]
    text = f"L = -{_divided(outer, constant)}{''.join(f'{name} ' for name in names)}{unit}"
    if objective["penalty"] and objective["penalty"]["coefficient"]:
        text += _penalty(objective)
        importance = RATIOS.get(objective["penalty"]["importance"] or "")
        where += f", {importance[1]}" if importance and f"{importance[0]} =" not in where else ""
        where += ", z = log π_θ - log π_ref"
    where += "".join(f", {name} = {_weight(one)}" for name, one in zip(names, corrections, strict=True))
    if objective["log_ratio_cap"] is not None:
        where += f", log-ratio capped at {objective['log_ratio_cap']:g}"
    return f"{text},  {where}"


def _weight(correction: Mapping[str, Any]) -> str:
    """`π_old(y_it)/μ(y_it), 0 outside [0, 5]`: what a weight compares, over what, and what its bounds do."""
    numerator = "π_old" if correction["numerator"] == "old" else "sg[π_θ]"
    ratio = f"{numerator}(y_it)/μ(y_it)"
    found = {"token": ratio, "sequence": f"Π_t {ratio}", "geometric": f"exp(mean_t log {ratio})"}[correction["level"]]
    low, high = correction["low"], correction["high"]
    if low is not None or high is not None:
        range_ = f"[{low or 0:g}, {'∞' if high is None else f'{high:g}'}]"
        action = {"clamp": " held in", "mask": ", 0 outside", "reject": " replaced by 1 inside and 0 outside"}[
            correction["action"]
        ]
        found += f"{action} {range_}"
    return found + (" where A<0, else 1" if correction["negative_only"] else "")


def _penalty(objective: Mapping[str, Any]) -> str:
    """` + 0.04·s_i·(e^-z + z - 1)`; a mean of its own stands before it."""
    penalty, own = objective["penalty"], objective["penalty"]["aggregation"]
    mean = "" if own in (None, objective["aggregation"]) else _divided(OUTER[own["mode"]], own["constant"])
    weight = f"{RATIOS[penalty['importance']][0]}·" if penalty["importance"] else ""
    return f" + {penalty['coefficient']:g}·{mean}{weight}{ESTIMATORS[penalty['estimator']]}"


def _divided(outer: str, constant: float) -> str:
    """`1/(512·G) Σ_i Σ_t ` for `1/G Σ_i Σ_t ` and a constant of 512."""
    if constant == 1:
        return outer
    first, _, rest = outer.partition(" ")
    return f"1/({constant:g}·{first[2:]}) {rest}" if first.startswith("1/") else f"1/{constant:g} {outer}"


def _surrogate(objective: Mapping[str, Any], x: str) -> str:
    surrogate = objective["surrogate"]
    kind, a = surrogate["kind"], "A_i"
    if kind == "clip":
        text = f"min({x} {a}, clip({x}, 1-{surrogate['low']:g}, 1+{surrogate['high']:g}) {a})"
        return f"max({text}, {surrogate['dual']:g} {a} where {a}<0)" if surrogate.get("dual") else text
    if kind == "cispo":
        low = "0" if surrogate["low"] is None else f"1-{surrogate['low']:g}"
        return f"sg[clip({x}, {low}, 1+{surrogate['high']:g})] {a} log π_θ(y_it)"
    if kind == "gmpo":
        return f"exp(mean_t clip(log w_it, -{surrogate['low']:g}, {surrogate['high']:g})) {a}"
    if kind == "sapo":
        return f"4/τ σ(τ({x}-1)) {a} with τ = {surrogate['tau_pos']:g} or {surrogate['tau_neg']:g}"
    if kind == "reinforce":
        return f"{'' if surrogate['gate'] is None else 'gate·'}{a} log π_θ(y_it)"
    if kind == "vespo":
        return f"sg[{x}^k e^(λ(1-{x}))] {a} log π_θ(y_it)"
    return f"{x} {a}"
