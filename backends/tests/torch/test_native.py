"""The closed form is the core: loss, metrics and gradient, for every axis, layout and dtype, and the edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import gspo_core
import gspo_torch as gspo
from gspo_core.tests.batches import Batch, axes
from gspo_torch import closed_form, tokens

AXES = axes()
CASES = [
    pytest.param(objective, per_token, id=f"{name}{'-per-token' if per_token else ''}")
    for name, objective in AXES.items()
    for per_token in ((False, True) if objective.allows_token_advantages else (False,))
]
BY_RESPONSE = ("gspo", "gspo_token", "luspo", "product-Clip", "sequence-Sapo", "sequence-Unclipped", "vespo")


def tensor(values: Any, dtype: str | None = None) -> torch.Tensor:
    return torch.from_numpy(np.array(values, dtype=dtype))


def both(objective: gspo.Objective, arguments: dict[str, Any]) -> list[tuple[Any, torch.Tensor]]:
    """Loss with metrics, and gradient: of the core's autograd path, then of the closed form."""
    found = []
    for function in (gspo_core.policy_loss, gspo.policy_loss):
        logp = arguments["logp"].detach().clone().requires_grad_()
        out = function(objective, **(arguments | {"logp": logp}))
        out.loss.backward()
        found.append((out, logp.grad))
    return found


def assert_equal(found: list[tuple[Any, torch.Tensor]], rtol: float, atol: float) -> None:
    (expected, wanted), (out, gradient) = found
    torch.testing.assert_close(out.loss, expected.loss, rtol=rtol, atol=atol)
    torch.testing.assert_close(gradient, wanted, rtol=rtol, atol=atol)
    assert out.metrics.keys() == expected.metrics.keys()
    for name, value in expected.metrics.items():
        torch.testing.assert_close(out.metrics[name], value, rtol=max(rtol, 1e-12), atol=max(atol, 1e-12), msg=name)
        assert not out.metrics[name].requires_grad


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize(("objective", "per_token"), CASES)
def test_the_closed_form_is_the_core(objective: gspo.Objective, per_token: bool, layout: str) -> None:
    assert_equal(both(objective, getattr(Batch(), layout)(tensor, per_token=per_token)), 1e-12, 1e-15)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("name", ["gspo", "product-Clip", "grpo"])
def test_narrow_inputs(name: str, layout: str, dtype: str) -> None:
    arguments = getattr(Batch(), layout)(tensor, "float32")
    narrow = {name: arguments[name].to(getattr(torch, dtype)) for name in ("logp", "old_logp", "advantages")}
    found = both(AXES[name], arguments | narrow)
    assert found[1][0].loss.dtype == torch.float32
    assert found[1][1].dtype == getattr(torch, dtype)
    assert_equal(found, 1e-6, 1e-7)


@pytest.mark.parametrize("pair", [("float32", "float64"), ("float64", "float32"), ("bfloat16", "float32")])
def test_inputs_of_two_dtypes(pair: tuple[str, str]) -> None:
    arguments = Batch().padded(tensor)
    mixed = {name: arguments[name].to(getattr(torch, dtype)) for name, dtype in zip(("logp", "old_logp"), pair)}
    found = both(gspo.Objective.gspo(gspo.Clip(0.2, 0.2)), arguments | mixed)
    wide = "float64" in pair
    assert found[1][0].loss.dtype == (torch.float64 if wide else torch.float32)
    assert_equal(found, 1e-12 if wide else 1e-6, 1e-12 if wide else 1e-7)


@pytest.mark.parametrize("block", [1, 7, 16])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, layout: str, block: int) -> None:
    monkeypatch.setattr(tokens, "_BLOCK", block)
    for name in BY_RESPONSE:
        assert_equal(both(AXES[name], getattr(Batch(), layout)(tensor)), 1e-12, 1e-15)


def test_without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_form, "numpy", None)
    for name in BY_RESPONSE:
        assert_equal(both(AXES[name], Batch().padded(tensor)), 1e-12, 1e-15)


def test_where_values_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch that a GPU takes, on the CPU."""
    monkeypatch.setattr(type(gspo.backend), "can_inspect", lambda *_: False)
    for layout in ("padded", "packed"):
        for name in BY_RESPONSE:
            assert_equal(both(AXES[name], getattr(Batch(), layout)(tensor)), 1e-12, 1e-15)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_results_are_where_the_arguments_are(layout: str) -> None:
    """Not on the default device."""
    for name in ("gspo", "grpo", "dapo", "gmpo"):
        arguments = getattr(Batch(), layout)(tensor)
        with torch.device("meta"):
            found = both(AXES[name], arguments)
        assert_equal(found, 1e-12, 1e-15)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("name", ["gspo", "grpo"])
def test_nothing_depends_on_values(name: str, layout: str) -> None:
    """On the meta device there are no values: a read, and so a wait for a device, would raise."""
    arguments = getattr(Batch(), layout)(tensor, "float32")
    sequences = arguments.pop("sequences")
    meta = {key: value.to("meta") for key, value in arguments.items()}
    mask = None if sequences.mask is None else sequences.mask.to("meta")
    meta["sequences"] = (
        gspo.Padded(mask) if layout == "padded" else gspo.Packed(sequences.offsets.to("meta"), mask=mask)
    )
    meta["logp"].requires_grad_()
    out = gspo.policy_loss(AXES[name], **meta)
    out.loss.backward()
    assert meta["logp"].grad.shape == meta["logp"].shape
    assert {value.device.type for value in (out.loss, *out.metrics.values())} == {"meta"}


@pytest.mark.parametrize("name", ["gspo", "gspo_token", "grpo", "ppo"])
def test_the_named_losses(name: str) -> None:
    arguments = Batch().padded(tensor)
    positional = [arguments[key] for key in ("logp", "old_logp", "advantages", "sequences")]
    clip = gspo.Clip(0.01, 0.02)
    for options in ({}, {"clip": clip, "normalizer": 3}):
        expected = getattr(gspo_core, f"{name}_loss")(*positional, **options)
        found = getattr(gspo, f"{name}_loss")(*positional, **options)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    assert getattr(gspo, f"{name}_loss").__kwdefaults__ == getattr(gspo_core, f"{name}_loss").__kwdefaults__


def test_exact_zeros() -> None:
    """Clipped, A = 0, uncounted: the gradient is 0 to the bit, beside infinite ratios and NaN padding."""
    logp = torch.full((4, 3), -1.0, requires_grad=True)
    old = torch.full((4, 3), -1.0)
    old[0] = -100.0
    old[1] = -2.0
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[:, 2] = False
    old[:, 2] = torch.nan
    advantages = torch.tensor([1.0, 0.0, 1.0, -1.0])
    gspo.gspo_loss(logp, old, advantages, mask).loss.backward()
    assert logp.grad.tolist() == [[0, 0, 0], [0, 0, 0], [-0.125, -0.125, 0], [0.125, 0.125, 0]]


def test_an_infinite_coefficient_stays_in_its_response() -> None:
    logp = torch.tensor([[200.0, 0.0], [-1.0, -1.0]], requires_grad=True)
    old = torch.tensor([[0.0, 0.0], [-1.0, -1.0]])
    mask = torch.tensor([[True, False], [True, True]])
    gspo.gspo_loss(logp, old, torch.tensor([-1.0, -1.0]), mask).loss.backward()
    assert logp.grad.tolist() == [[float("inf"), 0], [0.25, 0.25]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["logp", "old_logp"])
def test_a_counted_value_that_is_not_finite_is_named(name: str, value: float) -> None:
    arguments = {"logp": torch.zeros(2, 3), "old_logp": torch.zeros(2, 3)}
    arguments[name][1, 2] = value
    rest = {"advantages": torch.ones(2), "sequences": torch.ones(2, 3, dtype=torch.bool)}
    for objective in (gspo.Objective.gspo(), gspo.Objective.grpo()):
        with pytest.raises(ValueError, match=rf"^{name}: expected finite numbers at counted positions.*\(1, 2\)"):
            gspo.policy_loss(objective, **arguments, **rest)
    with gspo.value_checks(False):
        out = gspo.policy_loss(gspo.Objective.gspo(), **arguments, **rest)
    assert not out.metrics["ratio_is_one"]


def test_both_infinite_is_not_on_policy() -> None:
    logp = torch.full((1, 2), -float("inf"))
    with pytest.raises(ValueError, match="logp: expected finite"):
        gspo.gspo_loss(logp, logp, torch.ones(1), torch.ones(1, 2, dtype=torch.bool))


def test_a_difference_too_small_for_its_divergence_is_off_policy() -> None:
    old = torch.zeros(2, 3)
    logp = old.clone()
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert gspo.gspo_loss(logp, old, torch.ones(2), mask).metrics["ratio_is_one"] == 1
    logp[1, 1] = 1e-30
    assert gspo.gspo_loss(logp, old, torch.ones(2), mask).metrics["ratio_is_one"] == 0


@pytest.mark.parametrize("shape", [(2, 0), (0,)])
def test_no_tokens_at_all(shape: tuple[int, ...]) -> None:
    logp = torch.zeros(shape, requires_grad=True)
    sequences = (
        gspo.Padded(torch.zeros(shape, dtype=torch.bool))
        if len(shape) == 2
        else gspo.Packed(torch.zeros(3, dtype=torch.int64))
    )
    out = gspo.gspo_loss(logp, logp.detach(), torch.ones(2), sequences)
    out.loss.backward()
    assert out.loss == 0
    assert logp.grad.shape == shape


@pytest.mark.parametrize("objective", [gspo.Objective.gspo(), gspo.Objective.grpo(), gspo.Objective.cispo()])
def test_a_rollout_made_in_inference_mode(objective: gspo.Objective) -> None:
    """Autograd keeps no tensor of inference mode; masks, tokens and old log-probabilities may be some."""
    hidden, weight = torch.randn(2, 3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    with torch.inference_mode():
        tokens, mask = torch.randint(5, (2, 3)), torch.ones(2, 3, dtype=torch.bool)
        fixed = {
            "old_logp": gspo.linear_token_logps(hidden, weight, tokens),
            "advantages": torch.tensor([1.0, -1.0]),
            "sequences": mask,
        }
    fused = gspo.linear_policy_loss(objective, hidden=hidden, weight=weight, tokens=tokens, **fixed)
    linear = gspo.policy_loss(objective, logp=gspo.linear_token_logps(hidden, weight, tokens), **fixed)
    plain = gspo.policy_loss(objective, logp=gspo.token_logps(hidden @ weight.T, tokens), **fixed)
    gradients = [torch.autograd.grad(one.loss, (hidden, weight)) for one in (plain, linear, fused)]
    for others in gradients[1:]:
        torch.testing.assert_close(others, gradients[0])


def test_inputs_in_any_memory_order() -> None:
    batch = Batch()
    arguments = batch.padded(tensor)
    turned = {name: arguments[name].T.contiguous().T for name in ("logp", "old_logp")}
    turned["sequences"] = gspo.Padded(arguments["sequences"].mask.T.contiguous().T)
    expected, found = both(AXES["gspo"], arguments), both(AXES["gspo"], arguments | turned)
    assert_equal([expected[0], found[1]], 1e-12, 1e-15)
    one_row = arguments | {"sequences": gspo.Padded(torch.ones(1, 1, dtype=torch.bool).expand(5, 7))}
    one_row |= {name: torch.nan_to_num(arguments[name]) for name in ("logp", "old_logp", "ref_logp", "behavior_logp")}
    assert_equal(both(AXES["gspo"], one_row), 1e-12, 1e-15)


def test_offsets_of_either_width() -> None:
    arguments = Batch().packed(tensor)
    narrow = gspo.Packed(arguments["sequences"].offsets.int(), mask=arguments["sequences"].mask)
    assert_equal(both(AXES["gspo"], arguments | {"sequences": narrow}), 1e-12, 1e-15)


def test_only_the_log_probabilities_have_a_gradient() -> None:
    arguments = Batch().padded(tensor)
    for name in ("logp", "old_logp", "advantages"):
        arguments[name].requires_grad_()
    gspo.policy_loss(AXES["gspo"], **arguments).loss.backward()
    assert arguments["logp"].grad is not None
    assert arguments["old_logp"].grad is None
    assert arguments["advantages"].grad is None


def test_no_gradient_where_none_is_asked_for() -> None:
    arguments = Batch().padded(tensor)
    assert not gspo.policy_loss(AXES["gspo"], **arguments).loss.requires_grad
    arguments["logp"].requires_grad_()
    with torch.no_grad():
        assert not gspo.policy_loss(AXES["gspo"], **arguments).loss.requires_grad
    with torch.inference_mode():
        assert not gspo.policy_loss(AXES["gspo"], **arguments).loss.requires_grad


def test_a_mask_that_changes_before_the_backward_pass_is_an_error() -> None:
    arguments = Batch().padded(tensor)
    arguments["logp"].requires_grad_()
    out = gspo.policy_loss(AXES["gspo"], **arguments)
    arguments["sequences"].mask.fill_(True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.loss.backward()


@pytest.mark.parametrize("name", ["gspo", "grpo"])
def test_offsets_changed_in_place_before_the_backward_pass_are_an_error(name: str) -> None:
    """As where the next micro-batch is written into the same buffer."""
    arguments = Batch().packed(tensor)
    arguments["logp"].requires_grad_()
    out = gspo.policy_loss(AXES[name], **arguments)
    arguments["sequences"].offsets[1] -= 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.loss.backward()


@pytest.mark.parametrize("name", ["gspo", "grpo", "cispo", "gmpo"])
def test_the_loss_may_be_changed_in_place(name: str) -> None:
    (_, wanted), _ = both(AXES[name], Batch().padded(tensor))
    arguments = Batch().padded(tensor)
    logp = arguments["logp"].requires_grad_()
    loss = gspo.policy_loss(AXES[name], **arguments).loss
    loss /= 4
    loss.backward()
    torch.testing.assert_close(logp.grad, wanted / 4)


def test_packed_sums_are_accurate() -> None:
    """A float32 accumulator that goes token by token is off by 1e-4 after this many equal terms."""
    short = torch.arange(50_001, 60_001)
    segments = torch.cat([torch.tensor([0, 1, 50_001]), short, torch.tensor([300_000])])
    values = torch.full((300_007,), -1.5e-3)
    found = gspo.backend.segment_sum(values, segments, 240_000)
    expected = values[0].double() * torch.diff(segments)
    torch.testing.assert_close(found.double(), expected, rtol=5e-7, atol=0)


def test_a_segment_sum_is_its_own() -> None:
    values = torch.tensor([1.0, float("nan"), 3.0, float("inf"), 5.0])
    found = gspo.backend.segment_sum(values, torch.tensor([0, 1, 2, 3, 4, 5]), 1)
    assert found[[0, 2, 4]].tolist() == [1, 3, 5]


@pytest.mark.parametrize("name", ["gspo_loss", "gspo_token_loss", "grpo_loss", "ppo_loss"])
def test_a_range_that_is_no_clip_is_named(name: str) -> None:
    arrays = (torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2))
    with pytest.raises(TypeError, match=r"^clip: expected a Clip, got tuple"):
        getattr(gspo, name)(*arrays, clip=(3e-4, 4e-4))


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", ["logp", "old_logp", "advantages", "sequences"])
def test_arrays_are_dense(name: str) -> None:
    """Sparse and nested tensors are named, before PyTorch fails on one of them by a page of its registrations."""
    ones = torch.ones(2, 3)
    good = {"logp": -ones, "old_logp": -ones, "advantages": ones[:, 0], "sequences": ones.bool()}
    kinds = {"sparse_coo": torch.Tensor.to_sparse, "nested": lambda value: torch.nested.nested_tensor(list(value))}
    for kind, convert in kinds.items():
        with pytest.raises(TypeError, match=rf"^{name}: expected a dense array, got a {kind} one$"):
            gspo.policy_loss(gspo.Objective.gspo(), **(good | {name: convert(good[name])}))


def test_dtypes_that_pytorch_only_stores_are_refused() -> None:
    logp, mask, advantages = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.ones(2)
    for loss in (gspo_core.gspo_loss, gspo.gspo_loss):
        narrow = logp.to(torch.float8_e4m3fn)
        with pytest.raises(TypeError, match=r"^logp: expected a real floating-point dtype, got torch.float8_e4m3fn"):
            loss(narrow, narrow, advantages, mask)
        with pytest.raises(
            TypeError, match=r"^advantages: expected a real floating-point dtype, got torch.float8_e4m3fn"
        ):
            loss(logp, logp, advantages.to(torch.float8_e4m3fn), mask)
        for dtype in (torch.uint16, torch.uint32, torch.uint64):
            offsets = torch.tensor([0, 1, 3]).to(dtype)
            with pytest.raises(
                TypeError, match=rf"^offsets: expected integers that PyTorch computes with.*got {dtype}"
            ):
                loss(logp[0], logp[0], advantages, gspo.Packed(offsets))


@pytest.mark.parametrize("name", ["gspo", "grpo", "gspo_token", "vespo", "minirl"])
@pytest.mark.parametrize("turned", ["logp", "old_logp", "behavior_logp", "advantages"])
def test_a_view_that_is_stored_with_the_other_sign(name: str, turned: str) -> None:
    arguments = Batch().padded(tensor)
    values = arguments[turned]
    arguments[turned] = torch.complex(torch.zeros_like(values), -values).conj().imag
    assert arguments[turned].is_neg()
    assert_equal(both(AXES[name], arguments), 1e-12, 1e-15)
