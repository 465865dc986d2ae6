"""Derivatives of the closed form: gradcheck, gradgradcheck, create_graph, and `torch.func`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gspo_torch as gspo
from gspo_core.tests.batches import Batch, axes

from .test_native import tensor

AXES = axes()
TWICE = ["gspo", "grpo", "luspo", "sapo", "sequence-Sapo", "product-Unclipped", "kl-k3-token-free"]
# Stop-gradients inside the ratio: the derivative is that of the surrogate, which no finite difference sees twice.
ONCE = [*TWICE, "gspo_token"]


def loss(objective: gspo.Objective, layout: str = "padded") -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The loss as a function of the log-probabilities, finite everywhere, and where to start."""
    arguments = getattr(Batch(garbage=-1.0), layout)(tensor)
    logp = torch.nan_to_num(arguments.pop("logp"), nan=-1.0)
    return lambda values: gspo.policy_loss(objective, logp=values, **arguments).loss, logp


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("name", ONCE)
def test_gradcheck(name: str, layout: str) -> None:
    function, logp = loss(AXES[name], layout)
    assert torch.autograd.gradcheck(function, logp.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("name", TWICE)
def test_gradgradcheck(name: str, layout: str) -> None:
    function, logp = loss(AXES[name], layout)
    assert torch.autograd.gradgradcheck(function, logp.requires_grad_(), fast_mode=True)


def test_the_second_derivative_is_not_zero() -> None:
    """A gradient that was only a constant to autograd would pass for linear: its own derivative would vanish."""
    function, logp = loss(gspo.Objective.gspo(gspo.Clip(0.9, 9.0)))
    logp.requires_grad_()
    (gradient,) = torch.autograd.grad(function(logp), logp, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), logp)
    assert second.abs().max() > 1e-3


def test_a_graph_may_be_used_twice() -> None:
    function, logp = loss(AXES["gspo"])
    value = function(logp.requires_grad_())
    (first,) = torch.autograd.grad(value, logp, retain_graph=True)
    (second,) = torch.autograd.grad(2 * value, logp)
    torch.testing.assert_close(second, 2 * first, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["old_logp", "advantages"])
def test_arguments_changed_in_place(name: str) -> None:
    """The first derivative is found already; a second would be that of other values, so it is refused."""
    arguments = Batch(garbage=-1.0).padded(tensor)
    arguments["logp"] = torch.nan_to_num(arguments["logp"], nan=-1.0).requires_grad_()
    value = gspo.policy_loss(gspo.Objective.gspo(), **arguments).loss
    (first,) = torch.autograd.grad(value, arguments["logp"], retain_graph=True)
    arguments[name].mul_(1.0)
    torch.testing.assert_close(torch.autograd.grad(value, arguments["logp"], retain_graph=True)[0], first)
    with pytest.raises(RuntimeError, match=f"^{name}: changed in place since the loss was computed"):
        torch.autograd.grad(value, arguments["logp"], create_graph=True)


def test_through_a_model() -> None:
    """The gradient goes on to what the log-probabilities were made of."""
    function, logp = loss(AXES["gspo"])
    shift = torch.zeros((), dtype=logp.dtype, requires_grad=True)
    function(logp + shift).backward()
    (expected,) = torch.autograd.grad(function(logp.requires_grad_()), logp)
    torch.testing.assert_close(shift.grad, expected.sum())


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("name", ["gspo", "grpo"])
def test_func_grad(name: str, layout: str) -> None:
    function, logp = loss(AXES[name], layout)
    (expected,) = torch.autograd.grad(function(logp.requires_grad_()), logp)
    torch.testing.assert_close(torch.func.grad(function)(logp.detach()), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("penalty", [None, gspo.Penalty("abs", 0.1), gspo.Penalty("k3", 0.1, log_ratio_clamp=0.05)])
def test_func_vmap_and_jvp(penalty: gspo.Penalty | None) -> None:
    function, logp = loss(AXES["gspo"].replace(penalty=penalty))
    several = torch.stack([logp, logp + 0.01])
    losses, gradients = torch.func.vmap(torch.func.grad_and_value(function))(several)[::-1]
    torch.testing.assert_close(losses, torch.stack([function(one) for one in several]))
    tangent = torch.ones_like(logp)
    _, slope = torch.func.jvp(function, (logp,), (tangent,))
    torch.testing.assert_close(slope, gradients[0].sum())


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_forward_mode() -> None:
    function, logp = loss(AXES["gspo"])
    with torch.autograd.forward_ad.dual_level():
        dual = function(torch.autograd.forward_ad.make_dual(logp, torch.ones_like(logp)))
        slope = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(slope, torch.func.grad(function)(logp).sum())


def test_make_fx_traces_the_core() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    function, logp = loss(AXES["gspo"])
    traced: Any = make_fx(function)(logp)
    torch.testing.assert_close(traced(logp + 0.01), function(logp + 0.01))


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("name", ["gspo", "grpo", "cispo"])
def test_many_factors_at_once(name: str, layout: str) -> None:
    """`is_grads_batched`, which vectorised Jacobians use, brings one factor that stands for many."""
    function, logp = loss(AXES[name], layout)
    value = function(logp.requires_grad_())
    (gradient,) = torch.autograd.grad(value, logp, retain_graph=True)
    (found,) = torch.autograd.grad(value, logp, torch.tensor([1.0, -2.0, 0.0]).to(value), is_grads_batched=True)
    torch.testing.assert_close(found, torch.stack([gradient, -2 * gradient, 0 * gradient]))
