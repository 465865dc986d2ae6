"""One mathematics on every framework: values, gradients, metrics, padded and packed, for every axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gspo_core as gspo

from .batches import Batch, axes

AXES = axes()
CASES = [
    pytest.param(objective, per_token, id=f"{name}{'-per-token' if per_token else ''}")
    for name, objective in AXES.items()
    for per_token in ((False, True) if objective.allows_token_advantages else (False,))
]


@pytest.fixture(scope="module")
def batch() -> Batch:
    return Batch()


def _numpy(values: Any, dtype: str | None = None) -> np.ndarray:
    return np.array(values, dtype=dtype)


def _reference(objective: gspo.Objective, batch: Batch, per_token: bool) -> tuple[Any, np.ndarray]:
    arguments = batch.padded(_numpy, per_token=per_token)
    return gspo.policy_loss(objective, **arguments), gspo.policy_gradient(objective, **arguments)


@pytest.mark.parametrize(("objective", "per_token"), CASES)
def test_loss_and_gradient_agree(xp: Any, batch: Batch, objective: gspo.Objective, per_token: bool) -> None:
    expected, gradient = _reference(objective, batch, per_token)
    for layout in ("padded", "packed"):
        arguments = getattr(batch, layout)(xp, per_token=per_token)
        found = gspo.policy_loss(objective, **arguments)
        np.testing.assert_allclose(float(found.loss), float(expected.loss), rtol=1e-12, atol=1e-14)
        for name, value in expected.metrics.items():
            np.testing.assert_allclose(float(found.metrics[name]), float(value), rtol=1e-12, err_msg=name)
        slopes = xp.numpy(gspo.policy_gradient(objective, **arguments))
        if layout == "packed":
            assert not slopes[-2:].any()
        wanted = gradient if layout == "padded" else batch.pack(gradient, 0.0)
        np.testing.assert_allclose(slopes, wanted, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize(("objective", "per_token"), CASES)
def test_torch_autograd_is_the_closed_form(
    batch: Batch, objective: gspo.Objective, per_token: bool, layout: str
) -> None:
    import torch

    def tensor(values: Any, dtype: str | None = None) -> Any:
        return torch.from_numpy(np.array(values, dtype=dtype))

    arguments = getattr(batch, layout)(tensor, per_token=per_token)
    arguments["logp"].requires_grad_()
    gspo.policy_loss(objective, **arguments).loss.backward()
    expected = gspo.policy_gradient(objective, **getattr(batch, layout)(_numpy, per_token=per_token))
    np.testing.assert_allclose(arguments["logp"].grad.numpy(), expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize(("objective", "per_token"), CASES)
def test_jax_grad_is_the_closed_form(batch: Batch, objective: gspo.Objective, per_token: bool, layout: str) -> None:
    import jax

    arguments = getattr(batch, layout)(lambda v, d=None: jax.numpy.asarray(np.array(v, dtype=d)), per_token=per_token)
    logp = arguments.pop("logp")
    found = jax.grad(lambda values: gspo.policy_loss(objective, logp=values, **arguments).loss)(logp)
    expected = gspo.policy_gradient(objective, **getattr(batch, layout)(_numpy, per_token=per_token))
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-11, atol=1e-15)


def test_float32_stays_float32_and_float64_stays_float64(xp: Any, batch: Batch) -> None:
    for dtype in ("float32", "float64"):
        out = gspo.policy_loss(gspo.Objective.gspo(), **batch.padded(xp, dtype))
        assert str(out.loss.dtype).endswith(dtype)
        assert str(gspo.policy_gradient(gspo.Objective.gspo(), **batch.padded(xp, dtype)).dtype).endswith(dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_log_probabilities_are_widened(dtype: str) -> None:
    """The band 3e-4 is below one ulp of 1 in both: a ratio computed in them never leaves 1."""
    import torch

    logp = torch.full((1, 4), -1.0, dtype=getattr(torch, dtype))
    old = torch.full((1, 4), -1.0 - 2**-6, dtype=getattr(torch, dtype))
    out = gspo.gspo_loss(logp, old, torch.ones(1), torch.ones(1, 4, dtype=torch.bool))
    assert out.loss.dtype == torch.float32
    assert float(out.metrics["clip_fraction"]) == 1.0


def test_strides_of_ids_and_offsets_are_nobodys_concern() -> None:
    import torch

    def strided(values: list[int]) -> Any:
        return torch.tensor(values).repeat_interleave(2)[::2]

    rewards, logp = torch.tensor([1.0, 0.0, 1.0]), torch.zeros(6)
    torch.set_warn_always(True)  # else the library warns once per program
    try:
        for ids in ([0, 0, 1], [1, 0, 1]):
            packed = gspo.Packed(strided([0, 2, 3, 6]))
            gspo.group_advantages(rewards, strided(ids))
            step = {"logp": logp, "old_logp": logp, "advantages": rewards, "sequences": packed}
            gspo.policy_loss(gspo.Objective.dapo(), **step, groups=strided(ids))
    finally:
        torch.set_warn_always(False)


def test_an_array_on_another_device_is_named() -> None:
    import torch

    logp, mask, elsewhere = torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 2, device="meta")
    with pytest.raises(ValueError, match=r"^old_logp: expected an array on cpu, like logp, got one on meta$"):
        gspo.gspo_loss(logp, elsewhere, torch.ones(1), mask)
    with pytest.raises(ValueError, match=r"^sequences: expected an array on cpu, like logp, got one on meta$"):
        gspo.gspo_loss(logp, logp, torch.ones(1), elsewhere)
    with pytest.raises(ValueError, match=r"^groups: expected an array on cpu, like rewards, got one on meta$"):
        gspo.group_advantages(torch.ones(2), elsewhere[0].long())
