"""Correction weights for the mismatch between sampler and old policy: levels, actions, and what they leave alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..cases import Responses, explicit, packed, padded, responses
from ..recipe import Case, Shelf, aggregation, clip, correction, loss, objective

RECIPES = Shelf("correction")
_add = RECIPES.add

OUTPUTS = ("loss", "gradient")


def batch(spread: float = 0.75, means: Sequence[float] = (0.125, -0.25, 0.0625, -0.0625)) -> Responses:
    """Responses of 4, 2, 6 and 3 tokens; the sampler is up to `spread` away from the old policy, token by token."""
    source = responses(
        "correction/batch", [4, 2, 6, 3], means, spread=0.3, extra=("behavior_logp",), extra_spread=spread
    )
    return source.also(advantages=[1.0, -0.5, 0.75, -1.25])


def _case(objective_: dict[str, Any], source: Responses | None = None, *outputs: str) -> Case:
    return loss(objective_, padded(source or batch()), outputs or OUTPUTS)


_LEVELS = {
    "token": ("the token's ratio", 0.75, 1.25),
    "sequence": ("the product over the response", 0.5, 1.5),
    "geometric": ("the geometric mean over the response", 0.875, 1.125),
}
_ACTIONS = {
    "clamp": ("CORR-2", "held between the bounds", "clamp-for-mask"),
    "mask": ("CORR-2", "0 outside the bounds", "clamp-for-mask"),
    "reject": ("CORR-3", "1 inside the bounds and 0 outside", "reject-weighs"),
}
_RATIOS = {"token": "token", "sequence": "sequence", "gspo-token": "gspo_token"}
for _level, (_what, _low, _high) in _LEVELS.items():
    for _action, (_clause, _how, _flag) in _ACTIONS.items():
        for _name, _ratio in _RATIOS.items():
            _add(
                f"{_level}-{_action}-{_name}",
                f"Weight: {_what}, {_how} ({_low}, {_high}); {_name} ratio in the surrogate",
                f"CORR-1 {_clause} CORR-7",
                f"{_flag} correction-level correction-not-detached",
                partial(
                    _case,
                    objective(_ratio, clip(0.2, 0.27), correction=[correction(_level, _action, low=_low, high=_high)]),
                ),
            )
for _level, (_what, _low, _high) in _LEVELS.items():
    _add(
        f"{_level}-unbounded",
        f"Weight: {_what}, without bounds",
        "CORR-1 CORR-4",
        "correction-level correction-not-detached",
        partial(_case, objective("token", clip(0.2, 0.2), correction=[correction(_level, "clamp")])),
    )
    _add(
        f"{_level}-current",
        f"Weight: {_what} of the current policy over the sampler, inside a stop-gradient",
        "CORR-1 CORR-4 GRAD-5",
        "correction-not-detached correction-numerator",
        partial(
            _case,
            objective(
                "token", clip(0.2, 0.2), correction=[correction(_level, "clamp", high=_high, numerator="current")]
            ),
        ),
    )
    _add(
        f"{_level}-negative-only",
        f"Weight: {_what}, for negative advantages alone",
        "CORR-6 CORR-1",
        "correction-negative-only",
        partial(
            _case,
            objective(
                "token",
                clip(0.2, 0.2),
                correction=[correction(_level, "mask", low=_low, high=_high, negative_only=True)],
            ),
        ),
    )
for _bound in ("low", "high"):
    _add(
        f"one-bound-{_bound}",
        f"A {_bound} bound alone: the other side is open",
        "CORR-2",
        "clamp-for-mask bounds-ignored",
        partial(
            _case,
            objective("token", clip(0.2, 0.2), correction=[correction("token", "mask", **{_bound: 1.0625 if _bound == "high" else 0.9375})]),
        ),
    )  # fmt: skip
_COMMON: dict[str, tuple[str, str, dict[str, Any]]] = {
    "tis": ("CORR-1 CORR-2", "Truncated importance sampling: token weights held at 2", correction("token", "clamp", high=2.0)),
    "sequence-mis": ("CORR-1 CORR-2", "Masked sequence weights: 0 where the product exceeds 2", correction("sequence", "mask", high=2.0)),
    "geometric-rejection": ("CORR-3", "Whole responses are dropped where the geometric mean leaves 0.999 to 1.001", correction("geometric", "reject", low=0.999, high=1.001)),
    "icepop": ("CORR-2", "Token weights kept between 0.5 and 5, else 0", correction("token", "mask", low=0.5, high=5.0)),
    "behaviour-cap": ("CORR-2 CORR-5", "Decoupled PPO: tokens whose behaviour weight exceeds 1.5 are dropped, not capped", correction("token", "mask", high=1.5)),
    "off-policy-masking": ("CORR-6 CORR-3", "Negative responses far from the sampler are dropped", correction("geometric", "reject", low=0.90625, numerator="current", negative_only=True)),
}  # fmt: skip
for _name, (_clauses, _title, _correction) in _COMMON.items():
    _add(
        _name,
        _title,
        _clauses,
        "clamp-for-mask correction-level reject-weighs",
        partial(_case, objective("sequence", clip(0.2, 0.27), correction=[_correction])),
    )
    _add(
        f"{_name}-token-mean",
        f"{_title}; token ratio, token mean: a dropped token stays in the divisor",
        f"{_clauses} AGG-3",
        "dropped-from-divisor clamp-for-mask",
        partial(_case, objective("token", clip(0.2, 0.2), "token_mean", correction=[_correction])),
    )
_add(
    "two-weights",
    "A token weight and a geometric filter: they multiply",
    "CORR-1 CORR-3",
    "correction-level",
    partial(
        _case,
        objective(
            "token",
            clip(0.2, 0.2),
            correction=[
                correction("token", "clamp", high=1.25),
                correction("geometric", "reject", low=0.875, high=1.125),
            ],
        ),
    ),
)
_add(
    "everything-dropped",
    "Every token is dropped: loss and gradient are exactly 0, and M still counts the responses",
    "CORR-2 CORR-3",
    "dropped-from-divisor empty-nan",
    partial(_case, objective("token", clip(0.2, 0.2), correction=[correction("token", "reject", low=64.0)])),
)


def _decoupled(objective_: dict[str, Any]) -> Case:
    """The ratio to the proximal policy is on the other side of the clip range than the ratio to the sampler."""
    source = explicit([[0.125, 0.0625], [-0.125, -0.0625, 0.0], [0.0625], [-0.25, 0.125]]).also(
        advantages=[1.0, -1.0, 0.5, -0.75]
    )
    return _case(
        objective_, source.tokens(behavior_logp=[[-2.5, -2.25], [-1.5, -1.75, -2.0], [-2.375], [-1.875, -2.125]])
    )


for _name, _ratio in {"token": "token", "sequence": "sequence"}.items():
    _add(
        f"decoupled-{_name}",
        f"Three policies, {_name} ratio: the clip sees new over proximal, the weight is proximal over sampler",
        "CORR-5 CORR-1",
        "sampler-in-ratio clamp-for-mask",
        partial(_decoupled, objective(_ratio, clip(0.2, 0.2), "token_mean", correction=[correction("token", "clamp", high=5.0)])),
    )  # fmt: skip
_add(
    "decoupled-preset",
    "The decoupled preset as published: token mean, weights above 5 dropped",
    "CORR-5 CORR-2 AGG-3",
    "sampler-in-ratio clamp-for-mask",
    lambda: _case(objective("token", clip(0.2, 0.2), "token_mean", correction=[correction("token", "mask", high=5.0)]), batch(2.25)),
)  # fmt: skip
_add(
    "minirl-preset",
    "The MiniRL preset: gated REINFORCE, weight of the current policy over the sampler held at 5, token sums",
    "SURR-7 CORR-1 CORR-4",
    "correction-not-detached correction-numerator token-mean",
    lambda: _case(
        objective("token", {"kind": "reinforce", "gate": {"low": 0.2, "high": 0.27, "dual": None}}, "sequence_mean_token_sum", correction=[correction("token", "clamp", high=5.0, numerator="current")]),
        batch(2.25),
    ),
)  # fmt: skip


def _long(level: str) -> Case:
    """Sixty tokens each a little likelier under the old policy: the product runs away, the geometric mean does not."""
    source = responses("correction/long", [60, 48], [2e-4, -1e-4], spread=0.05)
    behavior = [row - 2.0**-4 for row in source.rows["old_logp"]]
    source = source.tokens(behavior_logp=behavior).also(advantages=[1.0, -0.5])
    return _case(objective(correction=[correction(level, "clamp", high=64.0)]), source)


for _level in ("token", "sequence", "geometric"):
    _add(
        f"long-{_level}",
        f"Sixty tokens, each 6% likelier under the old policy than under the sampler: {_level} level beside GSPO's ratio",
        "CORR-7 CORR-1",
        "correction-level",
        partial(_long, _level),
    )


def _away(level: str) -> Case:
    """Log-weights from -9 to 9, which no bound holds."""
    away = {
        "token": [[9.0, 0.0625, -0.125], [-6.0, -7.5], [5.5], [-9.0, 3.5]],
        "sequence": [[4.0, 3.0, 1.5], [-4.0, -3.5], [6.5], [-5.0, -4.0]],
    }
    source = explicit([[0.0625, -0.125, 0.0], [0.125, 0.0], [-0.0625], [0.25, -0.125]], old=-12.0)
    source = source.tokens(behavior_logp=[[-12.0 - far for far in row] for row in away[level]])
    return _case(
        objective("token", clip(0.2, 0.2), correction=[correction(level, "clamp")]),
        source.also(advantages=[1.0, -0.5, 0.75, -1.25]),
    )


for _level in ("token", "sequence"):
    _add(
        f"{_level}-away",
        f"Weight: {_LEVELS[_level][0]}, from e^-9 to e^9, without bounds",
        "CORR-1 CORR-2",
        "correction-level bounds-ignored",
        partial(_away, _level),
    )


def _far(advantages: Sequence[float], *corrections: dict[str, Any]) -> Case:
    """Log-weights of 100 and 120 in the first two responses: their exponentials overflow float32."""
    away = [[100.0, 0.0625, -0.125], [0.25, 120.0], [-0.125], [0.25, 0.0625]]
    source = explicit([[0.0625, -0.125, 0.0], [0.125, 0.0], [-0.0625], [0.25, -0.125]], old=-128.0)
    source = source.tokens(behavior_logp=[[-128.0 - far for far in row] for row in away]).also(advantages=advantages)
    return _case(objective("token", clip(0.2, 0.2), correction=list(corrections)), source)


_add(
    "overflow-zero-advantage",
    "Weights that overflow where A = 0: exactly nothing",
    "SURR-12 CORR-1",
    "overflow-nan",
    partial(_far, [0.0, 0.0, 0.75, -0.5], correction("token", "clamp")),
)
_add(
    "overflow-dropped",
    "Weights that overflow and are dropped by another correction: exactly nothing",
    "CORR-2 CORR-1",
    "overflow-nan",
    partial(_far, [1.0, -0.5, 0.75, -0.5], correction("token", "clamp"), correction("token", "mask", high=2.0)),
)
_add(
    "same-sampler",
    "The sampler is the old policy: every weight is exactly 1",
    "CORR-1 CORR-5",
    "sampler-in-ratio correction-level",
    lambda: _same_sampler(),
)


def _same_sampler() -> Case:
    source = responses("correction/same", [5, 3, 7, 2], [2e-4, -1e-4, 1e-4, -2e-4], spread=0.05).also(
        advantages=[1.0, -0.75, 0.5, -0.25]
    )
    made = objective(
        correction=[correction("token", "mask", low=0.5, high=2.0), correction("sequence", "clamp", high=2.0)]
    )
    return _case(made, source.tokens(behavior_logp=source.rows["old_logp"]))


def _at_the_bound(level: str, action: str, **bounds: float) -> Case:
    """Two responses that the old policy itself sampled, and two that it did not: weights of exactly 1 beside others."""
    source = batch()
    near, far = source.rows["old_logp"], source.rows["behavior_logp"]
    source = source.tokens(behavior_logp=[near[0], far[1], far[2], near[3]])
    return _case(objective("token", clip(0.2, 0.2), correction=[correction(level, action, **bounds)]), source)


for _level, _action, _bound in (("token", "mask", "low"), ("sequence", "mask", "high"), ("geometric", "reject", "low")):
    _add(
        f"at-the-{_bound}-bound-{_level}",
        f"Two responses sampled by the old policy, a {_bound} bound of 1 on {_level} weights: what is at the bound is inside",
        "CORR-3" if _action == "reject" else "CORR-2",
        "bounds-ignored boundary",
        partial(_at_the_bound, _level, _action, **{_bound: 1.0}),
        level="SHOULD",
        note="Corrections are not the paper's. Convention: bounds are closed, as GSPO-CORR-2 writes them.",
    )

_METRICS = ("loss", "gradient", "metrics.clip_fraction", "metrics.ratio_mean", "metrics.num_tokens")
_add(
    "metrics-uncorrected",
    "Dropped tokens stay in the metrics: clip fraction, mean ratio and token count know no correction",
    "METRIC-1 METRIC-2 METRIC-6 CORR-2",
    "dropped-from-divisor sampler-in-ratio",
    partial(_case, objective("token", clip(0.2, 0.2), correction=[correction("token", "mask", high=1.0625)]), None, *_METRICS),
)  # fmt: skip
_add(
    "packed",
    "A sequence-level weight on packed segments: one weight for each segment",
    "CORR-1 PACK-2",
    "correction-level packed-one-ratio",
    lambda: loss(
        objective("token", clip(0.2, 0.2), correction=[correction("sequence", "clamp", low=0.5, high=1.5)]),
        packed(batch(), trailing=1, fill=-1.0),
    ),
)
_add(
    "non-empty-count",
    "A response whose every token is dropped is not empty: it stays in the number of responses",
    "CORR-2 AGG-7",
    "dropped-from-divisor",
    lambda: _case(
        objective("token", clip(0.2, 0.2), aggregation(count="non_empty"), correction=[correction("geometric", "reject", low=0.90625)])
    ),
    level="SHOULD",
    note="Whether empty responses count is a choice the paper does not make; this objective says non_empty.",
)  # fmt: skip
