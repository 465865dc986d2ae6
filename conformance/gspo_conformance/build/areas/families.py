"""The losses that trainers offer beside the paper's, each in the form they ship it, on the same ten batches.

A function `fn(logp, old_logp, advantages, mask)` that implements one of them meets all ten.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ..cases import Responses, explicit, padded, responses
from ..recipe import Case, Shelf, clip, loss, objective
from .relatives import CISPO, GMPO, SAPO

RECIPES = Shelf("surrogate")
_add = RECIPES.add

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "grpo": ("GRPO, range 0.2/0.2, mean of token means", "RATIO-1 SURR-1 AGG-1", objective("token", clip(0.2, 0.2))),
    "grpo-token-mean": ("GRPO, range 0.2/0.2, token mean", "RATIO-1 SURR-1 AGG-3", objective("token", clip(0.2, 0.2), "token_mean")),
    "grpo-token-sums": ("GRPO, range 0.2/0.2, mean of token sums", "RATIO-1 SURR-1 AGG-4", objective("token", clip(0.2, 0.2), "sequence_mean_token_sum")),
    "dapo-token-mean": ("DAPO's range 0.2/0.28 under a token mean of the batch", "RATIO-1 SURR-3 AGG-3", objective("token", clip(0.2, 0.28), "token_mean")),
    "dapo-dual": ("DAPO's range 0.2/0.28, dual clip 3, token mean", "RATIO-1 SURR-5 AGG-3", objective("token", clip(0.2, 0.28, 3.0), "token_mean")),
    "cispo-token-mean": ("CISPO, weights up to 5, under a token mean of the batch", "RATIO-1 SURR-8 AGG-3", objective("token", CISPO, "token_mean")),
    "ppo-dual": ("PPO, range 0.2/0.2, dual clip 3, token mean", "RATIO-1 SURR-5 AGG-3", objective("token", clip(0.2, 0.2, 3.0), "token_mean")),
    "sapo": ("SAPO, temperatures 1 and 1.05", "RATIO-1 SURR-10 AGG-1", objective("token", SAPO)),
    "gmpo": ("GMPO, held at 0.4 on either side of the logarithm", "RATIO-1 SURR-9 AGG-1", objective("token", GMPO)),
    "gspo-token": ("GSPO-token, range 0.2/0.2", "RATIO-3 SURR-1 AGG-1", objective("gspo_token", clip(0.2, 0.2))),
    "gspo-wide": ("GSPO under the range 0.2/0.2 that trainers inherit", "RATIO-2 SURR-1 AGG-1", objective("sequence", clip(0.2, 0.2))),
    "gspo-dual": ("GSPO, range 0.2/0.2, dual clip 3", "RATIO-2 SURR-5 AGG-1", objective("sequence", clip(0.2, 0.2, 3.0))),
    "gspo-token-mean": ("GSPO's ratio and range under a token mean", "RATIO-2 SURR-3 AGG-3", objective("sequence", clip(), "token_mean")),
    "gspo-token-sums": ("GSPO's ratio and range under a mean of token sums", "RATIO-2 SURR-3 AGG-4", objective("sequence", clip(), "sequence_mean_token_sum")),
}  # fmt: skip
LENGTHS = (5, 2, 7, 3)
SIGNS = (1.0, -0.75, -1.25, 0.5)
HOLES = "110011010 001010000 111011011 000111000"


def _made(name: str, means: tuple[float, ...], spread: float, sign: float = 1.0) -> Responses:
    return responses(f"families/{name}", LENGTHS, means, spread=spread).also(advantages=[sign * a for a in SIGNS])


_FIVE = responses("families/zero", (4, 1, 6, 2, 9), (0.3125, 0.5, -0.4375, 0.375, -0.0625), spread=0.4)
_FIVE = _FIVE.also(advantages=(1.0, 0.0, -0.75, 0.5, 0.0))
_EXTREME = explicit([[12.0, -1.0], [-12.0, 0.5], [9.0, 0.25, -7.0], [-9.0, 5.5, 1.0], [8.0]], old=-14.0)
_EXTREME = _EXTREME.also(advantages=(-0.5, 1.0, 0.75, -1.25, 0.25))
_NARROW = explicit([[0.25], [-0.5], [0.375], [-0.125], [2.0**-12]]).also(advantages=(*SIGNS, -1.5))
_WIDE = (0.3125, -0.4375, 0.375, -0.0625)
_NEAR = (2e-4, -6e-4, 7e-4, -1e-4)
BATCHES: dict[str, tuple[str, str, Responses, dict[str, Any]]] = {
    "ragged": ("ratios from 0.6 to 1.5, lengths 2 to 7", "two-sided-gate token-mean token-clip", _made("wide", _WIDE, 0.4), {}),
    "flipped": ("the same with every advantage of the opposite sign", "two-sided-gate max-for-min", _made("wide", _WIDE, 0.4, -1.0), {}),
    "near": ("ratios within 1e-3 of 1", "range-inherited low-precision-loss modes-identical", _made("near", _NEAR, 0.03), {}),
    "far": ("ratios from e^-1.5 to e^2.5", "dual-clip-leak dual-clip-inert exponent-cap", _made("far", (1.5, -1.5, 2.5, -0.75), 0.5), {}),
    "extreme": ("tokens whose probability moved by factors up to e^12, in every quadrant", "exponent-cap token-clamp dual-clip-leak", _EXTREME, {}),
    "holes": ("tool tokens between, which moved far", "garbage-in-padding tool-tokens padded-length", _made("wide", _WIDE, 0.4), {"masks": HOLES, "fill": {"logp": -9.0, "old_logp": -2.5}}),
    "one-token": ("responses of one token", "off-by-one modes-identical", explicit([[0.25], [-0.5], [0.375], [-0.125]]).also(advantages=SIGNS), {}),
    "zero": ("five responses, two of them with A = 0", "zero-advantage-clipped group-count modes-identical", _FIVE, {}),
    "width-one": ("five responses of one token in a batch of width 1", "shape-broadcast broadcast-loss", _NARROW, {"width": 1}),
    "on-policy": ("every ratio exactly 1", "ratio-one zero-gradient modes-identical", explicit([[0.0] * n for n in LENGTHS]).also(advantages=SIGNS), {}),
}  # fmt: skip


def _case(objective_: dict[str, Any], source: Responses, layout: dict[str, Any]) -> Case:
    return loss(objective_, padded(source, **layout))


for _family, (_what, _clauses, _objective) in FAMILIES.items():
    for _batch, (_how, _flags, _source, _layout) in BATCHES.items():
        _extra = {"holes": " DATA-2", "on-policy": " RATIO-8"}.get(_batch, "")
        _add(
            f"family-{_family}-{_batch}",
            f"{_what}: {_how}",
            _clauses + _extra,
            _flags,
            partial(_case, _objective, _source, _layout),
        )
