"""Rewards before they become advantages: clip, normalisation, running statistics, token KL, overlong penalty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..cases import packed, padded, responses, uniform
from ..recipe import Case, Shelf, call

RECIPES = Shelf("reward")
_add = RECIPES.add

CONVENTION = "ddof and eps are choices that the paper does not make; this call says ddof={ddof}, eps={eps}."
REWARDS = [1.0, 0.125, 0.875, 0.5, 0.0, 0.25, 0.75, -0.5]
GROUPS = [5, 2, 5, 9, 2, 5, 9, 2]


def _clip(low: float, high: float) -> Case:
    rewards = np.array([-20.0, -10.0, -1.5, 0.0, 0.5, 3.0, 10.0, 64.0])
    return call("clip_rewards", {"rewards": rewards}, "rewards", low=low, high=high)


for _slug, (_low, _high, _what) in {
    "clip": (-10.0, 10.0, "Rewards held to -10 to 10"),
    "clip-asymmetric": (-1.0, 5.0, "Rewards held to -1 to 5: the bounds are two numbers"),
    "clip-zero": (0.0, 4.0, "A bound of zero is a bound, not an absent one"),
    "clip-below-zero": (-8.0, 0.0, "An upper bound of zero is a bound"),
    "clip-all-below-zero": (-12.0, -1.0, "Rewards held to -12 to -1: 0 is outside"),
}.items():
    _add(_slug, _what, "REWARD-1", "bounds-ignored range-swapped", partial(_clip, _low, _high))


def _normalize(method: str | None, shift: bool, scale: bool, ddof: int = 1, eps: float = 1e-6, rewards: Sequence[float] = REWARDS, **inputs: Any) -> Case:  # fmt: skip
    arrays: dict[str, Any] = {"rewards": np.array(rewards)} | inputs
    if method == "group":
        arrays["groups"] = np.array(GROUPS[: len(rewards)])
    return call("normalize_rewards", arrays, "rewards", method=method, shift=shift, scale=scale, ddof=ddof, eps=eps)


_HISTORY = {"history": np.array([0.5, 2.0, -1.0, 0.25, 0.75, 1.5, 0.0]), "history_sizes": np.array([3, 4])}
_SWITCHES = {"shift": (True, False), "scale": (False, True), "both": (True, True), "neither": (False, False)}
_FIELDS: dict[str, dict[str, Any]] = {"batch": {}, "group": {}, "running": _HISTORY}
for _method, _inputs in _FIELDS.items():
    for _slug, (_shift, _scale) in _SWITCHES.items():
        _clauses = "REWARD-2" + (" REWARD-3" if _method == "running" else "")
        _add(
            f"{_method}-{_slug}",
            f"Statistics of the {_method}, {_slug} of shift and scale",
            _clauses,
            "switch-ignored batch-statistics" + (" running-order" if _method == "running" else ""),
            partial(_normalize, _method, _shift, _scale, **_inputs),
            level="SHOULD" if _scale else "MUST",
            note=CONVENTION.format(ddof=1, eps=1e-6) if _scale else "",
        )
_add(
    "no-method",
    "No statistics: the rewards as they are",
    "REWARD-2",
    "switch-ignored",
    partial(_normalize, None, True, True),
)
for _method, _inputs in _FIELDS.items():
    _add(
        f"{_method}-population",
        f"Statistics of the {_method} with ddof 0 and eps 1/8",
        "REWARD-2" + (" REWARD-3" if _method == "running" else ""),
        "ddof eps-placement",
        partial(_normalize, _method, True, True, 0, 0.125, **_inputs),
        level="SHOULD",
        note=CONVENTION.format(ddof=0, eps=0.125),
    )


def _loosely(method: str, shift: bool, dtype: str, roundoff: float) -> Case:
    """So many rewards that ddof moves the spread by 0.8% at the most: within 1.2% every convention is right."""
    rewards = [
        scale * reward + at
        for part, (scale, at) in enumerate(((1.0, 0.0), (4.0, -2.0), (0.5, 3.0), (2.0, 8.0)))
        for reward in uniform(f"reward/64/{part}", 64, 0.0, 1.0, 2.0**-8)
    ]
    arrays: dict[str, Any] = {"rewards": np.array(rewards)}
    if method == "group":
        arrays["groups"] = np.repeat([5, 2, -9, 300], 64)
    if method == "running":
        arrays = {
            "rewards": np.array(rewards[:64]),
            "history": np.array(rewards[64:]),
            "history_sizes": np.array([64, 128]),
        }
    case = call("normalize_rewards", arrays, "rewards", method=method, shift=shift, scale=True, ddof=1, eps=1e-6)
    return replace(case, dtype=(dtype,), k=round(0.012 / roundoff))


for _method, _shift in (("batch", False), ("group", True), ("running", True)):
    for _dtype, _roundoff in (("float32", 2.0**-24), ("float64", 2.0**-53)):
        _add(
            f"any-convention-{_method}-{_dtype}",
            f"Statistics of the {_method} over 64 rewards or more, within 1.2%: whatever ddof and eps are",
            "REWARD-2" + (" REWARD-3" if _method == "running" else ""),
            "switch-ignored batch-statistics",
            partial(_loosely, _method, _shift, _dtype, _roundoff),
        )
_TENTH = float(np.float32(0.1))
_add(
    "equal-shifted",
    "Seven rewards of 0.1 in float32, shifted: exactly 0",
    "REWARD-2",
    "phantom-advantage",
    partial(_normalize, "batch", True, False, rewards=[_TENTH] * 7),
)
_add(
    "equal-both",
    "Seven rewards of 0.1 in float32, shifted and divided: exactly 0",
    "REWARD-2 ADV-3",
    "phantom-advantage",
    partial(_normalize, "batch", True, True, eps=1e-8, rewards=[_TENTH] * 7),
)
_add(
    "equal-scaled",
    "Equal rewards that are divided but not shifted: eta alone divides",
    "REWARD-2",
    "phantom-advantage eps-placement",
    partial(_normalize, "batch", False, True, eps=0.125, rewards=[0.5] * 8),
    level="SHOULD",
    note=CONVENTION.format(ddof=1, eps=0.125),
)
_add(
    "running-first-batch",
    "No history: the running statistics are those of the first batch",
    "REWARD-3",
    "running-order",
    partial(_normalize, "running", True, False, history=np.zeros(0), history_sizes=np.zeros(0, dtype=np.int64)),
)
_add(
    "running-one",
    "One reward and no history: there is no standard deviation yet, and nothing divides",
    "REWARD-3 REWARD-2",
    "singleton running-order",
    partial(_normalize, "running", False, True, rewards=REWARDS[1:2], history=np.zeros(0), history_sizes=np.zeros(0, dtype=np.int64)),
    level="SHOULD",
    note=CONVENTION.format(ddof=1, eps=1e-6),
)  # fmt: skip
_add(
    "running-other-cut",
    "The history cut into other batches: the same moments",
    "REWARD-3",
    "running-order",
    partial(_normalize, "running", True, False, history=_HISTORY["history"], history_sizes=np.array([1, 1, 5])),
)
_add(
    "running-offset",
    "A stream of rewards 1000 away from 0: moments are merged without cancellation",
    "REWARD-3 NUM-4",
    "one-pass-variance running-order",
    partial(_normalize, "running", True, True, rewards=[1000.0, 1000.5, 999.75, 1000.25, 999.5, 1000.0, 1000.75, 999.875], history=np.array([1000.25, 999.5, 1000.125, 1000.0]), history_sizes=np.array([2, 2])),
    level="SHOULD",
    note=CONVENTION.format(ddof=1, eps=1e-6),
)  # fmt: skip


def _token_kl(estimator: str, layout: str = "padded", coefficient: float = 0.125, new: float = -2.0) -> Case:
    source = responses("reward/kl", [4, 2, 7, 1], [0.0] * 4, spread=0.3, extra=("ref_logp",), extra_spread=1.5)
    rows = source.rows
    source = type(source)({"logp": rows["logp"], "ref_logp": rows["ref_logp"]}).also(rewards=[1.0, -0.5, 0.25, 2.0])
    holes = "101101000 010000100 111011110 000010000"
    fill = {"logp": new, "ref_logp": -5.0}
    inputs = {
        "padded": lambda: padded(source, fill=fill),
        "holes": lambda: padded(source, masks=holes, fill=fill),
        "packed": lambda: packed(source, trailing=2, fill=fill),
    }[layout]()
    return call("token_kl_rewards", inputs, "rewards", coefficient=coefficient, estimator=estimator)


for _estimator in ("k1", "k2", "k3", "k3_plus", "abs"):
    _add(
        f"token-kl-{_estimator.replace('_', '-')}",
        f"The reward on the last counted token, less 1/8 of {_estimator} on every counted token",
        "REWARD-4" + {"k1": " KL-1", "k3_plus": " KL-4"}.get(_estimator, ""),
        "reward-on-wrong-token kl-estimator kl-sign kl-of-padding",
        partial(_token_kl, _estimator),
    )
for _layout, _what in {"holes": "with tool tokens between", "packed": "packed"}.items():
    _add(
        f"token-kl-{_layout}",
        f"KL in the reward, {_what}: the last counted token, not the last position",
        "REWARD-4" + (" PACK-2" if _layout == "packed" else ""),
        "reward-on-wrong-token kl-of-padding",
        partial(_token_kl, "k1", _layout),
    )
_add(
    "token-kl-garbage",
    "KL in the reward with NaN at uncounted positions",
    "REWARD-4 DATA-2",
    "garbage-in-padding kl-of-padding",
    partial(_token_kl, "k1", "holes", 0.125, float("nan")),
)
_add(
    "token-kl-zero",
    "Coefficient 0: the reward on the last counted token alone",
    "REWARD-4",
    "reward-on-wrong-token",
    partial(_token_kl, "k1", "padded", 0.0),
)


def _token_kl_empty() -> Case:
    source = responses("reward/empty", [3, 0, 2, 0], [0.0] * 4, spread=0.3, extra=("ref_logp",), extra_spread=1.0)
    rows = {name: source.rows[name] for name in ("logp", "ref_logp")}
    made = type(source)(rows).also(rewards=[1.0, 5.0, -0.5, 3.0])
    return call("token_kl_rewards", padded(made), "rewards", coefficient=0.25, estimator="k1")


_add(
    "token-kl-empty",
    "An empty response has no token to hold its reward: it is dropped",
    "REWARD-4 DATA-3",
    "empty-response reward-on-wrong-token",
    _token_kl_empty,
    level="SHOULD",
    note="The paper has no empty response. Convention: its reward is dropped.",
)


def _overlong(lengths: Sequence[int], max_length: int, cache: int) -> Case:
    inputs = {"lengths": np.array(lengths)}
    fields = {"dtype": ("float32",)}
    return call("soft_overlong_penalty", inputs, "values", fields=fields, max_length=max_length, cache=cache)


_add(
    "overlong",
    "0 up to 80, linear to -1 at 100, -1 beyond",
    "REWARD-5",
    "overlong-shape",
    partial(_overlong, [0, 1, 79, 80, 81, 85, 90, 99, 100, 101, 1000], 100, 20),
)
_add(
    "overlong-dapo",
    "DAPO's own lengths: 20,480 with a cache of 4,096",
    "REWARD-5",
    "overlong-shape",
    partial(_overlong, [16000, 16384, 16385, 18432, 20479, 20480, 20481, 32768], 20480, 4096),
)
_add(
    "overlong-all-cache",
    "A cache as long as the maximum: linear from the first token",
    "REWARD-5",
    "overlong-shape",
    partial(_overlong, [0, 1, 8, 16, 31, 32, 33], 32, 32),
)
_add(
    "clip-then-normalize",
    "Rewards as they leave the clip, shifted by the batch mean: the order of the two is the caller's",
    "REWARD-2 REWARD-1",
    "bounds-ignored switch-ignored",
    partial(_normalize, "batch", True, False, rewards=list(np.clip(uniform("reward/order", 8, -16.0, 16.0, 2.0**-6), -4.0, 4.0))),
)  # fmt: skip
