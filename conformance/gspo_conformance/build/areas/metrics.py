"""Metrics: what a training step reports, one definition each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..cases import Responses, explicit, packed, padded, responses
from ..recipe import Case, Shelf, aggregation, clip, correction, gspo, gspo_token, loss, objective, penalty
from .relatives import SAPO, UNCLIPPED

RECIPES = Shelf("metrics")
_add = RECIPES.add

CLIPS = tuple(f"metrics.clip_fraction{side}" for side in ("", "_low", "_high", "_dual"))
RATIOS = ("metrics.ratio_mean", "metrics.ratio_min", "metrics.ratio_max")
COUNTS = ("metrics.num_sequences", "metrics.num_tokens")
EMPTY = "The paper has no empty response. Convention: it has no ratio and counts in num_sequences alone."


def band(
    name: str, means: Sequence[float], advantages: Sequence[float], lengths: Sequence[int] = (4, 7, 2, 5)
) -> Responses:
    """Responses around the paper's range."""
    return responses(f"metrics/{name}", lengths, means, spread=0.04).also(advantages=advantages)


def wide(*extra: str) -> Responses:
    """Ratios from 0.5 to 1.6, advantages of both signs."""
    source = responses("metrics/wide", [4, 7, 2, 5], (0.3125, -0.5, 0.4375, -0.0625), spread=0.4, extra=extra, extra_spread=0.75)  # fmt: skip
    return source.also(advantages=[1.0, -0.75, -1.25, 0.5], groups=[5, 1, 5, 1])


def _case(objective_: dict[str, Any], source: Responses, outputs: Sequence[str], **layout: Any) -> Case:
    return loss(objective_, padded(source, **layout), outputs)


_FRACTIONS: dict[str, tuple[str, dict[str, Any], Responses]] = {
    "quadrants": ("one response in each quadrant beyond the range: two of the four are clipped, with 4 and 7 tokens", gspo(),
                  band("quadrants", (7e-4, -7e-4, 7e-4, -7e-4), (1.0, -1.0, -1.0, 1.0))),
    "none": ("every ratio inside the range", gspo(), band("none", (2e-4, -2e-4, 1e-4, -1e-4), (1.0, -1.0, -0.5, 0.5))),
    "every": ("every response is clipped", gspo(), band("every", (7e-4, -7e-4, 2e-3, -2e-3), (1.0, -1.0, 0.5, -0.5))),
    "open-side": ("every ratio is beyond the range on the side that keeps its gradient: nothing is clipped", gspo(),
                  band("open", (-7e-4, 7e-4, -2e-3, 2e-3), (1.0, -1.0, 0.5, -0.5))),
    "zero-advantage": ("ratios beyond the range with A = 0: not clipped", gspo(), band("zero", (7e-4, -7e-4, 2e-3, -2e-3), (0.0, 0.0, 1.0, 0.0))),
    "gspo-token": ("GSPO-token with one advantage per response", gspo_token(), band("quadrants", (7e-4, -7e-4, 7e-4, -7e-4), (1.0, -1.0, -1.0, 1.0))),
    "token": ("token ratios, range 0.2/0.27", objective("token", clip(0.2, 0.27)), wide()),
    "dual": ("a dual bound of 1.25 on the sequence ratio", objective("sequence", clip(0.2, 0.2, 1.25)), wide()),
    "token-dual": ("a dual bound of 1.375 on token ratios", objective("token", clip(0.2, 0.27, 1.375)), wide()),
    "cispo": ("CISPO: the share of tokens whose weight is held, whatever the sign of A", objective("token", {"kind": "cispo", "low": 0.25, "high": 0.25}), wide()),
    "gmpo": ("GMPO: the share of tokens held at their bound", objective("token", {"kind": "gmpo", "low": 0.25, "high": 0.3125}), wide()),
    "reinforce-gate": ("REINFORCE with a gate", objective("token", {"kind": "reinforce", "gate": {"low": 0.2, "high": 0.27, "dual": 1.5}}), wide()),
    "sapo": ("SAPO has no clip: 0", objective("token", SAPO), wide()),
    "unclipped": ("nothing to clip: 0", objective("token", UNCLIPPED), wide()),
    "token-mean": ("the aggregation of the loss does not change it", objective("sequence", clip(0.2, 0.2), "token_mean"), wide()),
}  # fmt: skip
_BUGS = "metric-out-of-range metric-units metric-over-padding"
for _slug, (_what, _objective, _source) in _FRACTIONS.items():
    _add(
        f"clip-fraction-{_slug}",
        f"Clip fraction: {_what}",
        "METRIC-1" + (" SURR-12" if _slug == "zero-advantage" else ""),
        _BUGS + (" zero-advantage-clipped" if _slug == "zero-advantage" else ""),
        partial(_case, _objective, _source, CLIPS),
    )


def _by_token() -> Case:
    tokens = [[1.0, -1.0, 0.0, 0.5], [-1.0] * 3 + [1.0] * 4, [0.0, 0.0], [-0.5, 0.5, -0.25, 0.25, 1.0]]
    source = band("by-token", (7e-4, -7e-4, 2e-3, 1e-4), (0.0,) * 4)
    return _case(gspo_token(), Responses(source.rows).tokens(token_advantages=tokens), CLIPS)


_add(
    "clip-fraction-token-advantages",
    "Clip fraction with advantages per token: one response is clipped at some of its tokens",
    "METRIC-1 GRAD-3",
    _BUGS,
    _by_token,
)
_STATISTICS: dict[str, tuple[str, dict[str, Any]]] = {
    "sequence": ("over responses, unweighted", objective("sequence", clip(0.2, 0.2))),
    "gspo-token": ("over responses, for the GSPO-token ratio too", objective("gspo_token", clip(0.2, 0.2))),
    "token": ("over counted tokens", objective("token", clip(0.2, 0.2))),
    "product": ("of the products over responses", objective("product", clip(0.2, 0.2))),
}
for _slug, (_what, _objective) in _STATISTICS.items():
    _add(
        f"ratio-{_slug}",
        f"Mean, smallest and largest ratio and effective sample size {_what}",
        "METRIC-2 METRIC-4",
        "metric-over-padding metric-units",
        partial(_case, _objective, wide(), (*RATIOS, "metrics.effective_sample_size"), fill={"logp": -0.5, "old_logp": -3.0}),
    )  # fmt: skip
for _slug, _sign in {"above": 1, "below": -1}.items():
    _add(
        f"ratio-all-{_slug}",
        f"Every ratio is {_slug} 1: the smallest and the largest are those of responses, not where a search began",
        "METRIC-2",
        "metric-over-padding",
        partial(_case, gspo(), explicit([[_sign * 0.5, 0.0], [_sign * 0.25], [_sign * 0.125, _sign * 0.5], [_sign * 0.75]]).also(advantages=[1.0, -1.0, 0.5, -0.5]), RATIOS),
    )  # fmt: skip
_add(
    "ratio-capped",
    "A cap on the log-ratio shows in the ratio statistics",
    "METRIC-2 RATIO-6",
    "exponent-cap",
    partial(_case, objective("token", clip(0.2, 0.2), log_ratio_cap=0.375), wide(), RATIOS),
    level="MAY",
    note="The paper has no cap. Convention: the metrics see the ratio that the surrogate sees.",
)
_add(
    "ratio-uncorrected",
    "A correction weight does not show in the ratio statistics",
    "METRIC-2 CORR-5",
    "sampler-in-ratio",
    partial(_case, objective("token", clip(0.2, 0.2), correction=[correction("token", "clamp", high=1.25)]), wide("behavior_logp"), RATIOS),
)  # fmt: skip
for _slug, _objective in {"gspo": gspo(), "token": objective("token", clip(0.2, 0.2), "token_mean")}.items():
    _add(
        f"approx-kl-{_slug}",
        f"approx_kl is a token mean whatever ratio and aggregation are ({_slug})",
        "METRIC-3",
        "metric-units metric-over-padding metric-ratio-for-log",
        partial(_case, _objective, wide(), ("metrics.approx_kl",), fill={"logp": -0.5, "old_logp": -3.0}),
    )
_add(
    "approx-kl-near",
    "approx_kl of log-ratios of a few hundredths",
    "METRIC-3",
    "metric-ratio-for-log",
    partial(_case, gspo(), band("near", (1e-4, -1e-4, 2e-4, -2e-4), (1.0, -1.0, 0.5, -0.5)), ("metrics.approx_kl",)),
)
_add(
    "one-token",
    "One response of one token: every mean is over 1, nothing is added to the count",
    "METRIC-1 METRIC-2 METRIC-3 METRIC-4 METRIC-6",
    "metric-units metric-over-padding",
    partial(_case, gspo(), explicit([[0.25]]).also(advantages=[1.0]), ("metrics.clip_fraction", *RATIOS, "metrics.approx_kl", "metrics.effective_sample_size", *COUNTS)),
)  # fmt: skip
_add(
    "sample-size-skewed",
    "One response far likelier than the rest: the effective sample size nears 1",
    "METRIC-4",
    "metric-units",
    partial(_case, gspo(), band("skewed", (4.0, -1.0, -0.5, 0.125), (-1.0, 1.0, 0.5, -0.5)), ("metrics.effective_sample_size",)),
)  # fmt: skip
_add(
    "sample-size-large",
    "Ratios of e^60: their squares overflow float32, the effective sample size does not",
    "METRIC-4 NUM-3",
    "overflow-nan",
    lambda: _case(gspo(), explicit([[60.0, 60.0], [59.0], [60.5, 59.5, 60.0], [1.0]], old=-128.0).also(advantages=[1.0, 0.5, 0.25, 1.0]), ("metrics.effective_sample_size",)),
)  # fmt: skip
for _slug, _aggregation in {
    "mean-of-means": aggregation(),
    "token-mean": aggregation("token_mean"),
    "token-sums": aggregation("sequence_mean_token_sum"),
}.items():
    _add(
        f"kl-penalty-{_slug}",
        f"kl_penalty is what the coefficient multiplies: aggregated as the objective is ({_slug})",
        "METRIC-5 KL-6",
        "kl-aggregation metric-with-coefficient",
        partial(_case, objective("token", clip(0.2, 0.2), _aggregation, penalty=penalty("k3")), wide("ref_logp"), ("metrics.kl_penalty",)),
    )  # fmt: skip
_add(
    "kl-penalty-importance",
    "kl_penalty includes the importance factor",
    "METRIC-5 KL-5",
    "kl-importance metric-with-coefficient",
    partial(_case, objective("token", clip(0.2, 0.2), penalty=penalty("k2", importance="token")), wide("ref_logp"), ("metrics.kl_penalty",)),
)  # fmt: skip
_add(
    "kl-penalty-none",
    "kl_penalty is exactly 0 without a penalty",
    "METRIC-5 KL-7",
    "kl-by-default",
    partial(_case, gspo(), wide(), ("metrics.kl_penalty",)),
)
_add(
    "counts",
    "Responses and counted tokens, with wide padding and holes",
    "METRIC-6 DATA-1",
    "metric-over-padding padded-length",
    partial(_case, gspo(), wide(), COUNTS, width=16),
)
_add(
    "counts-packed",
    "Responses and counted tokens of a packed row with trailing padding",
    "METRIC-6 PACK-3",
    "trailing-segment metric-over-padding",
    lambda: loss(gspo(), packed(wide(), trailing=14), COUNTS),
)


def _empty(outputs: Sequence[str]) -> Case:
    source = responses("metrics/empty", [3, 0, 5, 0], (2e-4, 0.0, 7e-4, 0.0), spread=0.04)
    return _case(gspo(), source.also(advantages=[1.0, -1.0, 1.0, 0.5]), outputs)


_add(
    "empty-responses",
    "Empty responses have no ratio and no tokens, and are responses all the same",
    "METRIC-2 METRIC-4 METRIC-6 DATA-3",
    "empty-response empty-nan",
    partial(_empty, (*RATIOS, "metrics.effective_sample_size", "metrics.clip_fraction", *COUNTS)),
    level="SHOULD",
    note=EMPTY,
)
_add(
    "all-empty",
    "A batch without a counted token: ratios 1, everything else 0, nothing NaN",
    "METRIC-1 METRIC-2 METRIC-3 METRIC-4 METRIC-7 DATA-3",
    "empty-nan",
    lambda: _case(
        gspo(),
        explicit([[], [], [], []]).also(advantages=[1.0, -1.0, 0.5, 0.0]),
        (*CLIPS, *RATIOS, "metrics.approx_kl", "metrics.effective_sample_size", "metrics.ratio_is_one", *COUNTS),
    ),
    level="SHOULD",
    note=EMPTY,
)


def _is_one(rows: Sequence[Sequence[float]], **layout: Any) -> Case:
    advantages = [1.0, -1.0, 0.5, -0.5][: len(rows)]
    return _case(gspo(), explicit(rows).also(advantages=advantages), ("metrics.ratio_is_one",), **layout)


_ONES: dict[str, tuple[str, list[list[float]], dict[str, Any]]] = {
    "on-policy": ("On-policy: ratio_is_one is 1, whatever the padding", [[0.0, 0.0], [0.0], [0.0] * 4, [0.0] * 3], {"fill": {"logp": -0.5, "old_logp": -3.0}}),
    "off-policy": ("Off-policy: ratio_is_one is 0", [[0.25, 0.0], [0.0], [0.0] * 4, [0.0] * 3], {}),
    "cancelling": ("Log-ratios that cancel: every sequence ratio is 1 and ratio_is_one is 0", [[0.25, -0.25], [0.0], [0.5, -0.5], [0.0] * 3], {}),
    "tiny": ("One log-ratio of 2^-21: ratio_is_one is 0", [[0.0, 0.0], [2.0**-21], [0.0] * 4, [0.0] * 3], {}),
}  # fmt: skip
for _slug, (_title, _rows, _layout) in _ONES.items():
    _add(
        f"ratio-is-one-{_slug}",
        _title,
        "METRIC-7 RATIO-8",
        "rescoring ratio-one",
        partial(_is_one, _rows, **_layout),
    )
