"""Objectives: JSON round trip, equality, hashing, presets, axes that combine or refuse to."""

from __future__ import annotations

import copy
import inspect
import json
from types import MappingProxyType
from typing import Any

import pytest

import gspo_core as gspo
from gspo_core.objective import PRESETS

from .batches import axes, preset


@pytest.mark.parametrize("objective", [pytest.param(objective, id=name) for name, objective in axes().items()])
def test_json_round_trip(objective: gspo.Objective) -> None:
    text = objective.to_json()
    assert gspo.Objective.from_json(text) == objective
    assert hash(gspo.Objective.from_json(text)) == hash(objective)
    assert json.loads(text) == objective.to_dict()


def test_every_preset_differs_from_every_other() -> None:
    """grpo and ppo differ in their range alone."""
    built = [preset(name) for name in PRESETS]
    assert len(set(built)) == len(built)


def test_the_paper() -> None:
    assert gspo.Objective.gspo().to_dict() == {
        "ratio": "sequence",
        "surrogate": {"kind": "clip", "low": 0.0003, "high": 0.0004, "dual": None},
        "aggregation": {"mode": "sequence_mean_token_mean", "count": "all", "constant": 1.0},
        "penalty": None,
        "correction": [],
        "log_ratio_cap": None,
    }


def test_replace_accepts_short_forms() -> None:
    objective = gspo.Objective.gspo().replace(aggregation="token_mean", correction=gspo.Correction(high=2.0))
    assert objective.aggregation == gspo.Aggregation("token_mean")
    assert objective.correction == (gspo.Correction(high=2.0),)
    assert gspo.Penalty(aggregation="token_mean") == gspo.Penalty(aggregation=gspo.Aggregation("token_mean"))


def test_from_json_names_what_is_unknown_or_missing() -> None:
    with pytest.raises(ValueError, match="surrogate kind: expected one of 'clip'"):
        gspo.Objective.from_json('{"ratio": "token", "surrogate": {"kind": "ppo"}}')
    with pytest.raises(ValueError, match="objective field: expected 'ratio', which is missing"):
        gspo.Objective.from_json('{"surrogate": {"kind": "unclipped"}}')
    with pytest.raises(TypeError, match="objective: expected a JSON object, got list"):
        gspo.Objective.from_json("[]")
    with pytest.raises(ValueError, match="'low' stands twice"):
        gspo.Objective.from_json(
            '{"ratio": "token", "surrogate": {"kind": "clip", "low": 0.2, "high": 0.2, "low": 0.1}}'
        )


MEAN, SUM = "sequence_mean_token_mean", "sequence_mean_token_sum"
PUBLISHED = {
    "gspo": ("sequence", gspo.Clip(3e-4, 4e-4), MEAN),
    "gspo_token": ("gspo_token", gspo.Clip(3e-4, 4e-4), MEAN),
    "grpo": ("token", gspo.Clip(0.2, 0.27), MEAN),
    "ppo": ("token", gspo.Clip(0.2, 0.2), MEAN),
    "dr_grpo": ("token", gspo.Clip(0.2, 0.2), SUM),
    "dapo": ("token", gspo.Clip(0.2, 0.28), "group_token_mean"),
    "rloo": ("token", gspo.Reinforce(None), SUM),
    "reinforce_pp": ("token", gspo.Clip(0.2, 0.2), "token_mean"),
    "gmpo": ("token", gspo.Gmpo(0.4, 0.4), MEAN),
    "cispo": ("token", gspo.Cispo(None, 4.0), "group_token_mean"),
    "sapo": ("token", gspo.Sapo(1.0, 1.05), MEAN),
    "luspo": ("sequence", gspo.Clip(3e-4, 4e-4), SUM),
    "decoupled": ("token", gspo.Clip(0.2, 0.2), "token_mean", gspo.Correction("token", "mask", None, 5.0)),
    "vespo": ("product", gspo.Vespo(2.0, 3.0, 3.0, 2.0), "token_mean"),
    "minirl": ("token", gspo.Reinforce(gspo.Clip(0.2, 0.27)), SUM,
               gspo.Correction("token", "clamp", None, 5.0, "current")),
}  # fmt: skip


def test_presets_have_the_numbers_that_were_published() -> None:
    assert set(PUBLISHED) == set(PRESETS)
    for name, (ratio, surrogate, mode, *corrections) in PUBLISHED.items():
        built = preset(name)
        assert built == gspo.Objective(ratio, surrogate, gspo.Aggregation(mode), None, tuple(corrections), None), name
        assert (built.aggregation.count, built.aggregation.constant) == ("all", 1.0)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_take_their_own_kind_of_surrogate(name: str) -> None:
    preset = getattr(gspo.Objective, name)
    for argument in {"clip", "surrogate", "gate"} & set(inspect.signature(preset).parameters):
        with pytest.raises(TypeError, match=rf"^{argument}: expected a (Clip|Gmpo|Cispo|Sapo|Vespo), got Unclipped"):
            preset(**{argument: gspo.Unclipped()})


def test_a_penalty_names_its_aggregation() -> None:
    with pytest.raises(TypeError, match=r"^aggregation: expected an Aggregation"):
        gspo.Penalty(aggregation=1)  # pyright: ignore[reportArgumentType]


def test_presets_take_other_numbers() -> None:
    clip, cap = gspo.Clip(0.3, 0.7), gspo.Correction("token", "mask", high=2.0)
    for name in ("gspo", "gspo_token", "grpo", "ppo", "dapo", "reinforce_pp", "luspo"):
        assert getattr(gspo.Objective, name)(clip) == preset(name).replace(surrogate=clip)
    dr_grpo = gspo.Objective.dr_grpo(7.0, clip)
    assert dr_grpo == preset("dr_grpo").replace(surrogate=clip, aggregation=gspo.Aggregation(SUM, constant=7.0))
    assert gspo.Objective.decoupled(clip, 2.0) == preset("decoupled").replace(surrogate=clip, correction=cap)
    weight = gspo.Correction("token", "clamp", high=2.0, numerator="current")
    assert gspo.Objective.minirl(clip, 2.0) == preset("minirl").replace(
        surrogate=gspo.Reinforce(clip), correction=weight
    )
    for name, surrogate in (
        ("gmpo", gspo.Gmpo(0.1)),
        ("cispo", gspo.Cispo(0.1)),
        ("sapo", gspo.Sapo(2.0)),
        ("vespo", gspo.Vespo(1.0)),
    ):
        assert getattr(gspo.Objective, name)(surrogate) == preset(name).replace(surrogate=surrogate)


FULL = gspo.Objective(
    "token",
    gspo.Reinforce(gspo.Clip(0.1, 0.2)),
    penalty=gspo.Penalty(aggregation=gspo.Aggregation("token_sum")),
    correction=(gspo.Correction(),),
).to_dict()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ((), "objective"),
        (("surrogate",), "surrogate"),
        (("surrogate", "gate"), "gate"),
        (("aggregation",), "aggregation"),
        (("penalty",), "penalty"),
        (("penalty", "aggregation"), "aggregation"),
        (("correction", 0), "correction"),
    ],
)
def test_what_is_wrong_in_a_part_is_said_of_that_part(path: tuple[str | int, ...], name: str) -> None:
    fields = copy.deepcopy(FULL)
    part: Any = fields
    for step in path:
        part = part[step]
    part["epsilon"] = 1
    with pytest.raises(ValueError, match=rf"^{name} field: expected one of '\w+'.*, got 'epsilon'$"):
        gspo.Objective.from_dict(fields)
    if path:
        holder: Any = copy.deepcopy(FULL)
        inner = holder
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = 3
        with pytest.raises(TypeError, match=f"^{name}: expected a JSON object, got int$"):
            gspo.Objective.from_dict(holder)


def test_what_a_part_leaves_out_is_its_default() -> None:
    short = {"ratio": "token", "surrogate": {"kind": "sapo"}}
    assert gspo.Objective.from_dict(short) == gspo.Objective("token", gspo.Sapo())
    for name in ("aggregation", "penalty"):
        assert gspo.Objective.from_dict(short | {name: None}) == gspo.Objective("token", gspo.Sapo())
    assert gspo.Objective.from_dict(short | {"penalty": {}, "aggregation": {}}).penalty == gspo.Penalty()
    assert gspo.Objective.from_dict(short | {"correction": None}).correction == ()
    for missing, kind in (("low", "clip"), ("high", "clip")):
        fields = {"kind": kind, "low": 0.1, "high": 0.1}
        del fields[missing]
        with pytest.raises(ValueError, match=f"^surrogate field: expected '{missing}', which is missing$"):
            gspo.Objective.from_dict(short | {"surrogate": fields})


def test_what_a_person_writes_is_read() -> None:
    """Short forms are those of the constructor, and any mapping will do: configuration libraries have their own."""
    written = MappingProxyType({
        "ratio": "sequence",
        "surrogate": MappingProxyType({"kind": "clip", "low": 3e-4, "high": 4e-4}),
        "aggregation": "token_mean",
        "penalty": {"aggregation": "token_sum"},
        "correction": {"high": 2.0},
    })  # fmt: skip
    penalty = gspo.Penalty(aggregation="token_sum")
    expected = gspo.Objective.gspo().replace(
        aggregation="token_mean", penalty=penalty, correction=gspo.Correction(high=2.0)
    )
    assert gspo.Objective.from_dict(written) == expected
    with pytest.raises(ValueError, match=r"^aggregation: expected one of 'sequence_mean_token_mean', .*, got 'mean'$"):
        gspo.Objective.from_dict({**written, "aggregation": "mean"})


def test_a_surrogate_without_a_kind_is_none() -> None:
    with pytest.raises(ValueError, match=r"^surrogate kind: expected one of 'clip', .*, got None$"):
        gspo.Objective.from_dict({"ratio": "token", "surrogate": {"low": 0.1, "high": 0.1}})


def test_text_that_is_no_json_is_quoted_as_far_as_it_helps() -> None:
    with pytest.raises(ValueError, match=f"^text: expected the JSON of an objective, got '{'x' * 59}: Expecting value"):
        gspo.Objective.from_json("x" * 100)


class Own(gspo.Clip):
    """A surrogate of somebody's own, which a backend that knows `Clip` would take for one, and JSON has no name for."""


def test_an_axis_of_another_type_is_refused() -> None:
    gspo_ = gspo.Objective.gspo()
    for changes, message in (
        ({"surrogate": gspo.Penalty()}, "^surrogate: expected one of clip, unclipped, reinforce, .*, got Penalty$"),
        ({"surrogate": Own(0.1, 0.1)}, "^surrogate: expected one of clip, .*, got Own$"),
        ({"penalty": gspo.Clip(0.1, 0.1)}, "^penalty: expected a Penalty, got Clip$"),
        ({"correction": (gspo.Correction(), gspo.Penalty())}, "^correction: expected a Correction, got Penalty$"),
        ({"aggregation": 3}, "^aggregation: expected an Aggregation or the name of a mode, got int$"),
        ({"aggregation": None}, "^aggregation: expected an Aggregation or the name of a mode, got NoneType$"),
    ):
        with pytest.raises(TypeError, match=message):
            gspo_.replace(**changes)
