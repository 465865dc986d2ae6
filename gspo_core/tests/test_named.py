"""Whatever is wrong with an argument, the error begins with its name: every argument of every public function and class."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

import gspo_core as gspo

TOKENS = np.full((2, 3), -1.0)
MASK = np.ones((2, 3), bool)
TWO = np.asarray([1.0, 2.0])
IDS = np.asarray([0, 0])
FULL = gspo.Objective("token", gspo.Clip(0.1, 0.2), penalty=gspo.Penalty(), correction=gspo.Correction())
LOSS: dict[str, Any] = {"logp": TOKENS, "old_logp": TOKENS, "advantages": TWO, "sequences": MASK}
PRESET = LOSS | {"clip": gspo.Clip(0.1, 0.2), "normalizer": 2.0}
EVERY = LOSS | {"objective": FULL, "ref_logp": TOKENS, "behavior_logp": TOKENS, "groups": IDS}
RATIO: dict[str, Any] = {"logp": TOKENS, "old_logp": TOKENS, "sequences": MASK}
RUNNING = gspo.RunningMoments().update(TWO)

GOOD: dict[str, dict[str, Any]] = {
    "Aggregation": {"mode": "token_sum", "count": "all", "constant": 2.0},
    "Cispo": {"low": 0.1, "high": 0.2},
    "Clip": {"low": 0.1, "high": 0.2, "dual": 2.0},
    "Correction": {"level": "token", "action": "mask", "low": 0.1, "high": 0.2, "numerator": "old", "negative_only": True},
    "Gmpo": {"low": 0.1, "high": 0.2},
    "Objective": {"ratio": "token", "surrogate": gspo.Unclipped(), "penalty": None, "correction": (), "log_ratio_cap": 1.0},
    "Penalty": {"estimator": "k1", "coefficient": 0.1, "importance": None, "log_ratio_clamp": 0.1, "value_clamp": 0.1},
    "Sapo": {"tau_pos": 1.0, "tau_neg": 1.0},
    "Vespo": {"k_pos": 1.0, "lam_pos": 1.0, "k_neg": 1.0, "lam_neg": 1.0},
    "aggregate": {"values": TOKENS, "sequences": MASK, "mode": "token_sum", "groups": IDS, "normalizer": 2.0},
    "aggregate_sum": {"values": TOKENS, "sequences": MASK, "mode": "token_sum", "groups": IDS, "normalizer": 2.0},
    "clip_advantages": {"advantages": TOKENS, "bound": 1.0, "sequences": MASK},
    "clip_rewards": {"rewards": TWO, "low": 0.0, "high": 1.0},
    "clipped_surrogate": {"ratio": TWO, "advantages": TWO, "clip": gspo.Clip(0.1, 0.2)},
    "gae_advantages": {"rewards": TOKENS, "values": TOKENS, "sequences": MASK, "gamma": 1.0, "lam": 1.0, "bootstrap": TWO},
    "group_advantages": {"rewards": TWO, "groups": IDS, "center": "mean", "scale": "std", "ddof": 1, "eps": 0.0,
                         "eps_placement": "std", "valid": IDS == 0},
    "grpo_loss": PRESET,
    "gspo_loss": PRESET,
    "gspo_token_loss": PRESET,
    "gspo_token_ratio": RATIO,
    "informative_groups": {"rewards": TWO, "groups": IDS, "low": 0.0, "high": 1.0, "valid": IDS == 0},
    "kl_penalty": {"logp": TOKENS, "ref_logp": TOKENS, "estimator": "k1"},
    "leave_one_out_advantages": {"rewards": TWO, "groups": IDS, "valid": IDS == 0},
    "normalize_rewards": {"rewards": TWO, "method": "group", "groups": IDS, "shift": True, "scale": True, "ddof": 1, "eps": 0.0},
    "policy_gradient": EVERY | {"normalizer": 2.0},
    "policy_loss": EVERY | {"normalizer": 2.0},
    "policy_loss_sum": EVERY,
    "ppo_loss": PRESET,
    "reinforce_pp_advantages": {"token_rewards": TOKENS, "sequences": MASK, "gamma": 1.0, "groups": IDS, "ddof": 1, "eps": 0.0},
    "reinforce_returns": {"rewards": TOKENS, "sequences": MASK, "gamma": 1.0},
    "sequence_log_ratio": RATIO,
    "sequence_ratio": RATIO,
    "soft_overlong_penalty": {"lengths": TWO, "max_length": 4, "cache": 2},
    "token_kl_rewards": {"rewards": TWO, "logp": TOKENS, "ref_logp": TOKENS, "sequences": MASK, "coefficient": 0.1, "estimator": "k1"},
    "token_log_ratio": RATIO,
    "token_ratio": RATIO,
    "whiten": {"values": TOKENS, "sequences": MASK, "center": True, "ddof": 1, "eps": 0.0},
}  # fmt: skip
ANY_SIGN = {"log_ratio_cap", ("clip_rewards", "low"), ("clip_rewards", "high"),
            ("informative_groups", "low"), ("informative_groups", "high")}  # fmt: skip
POSITIVE = {"tau_pos", "tau_neg", "constant", "bound", "cache", "normalizer", "log_ratio_clamp", "value_clamp"}
ANY_SHAPE = {("kl_penalty", "logp"), ("clipped_surrogate", "ratio")}
# Functions of tokens alone, which hand a NaN on.
ANY_VALUE = (
    "aggregate",
    "aggregate_sum",
    "clipped_surrogate",
    "kl_penalty",
    *(name for name in GOOD if name.endswith("ratio")),
)
BUILT_IN = {"NoneType", "bool", "complex", "float", "int", "list", "str"}


def _wrong(name: str, argument: str, good: Any) -> Iterator[Any]:
    """Values of the wrong kind, dtype, shape, framework or size, for one argument."""
    if isinstance(good, np.ndarray):
        yield from (good.tolist(), "text", good.astype(complex))
        if (name, argument) not in ANY_SHAPE:
            yield good[..., None]
        if argument != next(iter(GOOD[name])):
            yield strict.asarray(good)
        yield from _wrong_numbers(name, argument, good)
    elif isinstance(good, bool):
        yield from (1, None, "text")
    elif isinstance(good, (int, float)):
        yield from ("1", True, float("nan"), float("inf"), 1j)
        if argument not in ANY_SIGN and (name, argument) not in ANY_SIGN:
            yield -1.0
        if argument in POSITIVE:
            yield 0.0
    else:
        yield from ("nonsense", 3, [3])


def _wrong_numbers(name: str, argument: str, good: np.ndarray) -> Iterator[np.ndarray]:
    if argument == "groups":
        yield from (good.astype(float), good[:1])
    elif good.dtype.kind != "f":
        yield np.full(good.shape, 2)
    else:
        if argument != "lengths":
            yield good.astype(int)
        if name not in ANY_VALUE:
            yield np.where(np.arange(good.size).reshape(good.shape) == 1, np.nan, good)


CASES = [
    pytest.param(name, argument, wrong, id=f"{name}-{argument}-{i}")
    for name, arguments in GOOD.items()
    for argument, good in arguments.items()
    for i, wrong in enumerate(_wrong(name, argument, good))
]


def test_every_public_function_of_arrays_and_class_of_options_is_here() -> None:
    elsewhere = {"AggregateSum", "Backend", "Packed", "Padded", "PolicyLoss", "PolicyLossSum", "Reinforce", "RunningMoments",
                 "Unclipped", "backend_of", "value_checks"}  # fmt: skip
    assert set(GOOD) | elsewhere == set(gspo.__all__)
    for name, arguments in GOOD.items():
        assert set(arguments) <= set(inspect.signature(getattr(gspo, name)).parameters)
        getattr(gspo, name)(**arguments)


@pytest.mark.parametrize(("name", "argument", "wrong"), CASES)
def test_the_error_names_the_argument_and_what_came(name: str, argument: str, wrong: Any) -> None:
    named = "(sequences|mask)" if argument == "sequences" else argument
    with pytest.raises((TypeError, ValueError), match=rf"^{named}: expected .*, got ") as caught:
        getattr(gspo, name)(**GOOD[name] | {argument: wrong})
    told = str(caught.value)
    came = told.rpartition(", got ")[2]
    assert came not in BUILT_IN or came in {
        type(one).__name__ for one in (wrong, *(wrong if isinstance(wrong, list) else ()))
    }
    assert "(None)" not in told, "shapes say what they are for"
