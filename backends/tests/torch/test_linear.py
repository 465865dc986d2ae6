"""`linear_token_logps` against all logits, log_softmax and gather."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import gspo_torch as gspo
from gspo_torch.head import Gradients, Head, Needs, default_chunk_size

from .heads import VOCABULARY, WIDTH, Watch, distance, gradients, naive_logps

SHAPE = (3, 5)
TOKENS = torch.arange(15).reshape(SHAPE) % VOCABULARY


def leaves(dtype: torch.dtype = torch.float64, train: str = "hwb", bias: bool = True) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"h": (*SHAPE, WIDTH), "w": (VOCABULARY, WIDTH), "b": (VOCABULARY,)}
    made = {
        key: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for key, shape in shapes.items()
    }
    return [None if key == "b" and not bias else made[key].requires_grad_(key in train) for key in shapes]


def fused(parts: list[Tensor | None], temperature: float = 1.0, **settings: Any) -> Tensor:
    hidden, weight, bias = parts
    return gspo.linear_token_logps(hidden, weight, TOKENS, bias=bias, temperature=temperature, **settings)


@pytest.mark.parametrize("train", ["hwb", "h", "w", "b", "hb", "wb"])
@pytest.mark.parametrize(
    ("bias", "temperature", "chunk_size"), [(True, 0.7, 1), (False, 1.0, 4), (True, 1.3, 100), (True, 1.0, None)]
)
def test_equals_log_softmax(train: str, bias: bool, temperature: float, chunk_size: int | None) -> None:
    parts = leaves(train=train, bias=bias)
    flow = torch.randn(SHAPE, dtype=torch.float64)
    value = fused(parts, temperature, chunk_size=chunk_size)
    truth = naive_logps(*parts, TOKENS, temperature)
    torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-12)
    if truth.requires_grad:
        assert distance(gradients((value * flow).sum(), parts), gradients((truth * flow).sum(), parts)) < 1e-12


@pytest.mark.parametrize(
    ("dtype", "value_error", "gradient_error"),
    [(torch.float32, 1e-5, 2e-6), (torch.bfloat16, 1e-5, 0.02), (torch.float16, 1e-5, 2e-3)],
)
def test_narrow_dtypes(dtype: torch.dtype, value_error: float, gradient_error: float) -> None:
    """A float32 result whatever the storage; gradients in the storage dtype."""
    parts = leaves(dtype)
    value = fused(parts, 0.7, chunk_size=4)
    assert value.dtype == torch.float32
    wide = [one.detach().double().requires_grad_() for one in parts]
    truth = naive_logps(*wide, TOKENS, 0.7)
    assert float((value - truth).detach().abs().max()) < value_error
    found = gradients(value.sum(), parts)
    assert [one.dtype for one in found] == [dtype] * 3
    assert distance(found, gradients(truth.sum(), wide)) < gradient_error


def test_float16_products_see_scaled_weights() -> None:
    """Where products run in float16, a token's weight of 1e-9 would vanish; the largest of a chunk is divided out."""
    parts = [one.detach().half() for one in leaves()]
    flow = 1e-9 * torch.arange(1.0, 16.0)
    found = []
    for narrow in (True, False):
        head = Head(*parts, temperature=1.0, chunk_size=4)
        if narrow:
            head.weight = parts[1]
        made = Gradients(head, Needs(True, True, True))
        positions = torch.arange(15)
        made.add_tokens(positions, TOKENS.flatten(), head.normalised(positions, TOKENS.flatten()), flow)
        found.append([made.hidden, made.sums.weight, made.sums.bias])
    assert distance(found[0], found[1]) < 0.01
    assert float(found[0][1].abs().max()) > 1e-9


def test_the_weight_gradient_is_summed_in_float32() -> None:
    """A thousand equal bfloat16 contributions: a bfloat16 sum would stop growing at 256."""
    hidden = torch.ones(1024, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    value = gspo.linear_token_logps(hidden, weight, torch.zeros(1024, dtype=torch.int64), chunk_size=1)
    value.sum().backward()
    assert weight.grad[:, 0].tolist() == [512.0, -512.0]


def test_gradcheck() -> None:
    parts = leaves()
    assert torch.autograd.gradcheck(lambda *leaf: fused(list(leaf), 0.9, chunk_size=4), parts)


def test_no_logits_of_all_tokens() -> None:
    hidden = torch.randn(200, 4, requires_grad=True)
    weight = torch.randn(64, 4, requires_grad=True)
    with Watch() as watch:
        gspo.linear_token_logps(hidden, weight, torch.zeros(200, dtype=torch.int64), chunk_size=16).sum().backward()
    assert watch.largest <= max(16 * 64, hidden.numel(), weight.numel())


@pytest.mark.parametrize(("train", "products"), [("hwb", 16), ("h", 12), ("w", 12), ("", 4)])
def test_products_that_nobody_needs_are_not_made(train: str, products: int) -> None:
    """Four chunks: one product forward, one again, and one for each gradient that is asked for."""
    parts = leaves(train=train)
    with Watch() as watch:
        value = fused(parts, chunk_size=4)
        if train:
            value.sum().backward()
    assert watch.count == products


def test_tokens_without_a_gradient_enter_no_product() -> None:
    parts = leaves()
    with Watch() as watch:
        value = fused(parts, chunk_size=1)
        value[1].sum().backward()
    assert watch.count == 15 + 3 * 5
    assert (parts[0].grad[0] == 0).all()
    assert (parts[0].grad[1] != 0).all()


def test_nan_states_of_a_masked_token_reach_no_gradient() -> None:
    parts = leaves()
    with torch.no_grad():
        parts[0][0, 1] = torch.nan
    mask = torch.ones(SHAPE, dtype=torch.bool)
    mask[0, 1] = False
    torch.where(mask, fused(parts, chunk_size=4), 0.0).sum().backward()
    assert all(bool(torch.isfinite(one.grad).all()) for one in parts)


def test_a_shifted_view_of_hidden_states() -> None:
    whole = torch.randn(3, 6, WIDTH, dtype=torch.float64, requires_grad=True)
    _, weight, bias = leaves()
    value = gspo.linear_token_logps(whole[:, :-1], weight, TOKENS, bias=bias, chunk_size=4)
    truth = naive_logps(whole[:, :-1], weight, bias, TOKENS, 1.0)
    assert distance(gradients(value.sum(), [whole]), gradients(truth.sum(), [whole])) < 1e-12


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_activation_checkpointing(reentrant: bool) -> None:
    parts = leaves()
    value = checkpoint(lambda *leaf: fused(list(leaf), 0.7, chunk_size=4), *parts, use_reentrant=reentrant)
    truth = naive_logps(*parts, TOKENS, 0.7)
    assert value.requires_grad
    value.sum().backward()
    assert distance([one.grad for one in parts], gradients(truth.sum(), parts)) < 1e-12


@pytest.mark.parametrize("head", ["logits", "hidden"])
def test_log_probabilities_may_be_changed_in_place(head: str) -> None:
    """As by a mask that is multiplied in."""
    hidden, weight = torch.randn(2, 3, WIDTH, requires_grad=True), torch.randn(VOCABULARY, WIDTH)
    tokens, mask = torch.randint(0, VOCABULARY, (2, 3)), torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    found: list[Tensor] = []
    for in_place in (False, True):
        logp = (
            gspo.token_logps(hidden @ weight.T, tokens)
            if head == "logits"
            else gspo.linear_token_logps(hidden, weight, tokens)
        )
        logp = logp.mul_(mask) if in_place else logp * mask
        found += torch.autograd.grad(logp.sum(), hidden)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_tied_weights() -> None:
    """The embedding is the head: both uses add up."""
    table = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, requires_grad=True)
    value = gspo.linear_token_logps(torch.tanh(table[TOKENS]), table, TOKENS, chunk_size=4)
    truth = naive_logps(torch.tanh(table[TOKENS]), table, None, TOKENS, 1.0)
    assert distance(gradients(value.sum(), [table]), gradients(truth.sum(), [table])) < 1e-12


def test_autocast_runs_the_products_in_its_dtype() -> None:
    parts = leaves(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = fused(parts, chunk_size=4)
        truth = naive_logps(*parts, TOKENS, 1.0)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, truth, rtol=0, atol=0.05)
    found = gradients(value.sum(), parts)
    assert all(one.dtype == torch.float32 for one in found)
    assert distance(found, gradients(truth.sum(), parts)) < 0.02


def test_no_tokens() -> None:
    hidden = torch.zeros(0, WIDTH, requires_grad=True)
    weight = torch.ones(VOCABULARY, WIDTH, requires_grad=True)
    value = gspo.linear_token_logps(hidden, weight, torch.zeros(0, dtype=torch.int64))
    assert value.shape == (0,)
    value.sum().backward()
    assert (weight.grad == 0).all()


def test_twice_differentiated_is_one_clear_error() -> None:
    parts = leaves()
    (gradient,) = torch.autograd.grad(fused(parts).sum(), parts[0], create_graph=True)
    with pytest.raises(RuntimeError, match="expected to be differentiated once"):
        gradient.sum().backward()


def test_under_transforms_of_functions_is_one_clear_error() -> None:
    hidden, weight, _ = leaves()
    with pytest.raises(RuntimeError, match=r"outside torch\.func"):
        torch.func.grad(lambda states: gspo.linear_token_logps(states, weight, TOKENS).sum())(hidden.detach())


def test_the_default_chunk_depends_on_the_vocabulary_alone() -> None:
    host, device = torch.device("cpu"), torch.device("meta")
    sizes = [default_chunk_size(vocabulary, host) for vocabulary in (1000, 32_000, 152_000, 10**7)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] * 32_000 * 4 <= 64 * 2**20
    assert all(default_chunk_size(v, device) > default_chunk_size(v, host) for v in (32_000, 152_000))


BAD = [
    ({"hidden": torch.zeros(15, WIDTH)}, ValueError, r"tokens: expected shape \(15,\)"),
    ({"weight": torch.zeros(VOCABULARY, WIDTH + 1)}, ValueError, r"weight: expected shape \[V, D\].*got \(11, 7\)"),
    ({"weight": torch.zeros(WIDTH)}, ValueError, r"weight: expected shape \[V, D\]"),
    (
        {"weight": torch.zeros(VOCABULARY, WIDTH).double()},
        TypeError,
        "weight: expected torch.float32 like hidden, got torch.float64",
    ),
    ({"bias": torch.zeros(3)}, ValueError, r"bias: expected shape \(11,\)"),
    ({"bias": torch.zeros(VOCABULARY).double()}, TypeError, "bias: expected torch.float32"),
    ({"hidden": torch.zeros(*SHAPE, WIDTH, dtype=torch.int64)}, TypeError, "hidden: expected a real floating"),
    ({"hidden": [1.0]}, TypeError, "hidden: expected an array, got list"),
    (
        {"weight": torch.zeros(VOCABULARY, WIDTH, device="meta")},
        ValueError,
        "weight: expected an array on cpu, like hidden, got one on meta",
    ),
    ({"tokens": TOKENS.float()}, TypeError, "tokens: expected an integer dtype"),
    ({"tokens": TOKENS + 5}, ValueError, r"tokens: expected ids in \[0, 11\), got \d+ others, the first, 11, at index"),
    ({"temperature": -1.0}, ValueError, "temperature: expected a number > 0"),
    ({"chunk_size": 0}, ValueError, "chunk_size: expected a positive integer or None, got 0"),
    ({"chunk_size": True}, ValueError, "chunk_size"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"hidden": torch.zeros(*SHAPE, WIDTH), "weight": torch.zeros(VOCABULARY, WIDTH), "tokens": TOKENS}
    with pytest.raises(error, match=message):
        gspo.linear_token_logps(**(good | change))


def test_memory_does_not_grow_with_the_number_of_tokens() -> None:
    largest = []
    for count, chunk in itertools.product((64, 256), (8,)):
        with Watch() as watch:
            gspo.linear_token_logps(
                torch.ones(count, 1), torch.ones(128, 1), torch.zeros(count, dtype=torch.int64), chunk_size=chunk
            )
        largest.append(watch.largest)
    assert largest == [8 * 128, 8 * 128]


def test_one_token_without_a_batch() -> None:
    hidden, weight = torch.randn(8, requires_grad=True), torch.randn(5, 8)
    value = gspo.linear_token_logps(hidden, weight, torch.tensor(3))
    expected = torch.log_softmax(hidden @ weight.T, -1)[3]
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(one, hidden)[0] for one in (value, expected)))
