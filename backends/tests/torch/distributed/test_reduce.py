"""Data parallelism: whatever the split over ranks and micro-batches, loss, gradient and metrics are those of one call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import gspo_torch as gspo
from gspo_torch import distributed

from .batches import OWNERS, TOKENS, batch, close, objectives, rows, single
from .world import World


def _check(found: gspo.PolicyLoss, truth: gspo.PolicyLoss, what: str) -> None:
    close(found.loss, truth.loss, f"{what}: loss")
    assert found.metrics.keys() == truth.metrics.keys()
    for name, value in truth.metrics.items():
        close(found.metrics[name], value, f"{what}: {name}")


def all_objectives(packed: bool, dtype: torch.dtype) -> None:
    whole = batch(dtype=dtype)
    mine = list(OWNERS[dist.get_rank()])
    part = rows(whole, mine, packed)
    for name, objective in objectives().items():
        truth, gradient = single(objective, whole)
        logp = part["logp"].clone().requires_grad_()
        found = distributed.reduce(objective, **(part | {"logp": logp}), world_scale=3)
        found.loss.backward()
        _check(found, truth, name)
        own = rows(whole | {"logp": gradient}, mine, packed)["logp"]
        close(logp.grad, torch.where(logp.isnan() | (own == 1), 0.0, 3 * own), f"{name}: gradient")


@pytest.mark.parametrize(("packed", "dtype"), [(False, torch.float64), (True, torch.float32)])
def test_any_split_over_ranks_is_the_union(world: World, packed: bool, dtype: torch.dtype) -> None:
    world.run(all_objectives, packed, dtype)


def micro_batches() -> None:
    """Rank r has its responses one at a time; rank 2 has none but takes part in every backward pass."""
    whole = batch()
    mine = OWNERS[dist.get_rank()]
    for name, objective in objectives().items():
        truth, gradient = single(objective, whole)
        parts = [rows(whole, [row]) for row in mine]
        union = distributed.Union(
            objective, [(part["sequences"], part["groups"]) for part in parts], world_scale=1, data=dist.group.WORLD
        )
        idle = torch.full((3, 2), torch.inf, dtype=torch.float64, requires_grad=True)
        union.loss(logp=idle, sequences=None).backward()
        assert torch.equal(idle.grad, torch.zeros(3, 2, dtype=torch.float64))
        for row, part in zip(mine, parts):
            logp = part["logp"].clone().requires_grad_()
            union.loss(**(part | {"logp": logp})).backward()
            close(logp.grad[0], gradient[row], f"{name}: gradient of response {row}")
        _check(union.result(), truth, name)


def test_micro_batches_share_the_normaliser_of_all_ranks(world: World) -> None:
    world.run(micro_batches)


def over_and_along() -> None:
    """Two ranks share each half of the responses, each with a part of every sequence."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "cp"))
    whole = batch()
    half = rows(whole, range(4) if mesh["dp"].get_local_rank() == 0 else range(4, 8))
    split = distributed.ContextSplit(half["sequences"], group=mesh["cp"])
    part = half | {name: split.shard(half[name]) for name in TOKENS} | {"sequences": split.sequences}
    for name, objective in objectives().items():
        truth, gradient = single(objective, whole)
        logp = part["logp"].clone().requires_grad_()
        found = distributed.reduce(objective, **(part | {"logp": logp}), data=mesh["dp"], world_scale=1)
        found.loss.backward()
        _check(found, truth, name)
        own = rows({"gradient": gradient}, range(4) if mesh["dp"].get_local_rank() == 0 else range(4, 8))
        close(logp.grad, split.shard(own["gradient"]), f"{name}: gradient")


def test_data_and_context_parallel_together(world: World) -> None:
    world.run(over_and_along)


def given_normalizer() -> None:
    objective = gspo.Objective.gspo().replace(aggregation=gspo.Aggregation(count="given"))
    whole = batch()
    part = rows(whole, OWNERS[dist.get_rank()])
    found = distributed.reduce(objective, **part, world_scale=1, normalizer=16)
    close(found.loss, gspo.policy_loss(objective, **whole, normalizer=16).loss, "given")


def test_a_given_normaliser_stays(world: World) -> None:
    world.run(given_normalizer)


def overflow() -> None:
    """Ratios far past float32 on one rank only: the effective sample size and the extremes survive."""
    objective = gspo.Objective("sequence", gspo.Clip(0.2, 0.2))
    rank = dist.get_rank()
    logp = torch.full((2, 3), 100.0 * rank)
    arguments: dict[str, Any] = {"old_logp": torch.zeros(2, 3), "advantages": torch.tensor([1.0, 0.0])}
    found = distributed.reduce(
        objective, logp=logp, sequences=torch.ones(2, 3, dtype=torch.bool), **arguments, world_scale=1
    )
    assert found.metrics["effective_sample_size"] == 2.0
    assert found.metrics["ratio_min"] == 1.0
    assert found.metrics["ratio_max"] == torch.inf
    assert found.loss.isfinite()


def test_ratios_that_overflow_on_one_rank(world: World) -> None:
    world.run(overflow)


def numbers_sent(length: int) -> list[int]:
    sent: list[int] = []
    plain = dist.all_gather

    def counting(parts: list[torch.Tensor], values: torch.Tensor, group: Any) -> None:
        sent.append(values.numel())
        plain(parts, values, group=group)

    old = -torch.rand(3, length)
    arguments: dict[str, Any] = {"old_logp": old, "advantages": torch.ones(3), "sequences": torch.ones(3, length)}
    dist.all_gather = counting
    try:
        logp = (old + 1e-3).requires_grad_()
        distributed.reduce(gspo.Objective.gspo(), logp=logp, **arguments, world_scale=1).loss.backward()
    finally:
        dist.all_gather = plain
    return sent


def test_a_step_sends_eighteen_numbers_whatever_its_size(world: World) -> None:
    for length in (8, 2048):
        assert world.run(numbers_sent, length) == [[3, 15]] * 4


def refusals() -> None:
    arguments = rows(batch(), [0])
    with pytest.raises(TypeError, match="world_scale: expected a number, got str"):
        distributed.reduce(gspo.Objective.gspo(), **arguments, world_scale="4")
    with pytest.raises(TypeError, match="data: expected a ProcessGroup that this rank belongs to, or a DeviceMesh"):
        distributed.reduce(gspo.Objective.gspo(), **arguments, data="dp", world_scale=1)
    given = gspo.Objective.gspo().replace(aggregation=gspo.Aggregation(count="given"))
    with pytest.raises(ValueError, match="normalizer: expected a number, since the aggregation counts as given"):
        distributed.reduce(given, **arguments, world_scale=1)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "cp"))
    with pytest.raises(ValueError, match=r"data: expected a mesh of 1 dimension, such as mesh\['dp'\], got 2"):
        distributed.reduce(gspo.Objective.gspo(), **arguments, data=mesh, world_scale=1)
    with pytest.raises(TypeError, match="objective: expected an Objective, got str"):
        distributed.reduce("gspo", **arguments, world_scale=1)


def test_what_is_refused(world: World) -> None:
    world.run(refusals)


@pytest.mark.parametrize("name", ["gspo", "dapo", "penalty-token"])
def test_micro_batches_of_one_process_need_no_process_group(name: str) -> None:
    whole, objective = batch(dtype=torch.float64), objectives()[name]
    truth, gradient = single(objective, whole)
    parts = [rows(whole, list(owned), False) for owned in OWNERS if owned]
    union = distributed.Union(objective, [(part["sequences"], part["groups"]) for part in parts], world_scale=1)
    for part, owned in zip(parts, filter(None, OWNERS), strict=True):
        logp = part["logp"].clone().requires_grad_()
        (found,) = torch.autograd.grad(union.loss(**(part | {"logp": logp})), logp)
        close(found, gradient[list(owned)], "gradient")
    _check(union.result(), truth, name)


@pytest.mark.parametrize("times", [0, 1, 3])
def test_a_micro_batch_that_is_left_out_or_comes_twice_is_an_error(times: int) -> None:
    part = batch(dtype=torch.float64)
    union = distributed.Union(gspo.Objective.gspo(), [(part["sequences"], part["groups"])] * 2, world_scale=1)
    for _ in range(times):
        union.loss(**part)
    with pytest.raises(RuntimeError, match=f"result: expected one loss of each of the 2 parts .*, got {times} losses"):
        union.result()


def test_a_union_takes_what_it_knows() -> None:
    """An argument under another name would be left out of the loss without a word."""
    whole, objective = rows(batch(), range(8)), gspo.Objective.gspo()
    union = distributed.Union(objective, [whole["sequences"]], world_scale=1)
    for name, value in (("normalizer", 3), ("ref_logps", whole["ref_logp"])):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            union.loss(**whole, **{name: value})
    with pytest.raises(TypeError, match=r"^old_logp: expected an array, got NoneType"):
        union.loss(logp=whole["logp"], sequences=whole["sequences"])
    for parts in (whole["sequences"], gspo.Padded(whole["sequences"])):
        with pytest.raises(TypeError, match=r"^parts: expected a list, the sequences of each micro-batch, got one"):
            distributed.Union(objective, parts, world_scale=1)
    for part in (None, [whole["sequences"]], (whole["sequences"], whole["groups"], 1)):
        with pytest.raises(TypeError, match=r"^sequences: expected an array, got (NoneType|list|tuple)$"):
            distributed.Union(objective, [part], world_scale=1)
    with pytest.raises(TypeError, match=r"^logp: expected an array, got NoneType"):
        distributed.reduce(objective, **whole | {"logp": None}, world_scale=1)


@pytest.mark.parametrize("normalizer", [0, -1.0, float("nan"), True, torch.tensor(-3.0), torch.tensor(0.0)])
def test_a_normaliser_is_a_positive_number(normalizer: Any) -> None:
    """Hunts M = 1 in the place of what is no M at all."""
    with pytest.raises((TypeError, ValueError), match=r"^normalizer: expected "):
        distributed.Union(gspo.Objective.gspo(), [batch()["sequences"]], world_scale=1, normalizer=normalizer)


@pytest.mark.parametrize("missing", ["parts", "loss", "both but another mask"])
def test_a_loss_of_what_was_not_counted_is_an_error(missing: str) -> None:
    """Hunts a share of a group that the union has not heard of, which is 0."""
    part, objective = batch(), gspo.Objective.dapo()
    mask, groups = part["sequences"], part["groups"]
    parts = [mask] if missing == "parts" else [(mask.roll(1, 0) if "mask" in missing else mask, groups)]
    union = distributed.Union(objective, parts, world_scale=1)
    with pytest.raises(ValueError, match="sequences, groups: expected those of one of the 1 parts"):
        union.loss(**part | {"groups": None if missing == "loss" else groups})


def test_a_loss_without_groups_that_weigh() -> None:
    """Groups are not compared where no aggregation reads them."""
    part = batch()
    distributed.Union(gspo.Objective.gspo(), [part["sequences"]], world_scale=1).loss(**part)


@pytest.mark.parametrize("name", ["sequences", "offsets"])
def test_a_layout_changed_before_the_gradient_is_made(name: str) -> None:
    """Hunts a gradient that is laid on the tokens of the next micro-batch."""
    part = rows(batch(), range(8), packed=name == "offsets")
    logp = part["logp"].requires_grad_()
    union = distributed.Union(gspo.Objective.gspo(), [part["sequences"]], world_scale=1)
    loss = union.loss(**part)
    (part["sequences"].offsets if name == "offsets" else part["sequences"]).zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, logp)


@pytest.mark.parametrize("name", ["gspo", "grpo"])
def test_a_share_is_differentiated_once(name: str) -> None:
    """Hunts a gradient penalty that passes for a constant beside another term; and many factors at once."""
    part = batch()
    logp = part["logp"].requires_grad_()
    loss = distributed.Union(objectives()[name], [part["sequences"]], world_scale=1).loss(**part)
    twice, once = torch.autograd.grad(loss, logp, torch.tensor([2.0, 1.0]), is_grads_batched=True, retain_graph=True)[0]
    close(twice, 2 * once, "batched")
    (gradient,) = torch.autograd.grad(loss, logp, create_graph=True)
    with pytest.raises(RuntimeError, match="expected to be differentiated once"):
        (gradient.square().sum() + logp.sum()).backward()


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("old", [torch.float32, torch.float64])
def test_the_dtype_of_the_result_is_that_of_the_log_probabilities(default: torch.dtype, old: torch.dtype) -> None:
    """Hunts results in the default dtype, and float64 that one of the two policies alone does not keep (GSPO-NUM-2)."""
    whole = batch(dtype=torch.float32)
    part = whole | {"old_logp": whole["old_logp"].to(old)}
    torch.set_default_dtype(default)
    try:
        union = distributed.Union(gspo.Objective.gspo(), [part["sequences"]], world_scale=1)
        union.loss(**part)
        assert union.normalizer.dtype == old
        _check(union.result(), gspo.policy_loss(gspo.Objective.gspo(), **part), "result")
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_named_group_needs_a_process_group() -> None:
    with pytest.raises(RuntimeError, match="data: expected an initialised process group"):
        distributed.reduce(gspo.Objective.gspo(), **batch(), data="dp", world_scale=1)
