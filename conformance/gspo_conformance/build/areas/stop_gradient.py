"""Stop-gradients: what stands inside one has a value and no slope, what stands outside has both. Gradients alone are asked."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..cases import Responses, explicit, padded, responses
from ..recipe import Case, Shelf, clip, correction, gspo, gspo_token, loss, objective, penalty
from .relatives import CISPO_BOTH, GMPO, REINFORCE, SAPO, UNCLIPPED, VESPO

RECIPES = Shelf("stop-gradient")
_add = RECIPES.add

ONLY = ("gradient",)


def batch(*extra: str) -> Responses:
    """Ratios inside and outside of every range used here."""
    source = responses("stop-gradient/batch", [4, 2, 5, 3], (0.375, -0.5, 0.0625, -0.125), spread=0.5, extra=extra, extra_spread=0.75)  # fmt: skip
    return source.also(advantages=[1.0, -0.75, -1.25, 0.5])


def near(name: str) -> Responses:
    """Ratios inside the paper's range, where every term has a gradient."""
    return responses(f"stop-gradient/{name}", [3, 6, 2, 4], (2e-4, -1e-4, 1e-4, -2e-4), spread=0.05).also(
        advantages=[1.0, -0.5, 1.5, -0.75]
    )


def _case(objective_: dict[str, Any], source: Responses) -> Case:
    return loss(objective_, padded(source), ONLY)


_add(
    "sequence-ratio-live",
    "GSPO: the gradient flows through the mean; a detached ratio has none at all",
    "GRAD-5 RATIO-2 GRAD-1",
    "zero-gradient",
    partial(_case, gspo(), near("sequence")),
)
_add(
    "token-ratio-live",
    "GRPO: the gradient flows through every token's ratio",
    "GRAD-5 RATIO-1",
    "zero-gradient",
    partial(_case, objective("token", clip(0.2, 0.27)), near("token")),
)
_add(
    "gspo-token-once",
    "GSPO-token: the sequence ratio inside is detached; without that the gradient is twice as large",
    "GRAD-5 RATIO-3",
    "doubled-gradient zero-gradient",
    partial(_case, gspo_token(), near("gspo-token")),
)
_add(
    "gspo-token-by-token",
    "GSPO-token with advantages per token: no token feels the advantage of another",
    "GRAD-5 RATIO-3 GRAD-3",
    "doubled-gradient broadcast-ratio token-advantages-averaged",
    partial(_case, gspo_token(), Responses(near("by-token").rows).tokens(token_advantages=[[1.0, -0.5, 0.25], [0.0, 1.5, -1.0, 0.75, -0.25, 0.5], [-2.0, 1.0], [0.5, 0.25, -1.0, 2.0]])),
)  # fmt: skip
_add(
    "gspo-token-off-policy",
    "GSPO-token far from the old policy: the coefficient is s A, not A and not 2 s A",
    "GRAD-5 RATIO-3 GRAD-3",
    "doubled-gradient ratio-value-lost",
    partial(_case, gspo_token(0.5, 1.0), batch()),
)
_WEIGHTS: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
    "reinforce-gate": ("SURR-7", "The gate of REINFORCE has no slope", objective("token", {"kind": "reinforce", "gate": {"low": 0.2, "high": 0.27, "dual": None}}), ()),
    "reinforce-gate-sequence": ("SURR-7", "The gate of REINFORCE by the sequence ratio has no slope", objective("sequence", {"kind": "reinforce", "gate": {"low": 0.2, "high": 0.27, "dual": 1.375}}), ()),
    "cispo-weight": ("SURR-8", "The weight of CISPO has no slope", objective("token", CISPO_BOTH), ()),
    "cispo-weight-gspo-token": ("SURR-8 RATIO-3", "The weight of CISPO from the GSPO-token ratio has no slope", objective("gspo_token", {"kind": "cispo", "low": None, "high": 0.375}), ()),
    "vespo-weight": ("SURR-11", "The kernel of VESPO has no slope", objective("product", VESPO), ()),
    "correction-old": ("CORR-4", "A correction weight scales the gradient and adds nothing", objective("token", clip(0.2, 0.27), correction=[correction("token", "clamp", high=2.0)]), ("behavior_logp",)),
    "correction-current": ("CORR-4", "A correction weight of the current policy has no slope either", objective("token", clip(0.2, 0.27), correction=[correction("token", "clamp", high=2.0, numerator="current")]), ("behavior_logp",)),
    "correction-current-sequence": ("CORR-4 CORR-1", "A sequence weight of the current policy has no slope", objective("sequence", clip(0.5, 1.0), correction=[correction("sequence", "clamp", high=4.0, numerator="current")]), ("behavior_logp",)),
    "correction-current-geometric": ("CORR-4 CORR-1", "A geometric weight of the current policy has no slope", objective("gspo_token", clip(0.5, 1.0), correction=[correction("geometric", "clamp", numerator="current")]), ("behavior_logp",)),
    "penalty-importance-token": ("KL-5", "The token importance factor of a KL term does have a slope", objective("token", clip(0.2, 0.27), penalty=penalty("k3", importance="token")), ("ref_logp",)),
    "penalty-importance-sequence": ("KL-5", "The sequence importance factor of a KL term does have a slope", objective("sequence", clip(0.2, 0.27), penalty=penalty("k2", importance="sequence")), ("ref_logp",)),
    "penalty-straight-through": ("KL-4", "k3_plus: the value's slope is stopped, k2's stands in", objective("token", clip(0.2, 0.27), penalty=penalty("k3_plus", 1.0)), ("ref_logp",)),
    "old-policy-fixed": ("DATA-6", "A current policy far from the old one: what passes through the old log-probabilities would cancel the whole gradient", objective("token", UNCLIPPED), ()),
    "reference-fixed": ("DATA-6 KL-2", "What passes through the reference would cancel the gradient of the KL term", objective("sequence", clip(0.2, 0.27), penalty=penalty("k2", 1.0)), ("ref_logp",)),
}  # fmt: skip
_BUGS = {
    "reinforce": "weight-not-detached",
    "cispo": "weight-not-detached",
    "vespo": "weight-not-detached",
    "correction": "correction-not-detached",
    "penalty": "kl-importance-detached kl-straight-through",
    "old": "zero-gradient old-policy-tracked",
    "reference": "old-policy-tracked",
}
for _slug, (_clauses, _title, _objective, _extra) in _WEIGHTS.items():
    _add(
        _slug, _title, f"GRAD-5 {_clauses}", _BUGS[_slug.partition("-")[0]], partial(_case, _objective, batch(*_extra))
    )


def _on_policy(objective_: dict[str, Any]) -> Case:
    source = explicit([[0.0] * 3, [0.0], [0.0] * 4, [0.0] * 2], old=-1.5).also(advantages=[1.0, -0.5, 0.25, -2.0])
    return _case(objective_, source)


_ON_POLICY: dict[str, dict[str, Any]] = {
    "gspo": gspo(),
    "gspo-token": gspo_token(),
    "grpo": objective("token", clip(0.2, 0.27)),
    "sapo": objective("token", SAPO),
    "gmpo": objective("token", GMPO),
    "reinforce": objective("token", REINFORCE),
}
for _name, _objective in _ON_POLICY.items():
    _add(
        f"on-policy-{_name}",
        f"On-policy {_name}: every ratio is 1 and the gradient is REINFORCE's over |y|, not 0",
        "GRAD-5 RATIO-8",
        "zero-gradient doubled-gradient",
        partial(_on_policy, _objective),
    )
