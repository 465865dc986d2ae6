"""The paper's formulas written out by hand, in NumPy, PyTorch and JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from gspo_conformance import loss_target
from gspo_conformance.target import Skip

LOW, HIGH, LONG = 3e-4, 4e-4, 2000


def printed(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
    """Eq. 5 as it is printed: a power of a ratio of products, min, clip."""
    logp, old_logp, advantages = (np.where(mask, x, 0.0).astype(np.float64) if x.ndim == 2 else x.astype(np.float64) for x in (logp, old_logp, advantages))  # fmt: skip
    lengths = np.maximum(mask.sum(axis=1), 1)
    ratio = np.exp((logp - old_logp).sum(axis=1)) ** (1 / lengths)
    return -np.mean(np.minimum(ratio * advantages, np.clip(ratio, 1 - LOW, 1 + HIGH) * advantages))


def by_loops(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
    """d L / d log π by hand, response by response: -(s A / |y|) gate / G."""
    found = np.zeros(logp.shape)
    for i in range(len(found)):
        at = np.flatnonzero(mask[i])
        if not at.size:
            continue
        ratio = np.exp(np.mean(logp[i, at].astype(np.float64) - old_logp[i, at]))
        a = float(advantages[i])
        if (a > 0 and ratio > 1 + HIGH) or (a < 0 and ratio < 1 - LOW):
            continue
        found[i, at] = -ratio * a / at.size / len(found)
    return found.astype(logp.dtype)


def in_log_space(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
    """Decisions by log s against log1p of the bounds; the excess over 1 by expm1."""
    moved = np.where(mask, logp, 0) - np.where(mask, old_logp, 0)
    log_s = moved.astype(np.float64).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)
    held = np.where(advantages > 0, np.minimum(log_s, np.log1p(HIGH)), np.maximum(log_s, np.log1p(-LOW)))
    return -(np.sum(advantages.astype(np.float64)) + np.sum(np.expm1(held) * advantages)) / len(mask)


def complex_step(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
    """The gradient by a step into the complex plane, one token at a time, without a subtraction."""
    if mask.sum() > LONG:
        raise Skip("a step for every token takes too long")
    found = np.zeros(logp.shape)
    moved = (np.where(mask, logp, 0).astype(np.float64) - np.where(mask, old_logp, 0)).astype(complex)
    for i, t in zip(*np.nonzero(mask), strict=True):
        row = moved[i].copy()
        row[t] += 1e-30j
        ratio = np.exp(row.sum() / mask[i].sum())
        a = float(advantages[i])
        shut = (a > 0 and ratio.real > 1 + HIGH) or (a < 0 and ratio.real < 1 - LOW)
        found[i, t] = 0.0 if shut else -(ratio * a).imag / 1e-30 / len(found)
    return found.astype(logp.dtype)


def in_torch(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
    """Eq. 5 in PyTorch; autograd does the rest. Garbage is selected away before it is used, and exp sees the bound only."""
    moved = torch.where(mask, logp - old_logp, 0.0)
    log_s = moved.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    ratio = torch.exp(torch.where(advantages < 0, log_s, log_s.clamp(max=5.0)))
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - LOW, 1 + HIGH) * advantages).mean()


def in_torch_doubled(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
    """The same with everything cast up first."""
    return in_torch(logp.double(), old_logp.double(), advantages.double(), mask).to(logp.dtype)


def token_in_torch(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
    """Eq. 13 and 14 in PyTorch, stop-gradients as printed."""
    moved = torch.where(mask, logp - old_logp, 0.0)
    lengths = mask.sum(dim=1).clamp(min=1)
    log_s = (moved.sum(dim=1) / lengths).detach()[:, None]
    clean = torch.where(mask, logp, 0.0)
    ratio = torch.exp(torch.where(advantages < 0, log_s, log_s.clamp(max=5.0)) + clean - clean.detach())
    values = torch.minimum(ratio * advantages, ratio.clamp(1 - LOW, 1 + HIGH) * advantages)
    return -(torch.where(mask, values, 0.0).sum(dim=1) / lengths).mean()


def in_jax(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
    """Eq. 5 in JAX with the gate as a selection."""
    moved = jnp.where(mask, logp, 0.0) - jnp.where(mask, old_logp, 0.0)
    log_s = moved.sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)
    s = jax.lax.stop_gradient(jnp.exp(log_s))
    above, below = (advantages > 0) & (s > 1 + HIGH), (advantages < 0) & (s < 1 - LOW)
    live = jnp.exp(jnp.where(above | below | (advantages == 0), 0.0, log_s))
    return -(jnp.where(above, 1 + HIGH, jnp.where(below, 1 - LOW, live)) * advantages).mean()


VARIANTS = (
    loss_target(printed, "numpy", gradient=by_loops, name="printed", dtypes=("float32", "float64")),
    loss_target(in_log_space, "numpy", gradient=complex_step, name="log-space", dtypes=("float32", "float64")),
    loss_target(in_torch, "torch", name="torch-by-hand", dtypes=("float32", "float64")),
    loss_target(in_torch_doubled, "torch", name="torch-doubled"),
    loss_target(token_in_torch, "torch", objective="gspo_token", advantages="token", name="torch-gspo-token"),
    loss_target(in_jax, "jax", name="jax-by-hand"),
)
