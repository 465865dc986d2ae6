"""Real DDP and FSDP2 average gradients over ranks: with `world_scale` the parameters' gradients are those of one process."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gspo_torch as gspo
from gspo_torch import distributed

from .batches import LENGTHS, OWNERS, batch, close, objectives, rows
from .world import World

VOCABULARY = 11


class Policy(nn.Module):
    """Tokens to log-probabilities, each from its own embedding, so that a sequence may be cut anywhere."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.embedding = nn.Embedding(VOCABULARY, 6, dtype=torch.float64)
        self.head = nn.Linear(6, VOCABULARY, dtype=torch.float64)

    def forward(self, tokens: Tensor) -> Tensor:
        return gspo.token_logps(self.head(self.embedding(tokens).tanh()), (tokens * 3 + 1) % VOCABULARY)


def _whole() -> tuple[Tensor, dict[str, Any]]:
    """Tokens, and a batch whose old policy is a little off the model's."""
    whole, policy = batch(), Policy()
    tokens = torch.arange(64).view(len(LENGTHS), 8) * 5 % VOCABULARY
    with torch.no_grad():
        shift = policy(tokens) - whole["logp"].nan_to_num()
    return tokens, {name: _shifted(name, values, shift) for name, values in whole.items() if name != "logp"}


def _shifted(name: str, values: Tensor, shift: Tensor) -> Tensor:
    return values + shift if name.endswith("logp") else values


def _truth(objective: gspo.Objective) -> dict[str, Tensor]:
    tokens, whole = _whole()
    policy = Policy()
    gspo.policy_loss(objective, logp=policy(tokens), **whole).loss.backward()
    return {name: parameter.grad for name, parameter in policy.named_parameters()}


def _wrapped(kind: str, mesh: DeviceMesh) -> nn.Module:
    policy = Policy()
    if kind == "ddp":
        return DistributedDataParallel(policy, process_group=mesh.get_group())
    fully_shard(policy.head, mesh=mesh)
    return fully_shard(policy, mesh=mesh)


def _compare(model: nn.Module, truth: dict[str, Tensor], what: str) -> None:
    for name, parameter in model.named_parameters():
        found = parameter.grad.full_tensor() if hasattr(parameter.grad, "full_tensor") else parameter.grad
        close(found, truth[name.removeprefix("module.")], f"{what}: {name}")


def over_ranks(kind: str) -> None:
    """Unequal shares; rank 2 has no response, and takes part with a row that does not count."""
    mesh = init_device_mesh("cpu", (4,))
    tokens, whole = _whole()
    mine = list(OWNERS[dist.get_rank()])
    for name in ("gspo", "dapo", "token_mean-all", "penalty-sequence"):
        objective = objectives()[name]
        model = _wrapped(kind, mesh)
        logp = model(tokens[mine or [0]])
        part = rows(whole | {"logp": whole["old_logp"]}, mine)
        found = distributed.reduce(objective, **(part | {"logp": logp}), data=mesh, world_scale=mesh.size())
        found.loss.backward()
        _compare(model, _truth(objective), f"{kind} {name}")


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_averaged_gradients_over_data_parallel_ranks(world: World, kind: str) -> None:
    world.run(over_ranks, kind)


def accumulated(kind: str) -> None:
    """Two micro-batches before the gradients are synchronised; a rank with fewer passes `sequences=None`."""
    mesh = init_device_mesh("cpu", (4,))
    tokens, whole = _whole()
    objective = objectives()["group_token_mean-all"]
    mine = OWNERS[dist.get_rank()]
    halves = [list(mine[:2]), list(mine[2:])]
    parts = [rows(whole | {"logp": whole["old_logp"]}, half) for half in halves]
    union = distributed.Union(
        objective,
        [(part["sequences"], part["groups"]) for half, part in zip(halves, parts) if half],
        data=mesh,
        world_scale=4,
    )
    model = _wrapped(kind, mesh)
    for number, (half, part) in enumerate(zip(halves, parts)):
        _synchronise(model, number == 1)
        union.loss(**(part | {"logp": model(tokens[half or [0]])})).backward()
    _compare(model, _truth(objective), kind)


def _synchronise(model: nn.Module, now: bool) -> None:
    if isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = now
    else:
        model.set_requires_gradient_sync(now)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_accumulation_before_the_gradients_are_averaged(world: World, kind: str) -> None:
    world.run(accumulated, kind)


def over_and_along(kind: str) -> None:
    """Parameters shared by all four ranks, responses over two, each sequence over the other two: averaged over four."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "cp"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flat = mesh._flatten("all")
    tokens, whole = _whole()
    objective = objectives()["penalty-sequence"]
    mine = range(4) if mesh["dp"].get_local_rank() == 0 else range(4, 8)
    part = rows(whole | {"logp": whole["old_logp"]}, mine)
    split = distributed.ContextSplit(part["sequences"], group=mesh["cp"])
    part = {name: split.shard(values) if name.endswith("logp") else values for name, values in part.items()}
    model = _wrapped(kind, flat)
    logp = model(split.shard(tokens[list(mine)]))
    arguments = part | {"logp": logp, "sequences": split.sequences}
    distributed.reduce(objective, **arguments, data=mesh["dp"], world_scale=4).loss.backward()
    _compare(model, _truth(objective), kind)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_averaged_gradients_over_data_and_context_parallel_ranks(world: World, kind: str) -> None:
    world.run(over_and_along, kind)
