"""Aggregation: what a response weighs, what a token weighs, and what the sum is divided by."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..cases import Responses, explicit, padded, responses, uniform
from ..recipe import Case, Shelf, aggregation, call, clip, gspo, gspo_token, loss, objective

RECIPES = Shelf("aggregation")
_add = RECIPES.add

MODES = {
    "sequence_mean_token_mean": ("AGG-1 AGG-2", "token-mean token-sum"),
    "sequence_mean_token_sum": ("AGG-4", "modes-identical token-mean"),
    "token_mean": ("AGG-3", "modes-identical"),
    "token_sum": ("AGG-5", "modes-identical group-count"),
    "group_token_mean": ("AGG-6", "modes-identical group-order"),
}


def values(name: str, lengths: Sequence[int]) -> Responses:
    """Token values of mixed sign and unequal size; the counted ones of each response."""
    rows = [uniform(f"aggregation/{name}/{i}", n, -2.0, 3.0, 2.0**-12) for i, n in enumerate(lengths)]
    return Responses({"values": rows})


def _aggregate(
    mode: str, lengths: Sequence[int], groups: Sequence[int] | None = None, *, name: str, **fields: Any
) -> Case:
    width = fields.pop("width", None)
    normalizer = fields.pop("normalizer", None)
    source = values(name, lengths)
    if groups is not None:
        source = source.also(groups=groups)
    given = {} if normalizer is None else {"normalizer": normalizer}
    return call("aggregate", padded(source, width=width, fill=0.75), "value", mode=aggregation(mode, **fields), **given)


for _mode, (_clauses, _flags) in MODES.items():
    _slug = _mode.replace("_", "-")
    _groups = (4, 7, 4, 7) if _mode == "group_token_mean" else None
    _add(
        f"{_slug}-ragged",
        f"{_mode} of token values, lengths 1 to 9",
        _clauses,
        _flags + " padded-divisor",
        partial(_aggregate, _mode, (3, 1, 9, 6), _groups, name="ragged"),
    )
    _add(
        f"{_slug}-equal-lengths",
        f"{_mode} where every response has the same length",
        _clauses,
        _flags,
        partial(_aggregate, _mode, (4, 4, 4, 4), _groups, name="equal", width=4),
    )
    _add(
        f"{_slug}-normalizer",
        f"{_mode} with the normaliser of a larger step",
        _clauses + " AGG-8",
        "mean-of-means",
        partial(_aggregate, _mode, (5, 2, 7, 1), _groups, name="normalizer", normalizer=11.0),
    )
    _add(
        f"{_slug}-empty",
        f"{_mode} with a response without counted tokens",
        _clauses + " AGG-7 DATA-3",
        "empty-response empty-nan",
        partial(_aggregate, _mode, (3, 0, 2, 4), _groups, name="empty"),
        level="SHOULD",
        note="The paper has no empty response. Convention: it contributes 0 and counts in the number of responses.",
    )
    if _mode not in ("token_mean", "token_sum"):
        _grouped = (4, 7, 4, 4) if _groups else None
        _add(
            f"{_slug}-non-empty",
            f"{_mode} counting only what is not empty",
            _clauses + " AGG-7",
            "empty-response",
            partial(_aggregate, _mode, (3, 0, 2, 4), _grouped, name="non-empty", count="non_empty"),
            level="SHOULD",
            note="Whether empty responses count is a choice the paper does not make; this objective says non_empty.",
        )
for _mode in ("sequence_mean_token_sum", "token_sum"):
    _add(
        f"{_mode.replace('_', '-')}-constant",
        f"{_mode} over a constant length budget of 48",
        f"{MODES[_mode][0]}",
        "modes-identical switch-ignored",
        partial(_aggregate, _mode, (3, 1, 9, 4), name="constant", constant=48.0),
    )
for _mode in ("sequence_mean_token_mean", "token_mean", "group_token_mean"):
    _add(
        f"{_mode.replace('_', '-')}-given",
        f"{_mode} where the objective says that the normaliser is given",
        f"{MODES[_mode][0]} AGG-7 AGG-8",
        "mean-of-means group-count",
        partial(_aggregate, _mode, (3, 1, 9, 4), name="given", count="given", normalizer=6.0),
        level="SHOULD",
        note="How a step is divided is the caller's to say here: count given, with a normaliser.",
    )
_add(
    "group-token-mean-one-group",
    "group_token_mean without groups: the batch is one group",
    "AGG-6",
    "group-count",
    partial(_aggregate, "group_token_mean", (3, 1, 9, 4), name="one-group"),
)


def _normalised(objective_: dict[str, Any], part: str, normalizer: float) -> Case:
    source = responses(f"aggregation/{part}", [4, 1, 6, 3], [2e-4, -1e-4, 1e-4, -2e-4], spread=0.02)
    return loss(objective_, padded(source.also(advantages=[1.0, -0.5, 0.75, 0.25])), normalizer=normalizer)


def _lengths(objective_: dict[str, Any], lengths: Sequence[int], advantages: Sequence[float], **layout: Any) -> Case:
    means = [1.5e-4, -1e-4, 5e-5, -2e-4, 2.5e-4][: len(lengths)]
    source = responses("aggregation/lengths", lengths, means, spread=0.02).also(advantages=advantages)
    return loss(objective_, padded(source, **layout))


def _nineteen(objective_: dict[str, Any]) -> Case:
    means = uniform("aggregation/nineteen/means", 19, -6e-4, 6e-4).tolist()
    lengths = [1 + 7 * i % 9 for i in range(19)]
    advantages = uniform("aggregation/nineteen/advantages", 19, -2.0, 2.0, 2.0**-6)
    source = responses("aggregation/nineteen", lengths, means, spread=0.03)
    return loss(objective_, padded(source.also(advantages=advantages)))


_BOTH = {"gspo": gspo(), "gspo-token": gspo_token()}
for _name, _objective in _BOTH.items():
    _add(
        f"lengths-1-3-{_name}",
        "Lengths 1 and 3, A = 1 and -1: every response weighs the same, so the loss nearly cancels; a token mean gives about 0.5",
        "AGG-1 AGG-2",
        "token-mean token-sum broadcast-loss",
        partial(_lengths, _objective, (1, 3), (1.0, -1.0)),
    )
    _add(
        f"long-and-short-{_name}",
        "One response eleven times as long as the other: the sum of its coefficients is no larger",
        "AGG-1 AGG-2 GRAD-1",
        "token-mean token-sum",
        partial(_lengths, _objective, (22, 2), (0.5, 0.75)),
    )
    _add(
        f"extra-padding-{_name}",
        "The same responses in a wider batch: nothing moves",
        "AGG-1 DATA-1",
        "padded-divisor padded-length",
        partial(_lengths, _objective, (1, 3), (1.0, -1.0), width=12),
    )
    _add(
        f"square-{_name}",
        "As many responses as tokens: no axis can be mistaken for the other",
        "AGG-1 AGG-2",
        "shape-broadcast broadcast-loss",
        partial(_lengths, _objective, (5, 2, 4, 1, 3), (1.0, -0.5, 0.25, -2.0, 1.5), width=5),
    )
    _add(
        f"nineteen-{_name}",
        "Nineteen responses, a number that no micro-batch divides",
        "AGG-1 AGG-2",
        "group-count mean-of-means token-mean",
        partial(_nineteen, _objective),
    )
    _add(
        f"width-one-{_name}",
        "Five responses of one token in a batch of width 1: the axis of tokens has size 1 and stays an axis",
        "AGG-1 AGG-2 RATIO-2",
        "shape-broadcast broadcast-loss",
        partial(_lengths, _objective, (1, 1, 1, 1, 1), (1.0, -0.5, 0.25, -2.0, 1.5), width=1),
    )
    _add(
        f"one-response-{_name}",
        "A batch of one response",
        "AGG-1",
        "token-sum",
        partial(_lengths, _objective, (7,), (-1.5,)),
    )
    _add(
        f"same-sign-{_name}",
        "Every advantage positive, lengths 1 to 9: nothing cancels, the normaliser shows",
        "AGG-1 AGG-2",
        "token-mean token-sum padded-divisor group-count",
        partial(_lengths, _objective, (2, 9, 5, 1), (1.0, 0.5, 1.5, 0.25)),
    )
    for _slug, _title, _part, _normalizer in (
        ("", "A micro-batch of 4 of the 8 responses of a step: the normaliser is 8", "part", 8.0),
        (
            "fraction-",
            "A normaliser that is no whole number: 9 responses over 4 ranks whose gradients are averaged",
            "share",
            2.25,
        ),
        (
            "below-one-",
            "A normaliser below 1: two responses over 8 ranks whose gradients are averaged",
            "quarter",
            0.25,
        ),
    ):
        _add(
            f"normalizer-{_slug}{_name}",
            _title,
            "AGG-8 DIST-1",
            "mean-of-means",
            partial(_normalised, _objective, _part, _normalizer),
        )
    _add(
        f"empty-response-{_name}",
        "One response without counted tokens among four: it contributes 0, and stays in the number of responses",
        "AGG-7 DATA-3",
        "empty-response empty-nan",
        partial(_lengths, _objective, (3, 0, 5, 2), (1.0, -2.0, 0.5, -0.25)),
        level="SHOULD",
        note="The paper has no empty response. Convention: ratio 1, contribution 0, counted in G.",
    )
    _add(
        f"non-empty-{_name}",
        "The same, where the objective counts only responses that are not empty",
        "AGG-7 DATA-3",
        "empty-response",
        partial(
            _lengths,
            objective(_objective["ratio"], clip(), aggregation(count="non_empty")),
            (3, 0, 5, 2),
            (1.0, -2.0, 0.5, -0.25),
        ),
        level="SHOULD",
        note="Whether empty responses count is a choice the paper does not make; this objective says non_empty.",
    )


def _many(order: Sequence[int]) -> Case:
    lengths = [5, 1, 9, 3, 7, 2, 8, 4]
    means = [1e-4, -1e-4, 6e-4, -6e-4, 2e-4, -2e-4, 5e-5, -1.5e-4]
    advantages = [1.0, 0.5, -0.25, -1.5, 0.75, -0.5, 2.0, -1.0]
    source = responses("aggregation/many", lengths, means, spread=0.03).also(advantages=advantages)
    return loss(gspo(), padded(source.part(order)))


_ORDERS = {"": tuple(range(8)), "-reversed": tuple(reversed(range(8))), "-shuffled": (3, 0, 7, 5, 1, 6, 2, 4)}
for _name, _order in _ORDERS.items():
    _add(
        f"many-responses{_name}",
        "Eight responses" + (f", {_name[1:]}: the same loss" if _name else " of 1 to 9 tokens"),
        "AGG-1 AGG-2",
        "token-mean group-count shape-broadcast",
        partial(_many, _order),
    )


def _modes(mode: str, ratio: str, groups: Sequence[int] | None = None, **fields: Any) -> Case:
    source = responses("aggregation/modes", [2, 7, 4, 1], [0.0625, -0.125, 0.25, -0.03125], spread=0.2)
    source = source.also(advantages=[1.0, -0.75, 0.5, 1.25])
    if groups is not None:
        source = source.also(groups=groups)
    return loss(objective(ratio, clip(0.2, 0.27), aggregation(mode, **fields)), padded(source))


for _mode, (_clauses, _flags) in MODES.items():
    for _name, _ratio in {"sequence": "sequence", "token": "token", "gspo-token": "gspo_token"}.items():
        _add(
            f"{_mode.replace('_', '-')}-{_name}-loss",
            f"A clipped loss with the {_name} ratio under {_mode}",
            _clauses,
            _flags,
            partial(_modes, _mode, _ratio, (5, 2, 2, 5) if _mode == "group_token_mean" else None),
        )
_add(
    "group-token-mean-unequal-groups",
    "Groups of 1 and 3 responses: each group weighs the same, each token of a group the same",
    "AGG-6",
    "group-order group-count token-mean",
    partial(_modes, "group_token_mean", "token", (-9, 1, 1, 1)),
)
_add(
    "two-and-four-groups",
    "Four groups of one: the loss does not grow with the number of groups",
    "AGG-6 AGG-2",
    "group-count",
    partial(_modes, "group_token_mean", "token", (0, 1, 2, 3)),
)
_add(
    "empty-group",
    "Two groups of two, one of them without a counted token: it contributes 0 and stays in the number of groups",
    "AGG-6 AGG-7 DATA-3",
    "empty-response empty-nan group-count",
    partial(_aggregate, "group_token_mean", (3, 0, 2, 0), (1, 2, 1, 2), name="empty-group"),
    level="SHOULD",
    note="The paper has no empty group. Convention: it contributes 0 and counts in the number of groups.",
)
_add(
    "token-mean-one-token",
    "One counted token in a batch of four responses: its mean is itself",
    "AGG-3 DATA-3",
    "empty-nan modes-identical",
    partial(_aggregate, "token_mean", (0, 1, 0, 0), None, name="one-token"),
)
_add(
    "all-empty",
    "Not one counted token in the batch: loss 0 and gradient 0, not NaN",
    "DATA-3 AGG-8",
    "empty-nan",
    lambda: loss(gspo(), padded(explicit([[], [], [], []]).also(advantages=[1.0, -1.0, 0.5, 0.0]), fill=-1.0)),
    level="SHOULD",
    note="The paper has no empty batch. Convention: an empty sum is 0 and 0 over 0 responses is 0.",
)
