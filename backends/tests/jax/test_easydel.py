"""The step for EasyDeL where EasyDeL is absent: its loss, its minibatches over stand-ins of EasyDeL's functions, and its refusals."""

from __future__ import annotations

import dataclasses
import sys
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gspo_jax as gspo
from gspo_jax.integrations import easydel

WIDE = gspo.Clip(0.2, 0.3)
PENALTY = gspo.Penalty("k3", 0.5)
PROMPTS, GROUP, COLUMNS, VOCABULARY = 3, 4, 5, 7
ROWS = PROMPTS * GROUP
# What is compiled runs once: quickly compiled is better than quick.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
OBJECTIVES = {
    "kl": gspo.Objective.gspo(WIDE).replace(penalty=PENALTY),
    "group": gspo.Objective("token", WIDE, "group_token_mean"),
    "own-penalty": gspo.Objective(
        "sequence", WIDE, "token_mean", gspo.Penalty("k3", 0.5, aggregation=gspo.Aggregation())
    ),
}


@dataclasses.dataclass
class Metrics:
    """`LossMetrics`, as far as the step knows it."""

    loss: Any
    accuracy: Any
    other_metrics: Any

    def replace(self, **changes: Any) -> Metrics:
        return dataclasses.replace(self, **changes)


jax.tree_util.register_dataclass(Metrics, ("loss", "accuracy", "other_metrics"), ())


def minibatch_call(state: Any, batch: Any, minibatch_size: int, grad_fn: Any) -> Any:
    """Cuts what has as many rows as most of the batch has, adds up, and divides by the number of minibatches."""

    def part(_: None, start: Any) -> Any:
        kept = {
            name: jax.lax.dynamic_slice_in_dim(value, start, minibatch_size) if value.shape[:1] == (ROWS,) else value
            for name, value in batch.items()
        }
        (_, metrics), gradients = grad_fn(state.graphstate, kept)
        return None, (gradients, metrics)

    _, parts = jax.lax.scan(part, None, jnp.arange(0, ROWS, minibatch_size))
    return jax.tree.map(lambda values: values.mean(0), parts)


def get_per_token_logps(
    module: Any, ids: Any, mask: Any, length: int, model_kwargs: Any, logprob_vocab_chunk_size: Any
) -> Any:
    """A model of pairs of tokens, and of the prompt's last token, so that a wrong prompt is a wrong answer."""
    logp = jax.nn.log_softmax(module(ids[:, length - 1 : -1], mask) + module(ids[:, length - 1, None], mask), -1)
    return jnp.take_along_axis(logp, ids[:, length:, None], -1)[..., 0]


class State:
    """`EasyDeLState` of a table of logits; its optimizer subtracts gradients."""

    def __init__(self, table: jax.Array) -> None:
        self.graphstate, self.step = table, 0

    def merge(self, tree: jax.Array) -> Any:
        return lambda ids, mask: tree[ids]

    @property
    def model(self) -> Any:
        return self.merge(self.graphstate)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SimpleNamespace(
        LossMetrics=Metrics,
        get_per_token_logps=get_per_token_logps,
        with_sharding_constraint=lambda arr, sharding: arr,
        extract_generation_model_kwargs=lambda batch, model_callable: {},
        repeat_prompt_aligned_model_kwargs=lambda kwargs, factor, prompt_batch_size: {},
        slice_prompt_aligned_model_kwargs=lambda kwargs, start, stop, prompt_batch_size: {},
        make_assertions_and_get_sizes=lambda batch, gradient_accumulation_steps, batch_partition_spec: (
            ROWS,
            ROWS // gradient_accumulation_steps,
            None,
        ),
        minibatch_call=minibatch_call,
        update_metrics=lambda metrics, learning_rate_fn, step, gradients: metrics,
        update_state_respectfully=lambda state, gradients, **_: State(state.graphstate - gradients),
        grpo_trainer=SimpleNamespace(grpo_step="theirs"),
    )
    monkeypatch.setattr(easydel, "_easydel", lambda: made)


def state() -> State:
    table = np.random.default_rng(1).normal(size=(VOCABULARY, VOCABULARY))
    return State(jnp.asarray(table, jnp.float32))


def batch() -> dict[str, Any]:
    """A batch of EasyDeL: a row for each prompt, and for each completion; lengths from 0."""
    return dict(_batch())


@cache
def _batch() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    lengths = np.r_[0, rng.integers(1, COLUMNS + 1, ROWS - 1)]
    made: dict[str, Any] = {
        "prompt_ids": rng.integers(0, VOCABULARY, (PROMPTS, 2)).astype(np.int32),
        "prompt_mask": np.ones((PROMPTS, 2), np.int32),
        "completion_ids": rng.integers(0, VOCABULARY, (ROWS, COLUMNS)).astype(np.int32),
        "completion_mask": (np.arange(COLUMNS)[None] < lengths[:, None]).astype(np.int32),
        "advantages": rng.normal(size=ROWS).astype(np.float32),
        "num_items_in_batch": np.asarray(lengths.sum(), np.int32),
    }
    made = {name: jnp.asarray(value) for name, value in made.items()}
    logp = np.asarray(compiled(log_probabilities)(state().graphstate, made))
    for name in ("old", "ref"):
        made[f"{name}_per_token_logps"] = jnp.asarray(logp + 0.4 * rng.normal(size=logp.shape), jnp.float32)
    return made


def log_probabilities(table: jax.Array, made: Any) -> jax.Array:
    prompts = jnp.repeat(made["prompt_ids"], GROUP, axis=0)
    ids = jnp.concatenate([prompts, made["completion_ids"]], axis=1)
    return get_per_token_logps(lambda ids, _: table[ids], ids, None, 2, None, None)


def expected(objective: gspo.Objective, table: jax.Array, made: Any) -> gspo.PolicyLoss:
    """`policy_loss` of the whole batch."""
    return gspo.policy_loss(
        objective,
        logp=log_probabilities(table, made),
        old_logp=made["old_per_token_logps"],
        ref_logp=made["ref_per_token_logps"],
        advantages=made["advantages"],
        sequences=made["completion_mask"] != 0,
        groups=jnp.arange(ROWS, dtype=jnp.int32) // GROUP,
    )


def run(objective: gspo.Objective, made: Any, parts: int = 1, **settings: Any) -> Any:
    beta = settings.pop("beta", 0.0 if objective.penalty is None else objective.penalty.coefficient)
    step = easydel.training_step(objective)
    return step(state(), made, GROUP, beta, gradient_accumulation_steps=parts, **settings)


@pytest.mark.parametrize(
    ("name", "parts"),
    [("own-penalty", 6), ("group", 3)],
)
def test_the_loss_of_an_update_is_that_of_the_whole_batch(name: str, parts: int) -> None:
    objective = OBJECTIVES[name]

    @compiled
    def both(table: jax.Array, made: Any) -> Any:
        after, metrics = run(objective, made, parts)
        whole = jax.value_and_grad(lambda table: tuple(expected(objective, table, made)), has_aux=True)(table)
        return table - after.graphstate, metrics, whole

    gradient, metrics, ((loss, rest), whole) = both(state().graphstate, batch())
    np.testing.assert_allclose(metrics.loss, loss, rtol=2e-6)
    np.testing.assert_allclose(gradient, whole, rtol=1e-5, atol=1e-6)
    assert set(metrics.other_metrics) == set(rest)
    for key, value in rest.items():
        np.testing.assert_allclose(metrics.other_metrics[key], value, rtol=1e-5, atol=1e-6, err_msg=key)


def test_an_evaluation_reports_the_shortened_batch_and_updates_nothing() -> None:
    made, objective = batch(), OBJECTIVES["kl"]
    cut = {name: made[name][:, :3] for name in made if name.startswith(("completion", "old", "ref"))}

    @compiled
    def both(made: Any, cut: Any) -> Any:
        settings = {"is_training": False, "max_loss_completion_tokens": 3, "completion_chunk_size": 5}
        return run(objective, made, 3, **settings), expected(objective, state().graphstate, cut)

    found, whole = both(made, made | cut)
    np.testing.assert_allclose(found.loss, whole.loss, rtol=2e-6)
    assert found.other_metrics["num_tokens"] == int(cut["completion_mask"].sum())


def test_a_batch_without_old_log_probabilities_has_ratios_of_one() -> None:
    made = batch()
    del made["old_per_token_logps"]
    logp = made["ref_per_token_logps"]
    found = compiled(partial(easydel.batch_loss, gspo.Objective.gspo()))(logp, made)
    assert found.metrics["ratio_is_one"] == 1
    column = jax.eval_shape(
        partial(easydel.batch_loss, gspo.Objective.gspo()), logp, made | {"advantages": made["advantages"][:, None]}
    )
    assert column.loss.shape == ()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gspo", {"beta": 0.04}, "beta: expected 0, since the objective has no penalty, got 0.04"),
        ("kl", {"beta": 0.04}, "beta: expected 0.5, the coefficient of the objective's penalty, got 0.04"),
        ("gspo", {"delta": 1.5}, "delta: expected None, since the objective's surrogate .* got 1.5"),
        ("gspo", {"top_entropy_quantile": 0.2}, r"top_entropy_quantile: expected 1\.0, .* got 0.2"),
        ("group", {"parts": 6}, "gradient_accumulation_steps: expected minibatches of whole groups of 4 .* got 6"),
        (
            "token-penalty",
            {"parts": 2},
            "gradient_accumulation_steps: expected 1 with a penalty aggregated by token_mean",
        ),
    ],
)
def test_settings_that_cannot_be_right_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    own = gspo.Penalty("k3", 0.5, aggregation=gspo.Aggregation("token_mean"))
    others = {"gspo": gspo.Objective.gspo(), "token-penalty": gspo.Objective.gspo().replace(penalty=own)}
    with pytest.raises(ValueError, match=message):
        run((OBJECTIVES | others)[name], batch(), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_ids": jnp.zeros((5, 2), jnp.int32)}, r"batch\['prompt_ids'\]: .* that divides 12, got 5"),
        ({"position_ids": jnp.zeros((3, 12, 7))}, r"batch\['position_ids'\]: expected 12 rows with 2 .* \(3, 12, 7\)"),
        ({"old_per_token_logps": jnp.zeros((12, 2))}, r"old_logp: expected shape \(\d+, 5\)"),
    ],
)
def test_batches_that_cannot_be_right_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: run(OBJECTIVES["kl"], batch() | changes, 2)[1])


def test_objectives_that_cannot_be_had_are_refused() -> None:
    with pytest.raises(TypeError, match="objective: expected an Objective, got str"):
        easydel.training_step("gspo")
    with pytest.raises(ValueError, match="objective: expected no correction, since EasyDeL hands over no"):
        easydel.training_step(gspo.Objective.minirl())


def test_trainers_are_built_with_the_step_inside_alone() -> None:
    trainer = easydel._easydel().grpo_trainer
    with easydel.install():
        assert trainer.grpo_step.__self__.objective == gspo.Objective.gspo()
    assert trainer.grpo_step == "theirs"
    with pytest.raises(RuntimeError, match="no model"), easydel.install(OBJECTIVES["kl"]):
        raise RuntimeError("no model")
    assert trainer.grpo_step == "theirs"


def test_an_absent_trainer_gives_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name in ("easydel", "easydel.infra.loss_utils"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ImportError, match=r"gspo_jax.integrations.easydel: expected easydel .* pip install easydel==0.3.0"
    ):
        easydel.training_step()
