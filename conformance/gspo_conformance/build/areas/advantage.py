"""Advantages: group statistics (eq. 6) and every convention around them, leave-one-out, returns, GAE, whitening."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..cases import Responses, packed, padded, uniform
from ..recipe import Case, Shelf, call

RECIPES = Shelf("advantage")
_add = RECIPES.add
CONVENTION = (
    "The paper prints a standard deviation without ddof or eps; both are parameters here: ddof={ddof}, eps={eps}."
)


def filled(rewards: Sequence[float], groups: Sequence[int]) -> dict[str, Any]:
    """Eight responses at least: the rest form a group of equal rewards, of which every advantage is 0."""
    rest = 8 - len(rewards)
    return {
        "rewards": np.asarray([*rewards, *[0.25] * rest], dtype=float),
        "groups": np.asarray([*groups, *[max(groups) + 1] * rest]),
    }


def group(rewards: Sequence[float], groups: Sequence[int], **parameters: Any) -> Case:
    """Group advantages with ddof and eps always written out."""
    defaults = {"center": "mean", "scale": "std", "ddof": 1, "eps": 1e-6, "eps_placement": "std"}
    inputs = filled(rewards, groups)
    if "valid" in parameters:
        valid = [*parameters.pop("valid"), *[1] * len(inputs["rewards"])][: len(inputs["rewards"])]
        inputs["valid"] = np.asarray(valid, dtype=bool)
    exact = ("advantages",) if parameters.pop("exact", False) else ()
    return call("group_advantages", inputs, "advantages", fields={"exact": exact}, **(defaults | parameters))


TWO = ([0.0, 1.0, 1.0, 0.25, 0.5, 0.75, 1.0, 0.5], [0, 0, 0, 0, 1, 1, 1, 1])
UNEVEN = ([1.0, 0.125, 0.875, 0.5, 0.0, 0.25, 1.0, 0.75, 0.375], [5, 2, 5, 9, 2, 5, 9, 9, 5])
BINARY = ([0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0], [3, 3, 3, 3, 8, 8, 8, 8])


def _std(
    slug: str,
    title: str,
    case: tuple[Sequence[float], Sequence[int]],
    flags: str,
    clauses: str = "ADV-1 ADV-2",
    **p: Any,
) -> None:
    note = CONVENTION.format(ddof=p.get("ddof", 1), eps=p.get("eps", 1e-6))
    _add(slug, title, clauses, flags, partial(group, *case, **p), level="SHOULD", note=note)


_std(
    "two-groups", "Two groups with different means and spreads: statistics are per group", TWO, "batch-statistics ddof"
)
_std("two-groups-population", "The same with ddof 0", TWO, "ddof", ddof=0)
_std("binary", "Rewards 0 and 1, groups with different pass rates", BINARY, "batch-statistics ddof")
_std("binary-population", "The same with ddof 0", BINARY, "ddof", ddof=0)
_std("pair", "A group of two: A is ±0.7071 with ddof 1 and ±1 with ddof 0", ([0.0, 1.0], [0, 0]), "ddof")
_std("pair-population", "The same with ddof 0", ([0.0, 1.0], [0, 0]), "ddof", ddof=0)
_std(
    "uneven-groups",
    "Three interleaved groups of 2, 3 and 4, ids in no order",
    UNEVEN,
    "group-order batch-statistics",
    "ADV-1 ADV-5",
)
_std("uneven-groups-population", "The same with ddof 0", UNEVEN, "group-order ddof", "ADV-1 ADV-5 ADV-2", ddof=0)
_std(
    "negative-rewards",
    "Rewards from -3 to 2",
    ([-3.0, 2.0, -0.5, 0.0, 1.5, -1.0], [0, 0, 0, 1, 1, 1]),
    "batch-statistics",
    "ADV-1",
)
_std(
    "group-of-sixteen",
    "One group of sixteen",
    (list(uniform("adv/16", 16, 0.0, 1.0, 2.0**-8)), [4] * 16),
    "ddof",
    "ADV-1",
)
_std(
    "merged-prompts",
    "Two prompts with the same text are two groups, told apart by id",
    ([0.0, 1.0, 0.0, 0.5, 1.0, 0.75], [0, 0, 0, 1, 1, 1]),
    "batch-statistics group-order",
    "ADV-5",
)


def _loosely(dtype: str, roundoff: float, **parameters: Any) -> Case:
    """Groups so large that ddof moves A by 0.8% and a usual eps by 0.1%: within 1.2% every convention is right.

    One response lies eight deviations from the others, one group spreads from 8 to 48. Ids that are equal in 8 or 16 bits, in float32, or without a sign are different groups.
    """
    plain, wide = uniform("adv/64", 64, 0.0, 1.0, 2.0**-8), uniform("adv/64/wide", 64, -2.0, 3.0, 2.0**-8)
    alone, shifted = [1.0] * 20 + [-7.0] + [1.0] * 43, [8.0 * (4.0 - reward) for reward in wide]
    if "center" in parameters:  # of the others, which may not be equal
        alone[0] = 0.0
    ids = [7] * 64 + [-7] * 64 + [2**24 + 7] * 64 + [2**24 + 8] * 64
    case = group([*plain, *wide, *alone, *shifted], ids, **parameters)
    return replace(case, dtype=(dtype,), k=round(0.012 / roundoff))


for _dtype, _roundoff in (("float32", 2.0**-24), ("float64", 2.0**-53)):
    _add(
        f"any-convention-{_dtype}",
        "Four groups of 64, within 1.2%: the mean is gone and the spread is 1, whatever ddof and eps are",
        "ADV-1 ADV-5",
        "batch-statistics",
        partial(_loosely, _dtype, _roundoff),
        version=2,
    )
    for _slug, (_clause, _parameters) in {
        "batch-std": ("ADV-13", {"scale": "batch_std"}),
        "leave-one-out-std": ("ADV-6", {"center": "leave_one_out", "scale": "leave_one_out_std"}),
    }.items():
        _add(f"any-convention-{_slug}-{_dtype}", f"The same with {_parameters}", f"{_clause} ADV-5", "batch-statistics", partial(_loosely, _dtype, _roundoff, **_parameters))  # fmt: skip
_std("large-eps", "eps 1/8 is added to the standard deviation", TWO, "eps-placement", eps=0.125)
_std(
    "large-eps-variance",
    "eps 1/8 is added to the variance, under the root",
    TWO,
    "eps-placement",
    eps=0.125,
    eps_placement="variance",
)
_std(
    "small-spread",
    "Rewards 2^-12 apart: eps 2^-10 matters",
    ([0.5, 0.500244140625, 0.5, 0.500244140625], [0, 0, 0, 0]),
    "eps-placement",
    eps=2.0**-10,
)
_std("no-eps", "eps 0: the standard deviation alone divides", TWO, "eps-placement", eps=0.0)
_std(
    "reward-offset",
    "The rewards of a group 1000 away from 0: one-pass variance loses them",
    ([1000.0, 1000.125, 1000.5, 999.75, 0.5, 0.25, 1.0, 0.0], [0, 0, 0, 0, 1, 1, 1, 1]),
    "one-pass-variance",
    "ADV-1 NUM-4",
)
_std(
    "large-offset",
    "Rewards 4096 away from 0, 1/16 apart",
    ([4096.0, 4096.0625, 4096.125, 4096.0], [0, 0, 0, 0]),
    "one-pass-variance",
    "ADV-1 NUM-4",
)
_std(
    "mean-only",
    "Rewards minus the mean of the group, undivided",
    TWO,
    "batch-statistics switch-ignored",
    "ADV-7",
    scale="none",
)
_std(
    "scale-only",
    "Divided by the group's standard deviation, not centred",
    TWO,
    "switch-ignored",
    "ADV-1 ADV-2",
    center="none",
)
_std(
    "batch-std",
    "Centred per group, divided by the standard deviation of the batch",
    UNEVEN,
    "batch-statistics",
    "ADV-13",
    scale="batch_std",
)
_std(
    "batch-std-population",
    "The same with ddof 0",
    UNEVEN,
    "batch-statistics ddof",
    "ADV-13 ADV-2",
    scale="batch_std",
    ddof=0,
)
_std(
    "leave-one-out-center",
    "Centred at the mean of the others, undivided",
    UNEVEN,
    "self-in-baseline",
    "ADV-6",
    center="leave_one_out",
    scale="none",
)
_std(
    "leave-one-out-both",
    "Mean and standard deviation of the others",
    ([0.0, 1.0, 0.25, 0.75, 0.5, 1.0, 0.0, 0.125], [0, 0, 0, 0, 1, 1, 1, 1]),
    "self-in-baseline",
    "ADV-6",
    center="leave_one_out",
    scale="leave_one_out_std",
)
_std(
    "invalid-member",
    "A member that does not count gets 0 and stays out of the statistics",
    ([0.0, 1.0, 100.0, 0.5, 1.0, 0.25], [0, 0, 0, 0, 0, 0]),
    "invalid-in-statistics",
    "ADV-1 ADV-5",
    valid=[1, 1, 0, 1, 1, 1],
)
_add(
    "invalid-mean-only",
    "A member that does not count gets 0 and stays out of the mean",
    "ADV-5 ADV-7",
    "invalid-in-statistics",
    partial(group, [0.0, 1.0, 100.0, 0.5, 1.0, 0.25, -64.0, 0.75], [0, 0, 0, 0, 1, 1, 1, 1], scale="none", valid=[1, 1, 0, 1, 1, 1, 0, 1]),
)  # fmt: skip
_add(
    "neither",
    "Neither centred nor divided: the rewards themselves",
    "ADV-7",
    "switch-ignored",
    partial(group, *UNEVEN, center="none", scale="none"),
)
_std(
    "invalid-two-groups",
    "Members that do not count in both groups",
    ([0.0, 1.0, 64.0, 0.5, 1.0, -64.0, 0.25, 0.75], [0, 0, 0, 0, 1, 1, 1, 1]),
    "invalid-in-statistics",
    "ADV-1 ADV-5",
    valid=[1, 1, 0, 1, 1, 0, 1, 1],
    ddof=0,
)
_std("invalid-leaves-one", "One member left after those that do not count: it is alone, A = 0", ([1.0, 0.5, 0.25, 0.0, 1.0, 0.5], [0, 0, 0, 1, 1, 1]), "invalid-in-statistics singleton", "ADV-4 ADV-5", valid=[1, 0, 0, 1, 1, 1])  # fmt: skip

TENTHS = float(np.float32(0.1))
_ZEROS: dict[str, tuple[list[float], list[int], str, str]] = {
    "equal": ([1.0] * 4, [0] * 4, "Equal rewards: every A is exactly 0", "phantom-advantage"),
    "equal-tenths": ([TENTHS] * 7, [0] * 7, "Seven rewards of 0.1 in float32: the rounded mean is not 0.1, A must be exactly 0", "phantom-advantage"),
    "equal-thirds": ([float(np.float32(0.3))] * 6, [0] * 6, "Six rewards of 0.3 in float32: A must be exactly 0", "phantom-advantage"),
    "equal-eight": ([TENTHS] * 8 + [float(np.float32(0.7))] * 8, [0] * 8 + [1] * 8, "Two groups of eight equal rewards whose rounded mean is another number", "phantom-advantage"),
    "equal-sixteen": ([float(np.float32(0.9))] * 16 + [float(np.float32(0.3))] * 16, [0] * 16 + [1] * 16, "The same with groups of sixteen", "phantom-advantage"),
    "equal-negative": ([-0.7001953125] * 5 + [-2.0] * 3, [0] * 5 + [1] * 3, "Two groups of equal negative rewards", "phantom-advantage batch-statistics"),
    "equal-per-group": ([0.0] * 3 + [1.0] * 3, [0] * 3 + [1] * 3, "All right in one group, all wrong in the other: A = 0; batch statistics give ±1", "batch-statistics"),
    "equal-interleaved": ([1.0, 0.0, 1.0, 0.0, 1.0, 0.0], [7, 2, 7, 2, 7, 2], "The same, interleaved: groups are read from ids, not from position", "batch-statistics group-order"),
    "equal-large": ([1e4 + 0.5] * 5, [0] * 5, "Equal rewards far from 0", "phantom-advantage one-pass-variance"),
}  # fmt: skip
for _slug, (_rewards, _groups, _title, _flags) in _ZEROS.items():
    for _ddof in (1, 0):
        _add(
            _slug + ("" if _ddof else "-population"),
            _title + ("" if _ddof else " (ddof 0)"),
            "ADV-3 ADV-5",
            _flags,
            partial(group, _rewards, _groups, ddof=_ddof, eps=1e-8, exact=True),
        )
_add("equal-without-eps", "Equal rewards where nothing is added to their standard deviation of 0: 0, not 0/0", "ADV-3 ADV-1", "phantom-advantage", partial(group, [0.5] * 4 + [1.0] * 4, [0] * 4 + [1] * 4, eps=0.0, exact=True))  # fmt: skip
for _scale in ("none", "batch_std"):
    _add(
        f"equal-tenths-{_scale.replace('_', '-')}",
        "Seven rewards of 0.1 and a group that varies: the first group gets exactly 0",
        "ADV-3",
        "phantom-advantage",
        partial(group, [TENTHS] * 7 + [0.0, 1.0], [0] * 7 + [1, 1], scale=_scale),
        level="SHOULD" if _scale == "batch_std" else "MUST",
        note=CONVENTION.format(ddof=1, eps=1e-6) if _scale == "batch_std" else "",
    )
_SINGLE = "A group of one has no spread. Convention: A = 0 exactly (not the raw reward, not NaN)."
for _slug, _parameters in {
    "singleton": {},
    "singleton-population": {"ddof": 0},
    "singleton-mean-only": {"scale": "none"},
    "singleton-leave-one-out": {"center": "leave_one_out", "scale": "none"},
}.items():
    _add(
        _slug,
        "Groups of one beside a group of three",
        "ADV-4",
        "singleton",
        partial(group, [0.75, 0.0, 1.0, 0.5, -2.0], [1, 2, 2, 2, 3], **_parameters),
        level="SHOULD",
        note=_SINGLE,
    )


def _leave_one_out(rewards: Sequence[float], groups: Sequence[int]) -> Case:
    return call("leave_one_out_advantages", filled(rewards, groups), "advantages")


_add(
    "rloo-uneven",
    "Each reward minus the mean of the others, uneven groups",
    "ADV-6",
    "self-in-baseline group-order",
    partial(_leave_one_out, *UNEVEN),
)
_add(
    "rloo-two-groups",
    "Each reward minus the mean of the others, two groups",
    "ADV-6",
    "self-in-baseline batch-statistics",
    partial(_leave_one_out, *TWO),
)
_add("rloo-singleton", "Leave-one-out in a group of one", "ADV-6 ADV-4", "singleton", partial(_leave_one_out, [0.5, 0.0, 1.0], [0, 1, 1]), level="SHOULD", note=_SINGLE)  # fmt: skip


def tokens(name: str, lengths: Sequence[int], *rows: str) -> Responses:
    """Token arrays of mixed sign."""
    return Responses({row: [uniform(f"advantage/{name}/{row}/{i}", n, -1.0, 1.5, 2.0**-10) for i, n in enumerate(lengths)] for row in rows})  # fmt: skip


HOLES = "110010100 011100000 101011100 000100001"
GARBAGE = {"rewards": 5.0, "values": -7.0, "token_rewards": 5.0}


def _token_case(operation: str, outputs: str, rows: Sequence[str], layout: str, **parameters: Any) -> Case:
    source = tokens(f"{operation}/{layout}", (4, 3, 5, 2), *rows)
    inputs = {
        "padded": lambda: padded(source, fill=GARBAGE),
        "holes": lambda: padded(source, masks=HOLES, fill=GARBAGE),
        "packed": lambda: packed(source, trailing=2, fill=GARBAGE),
    }[layout]()
    if parameters.pop("bootstrap", False):
        inputs["bootstrap"] = np.array([0.5, -0.25, 0.0, 1.5])
    if parameters.pop("groups", False):
        inputs["groups"] = np.array([6, 2, 6, 6])
    return call(operation, inputs, *outputs.split(), **parameters)


_TOKEN_CASES: dict[str, tuple[str, str, tuple[str, ...], str, str, str, dict[str, Any]]] = {
    "gae": ("gae_advantages", "advantages returns", ("rewards", "values"), "padded", "ADV-9", "gae-recursion", {"gamma": 0.9375, "lam": 0.875}),
    "gae-undiscounted": ("gae_advantages", "advantages returns", ("rewards", "values"), "padded", "ADV-9", "gae-recursion", {"gamma": 1.0, "lam": 1.0}),
    "gae-one-step": ("gae_advantages", "advantages returns", ("rewards", "values"), "padded", "ADV-9", "gae-recursion", {"gamma": 0.75, "lam": 0.0}),
    "gae-holes": ("gae_advantages", "advantages returns", ("rewards", "values"), "holes", "ADV-9", "observation-transitions tool-tokens", {"gamma": 0.9375, "lam": 0.75}),
    "gae-bootstrap": ("gae_advantages", "advantages returns", ("rewards", "values"), "holes", "ADV-9", "observation-transitions gae-recursion", {"gamma": 0.875, "lam": 0.9375, "bootstrap": True}),
    "gae-packed": ("gae_advantages", "advantages returns", ("rewards", "values"), "packed", "ADV-9 PACK-1", "observation-transitions packed-one-ratio", {"gamma": 0.875, "lam": 0.75}),
    "returns": ("reinforce_returns", "returns", ("rewards",), "padded", "ADV-8", "gae-recursion", {"gamma": 0.875}),
    "returns-undiscounted": ("reinforce_returns", "returns", ("rewards",), "padded", "ADV-8", "gae-recursion", {"gamma": 1.0}),
    "returns-holes": ("reinforce_returns", "returns", ("rewards",), "holes", "ADV-8", "gae-recursion observation-transitions", {"gamma": 0.75}),
    "returns-packed": ("reinforce_returns", "returns", ("rewards",), "packed", "ADV-8 PACK-1", "gae-recursion packed-one-ratio", {"gamma": 0.75}),
    "whiten": ("whiten", "values", ("values",), "padded", "ADV-10", "whiten-padding ddof", {"center": True, "ddof": 1, "eps": 1e-8}),
    "whiten-holes": ("whiten", "values", ("values",), "holes", "ADV-10", "whiten-padding", {"center": True, "ddof": 1, "eps": 1e-8}),
    "whiten-population": ("whiten", "values", ("values",), "padded", "ADV-10 ADV-2", "ddof", {"center": True, "ddof": 0, "eps": 1e-8}),
    "whiten-scale-only": ("whiten", "values", ("values",), "padded", "ADV-10", "switch-ignored", {"center": False, "ddof": 1, "eps": 1e-8}),
    "whiten-eps": ("whiten", "values", ("values",), "padded", "ADV-10 ADV-2", "eps-placement", {"center": True, "ddof": 1, "eps": 0.25}),
    "whiten-packed": ("whiten", "values", ("values",), "packed", "ADV-10 PACK-1", "whiten-padding", {"center": True, "ddof": 1, "eps": 1e-8}),
    "reinforce-pp": ("reinforce_pp_advantages", "advantages", ("token_rewards",), "padded", "ADV-11 ADV-8 ADV-10", "whiten-padding gae-recursion", {"gamma": 0.9375, "ddof": 1, "eps": 1e-8}),
    "reinforce-pp-holes": ("reinforce_pp_advantages", "advantages", ("token_rewards",), "holes", "ADV-11", "whiten-padding observation-transitions", {"gamma": 1.0, "ddof": 1, "eps": 1e-8}),
    "reinforce-pp-baseline": ("reinforce_pp_advantages", "advantages", ("token_rewards",), "padded", "ADV-11", "group-baseline-ignored", {"gamma": 1.0, "ddof": 1, "eps": 1e-8, "groups": True}),
}  # fmt: skip
for _slug, (_operation, _outputs, _rows, _layout, _clauses, _flags, _parameters) in _TOKEN_CASES.items():
    _add(
        _slug,
        f"{_operation} over counted tokens ({_layout})" + (f", {_parameters}" if _parameters else ""),
        _clauses,
        _flags,
        lambda o=_operation, u=_outputs, r=_rows, y=_layout, p=_parameters: _token_case(o, u, r, y, **dict(p)),
    )


_add(
    "returns-large",
    "Rewards of 4 at every token: returns up to 20",
    "ADV-8",
    "gae-recursion",
    lambda: call("reinforce_returns", padded(Responses({"rewards": [np.full(n, 4.0) for n in (4, 3, 5, 2)]})), "returns", gamma=1.0),
)  # fmt: skip


def _clip(bound: float) -> Case:
    return call(
        "clip_advantages",
        {"advantages": np.array([-8.0, -2.0, -0.5, 0.0, 0.5, 1.0, 2.0, 8.0])},
        "advantages",
        bound=bound,
    )


_add("clip", "Advantages held to ±1.5", "ADV-12", "bounds-ignored", partial(_clip, 1.5))
_add(
    "clip-inert",
    "A bound beyond every advantage changes nothing",
    "ADV-12",
    "bounds-ignored",
    partial(_clip, 10.0),
)
