"""`loss_target`: one line makes a target of a loss function, whatever its framework, and asks it for what it has alone."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import gspo_core
from gspo_conformance import vectors
from gspo_conformance.commands.new_target import add_arguments
from gspo_conformance.connection import InProcess
from gspo_conformance.run import ERROR, PASS, SKIPPED, UNSUPPORTED, Run
from gspo_conformance.runner import run_vectors
from gspo_conformance.scaffold import scaffold
from gspo_conformance.target import FunctionTarget, Skip
from gspo_conformance.wrap import FRAMEWORKS, loss_target, objective_dict

from .small import GSPO, loss_vector, ratio_vector

NEEDS_MLX = pytest.mark.skipif(find_spec("mlx") is None, reason="MLX is not installed here")
MLX = pytest.param("mlx", marks=NEEDS_MLX)
SUITE = [loss_vector("aggregation/unequal"), loss_vector("gradient/clipped", advantages=(1.0, 2.0, -1.0))]


def torch_loss(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
    d = torch.where(mask, logp - old_logp, 0.0)
    s = torch.exp(d.sum(1) / mask.sum(1))
    return -torch.minimum(s * advantages, s.clamp(1 - 3e-4, 1 + 4e-4) * advantages).mean()


def jax_loss(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
    s = jnp.exp(jnp.where(mask, logp - old_logp, 0.0).sum(1) / mask.sum(1))
    return -jnp.minimum(s * advantages, jnp.clip(s, 1 - 3e-4, 1 + 4e-4) * advantages).mean()


def numpy_loss(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
    s = np.exp(np.where(mask, logp - old_logp, 0).sum(1) / mask.sum(1))
    return -np.minimum(s * advantages, np.clip(s, 1 - 3e-4, 1 + 4e-4) * advantages).mean()


def mlx_loss(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
    import mlx.core as mx

    s = mx.exp(mx.where(mask, logp - old_logp, 0.0).sum(1) / mask.sum(1))
    return -mx.minimum(s * advantages, mx.clip(s, 1 - 3e-4, 1 + 4e-4) * advantages).mean()


LOSSES = {"torch": torch_loss, "jax": jax_loss, "mlx": mlx_loss, "numpy": numpy_loss}


def gradient(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
    objective = gspo_core.Objective.gspo()
    return gspo_core.policy_gradient(
        objective, logp=logp, old_logp=old_logp, advantages=advantages, sequences=gspo_core.Padded(mask)
    )


def run(target: FunctionTarget, *vectors: Any) -> Run:
    return run_vectors(InProcess(target), vectors or SUITE)


@pytest.mark.parametrize(("fn", "framework"), [(torch_loss, "torch"), (jax_loss, "jax"), (numpy_loss, "numpy")])
def test_a_right_loss_passes_in_both_precisions(fn: Any, framework: str) -> None:
    found = run(loss_target(fn, framework, dtypes=("float32", "float64")))
    assert [result.verdict for result in found.results] == [PASS] * 4, found.results
    outputs = {item.output for result in found.results for item in result.judged}
    assert outputs == ({"loss"} if framework == "numpy" else {"loss", "gradient"})
    assert found.target == fn.__name__
    assert framework in found.implementation


def test_every_framework_has_a_scaffold_that_new_target_offers(tmp_path: Path) -> None:
    """Of MLX too, where it is not installed."""
    parser = ArgumentParser()
    add_arguments(parser)
    for framework in FRAMEWORKS:
        assert parser.parse_args(["mine", "--framework", framework]).framework == framework
        path, _ = scaffold(str(tmp_path / f"mine_{framework}"), framework=framework)
        compile(path.read_text(encoding="utf-8"), path.name, "exec")


@NEEDS_MLX
def test_a_loss_in_mlx_passes_in_the_precision_that_its_exp_has() -> None:
    """Hunts float64 that MLX narrows, or that is asked of an exp of float32."""
    from gspo_conformance.frameworks.mlx import array, exact_float64

    assert array(np.array([0.1])).itemsize == 8
    wide = PASS if exact_float64() else SKIPPED
    results = run(loss_target(mlx_loss, "mlx", dtypes=("float32", "float64"))).results
    assert {(one.dtype, one.verdict) for one in results} == {("float32", PASS), ("float64", wide)}
    assert {item.output for one in results for item in one.judged} == {"loss", "gradient"}
    assert all("computes exp of float64 in float32" in one.reason for one in results if one.verdict == SKIPPED)


@pytest.mark.parametrize("framework", ["torch", "jax", "numpy", MLX])
def test_a_gradient_in_closed_form_is_checked_in_place_of_autodiff(framework: str) -> None:
    def own(*arrays: Any) -> Any:
        return gradient(*map(np.array, arrays)) if framework == "mlx" else gradient(*arrays)

    right = run(loss_target(LOSSES[framework], framework, gradient=own))
    wrong = run(loss_target(LOSSES[framework], framework, gradient=lambda *arrays: 2 * own(*arrays)))
    assert right.exit_code == 0
    assert all(result.reason.startswith("gradient: ") for result in wrong.offences)
    assert len(wrong.offences) == 2


def test_without_a_gradient_the_loss_alone_is_checked() -> None:
    found = run(loss_target(torch_loss, gradient=None))
    assert {item.output for result in found.results for item in result.judged} == {"loss"}


def test_without_a_gradient_a_loss_in_torch_may_be_a_plain_number() -> None:
    def number(*arrays: Any) -> float:
        return torch_loss(*arrays).item()

    assert run(loss_target(number, gradient=None)).conforming
    each = run(loss_target(lambda *arrays: torch_loss(*arrays) * arrays[2])).results[0].reason
    assert each == "ValueError: the loss: expected one number, got shape [3]: is a mean missing?"
    reason = run(loss_target(number)).results[0].reason
    assert reason == "TypeError: the loss: expected a tensor, got float; with .item() it has no gradient"


@pytest.mark.parametrize("framework", ["torch", "jax", "numpy", MLX])
def test_a_loss_with_metrics_beside_it_is_told_to_return_it_alone(framework: str) -> None:
    loss = LOSSES[framework]
    found = run(loss_target(lambda *arrays: (loss(*arrays), {"clip_fraction": 0.0}), framework), SUITE[0])
    assert found.results[0].reason.startswith("TypeError: the loss: expected it alone, got tuple; take the loss out")


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        ({}, 'as in `lambda *arrays: loss(*arrays)["loss"]`'),
        (SimpleNamespace(loss=0.0), "as in `lambda *arrays: loss(*arrays).loss`"),
        (None, "got NoneType; is a `return` missing?"),
    ],
)
def test_the_advice_is_of_what_came_in_place_of_the_loss(answer: Any, advice: str) -> None:
    assert run(loss_target(lambda *arrays: answer), SUITE[0]).results[0].reason.endswith(advice)


@pytest.mark.parametrize("framework", ["torch", "jax", "numpy", MLX])
def test_a_loss_of_one_element_is_told_to_be_a_number(framework: str) -> None:
    loss = LOSSES[framework]
    reason = run(loss_target(lambda *arrays: loss(*arrays)[None], framework), SUITE[0]).results[0].reason
    assert reason.endswith("expected one number, got shape [1]: `.squeeze()` makes it a number")


@pytest.mark.parametrize(("answer", "words"), [(None, "got NoneType"), ([0.0], "got shape [1]")])
def test_a_gradient_of_another_shape_is_an_error(answer: Any, words: str) -> None:
    reason = run(loss_target(numpy_loss, "numpy", gradient=lambda *arrays: answer), SUITE[0]).results[0].reason
    assert reason.startswith("ValueError: the gradient: expected [")
    assert reason.endswith(words)


@pytest.mark.parametrize("framework", ["torch", "jax", MLX])
def test_a_loss_that_raises_is_shown_the_shapes_it_was_called_with(framework: str) -> None:
    def loss(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        raise IndexError("too many indices")

    reason = run(loss_target(loss, framework), SUITE[0]).results[0].reason
    assert reason.startswith("IndexError: too many indices; called with float32 [")
    assert reason.endswith("bool " + reason.split("float32 ")[1].rstrip(", "))


def test_a_loss_may_change_logp_in_place_and_call_backward_itself() -> None:
    def in_place(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        logp -= old_logp
        return torch_loss(logp, torch.zeros_like(logp), advantages, mask)

    def accumulates(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        total = 0.0
        for i in range(len(mask)):
            part = torch_loss(*(array[i : i + 1] for array in (logp, old_logp, advantages, mask))) / len(mask)
            part.backward(retain_graph=True)
            total += part.detach()
        return total

    assert run(loss_target(in_place)).exit_code == 0
    assert run(loss_target(accumulates)).exit_code == 0


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda logp, old_logp, advantages, mask, config: 0.0, "missing a required argument: 'config'; wrap it"),
        (lambda logp, old_logp, advantages: 0.0, "too many positional arguments; wrap it"),
        (lambda *, logp, old_logp, advantages, mask: 0.0, "too many positional arguments; wrap it"),
        (lambda old_log_prob, log_prob, advantages, mask: 0.0, "its first argument is 'old_log_prob'; wrap it"),
        (lambda logp, old_logp, mask, advantages: 0.0, "its third argument is 'mask'; wrap it"),
        (lambda logp, old_logp, ref_logp, advantages, mask=None: 0.0, "its third argument is 'ref_logp'; wrap it"),
    ],
)
def test_a_function_of_other_arguments_is_refused_at_once(fn: Any, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        loss_target(fn)


def test_a_loss_may_skip_what_it_does_not_take() -> None:
    def lengths_alone(*arrays: Any) -> Any:
        raise Skip("takes lengths, not a mask")

    found = run(loss_target(lengths_alone))
    assert {result.reason for result in found.results if result.verdict == SKIPPED} == {"takes lengths, not a mask"}
    assert not found.answered


def test_float64_is_not_asked_of_a_loss_that_does_not_claim_it() -> None:
    verdicts = {result.dtype: result.verdict for result in run(loss_target(torch_loss)).results}
    assert verdicts == {"float32": PASS, "float64": UNSUPPORTED}


def test_only_vectors_of_its_own_objective_and_clip_range_are_put_to_it() -> None:
    wide = GSPO | {"surrogate": GSPO["surrogate"] | {"low": 0.2, "high": 0.27}}
    token = GSPO | {"ratio": "token"}
    others = [
        loss_vector("surrogate/wide", parameters={"objective": wide}),
        loss_vector("ratio/token", parameters={"objective": token}),
        loss_vector("distribution/normalizer", parameters={"objective": GSPO, "normalizer": 3.0}),
        ratio_vector("ratio/sequence"),
    ]
    found = run(loss_target(torch_loss), *others)
    assert {result.verdict for result in found.results} == {UNSUPPORTED}
    assert found.exit_code == 3
    assert run(loss_target(torch_loss, clip=(0.2, 0.27)), others[0]).answered == 1


@pytest.mark.parametrize("preset", ["dapo", "cispo"])
def test_a_token_mean_of_one_group_is_the_one_of_the_batch(preset: str) -> None:
    own = objective_dict(preset)
    batch = own | {"aggregation": own["aggregation"] | {"mode": "token_mean"}}
    vectors = [
        loss_vector(f"surrogate/{name}", parameters={"objective": one}) for name, one in (("a", own), ("b", batch))
    ]
    assert run(loss_target(torch_loss, objective=preset), *vectors).answered == 2


def test_an_objective_is_a_preset_an_object_or_its_json() -> None:
    grpo = gspo_core.Objective.grpo()
    assert objective_dict() == GSPO
    assert objective_dict("grpo") == objective_dict(grpo) == objective_dict(grpo.to_dict()) == grpo.to_dict()
    assert objective_dict("ppo", (0.1, 0.3))["surrogate"] == {"kind": "clip", "low": 0.1, "high": 0.3, "dual": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"framework": "pytorch"}, "framework: unknown 'pytorch'"),
        ({"objective": "gpso"}, "objective: unknown 'gpso'; did you mean 'gspo'?"),
        ({"objective": 3}, "objective: expected a preset"),
        ({"objective": "sapo", "clip": (0.1, 0.2)}, "the surrogate 'sapo' has no clip range"),
        ({"dtypes": ("bfloat16",)}, "capabilities.dtypes: unknown 'bfloat16'"),
        ({"dtypes": "float64"}, "dtypes: expected a list of names, got 'float64'"),
        ({"clip": 0.2}, "clip: expected two numbers"),
        ({"clip": (-0.1, 0.2)}, "low: expected a number >= 0, got -0.1"),
        ({"gradient": "auto"}, "gradient: expected \"autodiff\", a function or None, got 'auto'"),
        ({"mask_dtype": "int"}, "mask_dtype: unknown 'int'"),
        ({"mask_dtype": int}, "mask_dtype: expected one of bool, uint8"),
        ({"advantages": "tokens"}, "advantages: unknown 'tokens'; did you mean 'token'?"),
        ({"fn": 3}, "fn: expected a function, got int"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message.replace("?", r"\?")):
        loss_target(**{"fn": torch_loss} | arguments)


def test_the_mask_and_the_advantages_come_as_the_function_wants_them() -> None:
    def loss(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        assert mask.dtype == torch.float32
        assert advantages.shape == mask.shape
        s = torch.exp(((logp - old_logp) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True))
        surrogate = torch.minimum(s * advantages, s.clamp(1 - 3e-4, 1 + 4e-4) * advantages)
        return -((surrogate * mask).sum(1) / mask.sum(1)).mean()

    target = loss_target(loss, mask_dtype="float32", advantages="token")
    assert run(target, SUITE[0]).exit_code == 0


def test_advantages_per_token_are_put_to_the_function_whatever_shape_the_mask_has() -> None:
    """Hunts an error of the wrapper about shapes, which was held against a loss that was never called."""
    asked: list[tuple[int, ...]] = []

    def loss(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        asked.append(tuple(advantages.shape))
        raise ValueError(f"mask: {mask.shape}")

    vector = next(iter(vectors("numerics/refuses-one-row-mask")))
    target = loss_target(loss, advantages="token", objective=vector.parameters["objective"])
    assert run(target, vector).counts[PASS] == 1
    assert asked == [tuple(vector.inputs["logp"].shape)]


def test_a_loss_that_was_detached_or_is_no_tensor_is_an_error_that_says_so() -> None:
    detached = run(loss_target(lambda *arrays: torch_loss(*arrays).detach()), SUITE[0]).results[0]
    assert detached.verdict == ERROR
    assert "does not depend on the first argument" in detached.reason
    array = run(loss_target(lambda *arrays: torch_loss(*arrays).detach().numpy()), SUITE[0]).results[0]
    assert "expected a tensor, got ndarray" in array.reason


def test_a_bound_that_is_a_plain_number_has_no_gradient() -> None:
    """Hunts a right loss, written response by response, in which `was it detached?` is said where all are clipped."""

    def loss(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        total = torch.zeros((), dtype=logp.dtype)
        for new, old, a, row in zip(logp, old_logp, advantages, mask):
            s = torch.exp((new[row] - old[row]).mean())
            clipped = min(max(s.item(), 1 - 3e-4), 1 + 4e-4)
            total = total - (clipped * a if a == 0 or s * a > clipped * a else s * a)
        return total / len(logp)

    closed = loss_vector("gradient/all-closed", advantages=(0.0, 0.5, -2.0))
    assert run(loss_target(loss), SUITE[0], closed).exit_code == 0


def test_the_suite_gives_every_call_arrays_of_its_own() -> None:
    def vandal(logp: Any, old_logp: Any, advantages: Any, mask: Any) -> Any:
        loss = torch_loss(logp, old_logp, advantages, mask)
        old_logp.fill_(7.0)
        return loss

    target = loss_target(vandal)
    assert run(target, SUITE[0], SUITE[0]).exit_code == 0
