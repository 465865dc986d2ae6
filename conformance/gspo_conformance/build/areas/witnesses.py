"""Witnesses: vectors written for one wrong implementation each, which nothing else tells from a right one."""

from __future__ import annotations

from typing import Any

from ..cases import explicit, padded
from ..recipe import Case, Shelf, clip, gspo, gspo_token, loss, objective, penalty

_MASK, _PENALTY = Shelf("mask"), Shelf("penalty")


def _certain(objective_: dict[str, Any]) -> Case:
    source = explicit([[2.0, -0.5, 0.25], [-0.125, 2.0], [0.5]]).also(advantages=[1.0, -0.5, 0.75])
    return loss(objective_, padded(source))


_MASK.add(
    "certain-token",
    "Two sampled tokens have log-probability exactly 0: they were certain, not padding, and count",
    "DATA-1 RATIO-4",
    "mask-from-values",
    lambda: _certain(objective("sequence", clip(1.0, 4.0))),
)
for _name, _objective in {"paper": gspo(), "gspo-token": gspo_token()}.items():
    _MASK.add(
        f"certain-token-{_name}",
        "The same in the paper's range" + (" with the GSPO-token ratio" if _name == "gspo-token" else ""),
        "DATA-1 RATIO-4",
        "mask-from-values",
        lambda o=_objective: _certain(o),
    )


def _at_reference() -> Case:
    source = explicit([[0.25, -0.5, 0.125], [0.0, 0.5]])
    moved = [[0.0, 0.25, -0.75], [-0.25, 0.0]]
    reference = [row - d for row, d in zip(source.rows["logp"], moved, strict=True)]
    held = objective("token", clip(0.2, 0.27), penalty=penalty("abs", 0.5))
    return loss(held, padded(source.tokens(ref_logp=reference).also(advantages=[1.0, -0.5])))


_PENALTY.add(
    "abs-at-reference",
    "|z| where z is exactly 0: by symmetry it has no gradient there",
    "KL-1",
    "kl-estimator boundary",
    _at_reference,
    level="SHOULD",
    note="|z| has no derivative at 0. Convention: its sign, which is 0 there.",
)

RECIPES = [*_MASK, *_PENALTY]
