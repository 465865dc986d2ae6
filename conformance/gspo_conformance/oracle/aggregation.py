"""Aggregation: how token values of many responses become one number, (1/M) sum_i omega_i sum_t v_{i,t}."""

from typing import Any

from mpmath import fsum, mpf

Aggregation = dict[str, Any]


def response_weights(aggregation: Aggregation, lengths: list[int], groups: list[Any] | None) -> list[mpf]:
    """omega_i by mode (GSPO-AGG-1, -3, -4, -5, -6)."""
    mode = aggregation["mode"]
    if mode == "sequence_mean_token_mean":
        return [1 / mpf(length) if length else mpf(0) for length in lengths]
    if mode in ("sequence_mean_token_sum", "token_sum"):
        return [1 / aggregation["constant"]] * len(lengths)
    if mode == "token_mean":
        return [mpf(1)] * len(lengths)
    if mode == "group_token_mean":
        totals = group_tokens(lengths, groups)
        return [1 / mpf(totals[key]) if totals[key] else mpf(0) for key in _keys(lengths, groups)]
    raise ValueError(f"unknown aggregation mode {mode!r}")


def group_tokens(lengths: list[int], groups: list[Any] | None) -> dict[Any, int]:
    """sum_{j in g} T_j of every group; without groups the batch is one (GSPO-AGG-6)."""
    totals: dict[Any, int] = {}
    for key, length in zip(_keys(lengths, groups), lengths, strict=True):
        totals[key] = totals.get(key, 0) + length
    return totals


def _keys(lengths: list[int], groups: list[Any] | None) -> list[Any]:
    return [0] * len(lengths) if groups is None else groups


def normalizer(aggregation: Aggregation, lengths: list[int], groups: list[Any] | None, given: mpf | None) -> mpf:
    """M: what was given, else responses, groups or tokens by mode (GSPO-AGG-2, -7, -8)."""
    mode, count = aggregation["mode"], aggregation["count"]
    if given is not None:
        return given
    if count == "given":
        raise ValueError("count 'given' needs a normalizer")
    if mode == "token_mean":
        return mpf(sum(lengths))
    if mode == "token_sum":
        return mpf(1)
    members = list(group_tokens(lengths, groups).values()) if mode == "group_token_mean" else lengths
    return mpf(len(members) if count == "all" else sum(1 for tokens in members if tokens))


def weighted_sum(values: list[list[mpf]], weights: list[mpf]) -> mpf:
    """sum_i omega_i sum_t v_{i,t}."""
    return fsum(weight * fsum(tokens) for weight, tokens in zip(weights, values, strict=True))


def ratio_or_zero(numerator: mpf, denominator: mpf) -> mpf:
    """a / b, and 0 where b = 0: an empty batch loses nothing (GSPO-AGG-8)."""
    return numerator / denominator if denominator else mpf(0)
