"""Losses from hidden states over a mesh of eight virtual devices. Run by `test_mesh.py` in a process of its own."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gspo_jax as gspo

from .eight_devices import EXPLICIT, GSPO, MESH, TOKENS, collectives, tokens

LENGTH, WIDTH, VOCABULARY = 8, 6, 16
SPECS = {
    "hidden": TOKENS,
    "weight": P("vocab"),
    "bias": P("vocab"),
    "tokens": TOKENS,
    "old_logp": TOKENS,
    "mask": TOKENS,
    "advantages": P("data"),
}
PARAMETERS = ("hidden", "weight", "bias")


def batch() -> dict[str, jax.Array]:
    """Hidden states and a head that give log-probabilities near the old ones; NaN where nothing counts."""
    rng = np.random.default_rng(1)
    found = tokens()
    mask = found["mask"]
    hidden = jnp.asarray(rng.normal(size=(4, LENGTH, WIDTH)), jnp.float32)
    head = (
        jnp.asarray(rng.normal(size=(VOCABULARY, WIDTH)), jnp.float32),
        jnp.asarray(rng.normal(size=VOCABULARY), jnp.float32),
    )
    chosen = jnp.asarray(rng.integers(0, VOCABULARY, (4, LENGTH)))
    old = gspo.linear_token_logps(hidden, head[0], chosen, bias=head[1]) + 0.1 * jnp.asarray(
        rng.normal(size=(4, LENGTH)), jnp.float32
    )
    return {
        "hidden": jnp.where(mask[..., None], hidden, jnp.nan),
        "weight": head[0],
        "bias": head[1],
        "tokens": jnp.where(mask, chosen, -100),
        "old_logp": old,
        "mask": mask,
        "advantages": found["advantages"],
    }


def loss_and_gradients(arrays: dict[str, jax.Array], context: str | None = None, **options: Any) -> Any:
    def loss(parameters: dict[str, jax.Array]) -> jax.Array:
        rest = {name: arrays[name] for name in ("tokens", "old_logp", "advantages")}
        sequences = gspo.Padded(arrays["mask"], context=context)
        return gspo.linear_policy_loss(GSPO, **parameters, **rest, sequences=sequences, **options).loss

    return jax.value_and_grad(loss)({name: arrays[name] for name in PARAMETERS})


def in_loops(compiled: Any) -> list[str]:
    """The collectives that run once for every chunk."""
    return re.findall(r"all-reduce\([^\n]*op_name=\"[^\"]*while/body[^\"]*\"", compiled.as_text())


def assert_equal(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for name in PARAMETERS:
        np.testing.assert_allclose(found[1][name], expected[1][name], rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.fixture(scope="module")
def expected() -> Any:
    return jax.jit(loss_and_gradients)(batch())


def test_three_axes_and_only_the_collectives_that_they_need(expected: Any) -> None:
    local = partial(loss_and_gradients, context="context", axis_name="data", vocab_axis="vocab", chunk_size=3)
    outputs = (P(), {name: SPECS[name] for name in PARAMETERS})
    run = jax.jit(jax.shard_map(local, mesh=MESH, in_specs=(SPECS,), out_specs=outputs)).lower(batch()).compile()
    assert_equal(run(batch()), expected)
    found = collectives(run)
    assert {name for name, _ in found} == {"all-reduce"}
    shapes = re.findall(r"\w+\[[\d,]*\]", " ".join(shapes for _, shapes in found))
    # A device holds 2 responses, 4 tokens of each, 8 rows of the head. Forward: m, and l and R of each token
    # over the vocabulary; T_i and the sum of d over the context; M and the loss over the data. Backward: the
    # hidden states' gradient over the vocabulary, the head's over data and context.
    tokens = ["f32[2,2,4]", "f32[2,4]"]
    sequences = ["f32[2]", "f32[2]", "f32[]", "f32[]"]
    gradients = ["f32[2,4,6]", "f32[8,6]", "f32[8]"]
    assert sorted(shapes) == sorted(tokens + sequences + gradients)
    assert not in_loops(run)


def test_sharded_arrays_need_no_change(expected: Any) -> None:
    """Global arrays under a plain `jax.jit`: nothing is gathered; sums over the vocabulary, and the head's, are made chunk by chunk."""
    placed = {name: jax.device_put(values, NamedSharding(MESH, SPECS[name])) for name, values in batch().items()}
    run = jax.jit(partial(loss_and_gradients, chunk_size=8)).lower(placed).compile()
    assert_equal(run(placed), expected)
    assert in_loops(run)
    assert {name for name, _ in collectives(run)} == {"all-reduce"}


def test_a_mesh_with_explicit_axes(expected: Any) -> None:
    placed = {name: jax.device_put(values, NamedSharding(EXPLICIT, SPECS[name])) for name, values in batch().items()}
    with jax.set_mesh(EXPLICIT):
        found = jax.jit(partial(loss_and_gradients, chunk_size=8))(placed)
    assert_equal(found, expected)
    for name, values in found[1].items():
        assert values.sharding.is_equivalent_to(placed[name].sharding, values.ndim)


def test_a_length_without_a_divisor() -> None:
    """Seven tokens in chunks of two rows of three: filled up to nine, which nothing sees."""
    rng = np.random.default_rng(3)
    hidden, weight = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 7, WIDTH), (VOCABULARY, WIDTH))
    )
    chosen = jnp.asarray(rng.integers(0, VOCABULARY, (2, 7)))

    def total(logps: Any, hidden: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(logps(hidden, weight, chosen)))

    def plain(hidden: jax.Array, weight: jax.Array, chosen: jax.Array) -> jax.Array:
        return gspo.token_logps(jnp.einsum("btd,vd->btv", hidden, weight), chosen)

    found = jax.jit(jax.value_and_grad(partial(total, partial(gspo.linear_token_logps, chunk_size=6))))(hidden)
    for mine, truth in zip(found, jax.value_and_grad(partial(total, plain))(hidden)):
        np.testing.assert_allclose(mine, truth, rtol=1e-5, atol=1e-6)


def test_logits_spread_over_the_vocabulary() -> None:
    rng = np.random.default_rng(2)
    logits = jnp.asarray(rng.normal(size=(4, LENGTH, VOCABULARY)), jnp.float32)
    chosen = jnp.asarray(rng.integers(0, VOCABULARY, (4, LENGTH)))

    def total(logits: jax.Array, vocab_axis: str | None = None) -> Any:
        logp = gspo.token_logps(logits, chosen, temperature=0.7, vocab_axis=vocab_axis)
        return jnp.sum(jnp.sin(logp)), logp

    specs = P(None, None, "vocab")
    local = jax.value_and_grad(partial(total, vocab_axis="vocab"), has_aux=True)
    spread = jax.jit(jax.shard_map(local, mesh=MESH, in_specs=specs, out_specs=((P(), P()), specs)))
    for found, truth in zip(
        jax.tree.leaves(spread(logits)), jax.tree.leaves(jax.value_and_grad(total, has_aux=True)(logits))
    ):
        np.testing.assert_allclose(found, truth, rtol=2e-6, atol=1e-7)


def test_a_vocabulary_that_is_not_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_axis: expected weight to vary over the mesh axis 'vocab'"):
        loss_and_gradients(batch(), vocab_axis="vocab")
