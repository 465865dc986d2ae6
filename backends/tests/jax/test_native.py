"""The core under JAX's transformations: jit, grad, vmap, checkpoint, scan; what is traced, and how often."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gspo_core
import gspo_jax as gspo
from gspo_core.tests.batches import Batch

WIDE = gspo.Clip(0.2, 0.3)
GSPO = gspo.Objective.gspo(WIDE)
OBJECTIVES = {
    "gspo": GSPO,
    "everything": gspo.Objective(
        "token",
        gspo.Clip(0.2, 0.3, 2.0),
        gspo.Aggregation("group_token_mean"),
        gspo.Penalty("k3", 0.5, "sequence", gspo.Aggregation("token_mean", "non_empty")),
        (gspo.Correction("sequence", "clamp", 0.5, 2.0), gspo.Correction("geometric", "mask", 0.5, 2.0)),
    ),
}
TOLERANCE = {"float32": {"rtol": 3e-5, "atol": 1e-6}, "float64": {"rtol": 1e-11, "atol": 1e-14}}


def to_jax(values: Any, dtype: str | None = None) -> jax.Array:
    return jnp.asarray(np.array(values, dtype=dtype))


def loss_and_gradient(objective: gspo.Objective, arguments: dict[str, Any]) -> tuple[gspo.PolicyLoss, jax.Array]:
    rest = dict(arguments)

    def loss(logp: jax.Array) -> Any:
        found = gspo.policy_loss(objective, logp=logp, **rest)
        return found.loss, found

    gradient, found = jax.grad(loss, has_aux=True)(rest.pop("logp"))
    return found, gradient


def in_numpy(objective: gspo.Objective, layout: str, batch: Batch) -> tuple[gspo.PolicyLoss, np.ndarray]:
    arguments = getattr(batch, layout)(lambda values, dtype=None: np.array(values, dtype=dtype))
    return gspo.policy_loss(objective, **arguments), gspo.policy_gradient(objective, **arguments)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_jit_of_grad_is_the_closed_form_of_the_core(name: str, layout: str, dtype: str) -> None:
    """`Padded` and `Packed` go in as pytrees; NaN at every position that does not count."""
    batch = Batch()
    found, gradient = jax.jit(loss_and_gradient, static_argnums=0)(
        OBJECTIVES[name], getattr(batch, layout)(to_jax, dtype)
    )
    expected, slopes = in_numpy(OBJECTIVES[name], layout, batch)
    assert found.loss.dtype == gradient.dtype == dtype
    np.testing.assert_allclose(found.loss, expected.loss, **TOLERANCE[dtype])
    np.testing.assert_allclose(gradient, slopes, **TOLERANCE[dtype])
    assert not np.asarray(gradient)[slopes == 0].any()
    for metric, value in expected.metrics.items():
        np.testing.assert_allclose(found.metrics[metric], value, err_msg=metric, **TOLERANCE[dtype])


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_vmap_is_a_loop(layout: str) -> None:
    batches = [getattr(Batch(seed), layout)(to_jax, "float32") for seed in range(3)]
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *batches)
    found, gradient = jax.jit(jax.vmap(lambda one: loss_and_gradient(GSPO, one)))(stacked)
    for index in range(3):
        expected, slopes = in_numpy(GSPO, layout, Batch(index))
        np.testing.assert_allclose(found.loss[index], expected.loss, rtol=1e-5)
        np.testing.assert_allclose(gradient[index], slopes, rtol=3e-5, atol=1e-7)


def test_scan_over_checkpointed_micro_batches_is_the_whole_step() -> None:
    """Five micro-batches of one response each, one of them empty."""
    arguments = {name: value for name, value in Batch().padded(to_jax, "float32").items() if name != "groups"}
    parts = jax.tree.map(lambda array: array[:, None], arguments)

    def whole(logp: jax.Array) -> jax.Array:
        @jax.checkpoint
        def add(total: jax.Array, part: Any) -> tuple[jax.Array, jax.Array]:
            return total + gspo.policy_loss(GSPO, **part, normalizer=5).loss, jnp.zeros(())

        return jax.lax.scan(add, jnp.zeros(()), parts | {"logp": logp})[0]

    loss, gradient = jax.jit(jax.value_and_grad(whole))(parts["logp"])
    expected, slopes = in_numpy(GSPO, "padded", Batch())
    np.testing.assert_allclose(loss, expected.loss, rtol=1e-5)
    np.testing.assert_allclose(gradient[:, 0], slopes, rtol=3e-5, atol=1e-7)


def counting(function: Callable[..., Any]) -> tuple[Callable[..., Any], list[None]]:
    """`jax.jit` of a function, and a list that grows with every trace."""
    traces: list[None] = []

    def traced(*arguments: Any) -> Any:
        traces.append(None)
        return function(*arguments)

    return jax.jit(traced), traces


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_values_never_recompile(layout: str) -> None:
    """Other lengths, offsets, masks and advantages are other values: one program. Another objective is another."""
    run, traces = counting(lambda arguments: gspo.policy_loss(GSPO, **arguments).loss)
    run(getattr(Batch(0), layout)(to_jax, "float32"))
    other = Batch(1)
    if layout == "packed":
        arguments = other.packed(to_jax, "float32")
        packed = arguments["sequences"]
        run(arguments | {"sequences": gspo.Packed(jnp.asarray([0, 2, 2, 9, 16, 18]), mask=~packed.mask)})
    else:
        run(other.padded(to_jax, "float32") | {"sequences": gspo.Padded(to_jax(~other.mask))})
    assert len(traces) == 1


def test_nothing_leaks() -> None:
    with jax.checking_leaks():
        for layout in ("padded", "packed"):
            arguments = getattr(Batch(), layout)(to_jax, "float32")
            jax.jit(loss_and_gradient, static_argnums=0)(GSPO.replace(log_ratio_cap=1.0), arguments)


def test_sequences_are_pytrees() -> None:
    mask, offsets = jnp.ones((2, 3), bool), jnp.asarray([0, 2, 3])
    for sequences in (
        gspo.Padded(mask, context="seq"),
        gspo.Packed(offsets, max_length=2),
        gspo.Packed(offsets, mask=mask[0]),
    ):
        leaves, structure = jax.tree.flatten(sequences)
        again = jax.tree.unflatten(structure, leaves)
        assert type(again) is type(sequences)
        assert all(
            getattr(again, name) is getattr(sequences, name) for name in sequences.__dataclass_fields__ if name != "_"
        )
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(gspo.Packed(offsets, mask=mask[0]))]
    assert paths == [".offsets", ".mask"]
    structures = {jax.tree.structure(gspo.Packed(offsets, max_length=length)) for length in (2, 3)}
    assert len(structures) == 2, "max_length is part of the program"


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_at_the_bound_the_whole_derivative_passes(advantage: float) -> None:
    """jnp.clip and jnp.minimum split it in halves there (GSPO-SURR-4)."""
    clip = gspo.Clip(0.25, 0.5)
    ratios = jnp.asarray([0.75, 1.5, 0.7499, 1.5001])
    advantages = jnp.full(4, advantage)
    slopes = jax.jit(jax.grad(lambda x: jnp.sum(gspo.clipped_surrogate(x, advantages, clip))))(ratios)
    open_ = [True, True, True, False] if advantage > 0 else [True, True, False, True]
    np.testing.assert_array_equal(slopes, np.where(open_, advantage, 0.0))
    halves = jax.grad(lambda x: jnp.minimum(x, jnp.clip(x, 0.75, 1.5)).sum())(ratios)
    assert 0 < halves[1] < 1, "where JAX's own functions give what the specification rules out"


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 3e38])
def test_garbage_where_nothing_counts_reaches_no_gradient(garbage: float) -> None:
    for objective in (GSPO, OBJECTIVES["everything"]):
        run = jax.jit(loss_and_gradient, static_argnums=0)
        clean, slopes = run(objective, Batch(garbage=0.0).padded(to_jax, "float32"))
        found, gradient = run(objective, Batch(garbage=garbage).padded(to_jax, "float32"))
        np.testing.assert_array_equal(gradient, slopes)
        assert jax.tree.all(jax.tree.map(lambda a, b: a == b, found, clean))


def test_groups_without_spread_give_zero_and_no_nan() -> None:
    """A standard deviation of 0 has an infinite derivative; here rewards depend on what is differentiated."""

    def loss(scale: jax.Array) -> Any:
        rewards = scale * jnp.asarray([1.0, 1.0, 1.0, 0.0, 1.0])
        advantages = gspo.group_advantages(rewards, jnp.asarray([5, 5, 5, 3, 9]))
        arguments = Batch().padded(to_jax, "float32") | {"advantages": advantages}
        return gspo.policy_loss(GSPO, **arguments).loss, advantages

    slope, advantages = jax.jit(jax.grad(loss, has_aux=True))(jnp.float32(1))
    assert slope == 0
    assert not np.asarray(advantages).any()


def test_half_precision_inputs_are_computed_in_float32() -> None:
    arguments = Batch().padded(to_jax, "float32")
    logp, old = (arguments[name].astype(jnp.bfloat16) for name in ("logp", "old_logp"))
    rest = {"advantages": arguments["advantages"], "sequences": arguments["sequences"]}
    found, gradient = jax.jit(loss_and_gradient, static_argnums=0)(GSPO, rest | {"logp": logp, "old_logp": old})
    widened = {"logp": logp.astype(jnp.float32), "old_logp": old.astype(jnp.float32)}
    expected, slopes = jax.jit(loss_and_gradient, static_argnums=0)(GSPO, rest | widened)
    assert found.loss.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    assert found.loss == expected.loss
    np.testing.assert_array_equal(gradient, slopes.astype(jnp.bfloat16))


def test_results_are_not_tied_to_a_device() -> None:
    """Advantages that are computed eagerly go on into programs over a mesh."""
    rewards, groups = jnp.asarray([1.0, 0.0, 0.5]), jnp.asarray([1, 1, 2])
    assert not gspo.group_advantages(rewards, groups).committed
    assert not gspo.sequence_ratio(rewards, rewards, gspo.Packed(jnp.asarray([0, 1, 3]))).committed


def test_float64_without_x64_is_reported() -> None:
    with jax.enable_x64(True):
        arguments = Batch().padded(to_jax, "float64")
    with pytest.raises(TypeError, match="logp: expected float32 or narrower, since jax_enable_x64 is off"):
        gspo.policy_loss(GSPO, **arguments)
    with jax.enable_x64(True):
        assert gspo.policy_loss(GSPO, **arguments).loss.dtype == jnp.float64


def test_values_are_checked_where_they_can_be_read() -> None:
    arguments = Batch().padded(to_jax, "float32")
    broken = arguments | {"logp": arguments["logp"].at[0, 0].set(jnp.nan)}
    with pytest.raises(ValueError, match="logp: expected finite numbers at counted positions"):
        gspo.policy_loss(GSPO, **broken)
    found, gradient = jax.jit(loss_and_gradient, static_argnums=0)(GSPO, broken)
    assert np.isnan(found.loss)
    assert np.isfinite(gradient[1:]).all(), "the other sequences keep their gradients (GSPO-NUM-3)"


def test_the_api_page_lists_what_this_package_adds() -> None:
    page = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: gspo_jax\.(\S+)$", page, flags=re.MULTILINE)
    cores = [getattr(gspo_core, name) for name in gspo_core.__all__]
    found = {name: getattr(gspo, name) for name in gspo.__all__}
    own = [name for name, one in found.items() if one not in cores and getattr(one, "__wrapped__", None) not in cores]
    assert sorted(listed) == sorted(own)


def test_an_objective_is_static() -> None:
    """Hashable and equal by value: `jax.jit(..., static_argnums=...)` takes one."""
    again = gspo.Objective.from_json(OBJECTIVES["everything"].to_json())
    assert hash(again) == hash(OBJECTIVES["everything"])
    assert again == OBJECTIVES["everything"]
    assert hash(replace(again, log_ratio_cap=2.0)) != hash(again)
