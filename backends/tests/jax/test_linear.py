"""`token_logps`, `linear_token_logps` and `linear_policy_loss` against all logits at once."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gspo_jax as gspo
from gspo_core.tests.batches import Batch
from gspo_jax.chunks import Picked, strides
from gspo_jax.head import Head, head_logps

WIDE = gspo.Clip(0.2, 0.3)
GSPO = gspo.Objective.gspo(WIDE)
MIXED = gspo.Objective("token", WIDE, "token_mean", gspo.Penalty("k2", 0.5))
WIDTH, VOCABULARY, TEMPERATURE = 6, 11, 0.7
TOLERANCE = {"float32": {"rtol": 2e-5, "atol": 1e-6}, "float64": {"rtol": 1e-11, "atol": 1e-14}}


def all_logits(
    hidden: jax.Array, weight: jax.Array, tokens: jax.Array, bias: jax.Array | None, temperature: float
) -> Any:
    """The plain way, which holds `[.., V]`."""
    logits = jnp.einsum("...d,vd->...v", hidden, weight)
    logits = logits if bias is None else logits + jax.lax.broadcast_to_rank(bias, logits.ndim)
    logp = jax.nn.log_softmax(logits / temperature, axis=-1)
    return jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]


def problem(layout: str, dtype: str) -> dict[str, Any]:
    """The batch of the core's tests over a small head: old log-probabilities near those of the hidden states."""
    rng = np.random.default_rng(4)
    batch = Batch(spread=0.15)
    shape = batch.mask.shape
    hidden, tokens = rng.normal(size=(*shape, WIDTH)), rng.integers(0, VOCABULARY, shape)
    weight, bias = rng.normal(size=(VOCABULARY, WIDTH)), rng.normal(size=VOCABULARY)
    rows = [
        hidden,
        tokens,
        batch.mask,
        *(batch.tokens[name] - batch.tokens["logp"] for name in ("old_logp", "ref_logp")),
    ]
    if layout == "packed":
        rows = [
            np.concatenate([row[i, :length] for i, length in enumerate(batch.lengths)] + [row[0, :2]]) for row in rows
        ]
    hidden, tokens, mask, old, ref = rows
    with jax.enable_x64(True):
        logp = np.asarray(all_logits(*map(jnp.asarray, (hidden, weight, tokens, bias)), TEMPERATURE))
    floats = {
        "weight": weight,
        "bias": bias,
        "old_logp": logp + old,
        "ref_logp": logp + ref,
        "advantages": batch.per_sequence,
    }
    floats["hidden"] = hidden
    offsets = np.concatenate([[0], np.cumsum(batch.lengths)])
    sequences = (
        gspo.Padded(jnp.asarray(mask))
        if layout == "padded"
        else gspo.Packed(jnp.asarray(offsets), mask=jnp.asarray(mask))
    )
    arrays = {name: jnp.asarray(values, dtype) for name, values in floats.items()}
    return arrays | {"tokens": jnp.asarray(tokens), "sequences": sequences}


def counted(arguments: dict[str, Any]) -> jax.Array:
    return arguments["sequences"].bind(arguments["tokens"].shape).counted


def with_garbage(arguments: dict[str, Any]) -> dict[str, Any]:
    """NaN hidden states and tokens of -100 where nothing counts."""
    keep = counted(arguments)
    return arguments | {
        "hidden": jnp.where(keep[..., None], arguments["hidden"], jnp.nan),
        "tokens": jnp.where(keep, arguments["tokens"], -100),
    }


def plain_loss(
    objective: gspo.Objective, hidden: Any, weight: Any, bias: Any, tokens: Any, **rest: Any
) -> gspo.PolicyLoss:
    return gspo.policy_loss(objective, logp=all_logits(hidden, weight, tokens, bias, TEMPERATURE), **rest)


def gradients(loss: Any, arguments: dict[str, Any]) -> Any:
    """The loss with its metrics, and the gradients of hidden states, head and bias."""
    rest = dict(arguments)
    parameters = {name: rest.pop(name) for name in ("hidden", "weight", "bias")}

    def of(parameters: dict[str, jax.Array]) -> Any:
        found = loss(**parameters, **rest)
        return found.loss, found

    found, aux = jax.jit(jax.grad(of, has_aux=True))(parameters)
    return aux, found


@pytest.mark.parametrize(
    ("layout", "chunk_size", "dtype"), [("padded", 4, "float64"), ("packed", 5, "float32")], indirect=["dtype"]
)
def test_loss_and_gradients_are_those_of_all_logits(layout: str, chunk_size: int | None, dtype: str) -> None:
    objective = MIXED if layout == "packed" else GSPO
    arguments = problem(layout, dtype)
    arguments = arguments if objective is MIXED else {k: v for k, v in arguments.items() if k != "ref_logp"}
    loss = partial(gspo.linear_policy_loss, objective, temperature=TEMPERATURE, chunk_size=chunk_size)
    found, slopes = gradients(loss, with_garbage(arguments))
    expected, truth = gradients(partial(plain_loss, objective), arguments)
    assert found.loss.dtype == dtype
    for name, value in jax.tree.leaves_with_path((expected, truth)):
        other = dict(jax.tree.leaves_with_path((found, slopes)))[name]
        np.testing.assert_allclose(other, value, err_msg=jax.tree_util.keystr(name), **TOLERANCE[dtype])
    assert not np.asarray(slopes["hidden"])[~np.asarray(counted(arguments))].any()


@pytest.mark.parametrize("steps", [None, 3])
def test_every_way_to_cut_under_vmap_scan_and_checkpoint(steps: int | None) -> None:
    """A cotangent that is 0 at some tokens; rows of 6 in chunks of 3 of every row, or of 5 tokens of the batch."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(3, 2, 6, WIDTH)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(VOCABULARY, WIDTH)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, VOCABULARY, (3, 2, 6)))
    cotangent = jnp.asarray(rng.normal(size=(3, 2, 6)) * (rng.random((3, 2, 6)) > 0.5), jnp.float32)
    wanted = jnp.ones((2, 6), bool)
    head = Head(1.0, 5, None, steps)

    def total(logps: Any, hidden: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.sum(jax.vmap(logps, (0, None, 0))(hidden, weight, tokens) * cotangent)

    def scanned(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        def add(sum_: jax.Array, part: Any) -> Any:
            return sum_ + jnp.sum(jax.checkpoint(ours)(part[0], weight, part[1]) * part[2]), None

        return jax.lax.scan(add, jnp.float32(0), (hidden, tokens, cotangent))[0]

    def ours(hidden: jax.Array, weight: jax.Array, tokens: jax.Array) -> jax.Array:
        return head_logps(head, hidden, weight, None, tokens, wanted)

    plain = lambda hidden, weight, tokens: all_logits(hidden, weight, tokens, None, 1.0)  # noqa: E731
    expected = jax.value_and_grad(partial(total, plain), (0, 1))(hidden, weight)
    for form in (partial(total, ours), scanned):
        found = jax.jit(jax.value_and_grad(form, (0, 1)))(hidden, weight)
        for mine, truth in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
            np.testing.assert_allclose(mine, truth, rtol=1e-5, atol=1e-5)


def test_work_is_proportional_to_the_tokens_that_are_wanted() -> None:
    wanted = jnp.zeros((4, 100), bool).at[1, 7:50].set(True)
    assert int(Picked(wanted, 10).steps) == 5
    assert int(Picked(jnp.zeros((4, 100), bool), 10).steps) == 0


def test_rows_are_cut_into_chunks_of_about_the_size() -> None:
    """A length without a divisor at hand is filled up, not cut into single tokens."""
    assert strides((4, 100), 10) == (50, 100)
    assert strides((4, 100), 1000) == (1, 100)
    assert strides((10_007,), 1000) == (11, 10_010)


def compiled(tokens: int, chunk_size: int, dtype: Any = jnp.float32, **options: Any) -> Any:
    """A training step's gradients over `tokens` tokens, width 32, vocabulary 4096, never run."""
    struct = jax.ShapeDtypeStruct
    hidden, weight = struct((tokens, 32), dtype), struct((4096, 32), dtype)
    values, offsets = struct((tokens,), jnp.float32), struct((5,), jnp.int32)

    def loss(hidden: Any, weight: Any, chosen: Any, old: Any, advantages: Any, offsets: Any) -> jax.Array:
        rest = {"old_logp": old, "advantages": advantages, "sequences": gspo.Packed(offsets)}
        if chunk_size:
            return gspo.linear_policy_loss(
                GSPO, hidden=hidden, weight=weight, tokens=chosen, chunk_size=chunk_size, **rest
            ).loss
        return gspo.policy_loss(GSPO, logp=all_logits(hidden, weight, chosen, None, 1.0), **rest).loss

    step = jax.jit(jax.value_and_grad(loss, **options))
    return step.lower(
        hidden, weight, struct((tokens,), jnp.int32), values, struct((4,), jnp.float32), offsets
    ).compile()


def test_memory_does_not_grow_with_the_number_of_tokens() -> None:
    """What the compiled program sets aside beside its inputs and gradients: a chunk of logits and the head's gradient."""
    short, long = (
        compiled(tokens, 128, argnums=(0, 1)).memory_analysis().temp_size_in_bytes for tokens in (1024, 8192)
    )
    chunk, head = 128 * 4096 * 4, 4096 * 32 * 4
    assert short < 2 * chunk + 2 * head + 2**18
    assert long - short < 64 * (8192 - 1024), "some numbers per token, no hidden state, no logits"
    naive = compiled(1024, 0, argnums=(0, 1)).memory_analysis().temp_size_in_bytes
    assert naive > 3 * short


def test_a_frozen_head_costs_no_product() -> None:
    """The gradient of the head is not computed where nobody asks for it: XLA drops it from the loop."""
    both, hidden = (compiled(512, 512, argnums=wanted).cost_analysis()["flops"] for wanted in ((0, 1), (0,)))
    product = 2 * 512 * 4096 * 32
    assert both - hidden > 0.9 * product


def test_half_precision_accumulates_in_float32() -> None:
    """bf16 hidden states and head: as near to the truth as the rounding of the inputs' products allows, and nearer than plain bf16."""
    rng = np.random.default_rng(5)
    hidden, weight = (jnp.asarray(rng.normal(size=(40, 64)) * 0.5, jnp.bfloat16) for _ in range(2))
    tokens, cotangent = jnp.asarray(rng.integers(0, 40, 40)), jnp.asarray(rng.normal(size=40), jnp.float32)

    def pull(logps: Any, hidden: jax.Array, weight: jax.Array) -> Any:
        logp, back = jax.vjp(lambda h, w: logps(h, w, tokens), hidden, weight)
        return logp, *back(cotangent.astype(logp.dtype))

    plain = lambda hidden, weight, tokens: all_logits(hidden, weight, tokens, None, 1.0)  # noqa: E731
    with jax.enable_x64(True):
        truth = pull(plain, hidden.astype(jnp.float64), weight.astype(jnp.float64))
    found = pull(partial(gspo.linear_token_logps, chunk_size=16), hidden, weight)
    naive = pull(plain, hidden, weight)
    assert [array.dtype.name for array in found] == ["float32", "bfloat16", "bfloat16"]
    error = [
        [float(np.abs(np.asarray(a, np.float64) - np.asarray(b)).max()) for a, b in zip(x, truth)]
        for x in (found, naive)
    ]
    assert error[0][0] < 1e-5 < 1e-2 < error[1][0]
    assert error[0][1] < error[1][1]
    assert error[0][2] < error[1][2]


def test_no_tokens_at_all() -> None:
    logp, back = jax.vjp(
        lambda h, w: gspo.linear_token_logps(h, w, jnp.zeros((2, 0), jnp.int32)), jnp.zeros((2, 0, 3)), jnp.ones((5, 3))
    )
    assert logp.shape == (2, 0)
    assert not back(logp)[1].any()


def test_digits_near_probability_one() -> None:
    """log p and its slope 1 - p keep their digits where p is 1 to float32."""
    logits = jnp.asarray([[30.0, 0.0, 1.0]])
    truth = np.log1p(np.exp(-30.0) + np.exp(-29.0))
    logp, slope = jax.value_and_grad(lambda logits: gspo.token_logps(logits, jnp.asarray([0]))[0])(logits)
    np.testing.assert_allclose(logp, -truth, rtol=1e-5)
    np.testing.assert_allclose(slope[0, 0], truth, rtol=1e-5)


def test_token_logps(dtype: str) -> None:
    rng = np.random.default_rng(6)
    logits, tokens = jnp.asarray(rng.normal(size=(2, 5, 7)), dtype), jnp.asarray(rng.integers(0, 7, (2, 5)))
    logits = logits.at[0, 0, 3].set(-jnp.inf)
    tokens = tokens.at[0, 0].set(1)
    plain = lambda logits: jnp.take_along_axis(jax.nn.log_softmax(logits / 0.7), tokens[..., None], 2)[..., 0]  # noqa: E731
    ours = lambda logits: gspo.token_logps(logits, tokens, temperature=0.7)  # noqa: E731
    for transform in (lambda f: f, lambda f: jax.jit(jax.grad(lambda logits: jnp.sum(jnp.sin(f(logits)))))):
        np.testing.assert_allclose(transform(ours)(logits), transform(plain)(logits), **TOLERANCE[dtype])
    assert gspo.token_logps(logits.astype(jnp.bfloat16), tokens).dtype == jnp.float32
    outside = gspo.token_logps(logits, tokens.at[1].set(jnp.asarray([7, -1, -100, 0, 6])))
    np.testing.assert_array_equal(np.isnan(outside[1]), [True, True, True, False, False])


@pytest.mark.parametrize("forward", [False, True], ids=["reverse", "forward"])
def test_second_derivatives_are_right_or_refused(forward: bool) -> None:
    """Of a square around its least, where nothing flows back the first time, and where logits tie."""
    rng = np.random.default_rng(8)
    tokens, direction = jnp.asarray(rng.integers(0, 5, 3)), jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
    plain = lambda logits: jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], 1)[:, 0]  # noqa: E731
    ours = lambda logits: gspo.token_logps(logits, tokens)  # noqa: E731
    linear = lambda logits: gspo.linear_token_logps(logits, jnp.eye(5, dtype=jnp.float32), tokens)  # noqa: E731

    def product(logp: Any, logits: jax.Array, target: jax.Array) -> jax.Array:
        slope = jax.grad(lambda logits: jnp.sum((logp(logits) - target) ** 2))
        if forward:
            return jax.jvp(slope, (logits,), (direction,))[1]
        return jax.grad(lambda logits: jnp.vdot(slope(logits), direction))(logits)

    for logits in (direction * 2.0, jnp.zeros_like(direction)):
        for target in (plain(logits), plain(logits) + 0.5):
            expected = product(plain, logits, target)
            np.testing.assert_allclose(product(ours, logits, target), expected, rtol=1e-5, atol=1e-6)
            with pytest.raises(TypeError, match="custom_vjp" if forward else "differentiated once"):
                product(linear, logits, target)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": np.zeros((2, 3, 4), np.float32)}, "hidden: expected a JAX array, got numpy.ndarray"),
        ({"hidden": jnp.zeros((2, 4))}, r"hidden: expected shape \(2, 3, 'D'\), tokens and a width, got \(2, 4\)"),
        ({"weight": jnp.zeros((4, 9))}, r"weight: expected shape \('V', 4\) for this hidden, got \(4, 9\)"),
        ({"tokens": jnp.zeros((2, 3))}, "tokens: expected an integer dtype, got float32"),
        ({"bias": jnp.zeros(3)}, r"bias: expected shape \(9,\)"),
        ({"temperature": 0.0}, "temperature: expected a number > 0, got 0.0"),
        ({"chunk_size": 0}, "chunk_size: expected at least 1, got 0"),
        ({"chunk_size": 2.0}, "chunk_size: expected an integer or None, got float"),
    ],
)
def test_bad_input_gets_one_clear_error(changes: dict[str, Any], message: str) -> None:
    good = {"hidden": jnp.zeros((2, 3, 4)), "weight": jnp.zeros((9, 4)), "tokens": jnp.zeros((2, 3), jnp.int32)}
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        gspo.linear_token_logps(**(good | changes))


def test_counted_tokens_are_in_the_vocabulary() -> None:
    """Said of the tokens, not of a log-probability that is NaN; -100 is no matter where nothing counts."""
    rows = jnp.zeros((1, 3))
    arguments = {"hidden": rows[..., None], "weight": jnp.zeros((9, 1)), "old_logp": rows, "advantages": rows[:, 0]}
    arguments["tokens"] = jnp.asarray([[9, 0, -100]])
    message = r"^tokens: expected ids in \[0, 9\) at counted positions, got 1 others, such as 9"
    with pytest.raises(ValueError, match=message):
        gspo.linear_policy_loss(gspo.Objective.gspo(), sequences=jnp.asarray([[1, 1, 0]]), **arguments)


def test_float32_products_are_not_narrowed() -> None:
    """By itself JAX rounds the operands on a GPU or TPU; nothing on a processor would show it but the program."""
    hidden, weight, tokens = jnp.ones((3, 4)), jnp.ones((5, 4)), jnp.zeros(3, int)

    def program(dtype: Any) -> str:
        narrow = hidden.astype(dtype), weight.astype(dtype)
        return str(jax.make_jaxpr(jax.grad(lambda h, w: gspo.linear_token_logps(h, w, tokens).sum(), (0, 1)))(*narrow))

    whole, half = program(jnp.float32), program(jnp.bfloat16)
    assert whole.count("dot_general") == whole.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") >= 3
    assert "HIGHEST" not in half
    with jax.default_matmul_precision("tensorfloat32"):
        assert "HIGHEST" not in program(jnp.float32)
