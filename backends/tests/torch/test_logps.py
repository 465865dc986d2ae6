"""`token_logps` against log_softmax and gather."""

from __future__ import annotations

import pytest
import torch

import gspo_torch as gspo
from gspo_torch import logps

from .heads import Watch


def naive(logits: torch.Tensor, tokens: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    return (logits.double() / temperature).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def both(logits: torch.Tensor, tokens: torch.Tensor, temperature: float) -> tuple[list[torch.Tensor], ...]:
    weights = torch.randn(tokens.shape, dtype=torch.float64)
    results = []
    for compute in (
        lambda z: gspo.token_logps(z, tokens, temperature=temperature),
        lambda z: naive(z, tokens, temperature),
    ):
        leaf = logits.detach().requires_grad_()
        found = compute(leaf)
        results.append([found.detach(), torch.autograd.grad((found * weights).sum(), leaf)[0]])
    return tuple(results)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("dtype", "value_error", "gradient_error"),
    [
        (torch.float64, 1e-14, 1e-14),
        (torch.float32, 2e-6, 1e-6),
        (torch.bfloat16, 2e-6, 8e-3),
        (torch.float16, 2e-6, 1e-3),
    ],
)
@pytest.mark.parametrize("shape", [(3, 7, 50), (5, 50), (0, 50), (4, 1)])
def test_equals_log_softmax(
    shape: tuple[int, ...], dtype: torch.dtype, value_error: float, gradient_error: float, temperature: float
) -> None:
    logits = (3 * torch.randn(shape)).to(dtype)
    tokens = torch.randint(shape[-1], shape[:-1])
    (value, gradient), (truth, slope) = both(logits, tokens, temperature)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype
    torch.testing.assert_close(value.double(), truth, rtol=value_error, atol=value_error)
    torch.testing.assert_close(gradient.double(), slope.double(), rtol=gradient_error, atol=gradient_error)


def test_a_shifted_view_is_read_in_place() -> None:
    whole = torch.randn(3, 8, 50)
    tokens = torch.randint(50, (3, 7))
    with Watch() as watch:
        value = gspo.token_logps(whole[:, :-1], tokens)
    torch.testing.assert_close(value.double(), naive(whole[:, :-1], tokens), rtol=1e-6, atol=1e-6)
    assert watch.largest <= 7 * 50


def test_no_second_copy_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logps, "_HOST_BYTES", 4 * 50 * 2)
    logits = torch.randn(40, 50, requires_grad=True)
    with Watch() as watch:
        value = gspo.token_logps(logits, torch.zeros(40, dtype=torch.int64))
    assert watch.largest <= 3 * 40
    value.sum().backward()
    torch.testing.assert_close(logits.grad.sum(-1), torch.zeros(40), rtol=0, atol=1e-5)


def test_confident_tokens_keep_their_digits() -> None:
    """log π and 1 - π of a probability near one: lost by log_softmax in float32, where 1 - e^-20 is 1."""
    logits = torch.tensor([[20.0, 0.0, -1.0]], requires_grad=True)
    value = gspo.token_logps(logits, torch.tensor([0]))
    truth = naive(logits.detach(), torch.tensor([0]))
    assert abs(float(value.detach()) / float(truth) - 1) < 1e-6
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert abs(float(gradient[0, 0]) / -float(truth.expm1()) - 1) < 1e-6


def test_nan_logits_of_a_masked_token_reach_no_gradient() -> None:
    logits = torch.randn(2, 3, 5)
    logits[0, 2] = torch.nan
    logits.requires_grad_()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    value = gspo.token_logps(logits, torch.zeros(2, 3, dtype=torch.int64))
    torch.where(mask, value, 0.0).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[0, 2] == 0).all()
    assert (logits.grad[1, 2] != 0).all()


def test_a_forbidden_token_has_no_probability() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0]], requires_grad=True)
    assert float(gspo.token_logps(logits.detach(), torch.tensor([1]))) == -torch.inf
    value = gspo.token_logps(logits, torch.tensor([0]))
    assert abs(float(value.detach()) + 0.6931472) < 1e-6
    assert torch.autograd.grad(value.sum(), logits)[0][0].tolist() == pytest.approx([0.5, 0.0, -0.5])


def test_gradcheck() -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(5, (2, 3))
    assert torch.autograd.gradcheck(lambda z: gspo.token_logps(z, tokens, temperature=1.3), logits)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_under_transforms_of_functions() -> None:
    """`torch.func` and forward-mode derivatives, with certain, forbidden and tied tokens among them."""
    logits = torch.randn(3, 4, 7, dtype=torch.float64)
    logits[0, 0] *= 40
    logits[1, 1] = 0
    logits[2, 2, 0] = -torch.inf
    tokens = logits.argmax(-1)
    tokens[2] = torch.arange(1, 5)
    weights = torch.randn(3, 4, dtype=torch.float64)

    def ours(values: torch.Tensor) -> torch.Tensor:
        return (gspo.token_logps(values, tokens, temperature=0.6) * weights).sum()

    def plain(values: torch.Tensor) -> torch.Tensor:
        return ((values / 0.6).log_softmax(-1).gather(-1, tokens[..., None])[..., 0] * weights).sum()

    for transform in (torch.func.grad, torch.func.jacfwd, torch.func.hessian):
        torch.testing.assert_close(transform(ours)(logits), transform(plain)(logits), rtol=1e-9, atol=1e-12)
    each = torch.func.vmap(gspo.token_logps)(logits, tokens)
    torch.testing.assert_close(each, gspo.token_logps(logits, tokens), rtol=1e-12, atol=0)


def test_twice_differentiated_is_one_clear_error() -> None:
    logits = torch.randn(2, 5, requires_grad=True)
    value = gspo.token_logps(logits, torch.tensor([0, 1]))
    (gradient,) = torch.autograd.grad(value.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="expected to be differentiated once"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("logits", "tokens", "settings", "error", "message"),
    [
        (torch.zeros(2, 5), torch.zeros(2), {}, TypeError, "tokens: expected an integer dtype"),
        (torch.zeros(2, 5), torch.zeros(3, dtype=torch.int64), {}, ValueError, r"tokens: expected shape \(2,\)"),
        (
            torch.zeros(2, 5),
            torch.tensor([0, 5]),
            {},
            ValueError,
            r"tokens: expected ids in \[0, 5\), got 1 others, the first, 5",
        ),
        (torch.zeros(2, 5), torch.tensor([-100, 0]), {}, ValueError, r"the first, -100, at index \(0,\)"),
        (torch.zeros(2, 5, dtype=torch.int64), torch.tensor([0, 0]), {}, TypeError, "logits: expected a real floating"),
        (torch.zeros(()), torch.tensor(0), {}, ValueError, "logits: expected shape"),
        (
            torch.zeros(2, 5),
            torch.tensor([0, 0]),
            {"temperature": 0.0},
            ValueError,
            "temperature: expected a number > 0",
        ),
        ([[0.0]], torch.tensor([0]), {}, TypeError, "logits: expected an array"),
    ],
)
def test_bad_arguments(logits: object, tokens: torch.Tensor, settings: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        gspo.token_logps(logits, tokens, **settings)
