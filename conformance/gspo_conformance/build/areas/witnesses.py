"""Witnesses: vectors written for one wrong implementation each, which nothing else tells from a right one."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..cases import Responses, explicit, padded
from ..recipe import Case, Shelf, clip, grpo, gspo, gspo_token, loss, objective, penalty

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


def _certain_before(objective_: dict[str, Any]) -> Case:
    """Counted tokens of log-probability 0 under the old policy, some of them under both."""
    old = [[-2.0, 0.0, -1.0], [-1.5, 0.0, -0.5], [-2.0], [-3.0, -1.0, 0.0, 0.0]]
    moved = [[0.25, -0.25, 2.0**-11], [-(2.0**-12), 0.0, 2.0**-11], [2.0**-12], [2.0**-9, -(2.0**-9), 0.0, -(2.0**-11)]]
    rows = [np.add(*row) for row in zip(old, moved, strict=True)]
    source = Responses({}).tokens(logp=rows, old_logp=old)
    return loss(objective_, padded(source.also(advantages=[1.0, -0.5, 0.75, -1.25])))


for _suffix, _objective in {"": gspo(), "-grpo": grpo()}.items():
    _MASK.add(
        f"certain-before{_suffix}",
        "Tokens of log-probability exactly 0 under the old policy, or under both: they were certain, not padding, and count",
        "DATA-1 RATIO-1" if _suffix else "DATA-1 RATIO-4",
        "mask-from-values",
        lambda o=_objective: _certain_before(o),
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
