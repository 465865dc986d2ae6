"""`linear_policy_loss` against `policy_loss` of all logits by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import gspo_torch as gspo
from gspo_core.tests.batches import Batch, axes
from gspo_torch import linear_designs
from gspo_torch.linear_parts import depends_on_token_alone, one_scalar_per_sequence

from .heads import VOCABULARY, WIDTH, Problem, Watch, distance, gradients, tensor

AXES = axes()
DESIGNS = ("auto", "recompute", "single_pass")
WIDE = gspo.Objective("sequence", gspo.Clip(0.5, 0.5))


def problem(layout: str = "padded", dtype: str = "float64", per_token: bool = False, **settings: Any) -> Problem:
    return Problem(getattr(Batch(3, spread=0.2), layout)(tensor, dtype, per_token), **settings)


def allowed(objective: gspo.Objective, design: str, chunk_size: int, per_token: bool) -> bool:
    fits = chunk_size >= max(Batch.lengths)
    return (
        design != "single_pass"
        or fits
        or depends_on_token_alone(objective)
        or one_scalar_per_sequence(objective, per_token)
    )


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("name", AXES)
def test_every_objective(name: str, layout: str) -> None:
    """Value, metrics and gradients in float64, with each design at some chunk size; NaN and ids of -100 in the padding."""
    objective = AXES[name]
    per_token = objective.allows_token_advantages and layout == "packed"
    case = problem(layout, per_token=per_token)
    truth, slopes = case.naive(objective)
    for design, chunk_size in (("auto", 3), ("recompute", 4), ("single_pass", 2), ("single_pass", 64), ("auto", 8)):
        if not allowed(objective, design, chunk_size, per_token):
            continue
        found, gradient = case.fused(objective, design=design, chunk_size=chunk_size)
        torch.testing.assert_close(found.loss, truth.loss, rtol=1e-12, atol=1e-12)
        assert found.metrics.keys() == truth.metrics.keys()
        for key, value in found.metrics.items():
            torch.testing.assert_close(value, truth.metrics[key], rtol=1e-12, atol=1e-12)
        assert distance(gradient, slopes) < 1e-10


@pytest.mark.parametrize("name", ["gspo", "grpo", "gmpo", "kl-k3-sequence"])
@pytest.mark.parametrize("design", ["auto", "recompute"])
@pytest.mark.parametrize(
    ("train", "bias", "temperature", "chunk_size"),
    [("h", True, 1.0, 1), ("w", False, 0.8, 2), ("b", True, 1.3, 3), ("hw", False, 1.0, None), ("wb", True, 0.8, 1000)],
)
def test_frozen_parts(
    name: str, design: str, train: str, bias: bool, temperature: float, chunk_size: int | None
) -> None:
    case = problem(bias=bias, temperature=temperature)
    truth, slopes = case.naive(AXES[name], train)
    found, gradient = case.fused(AXES[name], train, design=design, chunk_size=chunk_size)
    torch.testing.assert_close(found.loss, truth.loss, rtol=1e-12, atol=1e-12)
    assert distance(gradient, slopes) < 1e-10


@pytest.mark.parametrize(("dtype", "error"), [("float32", 2e-5), ("bfloat16", 0.1), ("float16", 0.01)])
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("name", ["rloo", "sequence-Unclipped", "kl-k3-None-free"])
def test_narrow_dtypes(name: str, design: str, dtype: str, error: float) -> None:
    """Float32 arithmetic on narrow parameters: against float64 arithmetic on the same numbers."""
    case = problem(bias=True)
    narrow = getattr(torch, dtype)
    for key in ("hidden", "clean", "weight", "bias"):
        setattr(case, key, getattr(case, key).to(narrow).double())
    truth, slopes = case.naive(AXES[name])
    for key in ("hidden", "weight", "bias"):
        setattr(case, key, getattr(case, key).to(narrow))
    case.arguments = {
        key: value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for key, value in case.arguments.items()
    }
    chunk_size = 3 if allowed(AXES[name], design, 3, False) else 8
    found, gradient = case.fused(AXES[name], design=design, chunk_size=chunk_size)
    assert found.loss.dtype == torch.float32
    assert all(one.dtype == narrow for one in gradient)
    torch.testing.assert_close(found.loss.double(), truth.loss.detach(), rtol=error, atol=error)
    assert distance(gradient, slopes) < error


def test_float16_gradients_survive_a_loss_scale() -> None:
    """A gradient of 1e-8 before the scale, which float16 cannot hold; after it, it can."""
    case = problem(bias=False)
    for key in ("hidden", "weight"):
        setattr(case, key, getattr(case, key).half())
    case.arguments |= {key: case.arguments[key].float() for key in ("old_logp", "advantages")}
    case.arguments["normalizer"] = 1e7
    parts = case.leaves(case.hidden)
    (case.loss(gspo.Objective.rloo(), parts).loss * 2.0**20).backward()
    scaled = parts[1].grad.double() / 2**20 * 1e7
    case.arguments["normalizer"] = 1.0
    truth = case.fused(gspo.Objective.rloo())[1][1]
    assert distance([scaled], [truth]) < 0.01


def test_nothing_reads_the_padding() -> None:
    """Other states and other ids where nothing counts: the same bits."""
    case = problem()
    found, first = case.fused(WIDE, chunk_size=4)
    case.hidden = torch.where(case.counted[..., None], case.hidden, torch.inf)
    case.tokens = torch.where(case.counted, case.tokens, 10**9)
    again, second = case.fused(WIDE, chunk_size=4)
    assert torch.equal(found.loss, again.loss)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert (first[0][~case.counted] == 0).all()


@pytest.mark.parametrize("design", DESIGNS)
def test_only_empty_sequences(design: str) -> None:
    case = problem()
    case.arguments["sequences"] = gspo.Padded(torch.zeros_like(case.counted))
    found, gradient = case.fused(WIDE, design=design)
    assert float(found.loss.detach()) == 0.0
    assert all(bool((one == 0).all()) for one in gradient)


@pytest.mark.parametrize("design", DESIGNS)
def test_memory_is_a_chunk_of_logits(design: str) -> None:
    """No tensor larger than a chunk of logits, the hidden states or the weight, forward or backward, however many tokens."""
    batch, length, vocabulary, width, chunk_size = 2, 96, 64, 4, 16
    hidden = torch.randn(batch, length, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    with Watch() as watch:
        gspo.linear_policy_loss(
            WIDE,
            hidden=hidden,
            weight=weight,
            tokens=torch.zeros(batch, length, dtype=torch.int64),
            old_logp=torch.full((batch, length), -4.0),
            advantages=torch.tensor([1.0, -1.0]),
            sequences=torch.ones(batch, length, dtype=torch.bool),
            chunk_size=chunk_size,
            design=design,
        ).loss.backward()
    assert watch.largest <= max(chunk_size * vocabulary, hidden.numel(), weight.numel())


def products(
    objective: gspo.Objective,
    advantages: list[float],
    train: str = "hw",
    bounds: tuple[int, ...] = (0, 4, 12, 16),
    **settings: Any,
) -> int:
    """Matrix products of one step over three responses of 4, 8 and 4 tokens, 4 tokens a chunk."""
    offsets = torch.tensor(bounds)
    hidden = torch.randn(16, WIDTH, requires_grad="h" in train)
    weight = torch.randn(VOCABULARY, WIDTH, requires_grad="w" in train)
    tokens = torch.zeros(16, dtype=torch.int64)
    old = gspo.linear_token_logps(hidden, weight, tokens).detach()
    with Watch() as watch:
        gspo.linear_policy_loss(
            objective,
            hidden=hidden,
            weight=weight,
            tokens=tokens,
            old_logp=old - 0.5,
            advantages=torch.tensor(advantages),
            sequences=gspo.Packed(offsets),
            **({"chunk_size": 4} | settings),
        ).loss.backward()
    return watch.count


GSPO, GRPO, GMPO = gspo.Objective.gspo(), gspo.Objective.grpo(), gspo.Objective.gmpo()


@pytest.mark.parametrize(
    ("objective", "advantages", "settings", "count"),
    [
        # Nothing is clipped where A < 0 and the ratio grew: four chunks forward, twice the products backward.
        (GSPO, [-1.0, -1.0, -1.0], {"design": "single_pass"}, 4 + 4 * 2),
        (GSPO, [-1.0, -1.0, -1.0], {"design": "recompute"}, 4 + 4 * 3),
        (GRPO, [-1.0, -1.0, -1.0], {"design": "auto"}, 4 + 4 * 2),
        # The logits of a long response's last chunk are still there when its coefficients are known.
        (GMPO, [-1.0, -1.0, -1.0], {"design": "auto"}, 4 + 4 * 2 + 1),
        # The two short responses are clipped and make no product backward.
        (GSPO, [1.0, -1.0, 1.0], {"design": "single_pass"}, 4 + 2 * 2),
        (GSPO, [1.0, -1.0, 1.0], {"design": "recompute"}, 4 + 2 * 3),
        # The long response is clipped: a single pass finds out too late, a second pass in time.
        (GSPO, [-1.0, 1.0, -1.0], {"design": "single_pass"}, 4 + 4 * 2),
        (GSPO, [-1.0, 1.0, -1.0], {"design": "recompute"}, 4 + 2 * 3),
        (GRPO, [-1.0, 1.0, -1.0], {"design": "auto"}, 4 + 2 * 2),
        # Advantages of 0 are known beforehand, by every design.
        (GSPO, [-1.0, 0.0, 0.0], {"design": "single_pass"}, 4 + 1 * 2),
        (GSPO, [0.0, 0.0, 0.0], {"design": "recompute"}, 4),
        # A frozen head, frozen states.
        (GSPO, [-1.0, -1.0, -1.0], {"design": "auto", "train": "h"}, 4 + 4),
        (GSPO, [-1.0, -1.0, -1.0], {"design": "recompute", "train": "h"}, 4 + 4 * 2),
        (GSPO, [-1.0, -1.0, -1.0], {"design": "single_pass", "train": "w"}, 4 + 4),
    ],
)
def test_products(objective: gspo.Objective, advantages: list[float], settings: dict[str, Any], count: int) -> None:
    assert products(objective, advantages, **settings) == count


@pytest.mark.parametrize(
    ("advantages", "runs"),
    [
        ([-1.0, -1.0, -1.0, -1.0, -1.0], 1),
        ([-1.0, 0.0, -1.0, -1.0, -1.0], 2),
        ([0.0, -1.0, -1.0, 0.0, -1.0], 2),
        ([-1.0, 1.0, -1.0, 1.0, -1.0], 2),
        ([0.0, -1.0, 0.0, -1.0, 0.0], 1),
        ([0.0, 1.0, 0.0, 1.0, 0.0], 0),
    ],
)
def test_neighbours_in_a_chunk_share_their_products(advantages: list[float], runs: int) -> None:
    """Responses of 4, 2, 0, 2 and 4 tokens in one chunk: two products backward for each run of those with a gradient."""
    count = products(GSPO, advantages, bounds=(0, 4, 6, 6, 8, 12), chunk_size=16)
    assert count == 1 + 2 * runs


@pytest.mark.parametrize(("long", "count"), [(8, 4 + 4 * 2), (9, 4 + 4 * 2 + 1)])
def test_auto_takes_a_second_sum_for_long_responses(long: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_designs, "_LONG", long)
    assert products(GSPO, [-1.0, -1.0, -1.0], design="auto") == count


def test_forward_only_without_gradients() -> None:
    case = problem()
    with torch.no_grad(), Watch() as watch:
        found = case.loss(WIDE, case.leaves(case.hidden), chunk_size=4)
    assert not found.loss.requires_grad
    assert watch.count == 4
    torch.testing.assert_close(found.loss, case.naive(WIDE)[0].loss.detach(), rtol=1e-12, atol=1e-12)


def test_gradcheck() -> None:
    case = problem()
    case.hidden = case.clean
    soft = gspo.Objective("sequence", gspo.Sapo(), penalty=gspo.Penalty("k3", 0.1))
    leaves = case.leaves(case.hidden)
    assert torch.autograd.gradcheck(lambda *parts: case.loss(soft, list(parts), chunk_size=4).loss, leaves)


def test_the_incoming_gradient_multiplies() -> None:
    case = problem()
    parts = case.leaves(case.hidden)
    (case.loss(WIDE, parts).loss * -3.0).backward()
    assert distance([one.grad for one in parts], [-3.0 * one for one in case.naive(WIDE)[1]]) < 1e-10


def test_a_retained_graph_gives_the_same_gradient_twice() -> None:
    case = problem()
    parts = case.leaves(case.hidden)
    loss = case.loss(WIDE, parts, chunk_size=4).loss
    first = torch.autograd.grad(loss, parts, retain_graph=True)
    second = torch.autograd.grad(loss, parts)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, parts)


def test_twice_differentiated_is_one_clear_error() -> None:
    case = problem()
    parts = case.leaves(case.hidden)
    (gradient,) = torch.autograd.grad(case.loss(WIDE, parts).loss, parts[1], create_graph=True)
    with pytest.raises(RuntimeError, match="linear_policy_loss: expected to be differentiated once"):
        gradient.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_activation_checkpointing(reentrant: bool) -> None:
    """The states come out of a checkpointed block, and the loss itself is inside another."""
    case = problem()
    parts = case.leaves(torch.where(case.counted[..., None], case.clean, 0.0))

    def step(hidden: Tensor, *rest: Tensor) -> Tensor:
        return case.loss(WIDE, [hidden, *rest], chunk_size=4).loss

    states = checkpoint(torch.tanh, parts[0], use_reentrant=reentrant)
    gradient = gradients(step(states, *parts[1:]), parts) if not reentrant else None
    if reentrant:
        step(states, *parts[1:]).backward()
        gradient = [one.grad.clone() for one in parts]
    for one in parts:
        one.grad = None
    checkpoint(lambda h, w, b: step(torch.tanh(h), w, b), *parts, use_reentrant=reentrant).backward()
    assert distance([one.grad for one in parts], gradient) < 1e-12
    case.clean = torch.tanh(case.clean)
    assert distance(gradient[1:], case.naive(WIDE)[1][1:]) < 1e-10


def test_tied_weights() -> None:
    """The embedding is the head: both uses add up."""
    case = problem(bias=False)
    table = case.weight.clone().requires_grad_()
    ids = torch.where(case.counted, case.ids, 0)
    fused = case.loss(WIDE, [torch.tanh(table[ids]), table, None], chunk_size=4).loss
    logp = torch.log_softmax(torch.tanh(table[ids]) @ table.T / case.temperature, -1).gather(-1, ids[..., None])[..., 0]
    naive = gspo.policy_loss(WIDE, logp=logp, **case.arguments).loss
    assert distance(gradients(fused, [table]), gradients(naive, [table])) < 1e-10


def test_autocast() -> None:
    """Products in bfloat16, ratio and loss in float32, gradients in the parameters' float32."""
    case = problem(dtype="float32")
    truth = case.naive(WIDE)[1]
    parts = case.leaves(case.hidden)
    with torch.autocast("cpu", torch.bfloat16):
        found = case.loss(WIDE, parts, chunk_size=4)
        fast = gspo.linear_token_logps(case.clean, parts[1], case.ids, bias=parts[2], temperature=case.temperature)
    assert found.loss.dtype == torch.float32
    gradient = gradients(found.loss, parts)
    assert all(one.dtype == torch.float32 for one in gradient)
    assert distance(gradient, truth) < 0.2
    rounded = case.arguments["old_logp"]
    exact = gspo.policy_loss(WIDE, logp=fast.detach(), **(case.arguments | {"old_logp": rounded}))
    torch.testing.assert_close(found.loss.detach(), exact.loss, rtol=1e-5, atol=1e-6)


def test_on_policy_with_the_old_policy_recomputed_by_the_same_head() -> None:
    """Other chunks round differently, by a few units in the last place of a logit: far inside the paper's clip range."""
    case = problem(dtype="float32")
    case.arguments["old_logp"] = gspo.linear_token_logps(
        case.clean, case.weight, case.ids, bias=case.bias, temperature=case.temperature, chunk_size=5
    )
    found, _ = case.fused(gspo.Objective.gspo(), chunk_size=8)
    assert abs(float(found.metrics["ratio_mean"]) - 1) < 1e-6
    assert float(found.metrics["clip_fraction"]) == 0.0


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"design": "fast"}, ValueError, "design: expected one of 'auto', 'recompute', 'single_pass', got 'fast'"),
    ({"objective": "gspo"}, TypeError, "objective: expected an Objective, got str"),
    ({"tokens": torch.zeros(5, 6, dtype=torch.int64)}, ValueError, "mask: expected shape .* like tokens"),
    ({"tokens": [[0]]}, TypeError, "tokens: expected an array, got list"),
    ({"tokens": torch.zeros(5, 7)}, TypeError, "tokens: expected an integer dtype"),
    (
        {"tokens": torch.full((5, 7), 11)},
        ValueError,
        r"tokens: expected ids in \[0, 11\) at counted positions, got 15 others",
    ),
    ({"hidden": torch.zeros(5, 6, WIDTH).double()}, ValueError, r"tokens: expected shape \(5, 6\) \(like hidden"),
    ({"weight": torch.zeros(VOCABULARY, 3).double()}, ValueError, r"weight: expected shape \[V, D\]"),
    ({"old_logp": torch.zeros(5)}, ValueError, "old_logp: expected shape"),
    ({"advantages": torch.ones(5, 7).double()}, ValueError, "advantages: expected shape"),
    ({"chunk_size": 2.0}, ValueError, "chunk_size: expected a positive integer"),
    ({"normalizer": 0}, ValueError, "normalizer"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    case = problem()
    good = {"objective": WIDE, "hidden": case.hidden, "weight": case.weight, "tokens": case.tokens}
    arguments = good | case.arguments | change
    with pytest.raises(error, match=message):
        gspo.linear_policy_loss(arguments.pop("objective"), **arguments)


def test_what_a_single_pass_cannot_do_is_an_error() -> None:
    with pytest.raises(ValueError, match="a response of 6 tokens exceeds the chunk of 4, got 'single_pass'"):
        problem().fused(GMPO, design="single_pass", chunk_size=4)


def test_non_finite_states_of_a_counted_token_are_an_error() -> None:
    case = problem()
    case.hidden[0, 0] = torch.nan
    with pytest.raises(ValueError, match="logp: expected finite numbers at counted positions"):
        case.fused(WIDE)
