"""Under autocast the ratio and its range stay float32: in bfloat16 the paper's band has no number in it but 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gspo_core
import gspo_torch as gspo

# Mean log-ratios just inside and just outside 1 + 4e-4 and 1 - 3e-4; bfloat16 rounds all of these ratios to 1.
SHIFTS = [3.8e-4, 4.2e-4, -2.8e-4, -3.2e-4]
ADVANTAGES = [1.0, 1.0, -1.0, -1.0]
OPEN = [True, False, True, False]


def band(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    old = torch.full((4, 64), -1.0, dtype=dtype)
    logp = (old + torch.tensor(SHIFTS, dtype=dtype)[:, None]).requires_grad_()
    return logp, old, torch.tensor(ADVANTAGES, dtype=dtype), torch.ones(4, 64, dtype=torch.bool)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "function",
    [gspo.gspo_loss, gspo.gspo_token_loss, gspo_core.gspo_loss, gspo.GSPOLoss()],
    ids=["closed form", "token", "core", "module"],
)
def test_the_band_survives_autocast(function: Callable[..., gspo.PolicyLoss], dtype: torch.dtype) -> None:
    logp, *rest = band()
    with torch.autocast("cpu", dtype=dtype):
        out = function(logp, *rest)
        out.loss.backward()
    assert {value.dtype for value in (out.loss, logp.grad, *out.metrics.values())} == {torch.float32}
    assert out.metrics["clip_fraction"] == 0.5
    assert out.metrics["clip_fraction_low"] == out.metrics["clip_fraction_high"] == 0.25
    assert (logp.grad != 0).all(1).tolist() == OPEN
    plain = function(*band())
    torch.testing.assert_close(out.loss, plain.loss, rtol=0, atol=0)


def test_what_is_avoided() -> None:
    """The same ratio formed in bfloat16 is 1, and nothing is clipped."""
    logp, old, *_ = band(torch.bfloat16)
    ratio = (logp - old).mean(1).exp()
    assert ratio.tolist() == [1, 1, 1, 1]
    assert torch.tensor([1 - 3e-4, 1 + 4e-4], dtype=torch.bfloat16).tolist() == [1, 1]


def test_the_band_survives_autocast_and_the_compiler() -> None:
    logp, *rest = band()
    torch._dynamo.reset()
    compiled = torch.compile(gspo.gspo_loss, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = compiled(logp, *rest)
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert (logp.grad != 0).all(1).tolist() == OPEN


def test_a_model_under_autocast() -> None:
    """Logits in bfloat16, log-probabilities and everything after in float32; gradients reach the head."""
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(8, 16), torch.randn(4, 7, 8)
    tokens, mask = torch.randint(16, (4, 7)), torch.ones(4, 7, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(hidden)
        logp = gspo.token_logps(logits, tokens)
        out = gspo.gspo_loss(logp, logp.detach(), torch.linspace(-1, 1, 4), mask)
    assert (logits.dtype, logp.dtype, out.loss.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    out.loss.backward()
    assert head.weight.grad.abs().sum() > 0
    assert out.metrics["ratio_is_one"] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
def test_narrow_log_probabilities_are_widened_before_they_are_subtracted(packs: bool, dtype: torch.dtype) -> None:
    """-100 and -100.5 differ by one step of bfloat16: their mean over 1000 tokens keeps what the mean in it loses."""
    old = torch.full((1000,), -100.0, dtype=dtype)
    logp = old.clone()
    logp[0] = -100.5
    mean = -0.5 / 1000
    sequences: Any = gspo.Packed(torch.tensor([0, 1000])) if packs else torch.ones(1, 1000, dtype=torch.bool)
    shape = (1000,) if packs else (1, 1000)
    out = gspo.gspo_loss(logp.view(shape), old.view(shape), torch.ones(1), sequences, clip=gspo.Clip(0.2, 0.2))
    torch.testing.assert_close(out.loss, -torch.tensor(mean).exp(), rtol=3e-7, atol=0)
