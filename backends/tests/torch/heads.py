"""A language-model head in miniature: what the tests of the fused losses share."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import gspo_torch as gspo

WIDTH, VOCABULARY = 6, 11


class Watch(TorchDispatchMode):
    """Counts products, and remembers the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_", "bmm"):
            self.products[name] += 1
        for one in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(one, Tensor) and not func.is_view:
                self.largest = max(self.largest, one.numel())
        return found

    @property
    def count(self) -> int:
        """All products."""
        return sum(self.products.values())


def tensor(values: Any, dtype: str | None = None) -> Tensor:
    """A tensor that shares nothing with `values`."""
    found = torch.from_numpy(np.array(values))
    return found.to(getattr(torch, dtype)) if dtype else found


def naive_logps(hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, temperature: float) -> Tensor:
    """All logits, log_softmax, gather; in float32 or wider after the product."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    wide = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32) / temperature
    return wide.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


class Problem:
    """A batch for `policy_loss` whose log-probabilities come from hidden states; NaN states and ids of -100 where nothing counts."""

    def __init__(self, arguments: dict[str, Any], bias: bool = True, temperature: float = 0.8, seed: int = 0) -> None:
        arguments = dict(arguments)
        given = arguments.pop("logp")
        shape, dtype = given.shape, given.dtype
        generator = torch.Generator().manual_seed(seed)
        self.counted = arguments["sequences"].bind(tuple(shape)).counted
        self.clean = torch.randn(*shape, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
        self.hidden = torch.where(self.counted[..., None], self.clean, torch.nan)
        self.weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
        self.bias = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64).to(dtype) if bias else None
        self.ids = torch.randint(VOCABULARY, tuple(shape), generator=generator)
        self.tokens = torch.where(self.counted, self.ids, -100)
        self.temperature = temperature
        logp = naive_logps(self.clean, self.weight, self.bias, self.ids, temperature)
        for name in ("old_logp", "ref_logp", "behavior_logp"):
            if name in arguments:
                arguments[name] = logp + (arguments[name] - given).to(logp.dtype)
        self.arguments = arguments

    def leaves(self, hidden: Tensor, train: str = "hwb") -> list[Tensor | None]:
        """Hidden states, weight and bias as leaves; `train` says which need a gradient."""
        parts = zip("hwb", (hidden, self.weight, self.bias), strict=True)
        return [None if one is None else one.clone().requires_grad_(letter in train) for letter, one in parts]

    def naive(self, objective: gspo.Objective, train: str = "hwb") -> tuple[gspo.PolicyLoss, list[Tensor]]:
        """`policy_loss` of all logits by autograd, and the gradients."""
        parts = self.leaves(self.clean, train)
        found = gspo.policy_loss(objective, logp=naive_logps(*parts, self.ids, self.temperature), **self.arguments)
        return found, gradients(found.loss, parts)

    def fused(
        self, objective: gspo.Objective, train: str = "hwb", **settings: Any
    ) -> tuple[gspo.PolicyLoss, list[Tensor]]:
        """`linear_policy_loss`, and the gradients."""
        parts = self.leaves(self.hidden, train)
        found = self.loss(objective, parts, **settings)
        return found, gradients(found.loss, parts)

    def loss(self, objective: gspo.Objective, parts: list[Tensor | None], **settings: Any) -> gspo.PolicyLoss:
        """`linear_policy_loss` of these leaves."""
        hidden, weight, bias = parts
        return gspo.linear_policy_loss(
            objective,
            hidden=hidden,
            weight=weight,
            bias=bias,
            tokens=self.tokens,
            temperature=self.temperature,
            **self.arguments,
            **settings,
        )


def gradients(loss: Tensor, parts: list[Tensor | None]) -> list[Tensor]:
    """Of the leaves that need one, 0 where the loss does not depend on them."""
    wanted = [one for one in parts if one is not None and one.requires_grad]
    if not loss.requires_grad:
        return [torch.zeros_like(one) for one in wanted]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.zeros_like(one) if grad is None else grad for one, grad in zip(wanted, found, strict=True)]


def distance(found: list[Tensor], truth: list[Tensor]) -> float:
    """The largest error of any tensor, relative to its largest value."""
    assert len(found) == len(truth)
    errors = [
        ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-12)) for a, b in zip(found, truth)
    ]
    assert all(bool(torch.isfinite(one).all()) for one in found)
    return max(float(error) for error in errors)
