"""Packing: the same responses laid end to end give the same answer, whatever the lengths and whatever trails."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf, nan
from typing import Any

import numpy as np

from ..cases import Responses, explicit, packed, padded, responses, uniform
from ..recipe import Case, Shelf, aggregation, call, clip, correction, grpo, gspo, gspo_token, loss, objective, penalty
from .mask import EMPTY

RECIPES = Shelf("packing")
_add = RECIPES.add


def batch(name: str = "batch", *extra: str) -> Responses:
    """Responses of 3, 6, 1 and 4 tokens around the paper's range."""
    source = responses(f"packing/{name}", [3, 6, 1, 4], [2e-4, -6e-4, 7e-4, -1e-4], spread=0.04, extra=extra)
    return source.also(advantages=[1.0, -0.5, -0.75, 0.25], groups=[8, 3, 8, 3])


def wide(*extra: str) -> Responses:
    """The same lengths with ratios from 0.6 to 1.5."""
    source = responses("packing/wide", [3, 6, 1, 4], [0.25, -0.375, 0.375, -0.125], spread=0.3, extra=extra, extra_spread=0.75)  # fmt: skip
    return source.also(advantages=[1.0, -0.5, 0.75, -1.25], groups=[8, 3, 8, 3])


_OBJECTIVES: dict[str, tuple[str, dict[str, Any], Responses]] = {
    "gspo": ("PACK-1 PACK-2 AGG-1", gspo(), batch()),
    "gspo-token": ("PACK-1 PACK-2 RATIO-3", gspo_token(), batch()),
    "grpo": ("PACK-1 RATIO-1", grpo(), wide()),
    "token-mean": ("PACK-1 AGG-3", objective("token", clip(0.2, 0.2), "token_mean"), wide()),
    "token-sums": ("PACK-1 AGG-4", objective("sequence", clip(0.2, 0.2), aggregation("sequence_mean_token_sum", constant=6.0)), wide()),
    "group-token-mean": ("PACK-1 AGG-6", objective("token", clip(0.2, 0.28), "group_token_mean"), wide()),
    "product": ("PACK-2 RATIO-7", objective("product", clip(0.5, 1.0)), wide()),
    "gmpo": ("PACK-1 SURR-9", objective("token", {"kind": "gmpo", "low": 0.25, "high": 0.25}), wide()),
    "penalty": ("PACK-1 KL-6", objective("sequence", clip(0.2, 0.2), penalty=penalty("k3")), wide("ref_logp")),
    "correction": ("PACK-2 CORR-1", objective("token", clip(0.2, 0.2), correction=[correction("geometric", "clamp", low=0.875, high=1.125)]), wide("behavior_logp")),
}  # fmt: skip
for _slug, (_clauses, _objective, _source) in _OBJECTIVES.items():
    for _layout, _make in {"packed": partial(packed, trailing=2), "padded": padded}.items():
        _add(
            f"{_slug}-{_layout}",
            f"{_slug} on four responses, {_layout}: the twin of {_slug}-{'padded' if _layout == 'packed' else 'packed'}, same loss and gradients",
            _clauses if _layout == "packed" else " ".join(c for c in _clauses.split() if c != "PACK-2"),
            "packed-one-ratio cumulative-sum" if _layout == "packed" else "packed-one-ratio padded-length",
            partial(lambda o, s, m: loss(o, m(s)), _objective, _source, _make),
        )


def _row(rows: Sequence[Sequence[float]], advantages: Sequence[float], objective_: Any = None, **layout: Any) -> Case:
    return loss(objective_ or gspo(), packed(explicit(rows).also(advantages=advantages), **layout))


_OPPOSITE = [[2.0**-11] * 3, [-(2.0**-11)] * 3, [2.0**-10] * 2, [-(2.0**-10)] * 2]
_add(
    "opposite-segments",
    "Segments that moved in opposite directions: over the whole row the ratio is 1",
    "PACK-2",
    "packed-one-ratio",
    lambda: _row(_OPPOSITE, [1.0, -1.0, -0.5, 0.5], trailing=6),
)
_add(
    "opposite-advantages",
    "Two segments of one ratio and opposite advantages: an advantage per row is wrong for one of them",
    "PACK-2",
    "packed-one-advantage",
    lambda: _row(
        [[2.0**-12, 0.0, -(2.0**-13)], [0.0, 2.0**-12, -(2.0**-13)], [2.0**-14], [2.0**-14]],
        [1.0, -1.0, 0.5, -0.5],
        trailing=8,
    ),
)
_SEGMENTS: dict[str, tuple[str, list[list[float]], list[float]]] = {
    "one-token-between": ("A segment of one token between two others", [[2.0**-12, -(2.0**-13)], [2.0**-10], [-(2.0**-12), 0.0, 2.0**-13], [0.0] * 10], [1.0, -0.5, 0.75, -0.25]),
    "one-token-ends": ("Segments of one token at both ends", [[2.0**-12], [-(2.0**-12), 0.0, 2.0**-13], [2.0**-13] * 11, [-(2.0**-10)]], [1.0, -0.5, 0.75, -0.25]),
    "all-one-token": ("Every segment has one token", [[2.0**-12], [-(2.0**-10)], [2.0**-10], [0.0]], [1.0, -0.5, 0.75, -1.0]),
    "one-segment": ("One segment fills the row", [[2.0**-12, -(2.0**-13), 2.0**-11, 0.0]], [-1.25]),
    "long-and-short": ("A segment of thirteen tokens beside three of one", [[2.0**-12] * 7 + [-(2.0**-13)] * 6, [-(2.0**-12)], [2.0**-13], [0.0]], [0.5, 1.0, -0.75, 0.25]),
}  # fmt: skip
for _slug, (_title, _rows, _advantages) in _SEGMENTS.items():
    _add(_slug, _title, "PACK-3 PACK-2", "segments-merged packed-one-ratio", partial(_row, _rows, _advantages))
    _add(
        f"{_slug}-token",
        f"{_title}; GSPO-token",
        "PACK-3 RATIO-3",
        "segments-merged broadcast-ratio",
        partial(_row, _rows, _advantages, gspo_token()),
    )


def _empty_segments(objective_: dict[str, Any], trailing: int = 0, fill: Any = 0.0) -> Case:
    rows = [[2.0**-12, -(2.0**-13)], [], [], [2.0**-10, 0.0, -(2.0**-12)]]
    source = explicit(rows).also(advantages=[1.0, -9.0, 0.25, -0.5])
    return loss(objective_, packed(source, trailing=trailing, fill=fill))


for _slug, _objective in {
    "all": gspo(),
    "non-empty": objective(mode=aggregation(count="non_empty")),
    "token-mean": objective("token", clip(0.2, 0.2), "token_mean"),
}.items():
    _add(
        f"empty-segments-{_slug}",
        f"Equal offsets: segments without tokens keep their place in the advantages ({_slug})",
        "PACK-3 DATA-3",
        "segments-merged empty-response",
        partial(_empty_segments, _objective, 11, {"logp": -0.5, "old_logp": -4.0}),
        level="SHOULD",
        note=EMPTY,
    )
_TRAILS = {"finite": {"logp": -0.5, "old_logp": -6.0}, "nan": nan, "infinite": {"logp": inf, "old_logp": -inf}}
for _slug, _fill in _TRAILS.items():
    _add(
        f"trailing-{_slug}",
        f"Two tokens after the last offset hold {_slug} values: they belong to no segment",
        "PACK-3 DATA-2",
        "trailing-segment garbage-in-padding",
        partial(lambda fill: loss(gspo(), packed(batch(), trailing=2, fill=fill)), _fill),
    )
_add(
    "trailing-token-mean",
    "Tokens after the last offset do not enter a token mean",
    "PACK-3 AGG-3",
    "trailing-segment",
    lambda: loss(
        objective("token", clip(0.2, 0.2), "token_mean"),
        packed(wide(), trailing=2, fill={"logp": -0.5, "old_logp": -0.75}),
        ("loss", "gradient", "metrics.num_tokens", "metrics.num_sequences"),
    ),
)


def _masked(objective_: dict[str, Any], fill: dict[str, float]) -> Case:
    """Tool tokens inside the segments."""
    source = responses("packing/masked", [4, 2, 3, 1], [2e-4, -6e-4, 1e-4, 7e-4], spread=0.04)
    source = source.also(advantages=[1.0, -0.5, 0.75, 0.25])
    keep = np.array([1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0], dtype=bool)
    inputs: dict[str, Any] = dict(source.per_response)
    for name, rows in source.rows.items():
        inputs[name] = np.full(16, fill[name])
        inputs[name][keep] = np.concatenate(rows)
    return loss(objective_, inputs | {"offsets": np.array([0, 7, 9, 14, 15]), "mask": keep})


_UNDER = {
    "": ("tokens that moved far", {"logp": -9.0, "old_logp": -2.5}),
    "-nan": ("NaN", {"logp": nan, "old_logp": -1e9}),
}
for _end, (_what, _fill) in _UNDER.items():
    for _slug, _objective in {"gspo": gspo(), "gspo-token": gspo_token(), "grpo": grpo()}.items():
        _add(
            f"mask-inside-{_slug}{_end}",
            f"A mask inside packed segments, {_what} under it ({_slug})",
            "PACK-3 DATA-1 RATIO-4",
            "tool-tokens garbage-in-padding padded-length",
            partial(_masked, _objective, _fill),
        )


def _token_advantages() -> Case:
    source = batch("token-advantages")
    tokens = [uniform(f"packing/A/{i}", n, -1.5, 1.5, 2.0**-8) for i, n in enumerate(source.lengths)]
    return loss(gspo_token(), packed(Responses(source.rows).tokens(token_advantages=tokens), trailing=2))


_add(
    "token-advantages",
    "Advantages per token, packed",
    "PACK-1 GRAD-3",
    "packed-one-advantage broadcast-ratio",
    _token_advantages,
)
for _kind in ("token", "sequence", "gspo_token", "product"):
    _add(
        f"ratio-{_kind.replace('_', '-')}",
        f"The {_kind} ratio of packed segments of 2, 1, 0 and 3 tokens, with trailing padding",
        "PACK-2 PACK-3 DATA-3" if _kind in ("sequence", "product") else "PACK-2 PACK-3",
        "packed-one-ratio segments-merged",
        partial(lambda kind: call("ratio", packed(explicit([[0.25, -0.125], [-0.5], [], [0.375, 0.5, -0.25]]), trailing=10, fill={"logp": -1.0}), "ratio", kind=kind), _kind),
        level="SHOULD",
        note=EMPTY,
    )  # fmt: skip


def _offsets(offsets: Sequence[int]) -> Case:
    inputs = packed(batch()) | {"offsets": np.array(offsets)}
    inputs.pop("groups")
    return loss(gspo(), inputs, ("loss",), refuses="offsets")


for _slug, (_bad, _what) in {
    "start": ([1, 3, 9, 10, 14], "do not start at 0"),
    "order": ([0, 9, 3, 10, 14], "decrease"),
    "length": ([0, 3, 9, 10, 15], "exceed the number of tokens"),
}.items():
    _add(
        f"refuses-offsets-{_slug}",
        f"Offsets that {_what} are an error",
        "PACK-3",
        "bad-call-accepted",
        partial(_offsets, _bad),
        level="SHOULD",
        note="An illegal call, of which the paper says nothing. Convention: an error that names the offsets.",
    )
