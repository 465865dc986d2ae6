"""Surrogates of the relatives: unclipped, REINFORCE, CISPO, GMPO, SAPO, VESPO, at every ratio that takes them."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..cases import Responses, padded, responses
from ..recipe import Case, Shelf, aggregation, clip, loss, objective

RECIPES = Shelf("surrogate")
_add = RECIPES.add

UNCLIPPED: dict[str, Any] = {"kind": "unclipped"}
REINFORCE: dict[str, Any] = {"kind": "reinforce", "gate": None}
GATE = {key: value for key, value in clip(0.2, 0.27).items() if key != "kind"}
GATED: dict[str, Any] = {"kind": "reinforce", "gate": GATE}
CISPO: dict[str, Any] = {"kind": "cispo", "low": None, "high": 4.0}
CISPO_TIGHT: dict[str, Any] = {"kind": "cispo", "low": None, "high": 0.5}
CISPO_BOTH: dict[str, Any] = {"kind": "cispo", "low": 0.25, "high": 0.5}
GMPO: dict[str, Any] = {"kind": "gmpo", "low": 0.4, "high": 0.4}
GMPO_UNEVEN: dict[str, Any] = {"kind": "gmpo", "low": 0.25, "high": 0.625}
SAPO: dict[str, Any] = {"kind": "sapo", "tau_pos": 1.0, "tau_neg": 1.05}
SAPO_SHARP: dict[str, Any] = {"kind": "sapo", "tau_pos": 3.0, "tau_neg": 5.0}
VESPO: dict[str, Any] = {"kind": "vespo", "k_pos": 2.0, "lam_pos": 3.0, "k_neg": 3.0, "lam_neg": 2.0}
VESPO_UNEVEN: dict[str, Any] = {"kind": "vespo", "k_pos": 0.5, "lam_pos": 1.25, "k_neg": 4.0, "lam_neg": 0.25}


def source(name: str, spread: float = 0.6) -> Responses:
    """Four responses, both signs of A on both sides of every range used here."""
    means = (0.375, -0.5, 0.0625, -0.25)
    return responses(f"surrogate/{name}", [6, 3, 5, 2], means, spread=spread).also(advantages=[1.0, -0.75, -1.25, 0.5])


def flipped(name: str) -> Responses:
    """The same with every advantage of the opposite sign."""
    base = source(name)
    return base.also(advantages=-base.per_response["advantages"])


_CASES: dict[str, tuple[str, str, str, str, dict[str, Any]]] = {
    "unclipped-sequence": ("SURR-6", "Importance weighting alone, sequence ratio", "clip-leak", "sequence", UNCLIPPED),
    "unclipped-token": ("SURR-6", "Importance weighting alone, token ratio", "clip-leak", "token", UNCLIPPED),
    "unclipped-product": ("SURR-6 RATIO-7", "Importance weighting by the product over the response", "clip-leak", "product", UNCLIPPED),
    "clip-product": ("SURR-1 RATIO-7", "The clip on the product over the response", "no-length-normalisation", "product", clip(0.2, 0.27)),
    "reinforce": ("SURR-7", "REINFORCE: the log-probability times A, whatever the ratio", "ratio-leak", "token", REINFORCE),
    "reinforce-gated": ("SURR-7 GRAD-5", "REINFORCE with PPO's gate: inside or outside, never in between", "weight-not-detached two-sided-gate", "token", GATED),
    "reinforce-gated-sequence": ("SURR-7", "REINFORCE gated by the sequence ratio: one decision for all tokens", "weight-not-detached token-clip", "sequence", GATED),
    "cispo": ("SURR-8 GRAD-5", "CISPO: the weight is clipped above, every token keeps a gradient", "weight-not-detached clip-kills-gradient", "token", CISPO_TIGHT),
    "cispo-both": ("SURR-8 GRAD-5", "CISPO with a lower bound too", "weight-not-detached clip-kills-gradient range-swapped", "token", CISPO_BOTH),
    "cispo-sequence": ("SURR-8", "CISPO's weight from the sequence ratio", "weight-not-detached token-clip", "sequence", CISPO_BOTH),
    "gmpo": ("SURR-9", "GMPO: tokens clipped by the sign of A in log space, then the geometric mean", "gmpo-clip-after-mean two-sided-gate log-space-clip", "token", GMPO),
    "gmpo-uneven": ("SURR-9", "GMPO with unequal ends", "gmpo-clip-after-mean range-swapped", "token", GMPO_UNEVEN),
    "sapo": ("SURR-10", "SAPO: a soft gate, temperature by the sign of A", "sapo-temperature", "token", SAPO),
    "sapo-sharp": ("SURR-10", "SAPO with far apart temperatures", "sapo-temperature", "token", SAPO_SHARP),
    "sapo-sequence": ("SURR-10", "SAPO's gate on the sequence ratio", "sapo-temperature token-clip", "sequence", SAPO_SHARP),
    "sapo-gspo-token": ("SURR-10 RATIO-3", "SAPO's gate on the GSPO-token ratio", "sapo-temperature", "gspo_token", SAPO_SHARP),
    "vespo": ("SURR-11 RATIO-7", "VESPO: a kernel on the product ratio, shape by the sign of A", "weight-not-detached vespo-sign", "product", VESPO),
    "vespo-uneven": ("SURR-11 RATIO-7", "VESPO with far apart shapes", "weight-not-detached vespo-sign", "product", VESPO_UNEVEN),
    "vespo-token": ("SURR-11", "VESPO's kernel on token ratios", "weight-not-detached vespo-sign", "token", VESPO),
}  # fmt: skip


def _case(ratio: str, surrogate: dict[str, Any], batch: str, flip: bool) -> Case:
    made = flipped(batch) if flip else source(batch)
    return loss(objective(ratio, surrogate), padded(made))


for _slug, (_clauses, _title, _flags, _ratio, _surrogate) in _CASES.items():
    _add(_slug, _title, _clauses, _flags, partial(_case, _ratio, _surrogate, _slug, False))
    _add(
        f"{_slug}-flipped",
        f"{_title}; advantages of the opposite sign",
        _clauses,
        _flags,
        partial(_case, _ratio, _surrogate, _slug, True),
    )


_FAR, _PRODUCT = (1.5, -0.5, 0.0625, -0.25), (0.125, -0.25, 0.0625, -0.125)


def _preset(objective_: dict[str, Any]) -> Case:
    made = responses(
        "surrogate/presets", [6, 3, 5, 2], _PRODUCT if objective_["ratio"] == "product" else _FAR, spread=0.75
    )
    made = made.also(advantages=[1.0, -0.75, -1.25, 0.5], groups=[3, 3, 8, 8])
    return loss(objective_, padded(made))


_PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo": ("AGG-1 SURR-1", objective("token", clip(0.2, 0.2))),
    "grpo": ("AGG-1 SURR-3", objective("token", clip(0.2, 0.27))),
    "gmpo": ("SURR-9 AGG-1", objective("token", GMPO)),
    "sapo": ("SURR-10 AGG-1", objective("token", SAPO)),
    "dr-grpo": ("AGG-4", objective("token", clip(0.2, 0.2), aggregation("sequence_mean_token_sum", constant=8.0))),
    "dapo": ("AGG-6", objective("token", clip(0.2, 0.28), "group_token_mean")),
    "rloo": ("SURR-7 AGG-4", objective("token", REINFORCE, "sequence_mean_token_sum")),
    "reinforce-pp": ("AGG-3", objective("token", clip(0.2, 0.2), "token_mean")),
    "cispo": ("SURR-8 AGG-6", objective("token", CISPO, "group_token_mean")),
    "luspo": ("AGG-4", objective("sequence", clip(), "sequence_mean_token_sum")),
    "vespo": ("SURR-11 AGG-3", objective("product", VESPO, "token_mean")),
}


def _five(objective_: dict[str, Any]) -> Case:
    means = [d * (0.25 if objective_["ratio"] == "product" else 1.0) for d in (0.375, -0.5, 1.75, 0.0625, -0.25)]
    made = responses("surrogate/five", [6, 3, 1, 5, 9], means, spread=0.75)
    return loss(objective_, padded(made.also(advantages=[1.0, -0.75, -1.25, 0.5, 0.0], groups=[3, 8, 8, 3, 8])))


for _name, (_clauses, _objective) in _PRESETS.items():
    _add(
        f"preset-{_name}-five",
        f"The preset {_name} on five responses: a group of two, a group of three, one A = 0",
        _clauses,
        "token-mean group-order zero-advantage-clipped",
        partial(_five, _objective),
    )
    _add(
        f"preset-{_name}",
        f"The preset {_name} as published: ratio, surrogate and aggregation together",
        _clauses,
        "token-mean range-inherited",
        partial(_preset, _objective),
    )
