"""A vocabulary cut over ranks: log-probabilities and gradients are those of the whole head."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import gspo_torch as gspo
from gspo_torch import distributed

from .batches import close
from .world import World

BATCH, LENGTH, WIDTH, VOCABULARY = 3, 7, 16, 37


def _problem(dtype: torch.dtype, vocabulary: int = VOCABULARY) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    shapes = {"hidden": (BATCH, LENGTH, WIDTH), "weight": (vocabulary, WIDTH), "bias": (vocabulary,)}
    found = {name: torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}
    found["hidden"][0, 0] *= 60  # one token is certain: its log-probability and gradient live on cancelled digits
    tokens = torch.randint(vocabulary, (BATCH, LENGTH), generator=draw)
    tokens[0, 0] = (found["hidden"][0, 0].double() @ found["weight"].double().T).argmax()
    weights = torch.randn(BATCH, LENGTH, generator=draw, dtype=torch.float64)
    weights[1] = 0.0
    return found | {"tokens": tokens, "weights": weights}


def _whole(problem: dict[str, torch.Tensor], temperature: float) -> dict[str, torch.Tensor]:
    """Plain log-softmax in float64."""
    leaves = {
        name: problem[name].to(torch.float64, copy=True).requires_grad_() for name in ("hidden", "weight", "bias")
    }
    logits = (leaves["hidden"] @ leaves["weight"].T + leaves["bias"]) / temperature
    logp = logits.log_softmax(-1).gather(-1, problem["tokens"][..., None])[..., 0]
    (logp * problem["weights"]).sum().backward()
    return {"logp": logp.detach()} | {name: leaf.grad for name, leaf in leaves.items()}


def _rows(sizes: tuple[int, ...]) -> slice:
    start = sum(sizes[: dist.get_rank()])
    return slice(start, start + sizes[dist.get_rank()])


def unequal_parts(dtype: torch.dtype, tolerance: float, sizes: tuple[int, ...]) -> None:
    problem, temperature = _problem(dtype), 0.7
    truth = _whole(problem, temperature)
    mine = _rows(sizes)
    parts = {"hidden": problem["hidden"], "weight": problem["weight"][mine], "bias": problem["bias"][mine]}
    parts = {name: values.clone().requires_grad_() for name, values in parts.items()}
    logp = distributed.linear_token_logps(
        **parts, tokens=problem["tokens"], start=mine.start, temperature=temperature, chunk_size=5
    )
    (logp * problem["weights"].to(logp.dtype)).sum().backward()
    expected = truth | {name: truth[name][mine] for name in ("weight", "bias")}
    torch.testing.assert_close(logp.double(), truth["logp"], rtol=tolerance, atol=tolerance)
    for name, values in parts.items():
        torch.testing.assert_close(values.grad.double(), expected[name], rtol=tolerance, atol=4 * tolerance, msg=name)


@pytest.mark.parametrize("sizes", [(5, 20, 1, 11), (37, 0, 0, 0)], ids=["unequal", "empty"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 4e-2)]
)
def test_unequal_parts_of_the_vocabulary(
    world: World, dtype: torch.dtype, tolerance: float, sizes: tuple[int, ...]
) -> None:
    world.run(unequal_parts, dtype, tolerance, sizes)


def equal_parts_and_a_loss() -> None:
    """All the way to a GSPO loss, against `linear_token_logps` of one process: the same numbers to rounding."""
    problem = _problem(torch.float64, 36)
    leaves = {name: problem[name].clone().requires_grad_() for name in ("hidden", "weight")}
    mine = slice(9 * dist.get_rank(), 9 * dist.get_rank() + 9)
    parts = {"hidden": problem["hidden"].clone(), "weight": problem["weight"][mine].clone()}
    parts = {name: values.requires_grad_() for name, values in parts.items()}
    old = gspo.linear_token_logps(problem["hidden"], problem["weight"], problem["tokens"]) + 0.1
    rest = (old, torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64), torch.ones(BATCH, LENGTH, dtype=torch.bool))
    clip = gspo.Clip(0.5, 0.5)
    gspo.gspo_loss(gspo.linear_token_logps(**leaves, tokens=problem["tokens"]), *rest, clip=clip).loss.backward()
    logp = distributed.linear_token_logps(**parts, tokens=problem["tokens"])
    gspo.gspo_loss(logp, *rest, clip=clip).loss.backward()
    close(parts["hidden"].grad, leaves["hidden"].grad, "hidden")
    close(parts["weight"].grad, leaves["weight"].grad[mine], "weight")


def test_a_loss_through_a_head_in_equal_parts(world: World) -> None:
    world.run(equal_parts_and_a_loss)


def placed(vocabulary: int) -> None:
    """The head as a DTensor with Shard(0): 37 rows over 4 ranks are 10, 10, 10 and 7; 5 rows are 2, 2, 1 and none."""
    problem = _problem(torch.float64, vocabulary)
    truth = _whole(problem, 1.0)
    mesh = init_device_mesh("cpu", (4,))
    weight = distribute_tensor(problem["weight"], mesh, [Shard(0)]).requires_grad_()
    bias = distribute_tensor(problem["bias"], mesh, [Shard(0)]).requires_grad_()
    hidden = distribute_tensor(problem["hidden"], mesh, [Replicate()]).requires_grad_()
    logp = distributed.linear_token_logps(hidden, weight, problem["tokens"], bias=bias)
    (logp * problem["weights"]).sum().backward()
    close(logp, truth["logp"], "logp")
    for name, values in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        close(values.grad.full_tensor(), truth[name], name)


@pytest.mark.parametrize("vocabulary", [VOCABULARY, 5])
def test_a_head_placed_as_a_dtensor(world: World, vocabulary: int) -> None:
    world.run(placed, vocabulary)


def refusals() -> None:
    problem = _problem(torch.float32, 36)
    rank, tokens = dist.get_rank(), problem["tokens"]
    weight = problem["weight"][9 * rank : 9 * rank + 9]
    outside = tokens.clone()
    outside[1, 2] = 36
    with pytest.raises(ValueError, match="tokens: expected ids that exactly one rank holds the row of, got 1 others"):
        distributed.linear_token_logps(problem["hidden"], weight, outside)
    with pytest.raises(ValueError, match="tokens: expected shape"):
        distributed.linear_token_logps(problem["hidden"], weight, tokens[:, 1:])
    mesh = init_device_mesh("cpu", (4,))
    whole = distribute_tensor(problem["weight"], mesh, [Shard(1)])
    with pytest.raises(ValueError, match=r"weight: expected a DTensor with Shard\(0\) on a mesh of 1 dimension"):
        distributed.linear_token_logps(problem["hidden"], whole, tokens)
    with pytest.raises(TypeError, match="weight: expected a plain tensor, got a DTensor"):
        gspo.linear_token_logps(problem["hidden"], whole, tokens)


def test_what_is_refused(world: World) -> None:
    world.run(refusals)
