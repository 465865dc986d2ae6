"""`torch.compile(fullgraph=True)`: no graph break, one graph for every length, the values of the eager call.

`aot_eager` runs everywhere; `inductor` also where a C++ compiler is installed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import gspo_torch as gspo
from gspo_core.tests.batches import Batch, axes

from .test_native import tensor

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit"),
    # array-api-compat keeps look-ups by type in one, which is as good as a constant.
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .functools.lru_cache"),
]
AXES = axes()
COMPILER = any(map(shutil.which, ("g++", "c++", "clang++")))
COMPILERS = ["aot_eager", "inductor"] if COMPILER else ["aot_eager"]
NAMES = ("gspo_token", "dapo", "gmpo", "cispo", "minirl", "kl-k3-sequence")


class Compiled:
    """A function compiled whole, with the graphs counted that calls after the first one add.

    Some compilers make a graph twice in the first call: with floats as symbols, then with their values.
    """

    def __init__(self, function: Callable[..., Any], backend: str = "aot_eager", dynamic: bool | None = None) -> None:
        self.graphs, self.first = 0, True
        self.compiler = torch._dynamo.lookup_backend(backend)
        self.function = torch.compile(function, fullgraph=True, backend=self.compile, dynamic=dynamic)

    def compile(self, graph: Any, inputs: Any) -> Any:
        self.graphs += not self.first
        return self.compiler(graph, inputs)

    def __call__(self, *arguments: Any) -> Any:
        found = self.function(*arguments)
        self.first = False
        return found


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No graph of another test is found again."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def padded(lengths: list[int], width: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Log-probabilities, old ones, advantages and a mask."""
    random = torch.Generator().manual_seed(seed)
    logp = -torch.rand(len(lengths), width, generator=random)
    old = logp + 0.01 * torch.randn(logp.shape, generator=random)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return logp.requires_grad_(), old, torch.randn(len(lengths), generator=random), mask


def packed(lengths: list[int], trailing: int, seed: int = 0) -> tuple[Tensor, ...]:
    """The same, packed, with offsets in the place of the mask."""
    logp, old, _, _ = padded([1], sum(lengths) + trailing, seed)
    advantages = torch.linspace(-1, 1, len(lengths))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return logp.detach()[0].requires_grad_(), old[0], advantages, offsets


def loss(objective: gspo.Objective, packs: bool) -> Callable[..., gspo.PolicyLoss]:
    def function(logp: Tensor, old_logp: Tensor, advantages: Tensor, where: Tensor) -> gspo.PolicyLoss:
        sequences = gspo.Packed(where) if packs else gspo.Padded(where)
        return gspo.policy_loss(objective, logp=logp, old_logp=old_logp, advantages=advantages, sequences=sequences)

    return function


def assert_same(compiled: Callable[..., Any], eager: Callable[..., Any], arguments: tuple[Tensor, ...]) -> None:
    """Loss, metrics and gradient."""
    found, expected = compiled(*arguments), eager(*arguments)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-7)
    (gradient,) = torch.autograd.grad(found.loss, arguments[0])
    (wanted,) = torch.autograd.grad(expected.loss, arguments[0])
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-8)
    assert not gradient[wanted == 0].any()
    for name, value in expected.metrics.items():
        torch.testing.assert_close(found.metrics[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("backend", COMPILERS)
@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
def test_one_graph_while_lengths_change(packs: bool, backend: str) -> None:
    """Which tokens count is data, not shape: the second batch finds the graph of the first."""
    eager = loss(gspo.Objective.gspo(), packs)
    compiled = Compiled(eager, backend)
    for seed, lengths in enumerate(([3, 7, 5, 1], [7, 0, 2, 7], [4, 4, 4, 4])):
        make = packed(lengths, 30 - sum(lengths), seed) if packs else padded(lengths, 7, seed)
        assert_same(compiled, eager, make)
    assert compiled.graphs == 0


@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
def test_one_graph_while_shapes_change(packs: bool) -> None:
    """With dynamic shapes, neither the width of a batch nor the number of packed tokens or responses compiles again."""
    eager = loss(gspo.Objective.gspo(), packs)
    compiled = Compiled(eager, dynamic=True)
    for seed, lengths in enumerate(([3, 7, 5, 1], [2, 9, 4, 4, 6], [8, 11, 2])):
        make = packed(lengths, seed, seed) if packs else padded(lengths, max(lengths) + seed, seed)
        assert_same(compiled, eager, make)
    assert compiled.graphs == 0


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated")
def test_one_graph_from_logits_while_shapes_change() -> None:
    """Floats that are symbols of the graph, as they are with dynamic shapes, serve log-probabilities and loss alike."""

    def eager(logits: Tensor, tokens: Tensor, advantages: Tensor, mask: Tensor) -> gspo.PolicyLoss:
        logp = gspo.token_logps(logits, tokens)
        return gspo.gspo_loss(logp, logp.detach() - 1e-4, advantages, mask)

    compiled = Compiled(eager, "eager", dynamic=True)
    for lengths in ([3, 7, 5, 1], [2, 9, 4]):
        old, _, advantages, mask = padded(lengths, max(lengths))
        logits = torch.randn(*old.shape, 5).requires_grad_()
        assert_same(compiled, eager, (logits, torch.randint(5, old.shape), advantages, mask))
    assert compiled.graphs == 0


@pytest.mark.parametrize("backend", COMPILERS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16], ids=str)
def test_masks_of_any_numbers(dtype: torch.dtype, backend: str) -> None:
    """Compiled C++ reads a mask from bytes that it does not write."""
    logp, old, advantages, mask = padded([3, 40, 17, 0], 40)
    old = torch.where(mask, old, torch.nan)
    eager = loss(gspo.Objective.gspo(), False)
    assert_same(Compiled(eager, backend), eager, (logp, old, advantages, mask.to(dtype)))


@pytest.mark.parametrize("backend", COMPILERS)
def test_a_mask_made_in_the_graph(backend: str) -> None:
    """-100 is a label that is none."""
    logp, old, advantages, mask = padded([3, 40, 17, 0], 40)

    def eager(logp: Tensor, labels: Tensor) -> gspo.PolicyLoss:
        return gspo.gspo_loss(logp, old, advantages, labels != -100)

    assert_same(Compiled(eager, backend), eager, (logp, torch.where(mask, 7, -100)))


@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
def test_what_a_compiler_calls(packs: bool) -> None:
    """The graph of a loss reads its mask from bytes, or adds segments up, by an operation of its own."""
    graphs: list[str] = []
    arguments = packed([3, 7, 5], 2) if packs else padded([3, 7, 5], 8)
    compiled = Compiled(loss(gspo.Objective.gspo(), packs), "eager")
    compiled.compiler = lambda graph, inputs: graphs.append(graph.code) or graph
    compiled(*arguments)
    assert [("gspo.segment_sums" if packs else "gspo.flags") in graph for graph in graphs] == [True]


@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
def test_transforms_inside_a_graph(packs: bool) -> None:
    """`torch.func` does not see through the operations that a compiler calls: none is called there."""
    logp, *rest = packed([3, 7, 5], 2) if packs else padded([3, 7, 5], 8)
    eager = loss(gspo.Objective.gspo(), packs)

    def value(logp: Tensor) -> Tensor:
        return eager(logp, *rest).loss

    batch = torch.stack([logp, 1.001 * logp]).detach()
    for derived in (torch.func.vmap(torch.func.grad(value)), torch.func.vmap(value)):
        torch.testing.assert_close(Compiled(derived)(batch), derived(batch))


@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
def test_exported_graphs_need_no_operation_of_ours(packs: bool) -> None:
    """A graph that is exported runs without this package."""
    arguments = tuple(value.detach() for value in (packed([3, 7, 5], 2) if packs else padded([3, 7, 5], 8)))
    eager = loss(gspo.Objective.gspo(), packs)

    class Loss(torch.nn.Module):
        def forward(self, *arguments: Tensor) -> Tensor:
            return eager(*arguments).loss

    program = torch.export.export(Loss(), arguments, strict=False)
    assert "gspo" not in str(program.graph)
    torch.testing.assert_close(program.module()(*arguments), eager(*arguments).loss)


@pytest.mark.parametrize("backend", COMPILERS)
@pytest.mark.parametrize("name", ["gspo", "gspo_token", "grpo"])
def test_long_packed_responses(backend: str, name: str) -> None:
    """Segments that cross blocks of 256 tokens, and a last block that is not full."""
    objective = getattr(gspo.Objective, name)()

    def eager(logp: Tensor, old_logp: Tensor, advantages: Tensor, offsets: Tensor) -> gspo.PolicyLoss:
        arguments = {"old_logp": old_logp, "advantages": advantages, "sequences": gspo.Packed(offsets)}
        return gspo.policy_loss(objective, logp=logp, **arguments)

    for lengths, trailing in (([300, 500, 66], 0), ([1000, 7, 1000], 33)):
        arguments = packed(lengths, trailing)
        found, expected = Compiled(eager, backend)(*arguments), eager(*arguments)
        # A thousand terms of both signs: what is left of the loss is no measure of its rounding.
        torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=1e-5)
        gradients = [torch.autograd.grad(one.loss, arguments[0])[0] for one in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-9)


def test_marked_dimensions_are_dynamic() -> None:
    """`mark_dynamic` is refused where a dimension is specialised; here it is not."""
    eager = loss(gspo.Objective.gspo(), True)
    compiled = Compiled(eager)
    for seed, lengths in enumerate(([3, 7, 5, 1], [2, 9, 4, 4, 6])):
        arguments = packed(lengths, 2, seed)
        for values in arguments:
            torch._dynamo.mark_dynamic(values, 0)
        assert_same(compiled, eager, arguments)
    assert compiled.graphs == 0


def test_numbers_may_change() -> None:
    """A bound on the longest response, a normaliser: what changes from step to step becomes a symbol, and no error."""
    logp, old, advantages, offsets = packed([3, 7, 5], 0)

    def eager(bound: int, count: int) -> Tensor:
        return gspo.gspo_loss(logp, old, advantages, gspo.Packed(offsets, max_length=bound), normalizer=count).loss

    compiled = Compiled(eager, "eager")
    for numbers in ((7, 3), (8, 4)):
        torch.testing.assert_close(compiled(*numbers), eager(*numbers))


@pytest.mark.parametrize("name", NAMES)
def test_other_objectives_compile(name: str) -> None:
    arguments = Batch(garbage=-1.0).padded(tensor, "float32")
    sequences, logp = arguments.pop("sequences"), arguments.pop("logp").requires_grad_()

    def eager(logp: Tensor) -> gspo.PolicyLoss:
        return gspo.policy_loss(AXES[name], logp=logp, sequences=sequences, **arguments)

    compiled = Compiled(eager, dynamic=True)
    assert_same(compiled, eager, (logp,))
    assert_same(compiled, eager, (logp.detach().mul(1.001).requires_grad_(),))
    assert compiled.graphs == 0


def test_objectives_built_inside_the_graph() -> None:
    """The named losses, a clip range of one's own, and the module."""
    module = gspo.GSPOLoss(gspo.Objective.grpo())

    def eager(*arguments: Tensor) -> gspo.PolicyLoss:
        first = gspo.gspo_loss(*arguments, clip=gspo.Clip(0.01, 0.02))
        second = gspo.gspo_token_loss(*arguments, normalizer=3.0)
        return gspo.PolicyLoss(first.loss + second.loss + module(*arguments).loss, first.metrics)

    compiled = Compiled(eager)
    assert_same(compiled, eager, padded([3, 7, 5, 1], 7))
    assert_same(compiled, eager, padded([2, 7, 6, 3], 7, seed=1))
    assert compiled.graphs == 0


def test_inside_a_model() -> None:
    """Logits to loss in one graph; the gradient reaches the head."""
    head = torch.nn.Linear(8, 16)
    hidden, tokens = torch.randn(4, 7, 8), torch.randint(16, (4, 7))
    _, _, advantages, mask = padded([3, 7, 5, 1], 7)

    def eager(hidden: Tensor) -> Tensor:
        logp = head(hidden).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        return gspo.gspo_loss(logp, logp.detach(), advantages, mask).loss

    compiled = Compiled(eager)
    for states in (hidden, hidden + 1):
        (found,) = torch.autograd.grad(compiled(states), head.weight)
        (expected,) = torch.autograd.grad(eager(states), head.weight)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert compiled.graphs == 0


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated")
def test_log_probabilities_from_logits_are_one_graph_of_one_size() -> None:
    """No loop over chunks of tokens is written out, and the logits of a masked token may be NaN."""

    def eager(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, gspo.token_logps(logits, tokens, temperature=0.7), 0.0).square().sum()

    compiled, sizes = Compiled(eager), []
    compile_graph = compiled.compiler
    compiled.compiler = lambda graph, inputs: sizes.append(size_of(graph)) or compile_graph(graph, inputs)
    for count in (3, 9):
        torch._dynamo.reset()
        logits = torch.randn(2, count, 1 << 18).requires_grad_()
        tokens, mask = torch.randint(1 << 18, (2, count)), torch.arange(count).lt(count - 1).expand(2, count)
        logits.data[~mask] = torch.nan
        found, wanted = (torch.autograd.grad(run(logits, tokens, mask), logits)[0] for run in (compiled, eager))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert sizes[0] == sizes[1]


def size_of(graph: torch.nn.Module) -> int:
    return sum(len(part.graph.nodes) for part in graph.modules() if isinstance(part, torch.fx.GraphModule))


@pytest.mark.parametrize("backend", COMPILERS)
def test_the_band_survives_the_compiler(backend: str) -> None:
    """s = 1 ± 1e-5 around both bounds, from bfloat16-sized log-probabilities: the gate is decided in float32."""
    shifts = torch.tensor([3.8e-4, 4.2e-4, -2.8e-4, -3.2e-4])
    old = torch.full((4, 64), -1.0)
    logp = (old + shifts[:, None]).requires_grad_()
    arguments = (logp, old, torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.ones(4, 64, dtype=torch.bool))
    out = Compiled(loss(gspo.Objective.gspo(), False), backend)(*arguments)
    (gradient,) = torch.autograd.grad(out.loss, logp)
    assert gradient.abs().sum(1).gt(0).tolist() == [True, False, True, False]


@pytest.mark.parametrize("backend", COMPILERS)
def test_small_log_ratios_keep_their_digits(backend: str) -> None:
    """e^d - 1 of a small d: a compiler may write that subtraction, which leaves nothing of d = 1e-5 in float32."""
    penalty = gspo.Penalty("k3", coefficient=1.0)
    objective = gspo.Objective.gspo().replace(penalty=penalty)

    def function(logp: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> gspo.PolicyLoss:
        arguments = {"old_logp": old, "ref_logp": old, "advantages": advantages, "sequences": mask}
        return gspo.policy_loss(objective, logp=logp, **arguments)

    _, old, _, mask = padded([64, 50], 64)
    arguments = ((1 + 1e-5) * old).requires_grad_(), old, torch.zeros(2), mask
    wide = [value if value is mask else value.detach().double().requires_grad_() for value in arguments]
    found, expected = Compiled(function, backend)(*arguments), function(*wide)
    for name in ("approx_kl", "kl_penalty"):
        torch.testing.assert_close(found.metrics[name].double(), expected.metrics[name], rtol=5e-3, atol=0)
    (gradient,) = torch.autograd.grad(found.loss, arguments[0])
    (wanted,) = torch.autograd.grad(expected.loss, wide[0])
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=0)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated")
@pytest.mark.parametrize("backend", COMPILERS)
def test_slopes_beside_certainty_keep_their_digits(backend: str) -> None:
    """1 - π(y) of a token with log π(y) = -1e-9 is 1e-9."""
    logits = torch.tensor([[20.0, -1.0, 0.0], [9.0, -9.0, -8.0]], requires_grad=True)
    tokens = torch.tensor([0, 0])
    found = Compiled(gspo.token_logps, backend)(logits, tokens)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    (wanted,) = torch.autograd.grad(gspo.token_logps(logits.double(), tokens).sum(), logits)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=0)


def test_a_device_that_is_no_processor_compiles_whole() -> None:
    """What is asked of the host alone is not asked there; `meta` stands for any other device."""
    objective = gspo.Objective.gspo().replace(penalty=gspo.Penalty("k3", coefficient=0.1))

    def function(logp: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> gspo.PolicyLoss:
        arguments = {"old_logp": old, "ref_logp": old, "advantages": advantages, "sequences": mask}
        return gspo.policy_loss(objective, logp=logp, **arguments)

    logp = torch.zeros(2, 3, device="meta", requires_grad=True)
    found = Compiled(function, "eager")(logp, logp.detach(), logp.new_zeros(2), logp.detach() == 0)
    assert found.loss.device.type == "meta"
