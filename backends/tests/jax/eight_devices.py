"""Losses over a mesh of eight virtual devices: data 2, context 2, vocabulary 2. Run by `test_mesh.py` in a process of its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gspo_jax as gspo

MESH = jax.make_mesh((2, 2, 2), ("data", "context", "vocab"), axis_types=(AxisType.Auto,) * 3)
EXPLICIT = jax.make_mesh((2, 2, 2), ("data", "context", "vocab"), axis_types=(AxisType.Explicit,) * 3)
TOKENS = P("data", "context")
WIDE = gspo.Clip(0.2, 0.3)
GSPO = gspo.Objective.gspo(WIDE)
OBJECTIVES = {
    "gspo": GSPO,
    "own-penalty-mean": gspo.Objective(
        "token",
        WIDE,
        gspo.Aggregation("token_mean"),
        gspo.Penalty("k3", 0.5, aggregation=gspo.Aggregation(count="non_empty")),
    ),
    "split-groups": gspo.Objective("token", gspo.Gmpo(0.1, 0.2), gspo.Aggregation("group_token_mean")),
}
ROWS, LENGTH, WIDTH, VOCABULARY = 4, 8, 6, 16


def tokens(seed: int = 0) -> dict[str, jax.Array]:
    """Four responses of 8, 3, 0 and 5 tokens: a context rank without tokens of some, garbage where nothing counts."""
    rng = np.random.default_rng(seed)
    mask = np.arange(LENGTH)[None] < np.asarray([8, 3, 0, 5])[:, None]
    old = -rng.exponential(size=mask.shape)
    arrays = {"logp": old + 0.3 * rng.normal(size=mask.shape), "old_logp": old, "ref_logp": old + 0.1}
    found = {name: jnp.asarray(np.where(mask, values, np.nan), jnp.float32) for name, values in arrays.items()}
    advantages = jnp.asarray([1.0, -1.0, 0.5, 0.7], jnp.float32)
    return found | {"mask": jnp.asarray(mask), "advantages": advantages, "groups": jnp.asarray([7, 2, 2, 7])}


def collectives(compiled: Any) -> list[tuple[str, str]]:
    """(operation, shapes of its results) of every collective of a compiled program."""
    pattern = r"= (\S+|\(.*?\)) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    return [(name, re.sub(r"\{[^}]*\}", "", shapes)) for shapes, name in re.findall(pattern, compiled.as_text())]


def loss_over_mesh(objective: gspo.Objective, batch: dict[str, jax.Array], **options: Any) -> gspo.PolicyLoss:
    arguments = {name: values for name, values in batch.items() if name != "mask"}
    sequences = gspo.Padded(batch["mask"], context="context")
    return gspo.policy_loss(objective, sequences=sequences, axis_name="data", **arguments, **options)


def with_gradient(loss: Callable[..., gspo.PolicyLoss], batch: dict[str, jax.Array]) -> tuple[Any, jax.Array]:
    """The loss with its metrics, and d loss / d logp."""

    def of_logp(logp: jax.Array) -> Any:
        found = loss(batch | {"logp": logp})
        return found.loss, found

    gradient, found = jax.grad(of_logp, has_aux=True)(batch["logp"])
    return found, gradient


def over_mesh(function: Callable[..., Any], out_specs: Any, **options: Any) -> Any:
    per_sequence = {"advantages": P("data"), "groups": P("data")}
    specs = {name: per_sequence.get(name, TOKENS) for name in tokens()}
    return jax.jit(jax.shard_map(function, mesh=MESH, in_specs=(specs,), out_specs=out_specs, **options))


def one_device(objective: gspo.Objective, batch: dict[str, jax.Array]) -> tuple[Any, jax.Array]:
    def loss(batch: dict[str, jax.Array]) -> gspo.PolicyLoss:
        arguments = {name: values for name, values in batch.items() if name != "mask"}
        return gspo.policy_loss(objective, sequences=batch["mask"], **arguments)

    return jax.jit(partial(with_gradient, loss))(batch)


def assert_equal(found: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    (loss, gradient), (truth, slopes) = found, expected
    np.testing.assert_allclose(loss.loss, truth.loss, rtol=1e-6)
    np.testing.assert_allclose(gradient, slopes, rtol=2e-6, atol=1e-8)
    for name, value in truth.metrics.items():
        np.testing.assert_allclose(loss.metrics[name], value, rtol=2e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_metrics_and_gradient_are_those_of_one_device(name: str) -> None:
    loss = partial(loss_over_mesh, OBJECTIVES[name])
    found = over_mesh(partial(with_gradient, loss), (P(), TOKENS))(tokens())
    assert_equal(found, one_device(OBJECTIVES[name], tokens()))


def test_a_given_normaliser_is_that_of_the_whole_step() -> None:
    found = over_mesh(lambda batch: loss_over_mesh(GSPO, batch, normalizer=4).loss, P())(tokens())
    np.testing.assert_allclose(found, one_device(GSPO, tokens())[0].loss, rtol=1e-6)


def test_two_numbers_per_sequence_cross_the_context_axis() -> None:
    """T_i and Σ_t d, [2] each on a data rank with 2 of the 4 responses; M and the loss over data; the gradient adds nothing."""

    def loss_and_gradient(batch: dict[str, jax.Array]) -> Any:
        found, gradient = with_gradient(partial(loss_over_mesh, GSPO), batch)
        return found.loss, gradient

    compiled = over_mesh(loss_and_gradient, (P(), TOKENS)).lower(tokens()).compile()
    found = collectives(compiled)
    assert {name for name, _ in found} == {"all-reduce"}
    assert sorted(re.findall(r"\w+\[\d*\]", " ".join(shapes for _, shapes in found))) == ["f32[2]"] * 2 + ["f32[]"] * 2


def test_without_replication_checks_gradients_are_averaged() -> None:
    """The convention of `check_vma=False` and `pmap`: a shared parameter's gradient is averaged over every device."""

    def local(batch: dict[str, jax.Array]) -> jax.Array:
        def loss(shift: jax.Array) -> jax.Array:
            logp = jnp.where(batch["mask"], batch["logp"], 0) * shift
            return loss_over_mesh(GSPO, batch | {"logp": logp}).loss

        return jax.lax.pmean(jax.grad(loss)(jnp.float32(1)), ("data", "context", "vocab"))

    batch = tokens()
    found = over_mesh(local, P(), check_vma=False)(batch)
    slopes = one_device(GSPO, batch)[1]
    np.testing.assert_allclose(found, jnp.sum(jnp.where(batch["mask"], slopes * batch["logp"], 0)), rtol=1e-5)


def test_packed_sequences_split_over_the_context_axis() -> None:
    """Segments of 8, 3, 0, 5 tokens: the first rank holds 4, 3, 0, 1 of them, the second 4, 0, 0, 4."""
    batch = tokens()
    held = [(0, slice(0, 4)), (1, slice(0, 3)), (3, slice(0, 1)), (0, slice(4, 8)), (3, slice(1, 5))]
    arrays = [jnp.concatenate([batch[name][row, part] for row, part in held]) for name in ("logp", "old_logp")]
    offsets = jnp.asarray([[0, 4, 7, 7, 8], [0, 4, 4, 4, 8]])

    def local(logp: jax.Array, old_logp: jax.Array, offsets: jax.Array) -> Any:
        packed = gspo.Packed(offsets[0], context="context")
        return jax.grad(lambda logp: gspo.gspo_loss(logp, old_logp, batch["advantages"], packed, clip=WIDE).loss)(logp)

    spec = P("context")
    found = jax.jit(jax.shard_map(local, mesh=MESH, in_specs=(spec,) * 3, out_specs=spec))(*arrays, offsets)
    slopes = one_device(GSPO, batch)[1]
    np.testing.assert_allclose(found, jnp.concatenate([slopes[row, part] for row, part in held]), rtol=2e-6)


def test_sharded_arrays_need_no_change() -> None:
    """Global arrays under a plain `jax.jit`: XLA sums [2] responses over the context axis, and gathers nothing."""
    batch = tokens()
    placed = {name: jax.device_put(batch[name], NamedSharding(MESH, TOKENS)) for name in batch if batch[name].ndim == 2}
    placed["advantages"] = jax.device_put(batch["advantages"], NamedSharding(MESH, P("data")))

    def loss(batch: dict[str, jax.Array]) -> gspo.PolicyLoss:
        return gspo.gspo_loss(batch["logp"], batch["old_logp"], batch["advantages"], batch["mask"], clip=WIDE)

    run = jax.jit(partial(with_gradient, loss))
    found = run(placed)
    assert_equal(found, one_device(GSPO, batch))
    assert found[1].sharding.is_equivalent_to(placed["logp"].sharding, 2)
    only_loss = jax.jit(lambda batch: with_gradient(loss, batch)[0].loss).lower(placed).compile()
    shapes = " ".join(shapes for _, shapes in collectives(only_loss))
    assert {name for name, _ in collectives(only_loss)} == {"all-reduce"}
    assert set(re.findall(r"\w+\[[\d,]*\]", shapes)) <= {"f32[2]", "f32[]"}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_mesh_with_explicit_axes(name: str) -> None:
    """What `jax.make_mesh` makes by default: a sort or a gather of sharded arrays would be an error of types."""
    batch = tokens()
    specs = {key: TOKENS if values.ndim == 2 else P("data") for key, values in batch.items()}
    placed = {key: jax.device_put(values, NamedSharding(EXPLICIT, specs[key])) for key, values in batch.items()}
    with jax.set_mesh(EXPLICIT):
        found = one_device(OBJECTIVES[name], placed)
    assert_equal(found, one_device(OBJECTIVES[name], batch))
    assert found[1].sharding.spec == TOKENS


def test_named_functions_on_a_mesh_with_explicit_axes() -> None:
    batch, offsets = tokens(), jnp.asarray([0, 11, 32])
    flat = [jnp.nan_to_num(batch[name].reshape(-1)) for name in ("logp", "old_logp")]
    advantages = jax.jit(gspo.group_advantages)(batch["advantages"], batch["groups"])

    @jax.jit
    @jax.grad
    def slopes(logp: jax.Array, old_logp: jax.Array) -> jax.Array:
        return gspo.gspo_loss(logp, old_logp, advantages[:2], gspo.Packed(offsets), clip=WIDE).loss

    with jax.set_mesh(EXPLICIT):
        split = [jax.device_put(values, NamedSharding(EXPLICIT, P("data"))) for values in flat]
        rewards, groups = (
            jax.device_put(batch[key], NamedSharding(EXPLICIT, P("data"))) for key in ("advantages", "groups")
        )
        found = slopes(*split), jax.jit(gspo.group_advantages)(rewards, groups)
    np.testing.assert_allclose(found[0], slopes(*flat), rtol=2e-6)
    np.testing.assert_allclose(found[1], advantages, rtol=2e-6)
