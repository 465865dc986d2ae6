"""Seeded questions for every operation, with inputs that float32 holds exactly, and how far an answer is from the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from mpmath import mpf

from gspo_conformance.oracle import Truth
from gspo_conformance.oracle.differences import flattened

UNIT = {"float32": 2.0**-24, "float64": 2.0**-53}
RATIOS = ("token", "sequence", "gspo_token", "product")
MODES = ("sequence_mean_token_mean", "sequence_mean_token_sum", "token_mean", "token_sum", "group_token_mean")
SURROGATES: tuple[dict[str, Any], ...] = (
    {"kind": "clip", "low": 0.1, "high": 0.15, "dual": None},
    {"kind": "clip", "low": 0.1, "high": 0.15, "dual": 1.25},
    {"kind": "unclipped"},
    {"kind": "reinforce", "gate": None},
    {"kind": "reinforce", "gate": {"low": 0.1, "high": 0.15, "dual": 1.3}},
    {"kind": "cispo", "low": None, "high": 0.2},
    {"kind": "cispo", "low": 0.1, "high": 0.2},
    {"kind": "gmpo", "low": 0.1, "high": 0.1},
    {"kind": "sapo", "tau_pos": 1.0, "tau_neg": 1.05},
    {"kind": "vespo", "k_pos": 2, "lam_pos": 3, "k_neg": 3, "lam_neg": 2},
)
ESTIMATORS = ("k1", "k2", "k3", "k3_plus", "abs")
PER_TOKEN = ("reinforce", "cispo", "vespo")
Question = tuple[str, dict[str, Any], dict[str, Any]]
Random = np.random.Generator


def pick(rng: Random, *choices: Any) -> Any:
    """One of the choices."""
    return choices[rng.integers(len(choices))]


def dyadic(values: Any) -> np.ndarray:
    """The nearest multiples of 2^-16, so that float32 holds the values and their differences."""
    return np.round(np.asarray(values) * 2.0**16) / 2.0**16


def aggregation(rng: Random) -> dict[str, Any]:
    """Any mode that counts for itself."""
    return {"mode": pick(rng, *MODES), "count": pick(rng, "all", "non_empty"), "constant": pick(rng, 1.0, 7.0)}


def penalty(rng: Random) -> dict[str, Any] | None:
    """None half of the time."""
    if rng.random() < 0.5:
        return None
    return {
        "estimator": pick(rng, *ESTIMATORS),
        "coefficient": 0.3,
        "importance": pick(rng, None, "token", "sequence"),
        "aggregation": pick(rng, None, aggregation(rng)),
        "log_ratio_clamp": pick(rng, None, 0.2),
        "value_clamp": pick(rng, None, 0.05),
    }


def correction(rng: Random) -> dict[str, Any]:
    """Any level, action and bound."""
    return {
        "level": pick(rng, "token", "sequence", "geometric"),
        "action": pick(rng, "clamp", "mask", "reject"),
        "low": pick(rng, None, 0.9),
        "high": pick(rng, None, 1.1),
        "numerator": pick(rng, "old", "current"),
        "negative_only": bool(rng.random() < 0.3),
    }


def objective(rng: Random, surrogate: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A point of the family."""
    chosen = dict(surrogate or pick(rng, *SURROGATES))
    return {
        "ratio": "token" if chosen["kind"] == "gmpo" else pick(rng, *RATIOS),
        "surrogate": chosen,
        "aggregation": aggregation(rng),
        "penalty": penalty(rng),
        "correction": [correction(rng) for _ in range(pick(rng, 0, 0, 1, 2))],
        "log_ratio_cap": pick(rng, None, None, None, 0.1),
    }


def layout(rng: Random, lengths: np.ndarray, width: int, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows `[S, width]` with `lengths` counted tokens, padded with holes or packed with a tail; NaN where nothing counts."""
    if rng.random() < 0.5:
        mask = np.array([rng.permutation(np.arange(width) < length) for length in lengths])
        return {name: np.where(mask, row, np.nan) for name, row in rows.items()} | {"mask": mask}
    counted = np.arange(width) < lengths[:, None]
    more = int(rng.integers(3))
    tail = np.full(more + (counted.sum() + more == len(lengths)), np.nan)
    arrays = {name: np.concatenate([row[counted], tail]) for name, row in rows.items()}
    return arrays | {"offsets": np.concatenate([[0], np.cumsum(lengths)])}


def batch(rng: Random, wanted: Mapping[str, Any], *, per_token: bool, spread: float = 0.15) -> dict[str, Any]:
    """Inputs of a loss: up to six responses of up to seven tokens, some of them empty."""
    count, width = int(rng.integers(1, 7)), 7
    lengths = rng.integers(0, width + 1, count)
    old = dyadic(-rng.exponential(1.0, (count, width)))
    rows = {"old_logp": old}
    for name in ("logp", "ref_logp", "behavior_logp"):
        shift = rng.normal(0, spread / 3, (count, 1)) + rng.normal(0, spread, (count, width))
        rows[name] = old + dyadic(shift)
    if not wanted["correction"]:
        del rows["behavior_logp"]
    if wanted["penalty"] is None:
        del rows["ref_logp"]
    if per_token:
        rows["advantages"] = dyadic(rng.normal(0, 1, (count, width)) * (rng.random((count, width)) < 0.9))
    arrays = layout(rng, lengths, width, rows)
    if not per_token:
        arrays["advantages"] = dyadic(rng.normal(0, 1, count) * (rng.random(count) < 0.9))
    return arrays | {"groups": rng.integers(0, 3, count)}


def policy_loss(rng: Random, surrogate: Mapping[str, Any] | None = None) -> Question:
    """Any objective, per-token advantages where it takes them."""
    wanted = objective(rng, surrogate)
    kind = wanted["surrogate"]["kind"]
    may = kind in PER_TOKEN or (wanted["ratio"] in ("token", "gspo_token") and kind != "gmpo")
    inputs = batch(rng, wanted, per_token=may and rng.random() < 0.4)
    return "policy_loss", {"objective": wanted} | pick(rng, {}, {}, {"normalizer": 9.0}), inputs


def rewards(rng: Random, count: int) -> np.ndarray:
    """Rewards of one of several kinds: graded, right or wrong, far from 0, all equal."""
    graded = dyadic(rng.random(count))
    return pick(rng, graded, np.round(graded), graded + 100.0, np.full(count, np.float32(0.1), dtype=float))


def group_advantages(rng: Random) -> Question:
    """Any centre, scale and convention."""
    count = int(rng.integers(1, 13))
    parameters = {
        "center": pick(rng, "mean", "leave_one_out", "none"),
        "scale": pick(rng, "std", "batch_std", "leave_one_out_std", "none"),
        "ddof": pick(rng, 0, 1),
        "eps": pick(rng, 0.0, 1e-6, 0.25),
        "eps_placement": pick(rng, "std", "variance"),
    }
    inputs = {"rewards": rewards(rng, count), "groups": rng.integers(-2, 2, count)}
    if rng.random() < 0.4:
        inputs["valid"] = rng.random(count) < 0.8
        inputs["rewards"] = np.where(inputs["valid"], inputs["rewards"], np.nan)
    return "group_advantages", parameters, inputs


def leave_one_out_advantages(rng: Random) -> Question:
    """Groups of one to twelve."""
    count = int(rng.integers(1, 13))
    inputs = {"rewards": rewards(rng, count), "groups": rng.integers(-2, 2, count)}
    return "leave_one_out_advantages", {}, inputs


def _tokens(rng: Random, *names: str, lengths: np.ndarray | None = None) -> dict[str, np.ndarray]:
    count, width = int(rng.integers(1, 5)) if lengths is None else len(lengths), 9
    lengths = rng.integers(0, width + 1, count) if lengths is None else lengths
    offset = pick(rng, 0.0, 0.0, 20.0)
    return layout(rng, lengths, width, {name: dyadic(rng.normal(offset, 1, (count, width))) for name in names})


def _responses(inputs: Mapping[str, np.ndarray]) -> int:
    return len(inputs["offsets"]) - 1 if "offsets" in inputs else len(inputs["mask"])


def gae_advantages(rng: Random) -> Question:
    """With and without a value after the end."""
    inputs = _tokens(rng, "rewards", "values")
    if rng.random() < 0.5:
        inputs["bootstrap"] = dyadic(rng.normal(0, 1, _responses(inputs)))
    return "gae_advantages", {"gamma": pick(rng, 1.0, 0.99, 0.5), "lam": pick(rng, 1.0, 0.95, 0.0)}, inputs


def reinforce_returns(rng: Random) -> Question:
    """Discounts that float32 holds, and others."""
    return "reinforce_returns", {"gamma": pick(rng, 1.0, 0.99, 0.9, 0.5, 0.0)}, _tokens(rng, "rewards")


def whiten(rng: Random) -> Question:
    """With and without sequences and centring."""
    parameters = {"center": bool(rng.random() < 0.6), "ddof": pick(rng, 0, 1), "eps": pick(rng, 1e-8, 0.25)}
    shape = pick(rng, (6,), (3, 4), (1,))
    alone = {"values": dyadic(rng.normal(pick(rng, 0.0, 5.0), 1, shape))}
    return "whiten", parameters, pick(rng, alone, _tokens(rng, "values"), _tokens(rng, "values"))


def reinforce_pp_advantages(rng: Random) -> Question:
    """With and without a baseline."""
    inputs = _tokens(rng, "token_rewards")
    if rng.random() < 0.5:
        inputs["groups"] = rng.integers(0, 2, _responses(inputs))
    return "reinforce_pp_advantages", {"gamma": pick(rng, 1.0, 0.99, 0.5)}, inputs


def clip_advantages(rng: Random) -> Question:
    """A bound that float32 holds, and one that it does not."""
    flat = {"advantages": dyadic(rng.normal(0, 2, 9))}
    return "clip_advantages", {"bound": pick(rng, 1.5, 0.7)}, pick(rng, flat, _tokens(rng, "advantages"))


def clip_rewards(rng: Random) -> Question:
    """Bounds of both signs, and 0."""
    low, high = pick(rng, (-1.0, 1.0), (0.0, 0.3), (-0.7, -0.1))
    return "clip_rewards", {"low": low, "high": high}, {"rewards": dyadic(rng.normal(0, 1, 9))}


def normalize_rewards(rng: Random) -> Question:
    """Every source of statistics, both switches."""
    count, method = int(rng.integers(1, 10)), pick(rng, None, "batch", "group", "running")
    parameters = {
        "method": method,
        "shift": bool(rng.random() < 0.6),
        "scale": bool(rng.random() < 0.6),
        "ddof": pick(rng, 0, 1),
        "eps": pick(rng, 1e-6, 0.25),
    }
    inputs = {"rewards": rewards(rng, count)}
    if method == "group":
        inputs["groups"] = rng.integers(0, 3, count)
    if method == "running":
        sizes = rng.integers(1, 6, int(rng.integers(0, 4)))
        inputs |= {"history": rewards(rng, int(sizes.sum())), "history_sizes": sizes}
    return "normalize_rewards", parameters, inputs


def token_kl_rewards(rng: Random) -> Question:
    """Every estimator."""
    lengths = rng.integers(0, 10, 4)
    inputs = _tokens(rng, "logp", "ref_logp", lengths=lengths) | {"rewards": dyadic(rng.normal(0, 1, 4))}
    return "token_kl_rewards", {"coefficient": pick(rng, 0.1, 0.5), "estimator": pick(rng, *ESTIMATORS)}, inputs


def soft_overlong_penalty(rng: Random) -> Question:
    """Lengths on both sides of the ramp and at its ends."""
    longest, cache = pick(rng, (100, 20), (4096, 512), (7, 7), (50, 3))
    lengths = np.concatenate([rng.integers(0, longest + 9, 8), [longest, longest - cache, longest + 1]])
    return "soft_overlong_penalty", {"max_length": longest, "cache": cache}, {"lengths": lengths.astype(float)}


def informative_groups(rng: Random) -> Question:
    """With and without bounds."""
    count = int(rng.integers(1, 13))
    inputs = {"rewards": rewards(rng, count), "groups": rng.integers(0, 4, count)}
    return "informative_groups", {"low": pick(rng, None, 0.2), "high": pick(rng, None, 0.7)}, inputs


def ratio(rng: Random) -> Question:
    """Every kind of ratio, log-ratios small and large, and none at all."""
    wanted = {"correction": [], "penalty": None}
    inputs = batch(rng, wanted, per_token=False, spread=pick(rng, 0.0, 0.001, 0.2, 2.0))
    del inputs["advantages"], inputs["groups"]
    return "ratio", {"kind": pick(rng, *RATIOS)}, inputs


def clipped_surrogate(rng: Random) -> Question:
    """One- and two-dimensional arrays."""
    shape = pick(rng, (9,), (3, 4))
    inputs = {"ratio": dyadic(np.exp(rng.normal(0, 0.3, shape))), "advantages": dyadic(rng.integers(-2, 3, shape) / 2)}
    return "clipped_surrogate", {"clip": {"low": 0.1, "high": 0.2, "dual": pick(rng, None, 1.4)}}, inputs


def aggregate(rng: Random) -> Question:
    """Every mode."""
    inputs = _tokens(rng, "values")
    inputs["groups"] = rng.integers(0, 3, _responses(inputs))
    return "aggregate", {"mode": aggregation(rng)} | pick(rng, {}, {"normalizer": 5.0}), inputs


def kl_penalty(rng: Random) -> Question:
    """Every estimator, at log-ratios small and large."""
    shape, size = pick(rng, (9,), (3, 4)), pick(rng, 0.01, 0.5, 5.0)
    ref = dyadic(-rng.exponential(1, shape))
    inputs = {"logp": ref + dyadic(rng.normal(0, size, shape)), "ref_logp": ref}
    return "kl_penalty", {"estimator": pick(rng, *ESTIMATORS)}, inputs


def step(rng: Random) -> Question:
    """One to three parts that share a normaliser."""
    wanted = objective(rng) | {"aggregation": aggregation(rng) | {"count": "given"}}
    if wanted["penalty"] is not None:
        wanted["penalty"]["aggregation"] = None
    wanted["aggregation"]["mode"] = pick(rng, *MODES[:4])
    parts = [batch(rng, wanted, per_token=False) for _ in range(int(rng.integers(1, 4)))]
    return "step", {"objective": wanted, "normalizer": 11.0}, {"parts": parts}


def pipeline(rng: Random) -> Question:
    """Rewards to gradient."""
    wanted = objective(rng)
    inputs = batch(rng, wanted, per_token=False)
    del inputs["advantages"]
    inputs["rewards"] = rewards(rng, len(inputs["groups"]))
    settings = pick(rng, {}, {"ddof": 0}, {"scale": "none"}, {"center": "leave_one_out", "scale": "batch_std"})
    return "pipeline", {"objective": wanted, "advantages": settings}, inputs


QUESTIONS: dict[str, Callable[[Random], Question]] = {
    function.__name__: function
    for function in (
        policy_loss,
        ratio,
        clipped_surrogate,
        aggregate,
        kl_penalty,
        group_advantages,
        leave_one_out_advantages,
        gae_advantages,
        reinforce_returns,
        whiten,
        reinforce_pp_advantages,
        clip_advantages,
        clip_rewards,
        normalize_rewards,
        token_kl_rewards,
        soft_overlong_penalty,
        informative_groups,
        step,
        pipeline,
    )
}


def distance(got: Any, truth: Truth, name: str, dtype: str) -> float:
    """max |got - truth| / (u scale) over the elements of one output; infinite where exactness is owed and missed."""
    output = truth.outputs[name]
    answers = np.asarray(got).ravel().tolist()
    values, scales = flattened(output.value), flattened(output.scale)
    assert len(answers) == len(values), f"{name}: {len(answers)} elements, expected {len(values)}"
    return max((_units(*each, dtype) for each in zip(answers, values, scales)), default=0.0)


def _units(answer: float, value: Any, scale: Any, dtype: str) -> float:
    if answer != answer or abs(answer) == float("inf"):
        return float("inf")
    error = abs(mpf(answer) - value)
    if error == 0:
        return 0.0
    return float(error / (UNIT[dtype] * scale)) if scale else float("inf")
