"""KL terms: the five estimators, what surrounds them, and what they must not touch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ..cases import Responses, explicit, packed, padded, responses
from ..recipe import Case, Shelf, aggregation, call, clip, correction, gspo, loss, objective, penalty

RECIPES = Shelf("penalty")
_add = RECIPES.add

ESTIMATORS = {
    "k1": ("KL-1", "z itself, gradient 1", "kl-estimator"),
    "abs": ("KL-1", "|z|, gradient its sign", "kl-estimator"),
    "k2": ("KL-2", "z²/2, gradient z", "kl-estimator"),
    "k3": ("KL-3", "exp(-z) + z - 1, gradient 1 - exp(-z)", "kl-estimator kl-sign"),
    "k3_plus": ("KL-4", "the value of k3 with the gradient of k2", "kl-estimator kl-straight-through"),
}
CLAMPED = "Clamps are an option that the paper does not have. Convention: per token, gradient 0 outside."
OUTPUTS = ("loss", "gradient", "metrics.kl_penalty")


def batch(
    means: Sequence[float] = (0.125, -0.25, 0.0625, -0.03125), spread: float = 0.3, reach: float = 1.5
) -> Responses:
    """Four responses of 4, 2, 7 and 3 tokens; the reference policy is up to `reach` away per token."""
    source = responses("penalty/batch", [4, 2, 7, 3], means, spread=spread, extra=("ref_logp",), extra_spread=reach)
    return source.also(advantages=[1.0, -0.5, 0.75, -1.25])


def _values(estimator: str, reach: float = 6.0) -> Case:
    z = np.clip([[-3.0, -1.5, -0.5, -0.0625, 0.0], [0.03125, 0.25, 1.0, 2.5, 6.0]], -reach, reach)
    ref = np.full_like(z, -7.0)
    return call("kl_penalty", {"logp": ref + z, "ref_logp": ref}, "value", estimator=estimator)


def _loss(objective_: dict[str, Any], source: Responses | None = None, **layout: Any) -> Case:
    return loss(objective_, padded(source or batch(), **layout), OUTPUTS)


for _name, (_clause, _what, _flags) in ESTIMATORS.items():
    _slug = _name.replace("_", "-")
    _add(f"{_slug}-values", f"{_name}: {_what}; z from -3 to 6", _clause, _flags, partial(_values, _name))
    for _ratio, _surrogate in {"gspo": clip(), "grpo": clip(0.2, 0.27)}.items():
        _objective = objective("sequence" if _ratio == "gspo" else "token", _surrogate, penalty=penalty(_name))
        _add(
            f"{_slug}-{_ratio}",
            f"{_ratio} with a {_name} penalty: {_what}",
            f"{_clause} KL-6 METRIC-5",
            f"{_flags} kl-sign kl-aggregation",
            partial(_loss, _objective),
        )


_add(
    "k3-small-values",
    f"k3: {ESTIMATORS['k3'][1]}; z from -2 to 2, where no clamp that is in use holds it",
    "KL-3",
    "kl-estimator kl-sign",
    partial(_values, "k3", 2.0),
)


def _far(estimator: str) -> Case:
    """z = -2, 2 and 0 in one response: k1, k2 and k3 have nothing in common there."""
    source = explicit([[0.0, 0.0, 0.0], [0.0, 0.0], [0.0], [0.0] * 4], old=-4.0).tokens(
        ref_logp=[[-2.0, -6.0, -4.0], [-3.0, -4.5], [-5.5], [-4.0, -3.75, -4.25, -1.0]]
    )
    return _loss(objective(penalty=penalty(estimator, 0.5)), source.also(advantages=[0.5, -0.5, 1.0, -1.0]))


for _name in ESTIMATORS:
    if _name != "abs":
        _add(
            f"{_name.replace('_', '-')}-on-policy",
            f"On-policy, z of -2, 2 and 0: {_name} as a term of the loss",
            f"{ESTIMATORS[_name][0]} KL-6",
            "kl-estimator kl-sign",
            partial(_far, _name),
        )


_add(
    "k1-far",
    "z from -14 to 14: no bound on the log-ratio but one that was asked for",
    "KL-1 KL-6",
    "kl-estimator kl-sign",
    lambda: _loss(
        objective(penalty=penalty("k1", 0.0625)),
        explicit([[0.0, 0.0, 0.0], [0.0, 0.0], [0.0], [0.0, 0.0]], old=-15.0)
        .tokens(ref_logp=[[-1.0, -28.0, -15.5], [-29.0, -14.0], [-2.5], [-15.25, -26.0]])
        .also(advantages=[0.5, -0.5, 1.0, -1.0]),
    ),
)


def _near(estimator: str) -> Case:
    """z is exact: both are multiples of 2^-21."""
    z = np.array(
        [[-(2.0**-10), -(2.0**-13), -(2.0**-16), -(2.0**-21), 0.0], [2.0**-20, 2.0**-17, 2.0**-14, 2.0**-11, 2.0**-9]]
    )
    ref = np.full_like(z, -2.0)
    return call("kl_penalty", {"logp": ref + z, "ref_logp": ref}, "value", estimator=estimator)


for _name in ("k1", "k2"):
    _add(
        f"{_name}-near-values",
        f"{_name}: {ESTIMATORS[_name][1]}; z from 2^-21 to 2^-9",
        ESTIMATORS[_name][0],
        "kl-estimator",
        partial(_near, _name),
    )


def _clipped(objective_: dict[str, Any]) -> Case:
    """Every response is beyond its bound: what is left of the gradient is the penalty's."""
    return _loss(objective_, batch((0.01, -0.0075, 0.0125, -0.015625), 0.05))


_KINDS: dict[str, dict[str, Any]] = {"sequence": {}, "gspo-token": {"ratio": "gspo_token"}}
for _name, _fields in _KINDS.items():
    for _estimator in ("k2", "k3"):
        _add(
            f"clipped-{_name}-{_estimator}",
            "Every response is clipped: the surrogate has no gradient, the KL term keeps its own",
            "KL-6 GRAD-2",
            "kl-gated",
            partial(_clipped, objective(penalty=penalty(_estimator), **_fields)),
        )


def _zero(objective_: dict[str, Any]) -> Case:
    return _loss(objective_, batch().also(advantages=[0.0] * 4))


_add(
    "zero-advantage",
    "A = 0 everywhere: the surrogate vanishes, the KL term does not",
    "KL-6 SURR-12",
    "kl-gated",
    partial(_zero, objective(penalty=penalty("k3"))),
)
_add(
    "negative-advantages",
    "A < 0 everywhere: a KL term multiplied by A changes its sign",
    "KL-6",
    "kl-gated kl-sign",
    lambda: _loss(objective(penalty=penalty("k2")), batch().also(advantages=[-1.0, -2.0, -0.5, -0.25])),
)
_MODES = {
    "token_mean": "KL-6 AGG-3",
    "sequence_mean_token_sum": "KL-6 AGG-4",
    "token_sum": "KL-6 AGG-5",
    "group_token_mean": "KL-6 AGG-6",
}
for _mode, _clauses in _MODES.items():
    _add(
        f"{_mode.replace('_', '-')}",
        f"The KL term is aggregated as the objective is: {_mode}",
        _clauses,
        "kl-aggregation",
        partial(
            lambda mode: _loss(
                objective("token", clip(0.2, 0.2), mode, penalty=penalty()), batch().also(groups=[4, 9, 4, 9])
            ),
            _mode,
        ),
    )
for _own in ("token_mean", "sequence_mean_token_sum"):
    _add(
        f"own-{_own.replace('_', '-')}",
        f"The objective averages token means, its KL term asks for {_own} by name",
        "KL-6 AGG-8",
        "kl-aggregation",
        partial(_loss, objective(penalty=penalty("k3", aggregation=aggregation(_own)))),
    )
    _add(
        f"own-{_own.replace('_', '-')}-normalizer",
        f"The same ({_own}) with the normaliser of a larger step: it replaces the objective's M, not that of the KL term",
        "KL-6 AGG-8",
        "kl-aggregation",
        partial(
            lambda own: loss(
                objective(penalty=penalty("k3", aggregation=aggregation(own))), padded(batch()), OUTPUTS, normalizer=8.0
            ),
            _own,
        ),
    )
_add(
    "shared-normalizer",
    "A KL term that shares the objective's aggregation shares the given normaliser",
    "KL-6 AGG-8",
    "kl-aggregation mean-of-means",
    lambda: loss(objective(penalty=penalty("k3")), padded(batch()), OUTPUTS, normalizer=8.0),
)
for _estimator in ("k1", "k2", "k3", "k3_plus"):
    for _importance in ("token", "sequence"):
        _add(
            f"importance-{_importance}-{_estimator.replace('_', '-')}",
            f"{_estimator} times the {_importance} ratio to the old policy, through which the gradient flows",
            f"KL-5 {ESTIMATORS[_estimator][0]} GRAD-5",
            "kl-importance kl-importance-detached",
            partial(_loss, objective("token", clip(0.2, 0.2), penalty=penalty(_estimator, importance=_importance))),
        )
_add(
    "importance-with-sequence-ratio",
    "GSPO with a token importance factor on its KL term: the factor is the token's ratio, not the sequence's",
    "KL-5",
    "kl-importance kl-importance-detached",
    lambda: _loss(objective(penalty=penalty("k3", importance="token"))),
)
_add(
    "importance-uncapped",
    "The cap on the log-ratio of the surrogate leaves the importance factor of the KL term alone",
    "KL-5 RATIO-6",
    "kl-importance exponent-cap",
    lambda: _loss(objective("token", clip(0.2, 0.2), penalty=penalty("k2", importance="token"), log_ratio_cap=0.03125)),
    level="MAY",
    note="The paper has no cap. Convention: it acts on the surrogate's ratio alone.",
)
_add(
    "sequence-level-k3",
    "k3 is taken per token: of the summed or mean log-ratio it would be another number",
    "KL-3",
    "kl-aggregation",
    lambda: _loss(objective(penalty=penalty("k3")), explicit([[0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0], [0.0]]).also(advantages=[0.25, -0.25, 0.5, -0.5]).tokens(ref_logp=[[-3.0, -1.0], [-0.5, -3.5, -2.0], [-4.0, -1.5], [-2.5]])),
)  # fmt: skip
_add(
    "equal-to-reference",
    "The policy is the reference: value and gradient of the KL term are exactly 0",
    "KL-3 KL-6",
    "kl-of-padding kl-estimator",
    lambda: _same_as_reference("k3"),
)


def _same_as_reference(estimator: str) -> Case:
    source = responses("penalty/same", [4, 3, 6, 1], [2e-4, -1e-4, 1e-4, 0.0], spread=0.05).also(advantages=[0.0] * 4)
    source = source.tokens(ref_logp=source.rows["logp"])
    return _loss(objective(penalty=penalty(estimator)), source, fill={"logp": -1.0, "ref_logp": -6.0})


_add(
    "padding-differs",
    "Policy and reference differ at padding alone: a KL term over the whole row is not 0",
    "KL-6 DATA-2",
    "kl-of-padding",
    lambda: _same_as_reference("k2"),
)
_add(
    "wide-padding",
    "A KL term in a batch much wider than its responses, garbage in the padding",
    "KL-6 DATA-1",
    "kl-of-padding padded-divisor",
    lambda: _loss(objective(penalty=penalty("k3")), batch(), width=16, fill={"logp": -0.5, "ref_logp": -5.0}),
)
_CLAMPS: dict[str, dict[str, Any]] = {
    "log-ratio-clamp": {"log_ratio_clamp": 0.75},
    "value-clamp": {"value_clamp": 0.25},
    "both-clamps": {"log_ratio_clamp": 1.0, "value_clamp": 0.3125},
}
for _name, _fields in _CLAMPS.items():
    for _estimator in ("k1", "k3", "k3_plus"):
        _add(
            f"{_name}-{_estimator.replace('_', '-')}",
            f"{_estimator} with {', '.join(f'{key} {value}' for key, value in _fields.items())}: held, and without gradient outside",
            f"KL-8 {ESTIMATORS[_estimator][0]}",
            "kl-clamp",
            partial(_loss, objective("token", clip(0.2, 0.2), penalty=penalty(_estimator, **_fields))),
            level="MAY",
            note=CLAMPED,
        )
_add(
    "clamp-with-importance",
    "A clamped k3 times the token ratio: the held value still multiplies the ratio's gradient",
    "KL-8 KL-5",
    "kl-clamp kl-importance-detached",
    lambda: _loss(objective("token", clip(0.2, 0.2), penalty=penalty("k3", importance="token", value_clamp=0.25))),
    level="MAY",
    note=CLAMPED,
)
_add(
    "no-clamp",
    "z = -6: k3 is about 396, and nothing clamps it",
    "KL-3 KL-8",
    "kl-clamp",
    lambda: _loss(objective(penalty=penalty("k3", 2.0**-10)), explicit([[0.0, 0.0]], old=-8.0).also(advantages=[1.0]).tokens(ref_logp=[[-2.0, -8.5]])),
)  # fmt: skip


def _beside(objective_: dict[str, Any]) -> Case:
    """A reference policy is at hand, and the objective has no KL term."""
    source = responses(
        "penalty/none", [4, 2, 5, 7], [2e-4, -6e-4, 1e-4, 6e-4], spread=0.05, extra=("ref_logp",), extra_spread=1
    )
    return _loss(objective_, source.also(advantages=[1.0, -0.5, 0.75, 0.25]))


_add(
    "none-by-default",
    "GSPO has no KL term: a reference policy that is passed along changes nothing",
    "KL-7",
    "kl-by-default",
    partial(_beside, gspo()),
)
_add(
    "coefficient-zero",
    "Coefficient 0: no KL in loss or gradient, its size still reported",
    "KL-7 METRIC-5",
    "kl-by-default",
    partial(_beside, objective(penalty=penalty("k3", 0.0))),
)
_add(
    "beside-correction",
    "A correction weight multiplies the surrogate, not the KL term",
    "KL-6 CORR-1",
    "kl-gated",
    lambda: _loss(
        objective("token", clip(0.2, 0.2), penalty=penalty("k3"), correction=[correction("token", "clamp", high=0.875)]),
        responses("penalty/corrected", [4, 2, 7, 3], [0.125, -0.25, 0.0625, -0.125], spread=0.3, extra=("ref_logp", "behavior_logp"), extra_spread=0.75).also(advantages=[1.0, -0.5, 0.75, 0.25]),
    ),
)  # fmt: skip
_add(
    "packed",
    "A KL term on packed segments with trailing padding",
    "KL-6 PACK-1",
    "kl-of-padding packed-one-ratio",
    lambda: loss(objective(penalty=penalty("k3")), packed(batch(), trailing=16, fill={"logp": -0.5, "ref_logp": -5.0}), OUTPUTS),
)  # fmt: skip
