"""Distribution: the loss of a step is that of the union of its parts, however it was cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..cases import Responses, explicit, packed, padded, responses
from ..recipe import Case, Shelf, aggregation, call, clip, correction, gspo, gspo_token, loss, objective, penalty
from .mask import EMPTY

RECIPES = Shelf("distribution")
_add = RECIPES.add

Layout = Callable[[Responses], dict[str, Any]]


def batch(*extra: str) -> Responses:
    """Five responses of 1 to 9 tokens."""
    means = [2e-4, -1e-4, 6e-4, -2e-4, -7e-4]
    source = responses("distribution/batch", [1, 7, 3, 9, 2], means, spread=0.04, extra=extra, extra_spread=0.5)
    return source.also(advantages=[1.0, -0.75, 0.5, 1.5, -1.25])


def wide(*extra: str) -> Responses:
    """The same lengths with ratios from 0.6 to 1.5, in two groups."""
    means = [0.25, -0.375, 0.375, -0.125, 0.0625]
    source = responses("distribution/wide", [1, 7, 3, 9, 2], means, spread=0.3, extra=extra, extra_spread=0.5)
    return source.also(advantages=[1.0, -0.75, 0.5, 1.5, -1.25])


def step(
    objective_: dict[str, Any],
    source: Responses,
    cuts: Sequence[Sequence[int]],
    normalizer: float,
    layout: Layout = padded,
) -> Case:
    """The parts of a step with the normaliser of the whole."""
    parts = [layout(source.part(members)) for members in cuts]
    gradients = tuple(f"gradient.{i}" for i in range(len(parts)))
    return Case("step", {"objective": objective_, "normalizer": normalizer}, {"parts": parts}, ("loss", *gradients))


_CUTS: dict[str, tuple[str, tuple[tuple[int, ...], ...]]] = {
    "uneven": ("parts of 1 and 4 responses", ((0,), (1, 2, 3, 4))),
    "three": ("parts of 2, 1 and 2 responses", ((0, 1), (2,), (3, 4))),
    "order": ("parts in another order than the responses", ((4, 2), (3,), (0, 1))),
    "each": ("every response alone", ((0,), (1,), (2,), (3,), (4,))),
}
_STEPS: dict[str, tuple[str, dict[str, Any], float]] = {
    "gspo": ("DIST-1 AGG-8 AGG-2", gspo(), 5.0),
    "token-mean": ("DIST-1 AGG-3", objective("sequence", clip(), "token_mean"), 22.0),
}
for _cut, (_what, _members) in _CUTS.items():
    for _slug, (_clauses, _objective, _normalizer) in _STEPS.items():
        _add(
            f"{_slug}-{_cut}",
            f"{_slug}, a step cut into {_what}: loss and gradients of the union",
            _clauses,
            "mean-of-means micro-batch-order",
            partial(step, _objective, batch(), _members, _normalizer),
        )
_OTHERS: dict[str, tuple[str, dict[str, Any], Responses, float]] = {
    "gspo-token": ("DIST-1 AGG-8 RATIO-3", gspo_token(), batch(), 5.0),
    "grpo": ("DIST-1 AGG-8 RATIO-1", objective("token", clip(0.2, 0.27)), wide(), 5.0),
    "token-sums": ("DIST-1 AGG-4", objective("token", clip(0.2, 0.2), aggregation("sequence_mean_token_sum", constant=9.0)), wide(), 5.0),
    "token-sum": ("DIST-1 AGG-5", objective("token", clip(0.2, 0.2), aggregation("token_sum", constant=9.0)), wide(), 5.0),
    "penalty": ("DIST-1 KL-6", objective("sequence", clip(0.2, 0.2), penalty=penalty("k3")), wide("ref_logp"), 5.0),
    "correction": ("DIST-1 CORR-1", objective("token", clip(0.2, 0.2), "token_mean", correction=[correction("token", "mask", high=1.25)]), wide("behavior_logp"), 22.0),
}  # fmt: skip
for _slug, (_clauses, _objective, _source, _normalizer) in _OTHERS.items():
    _add(
        f"{_slug}-three",
        f"{_slug}, a step cut into parts of 2, 1 and 2 responses",
        _clauses,
        "mean-of-means",
        partial(step, _objective, _source, _CUTS["three"][1], _normalizer),
    )
_add(
    "packed-parts",
    "Parts that are packed, with trailing padding of their own",
    "DIST-1 PACK-1",
    "mean-of-means packed-one-ratio trailing-segment",
    lambda: step(gspo(), batch(), _CUTS["three"][1], 5.0, partial(packed, trailing=2, fill=-1.0)),
)
_add(
    "different-widths",
    "Parts padded to different widths: the width of a part is no part of the loss",
    "DIST-1 DATA-1",
    "padded-divisor padded-length mean-of-means",
    lambda: _widths(),
)


def _widths() -> Case:
    made = step(gspo(), batch(), ((0, 2), (1, 3), (4,)), 5.0)
    narrow = padded(batch().part((0, 2)), width=3)
    return Case(made.operation, made.parameters, {"parts": [narrow, *made.inputs["parts"][1:]]}, made.outputs)


def groups_of_two() -> Case:
    """Group token means; no group is split over parts."""
    source = wide().also(groups=[4, 9, 4, 7, 9])
    return step(objective("token", clip(0.2, 0.28), "group_token_mean"), source, ((0, 2), (1, 4), (3,)), 3.0)


_add(
    "group-token-mean",
    "Group token means: each group is whole within its part, the normaliser is the number of groups",
    "DIST-1 AGG-6 AGG-8",
    "group-count mean-of-means",
    groups_of_two,
)
_add(
    "ranks",
    "Two ranks with 1 and 4 responses: each response weighs 1/5, not 1/2 and 1/8",
    "DIST-2 AGG-8",
    "mean-of-means",
    lambda: step(gspo(), batch(), ((0,), (1, 2, 3, 4)), 5.0),
)
_add(
    "ranks-token-mean",
    "Two ranks with 1 and 21 tokens under a token mean",
    "DIST-2 AGG-3",
    "mean-of-means",
    lambda: step(objective("sequence", clip(), "token_mean"), batch(), ((0,), (1, 2, 3, 4)), 22.0),
)


def _empty_rank() -> Case:
    source = responses("distribution/empty", [3, 0, 0, 5], [2e-4, 0.0, 0.0, -1e-4], spread=0.04)
    return step(gspo(), source.also(advantages=[1.0, 2.0, -1.0, -0.5]), ((0, 3), (1, 2)), 4.0)


_add(
    "empty-rank",
    "A rank whose responses have no counted token takes part with 0",
    "DIST-2 DATA-3",
    "empty-nan mean-of-means",
    _empty_rank,
    level="SHOULD",
    note=EMPTY,
)


def _context(objective_: dict[str, Any], rows: Sequence[Sequence[float]], advantages: Sequence[float]) -> Case:
    """Whole sequences; an implementation that splits them over ranks must give the same."""
    return loss(objective_, padded(explicit(rows).also(advantages=advantages), width=8))


_CHUNKS: dict[str, tuple[str, list[list[float]], list[float]]] = {
    "opposite": ("Halves that moved by ln 2 and -ln 2: over the whole the ratio is 1, over either half it is not",
                 [[0.693359375] * 4 + [-0.693359375] * 4, [-0.25] * 4 + [0.25] * 4], [1.0, -1.0]),
    "uneven": ("Halves with 4 and 1 counted tokens: the mean of their means is another number",
               [[2.0**-12, 2.0**-12, 2.0**-12, 2.0**-12, -(2.0**-10)], [0.5, -0.5, 0.25, -0.25, 2.0**-11, 2.0**-12]], [1.0, -0.5]),
    "one-half-empty": ("All counted tokens lie in the first half",
                       [[2.0**-12, -(2.0**-13), 2.0**-12], [2.0**-10, 0.0, 0.0, -(2.0**-11)]], [1.0, -0.75]),
    "zig-zag": ("Log-ratios that differ in every eighth: chunks put together in the wrong order pair the wrong tokens",
                [[0.5, -0.375, 0.25, -0.125, 0.0625, -0.25, 0.375, -0.4375], [-0.5, 0.5, 0.125, -0.125, 0.25, -0.25, 0.0625]], [0.75, 1.0]),
}  # fmt: skip
for _slug, (_title, _rows, _advantages) in _CHUNKS.items():
    for _name, _objective in {"gspo": gspo(), "gspo-token": gspo_token()}.items():
        _add(
            f"context-{_slug}-{_name}",
            f"{_title} ({_name})",
            "DIST-3 RATIO-2" if _name == "gspo" else "DIST-3 RATIO-3",
            "context-chunk",
            partial(_context, _objective, _rows, _advantages),
            note="Where sequences are split over ranks, the whole is put in and the implementation does the splitting.",
        )


def _group_over_ranks(scale: str, **fields: Any) -> Case:
    settings = {"center": "mean", "scale": scale, "ddof": 1, "eps": 1e-6, "eps_placement": "std"} | fields
    rewards = np.array([1.0, 0.0, 0.25, 0.5, 0.0, 0.0, 0.75, 1.0])
    inputs = {"rewards": rewards, "groups": np.array([6, 2, 6, 2, 6, 2, 6, 2])}
    return call("group_advantages", inputs, "advantages", **settings)


_add(
    "group-over-ranks",
    "Rewards as gathered from two ranks of four, every group half on each: centring per rank gives other advantages",
    "DIST-4 ADV-7",
    "batch-statistics group-order",
    partial(_group_over_ranks, "none"),
)
_add(
    "group-over-ranks-std",
    "The same, divided by the standard deviation of the whole group",
    "DIST-4 ADV-1 ADV-2",
    "batch-statistics ddof",
    partial(_group_over_ranks, "std"),
    level="SHOULD",
    note="The paper prints a standard deviation without ddof or eps; both are parameters here: ddof=1, eps=1e-06.",
)
