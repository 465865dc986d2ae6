"""Pipelines: from rewards and log-probabilities to advantages, loss and gradient in one call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import nan
from typing import Any

import numpy as np

from ..cases import Responses, packed, padded, responses
from ..recipe import Case, Shelf, clip, gspo, gspo_token, objective, penalty
from .relatives import REINFORCE

RECIPES = Shelf("pipeline")
_add = RECIPES.add

CONVENTION = (
    "The paper prints a standard deviation without ddof or eps; here ddof={ddof}, eps={eps}, added to the {place}."
)
OUTPUTS = ("advantages", "loss", "gradient")
GROUPS = [7, -3, 7, -3, 7, 7, -3, 12]
REWARDS = [1.0, 0.0, 0.25, 0.75, 0.0, 0.5, 1.0, 0.5]


def batch(name: str, rewards: Sequence[float], groups: Sequence[int], spread: float = 0.04, scale: float = 1.0, *extra: str) -> Responses:  # fmt: skip
    """Responses of 1 to 9 tokens around the paper's range, with rewards and group ids."""
    means = [scale * mean for mean in (2e-4, -1e-4, 6e-4, -2e-4, -7e-4, 1e-4, 7e-4, -1.5e-4)]
    lengths = [4, 1, 7, 3, 9, 2, 5, 6]
    count = len(rewards)
    source = responses(f"pipeline/{name}", lengths[:count], means[:count], spread=spread, extra=extra, extra_spread=0.5)
    return source.also(rewards=rewards, groups=groups)


def pipeline(objective_: dict[str, Any], inputs: dict[str, Any], *outputs: str, **advantages: Any) -> Case:
    """The case of rewards -> group advantages -> loss."""
    settings = {"center": "mean", "scale": "std", "ddof": 1, "eps": 1e-6, "eps_placement": "std"} | advantages
    return Case("pipeline", {"objective": objective_, "advantages": settings}, inputs, outputs or OUTPUTS)


def _stated(slug: str, title: str, clauses: str, flags: str, case: Any, **settings: Any) -> None:
    """A vector whose answer depends on ddof and eps: SHOULD, with both stated."""
    note = CONVENTION.format(
        ddof=settings.get("ddof", 1), eps=settings.get("eps", 1e-6), place=settings.get("eps_placement", "std")
    )
    _add(slug, title, clauses, flags, partial(case, **settings), level="SHOULD", note=note)


def _case(objective_: dict[str, Any], source: Responses, layout: Any = padded, **settings: Any) -> Case:
    return pipeline(objective_, layout(source), **settings)


_PAPER = batch("paper", REWARDS, GROUPS)
_WIDE = batch("wide", REWARDS, GROUPS, 0.3, 400.0)
_stated("gspo", "Rewards to gradient with the paper's GSPO: groups of 4, 3 and 1 in any order", "ADV-1 ADV-2 ADV-5 GRAD-1 AGG-2", "ddof batch-statistics group-order", partial(_case, gspo(), _PAPER))  # fmt: skip
_stated("gspo-population", "The same with ddof 0", "ADV-1 ADV-2 GRAD-1", "ddof", partial(_case, gspo(), _PAPER), ddof=0)
_stated("gspo-large-eps", "The same with eps 1/8 under the root", "ADV-2 GRAD-1", "eps-placement", partial(_case, gspo(), _PAPER), eps=0.125, eps_placement="variance")  # fmt: skip
_stated("gspo-token", "Rewards to gradient with GSPO-token", "ADV-1 GRAD-4 GRAD-3", "ddof doubled-gradient", partial(_case, gspo_token(), _PAPER))  # fmt: skip
_stated("gspo-packed", "Rewards to gradient, packed", "ADV-1 PACK-1", "ddof packed-one-advantage packed-one-ratio", partial(_case, gspo(), _PAPER, partial(packed, trailing=3, fill=-1.0)))  # fmt: skip
_stated("gspo-garbage", "Rewards to gradient with NaN in the padding", "ADV-1 DATA-2", "garbage-in-padding", partial(_case, gspo(), _PAPER, partial(padded, fill=nan)))  # fmt: skip
_stated("grpo", "Rewards to gradient with GRPO", "ADV-1 RATIO-1 SURR-1", "ddof token-mean", partial(_case, objective("token", clip(0.2, 0.27)), _WIDE))  # fmt: skip
_stated("dapo", "Rewards to gradient with DAPO: group token means over the groups of the advantages", "ADV-1 AGG-6", "group-order group-count", partial(_case, objective("token", clip(0.2, 0.28), "group_token_mean"), _WIDE))  # fmt: skip
_stated("gspo-wide-range", "Rewards to gradient, ratios from 0.7 to 1.3 in a range of 0.2/0.27", "ADV-1 SURR-2", "two-sided-gate range-swapped", partial(_case, gspo(0.2, 0.27), _WIDE))  # fmt: skip
_stated("batch-std", "Centred per group, divided by the batch's standard deviation", "ADV-13 GRAD-1", "batch-statistics", partial(_case, gspo(), _PAPER), scale="batch_std")  # fmt: skip
_stated("leave-one-out-std", "Leave-one-out mean and standard deviation", "ADV-6 GRAD-1", "self-in-baseline", partial(_case, gspo(), batch("loo", [1.0, 0.0, 0.25, 0.75, 0.5, 0.125], [1, 0, 1, 1, 0, 0])), center="leave_one_out", scale="leave_one_out_std")  # fmt: skip

# Nothing below depends on ddof or eps.
_FREE: dict[str, tuple[str, str, str, dict[str, Any], Responses, dict[str, Any]]] = {
    "mean-only": ("ADV-7 GRAD-1", "Rewards minus the mean of their group, the paper's GSPO", "switch-ignored batch-statistics group-order", gspo(), _PAPER, {"scale": "none"}),
    "mean-only-grpo": ("ADV-7 SURR-1", "Rewards minus the mean of their group, token ratios", "switch-ignored batch-statistics", objective("token", clip(0.2, 0.2)), _WIDE, {"scale": "none"}),
    "dr-grpo": ("ADV-7 AGG-4", "Dr. GRPO: mean only, token sums over a constant", "switch-ignored token-mean", objective("token", clip(0.2, 0.2), {"mode": "sequence_mean_token_sum", "count": "all", "constant": 16.0}), _WIDE, {"scale": "none"}),
    "rloo": ("ADV-6 SURR-7 AGG-4", "RLOO: leave-one-out advantages, REINFORCE, token sums", "self-in-baseline", objective("token", REINFORCE, "sequence_mean_token_sum"), _WIDE, {"center": "leave_one_out", "scale": "none"}),
    "minirl": ("ADV-7 SURR-7", "Mean-only advantages under gated REINFORCE", "switch-ignored weight-not-detached", objective("token", {"kind": "reinforce", "gate": {"low": 0.2, "high": 0.27, "dual": None}}, "sequence_mean_token_sum"), _WIDE, {"scale": "none"}),
    "penalty": ("ADV-7 KL-6", "Mean-only advantages and a KL term: it survives where the advantage is 0", "kl-gated", objective("sequence", clip(0.2, 0.2), penalty=penalty("k3")), batch("penalty", REWARDS, GROUPS, 0.3, 400.0, "ref_logp"), {"scale": "none"}),
    "equal-rewards": ("ADV-3 SURR-12 GRAD-2", "Groups with equal rewards of 0.1 and of 1: no advantage, no loss, no gradient", "phantom-advantage batch-statistics", gspo(), batch("equal", [float(np.float32(0.1))] * 5 + [1.0] * 3, [4, 4, 4, 4, 4, 0, 0, 0]), {}),
    "one-informative-group": ("ADV-3 ADV-7 AGG-2", "One group of equal rewards beside one that varies: the first gives nothing and still counts in G", "phantom-advantage group-count", gspo(), batch("informative", [float(np.float32(0.3))] * 5 + [0.0, 1.0, 0.75], [4, 4, 4, 4, 4, 0, 0, 0]), {"scale": "none"}),
    "negative-rewards": ("ADV-7 SURR-2", "Rewards far below 0: their offset cancels", "switch-ignored batch-statistics", gspo(), batch("negative", [-8.0, -7.5, -9.0, -8.25, -7.0, -8.5, -7.75, -9.5], GROUPS), {"scale": "none"}),
}  # fmt: skip
for _slug, (_clauses, _title, _flags, _objective, _source, _settings) in _FREE.items():
    _add(_slug, _title, _clauses, _flags, partial(_case, _objective, _source, **_settings))
_add(
    "singletons",
    "Every response is its own group: no advantage, no gradient",
    "ADV-4 SURR-12",
    "singleton",
    partial(_case, gspo(), batch("singletons", REWARDS, [3, 1, 4, 15, 9, 2, 6, 5])),
    level="SHOULD",
    note="A group of one has no spread. Convention: A = 0 exactly (not the raw reward, not NaN).",
)


def _whole_batch(name: str, rewards: Sequence[float], groups: Sequence[int]) -> Case:
    return _case(gspo(), batch(name, rewards, groups), scale="none")


_add(
    "order",
    "The responses of mean-only in another order: every advantage and gradient moves with its response",
    "ADV-5 ADV-7 GRAD-1",
    "group-order",
    lambda: pipeline(gspo(), padded(_PAPER.part((5, 0, 7, 2, 1, 6, 3, 4))), scale="none"),
)
_add(
    "same-text-two-groups",
    "Two groups with the same rewards and ids far apart: they are not merged, and not told apart by position",
    "ADV-5 ADV-7",
    "group-order batch-statistics",
    partial(
        _whole_batch, "two", [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0], [-1000, 5, -1000, 5, 99999, 99999, 5, -1000]
    ),
)
