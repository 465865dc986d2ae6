"""Random objectives over random batches, all read in blocks: the core's loss, metrics and gradient, by no long way."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch

import gspo_torch as gspo
from gspo_torch import tokens

from .test_corrected import fast as fast  # a fixture
from .test_native import assert_equal, both


def surrogate(random: Random, ratio: str) -> Any:
    clip = gspo.Clip(random.uniform(0, 0.3), random.uniform(0, 0.3), random.choice([None, random.uniform(1.1, 1.5)]))
    some = [clip, clip, gspo.Unclipped(), gspo.Reinforce(random.choice([None, clip])), gspo.Sapo(0.7, 4.0)]
    some += [gspo.Cispo(random.choice([None, 0.1]), random.uniform(0, 0.3)), gspo.Vespo()]
    return random.choice([*some, gspo.Gmpo(0.1, 0.2)] if ratio == "token" else some)


def penalty(random: Random) -> gspo.Penalty | None:
    if random.random() < 0.4:
        return None
    return gspo.Penalty(
        random.choice(["k1", "k2", "k3", "k3_plus", "abs"]),
        0.3,
        random.choice([None, "token", "sequence"]),
        random.choice([None, gspo.Aggregation("token_mean")]),
        random.choice([None, 0.2]),
        random.choice([None, 0.02]),
    )


def objective(random: Random) -> gspo.Objective:
    ratio = random.choice(["token", "token", "token", "sequence", "product", "gspo_token"])
    mode = random.choice(["sequence_mean_token_mean", "sequence_mean_token_sum", "token_mean", "group_token_mean"])
    corrections = [
        gspo.Correction(
            random.choice(["token", "geometric", "sequence"]),
            random.choice(["clamp", "mask", "reject"]),
            0.9,
            1.2,
            random.choice(["old", "current"]),
            random.random() < 0.3,
        )
        for _ in range(random.choice([0, 0, 1, 2]))
    ]
    aggregation, cap = gspo.Aggregation(mode, random.choice(["all", "non_empty"])), random.choice([None, 30.0])
    return gspo.Objective(ratio, surrogate(random, ratio), aggregation, penalty(random), tuple(corrections), cap)


def strided(random: Random, values: torch.Tensor) -> torch.Tensor:
    """The same numbers, now and then in another order in memory."""
    views = [values, values.t().contiguous().t(), torch.stack([values, values], -1)[..., 0]]
    return random.choice(views)


def batch(random: Random, by_token: bool) -> dict[str, Any]:
    """Padded or packed, with holes, empty responses, A = 0 and, where nothing counts, NaN."""
    generator = torch.Generator().manual_seed(random.randrange(1 << 30))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lengths = [random.choice([0, 1, 3, 8]) for _ in range(6)]
    packed = random.random() < 0.5
    shape = (sum(lengths) + 3,) if packed else (6, 8)
    mask = torch.rand(shape, generator=generator) < random.choice([0.7, 1.0])
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    counted = mask & (torch.arange(shape[0]) < offsets[-1]) if packed else mask
    old = -normal(*shape).abs()
    arrays = {"old_logp": old, "logp": old + 0.3 * normal(*shape), "ref_logp": old + 0.3 * normal(*shape)}
    arrays["behavior_logp"] = old + 0.2 * normal(*shape)
    if by_token:
        arrays["advantages"] = normal(*shape)
    arrays = {name: strided(random, torch.where(counted, values, torch.nan)) for name, values in arrays.items()}
    some = torch.tensor([1.0, -1.0, 0.0, 0.7, -2.0, 0.3], dtype=torch.float64)
    rest = {
        "sequences": gspo.Packed(offsets, mask=mask) if packed else strided(random, mask),
        "groups": torch.tensor([0, 1, 0, 2, 2, 1]),
        "normalizer": random.choice([None, 5.0]),
    }
    return {"advantages": some} | arrays | rest


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("seed", range(80))
def test_it_is_the_core(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    random = Random(seed)
    monkeypatch.setattr(tokens, "_BLOCK", random.choice([1, 13, 1 << 16]))
    chosen = objective(random)
    by_token = chosen.allows_token_advantages and random.random() < 0.5
    assert_equal(both(chosen, batch(random, by_token)), 1e-11, 1e-14)
