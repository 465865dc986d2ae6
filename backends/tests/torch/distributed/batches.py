"""Seeded batches, and how they are cut over ranks: unequally, with empty responses and empty ranks, groups split."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import gspo_torch as gspo
from gspo_torch import Aggregation, Clip, Correction, Objective, Penalty

WIDE = Clip(0.2, 0.3)
TOKENS = ("logp", "old_logp", "ref_logp", "behavior_logp")
LENGTHS = (7, 3, 0, 1, 5, 8, 2, 4)
# Which of four ranks has which responses: unequal shares, and one rank without any.
OWNERS = ((0, 3, 6), (1, 2, 4, 7), (), (5,))


def objectives() -> dict[str, Objective]:
    """Every aggregation and count, every ratio, every kind of surrogate, penalties and corrections."""
    found = {
        name: getattr(Objective, name)()
        for name in ("gspo", "gspo_token", "grpo", "dapo", "gmpo", "cispo", "sapo", "luspo", "vespo", "minirl", "rloo")
    }
    for mode in ("sequence_mean_token_mean", "sequence_mean_token_sum", "token_mean", "token_sum", "group_token_mean"):
        for count in ("all", "non_empty"):
            found[f"{mode}-{count}"] = Objective("sequence", WIDE, Aggregation(mode, count, 3.0))
    for importance in (None, "token", "sequence"):
        penalty = Penalty("k3", 0.5, importance, Aggregation("token_mean"))
        found[f"penalty-{importance}"] = Objective("sequence", WIDE, penalty=penalty)
        found[f"penalty-{importance}-own"] = Objective("token", WIDE, penalty=replace(penalty, aggregation=None))
    for level in ("token", "sequence", "geometric"):
        correction = Correction(level, "mask", 0.8, 1.2)
        found[f"correction-{level}"] = Objective("sequence", WIDE, correction=(correction,))
    found["product"] = Objective("product", WIDE, log_ratio_cap=0.4)
    found["dual"] = Objective("token", Clip(0.2, 0.3, 1.4))
    return found


def batch(seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Eight responses of three groups, `[8, 8]`, with a hole, garbage where nothing counts, no gradient anywhere."""
    draw = torch.Generator().manual_seed(seed)
    shape = (len(LENGTHS), max(LENGTHS))

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(shape, generator=draw, dtype=torch.float64)

    mask = torch.arange(shape[1]) < torch.tensor(LENGTHS)[:, None]
    mask[0, 2] = False
    logp = -normal(1.0).abs()
    old = logp + normal(0.3)
    tokens = {"logp": logp, "old_logp": old, "ref_logp": logp + normal(0.2), "behavior_logp": old + normal(0.1)}
    return {name: torch.where(mask, values, torch.nan).to(dtype) for name, values in tokens.items()} | {
        "advantages": torch.tensor([1.0, -1.0, 0.5, -2.0, 0.7, -0.3, 0.0, 1.5], dtype=dtype),
        "sequences": mask,
        "groups": torch.tensor([3, -1, 3, 12, -1, 3, 12, 12]),
    }


def rows(whole: dict[str, Any], chosen: Any, packed: bool = False) -> dict[str, Any]:
    """The chosen responses, padded, or packed with two tokens of trailing padding."""
    chosen = list(chosen)
    if not chosen:
        return dict.fromkeys(whole) | {"logp": whole["logp"].new_zeros(0), "sequences": None}
    part = {name: values[chosen] for name, values in whole.items()}
    return _packed(part, [LENGTHS[row] for row in chosen]) if packed else part


def _packed(part: dict[str, Any], lengths: list[int]) -> dict[str, Any]:
    def pack(values: Tensor) -> Tensor:
        segments = [row[:length] for row, length in zip(values, lengths)]
        return torch.cat([*segments, values.new_ones(2)])

    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    sequences = gspo.Packed(offsets, mask=pack(part["sequences"]))
    return part | {name: pack(part[name]) for name in TOKENS} | {"sequences": sequences}


def single(objective: Objective, whole: dict[str, Any]) -> tuple[gspo.PolicyLoss, Tensor]:
    """The truth of these tests: one call of the core on everything, and its gradient."""
    logp = whole["logp"].clone().requires_grad_()
    found = gspo.policy_loss(objective, **(whole | {"logp": logp}))
    (gradient,) = torch.autograd.grad(found.loss, logp)
    return found, gradient


def close(got: Tensor, truth: Tensor, what: str) -> None:
    """Equal but for the order of additions."""
    tolerance = 64 * torch.finfo(truth.dtype).eps
    torch.testing.assert_close(
        got.detach(), truth.detach(), rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}"
    )
