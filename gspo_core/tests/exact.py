"""Advantages and returns in scalar loops over mpmath numbers, written from the spec for these tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mpmath import mp, mpf

mp.prec = 200

UNIT = {"float32": 2.0**-24, "float64": 2.0**-53}


def exact(values: Any) -> list[mpf]:
    """The very numbers that a NumPy array holds."""
    return [mpf(float(value)) for value in values]


def average(values: Sequence[mpf]) -> mpf:
    return mp.fsum(values) / len(values)


def variance(values: Sequence[mpf], ddof: float) -> mpf | None:
    if len(values) - ddof <= 0:
        return None
    centre = average(values)
    return mp.fsum((value - centre) ** 2 for value in values) / (len(values) - ddof)


def divisor(values: Sequence[mpf], ddof: float, eps: float, placement: str) -> mpf:
    found = variance(values, ddof)
    if found is None:
        return mpf(1)
    return mp.sqrt(found) + mpf(eps) if placement == "std" else mp.sqrt(found + mpf(eps))


def advantages(
    rewards: np.ndarray,
    groups: np.ndarray,
    center: str = "mean",
    scale: str = "std",
    ddof: float = 1,
    eps: float = 1e-6,
    eps_placement: str = "std",
    valid: np.ndarray | None = None,
) -> list[mpf]:
    counts = [True] * len(rewards) if valid is None else [bool(flag) for flag in valid]
    numbers = exact(rewards)
    batch = [number for number, flag in zip(numbers, counts, strict=True) if flag]
    result = [mpf(0)] * len(numbers)
    for group in set(groups.tolist()):
        places = [j for j in range(len(numbers)) if groups[j] == group and counts[j]]
        members = [numbers[j] for j in places]
        if not members or (center != "none" and max(members) == min(members)):
            continue
        shared = {"std": members, "batch_std": batch}.get(scale)
        centre = average(members)
        below = mpf(1) if shared is None else divisor(shared, ddof, eps, eps_placement)
        for i in places:
            others = [numbers[j] for j in places if j != i] if "leave_one_out" in center + scale else []
            baseline = average(others) if center == "leave_one_out" else mpf(0) if center == "none" else None
            value = numbers[i] - (centre if baseline is None else baseline)
            own = divisor(others, ddof, eps, eps_placement) if scale == "leave_one_out_std" else below
            result[i] = value / own
    return result


def discounted(rewards: np.ndarray, mask: np.ndarray, gamma: float) -> list[list[mpf]]:
    rows: list[list[mpf]] = []
    for row, counted in zip(rewards, mask, strict=True):
        after, values = mpf(0), [mpf(0)] * len(row)
        for t in reversed(range(len(row))):
            if counted[t]:
                after = values[t] = mpf(float(row[t])) + mpf(gamma) * after
        rows.append(values)
    return rows


def gae(
    rewards: np.ndarray, values: np.ndarray, mask: np.ndarray, gamma: float, lam: float, bootstrap: np.ndarray
) -> list[list[mpf]]:
    rows: list[list[mpf]] = []
    for reward, value, counted, end in zip(rewards, values, mask, bootstrap, strict=True):
        advantage, following, row = mpf(0), mpf(float(end)), [mpf(0)] * len(reward)
        for t in reversed(range(len(reward))):
            if counted[t]:
                delta = mpf(float(reward[t])) + mpf(gamma) * following - mpf(float(value[t]))
                advantage = row[t] = delta + mpf(gamma) * mpf(lam) * advantage
                following = mpf(float(value[t]))
        rows.append(row)
    return rows


def whitened(values: Sequence[mpf], center: bool = True, ddof: float = 1, eps: float = 1e-8) -> list[mpf]:
    mean, back = average(values), mpf(0) if center else average(values)
    below = divisor(values, ddof, eps, "variance") if len(values) > 1 else mpf(1)
    return [(value - mean) / below + back for value in values]


def assert_close(got: np.ndarray, truth: Sequence[mpf], scale: Any, units: float = 16) -> None:
    """|got - truth| within `units` roundoffs of the dtype of `got`, times the natural scale (one, or one each)."""
    assert got.ndim == 1
    assert got.shape == (len(truth),)
    unit = UNIT[str(got.dtype)]
    scales = np.broadcast_to(np.asarray(scale, dtype="float64"), got.shape)
    for i, (number, true) in enumerate(zip(got, truth, strict=True)):
        error = abs(mpf(float(number)) - true)
        assert error <= units * unit * scales[i], f"entry {i}: {number} for {mp.nstr(true, 12)}"
