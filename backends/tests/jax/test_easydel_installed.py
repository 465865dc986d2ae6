"""The step beside EasyDeL's own, on EasyDeL's model, state and optimizer; skipped where EasyDeL is not installed.

pip install easydel==0.3.0
EASYDEL_AUTO=0 pytest backends/tests/jax/test_easydel_installed.py
"""

from __future__ import annotations

import inspect
import os
import runpy
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# EasyDeL sets flags of GPUs otherwise, which end a process whose XLA does not know them.
os.environ.setdefault("EASYDEL_AUTO", "0")

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gspo_jax as gspo
from gspo_jax.integrations import easydel as gspo_easydel

ed = pytest.importorskip("easydel")
nnx, optax = pytest.importorskip("flax.nnx"), pytest.importorskip("optax")

pytestmark = pytest.mark.filterwarnings("ignore")
GROUP, PROMPTS, COLUMNS, STATIC = 4, 2, 6, tuple(range(2, 19))
WIDE = gspo.Clip(0.2, 0.3)
EASYDEL_GSPO = {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.3}


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """EasyDeL's models promote dtypes."""
    with jax.enable_x64(False):
        yield


@pytest.fixture(scope="module")
def state() -> Any:
    config = ed.Qwen3Config(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        attn_mechanism="vanilla",
    )
    model = ed.Qwen3ForCausalLM(config=config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    return model.to_state().init_tx(optax.adam(1e-2))


def batch(state: Any, seed: int = 0, spread: float = 0.0, prompts: int = PROMPTS) -> dict[str, Any]:
    """What `_preprocess_batch_input` makes; with a spread also old log-probabilities that far away."""
    rng = np.random.default_rng(seed)
    rows = prompts * GROUP
    lengths = rng.integers(1, COLUMNS + 1, rows)
    made: dict[str, Any] = {
        "prompt_ids": jnp.asarray(rng.integers(0, 10, (prompts, 3)), jnp.int32),
        "prompt_mask": jnp.ones((prompts, 3), jnp.int32),
        "completion_ids": jnp.asarray(rng.integers(0, 10, (rows, COLUMNS)), jnp.int32),
        "completion_mask": jnp.asarray(np.arange(COLUMNS)[None] < lengths[:, None], jnp.int32),
        "advantages": jnp.asarray(rng.normal(size=rows), jnp.float32),
        "ref_per_token_logps": jnp.asarray(-2.7 + 0.2 * rng.normal(size=(rows, COLUMNS)), jnp.float32),
        "num_items_in_batch": jnp.asarray(lengths.sum()),
    }
    if spread:
        logp = log_probabilities(state, made)
        made["old_per_token_logps"] = logp + jnp.asarray(spread * rng.normal(size=logp.shape), jnp.float32)
    return made


def log_probabilities(state: Any, made: dict[str, Any]) -> jax.Array:
    from easydel.trainers.group_relative_policy_optimization._fn import get_per_token_logps

    ids, mask = (
        jnp.concatenate([made[f"prompt_{name}"].repeat(GROUP, 0), made[f"completion_{name}"]], 1)
        for name in ("ids", "mask")
    )
    with state.model.mesh:
        return get_per_token_logps(state.model, ids, mask, 3)


def theirs() -> Any:
    from easydel.trainers.group_relative_policy_optimization._fn import grpo_step

    return grpo_step


def run(step: Any, state: Any, made: dict[str, Any], beta: float = 0.0, accumulate: int = 1, **settings: Any) -> Any:
    """One compiled step with arguments by position, as the trainer calls it."""
    names = list(inspect.signature(theirs()).parameters)[2:]
    values = {name: parameter.default for name, parameter in inspect.signature(theirs()).parameters.items()}
    values |= {"num_generations": GROUP, "beta": beta, "gradient_accumulation_steps": accumulate} | settings
    with state.model.mesh:
        return jax.jit(step, static_argnums=STATIC)(state, made, *(values[name] for name in names))


def same(found: Any, expected: Any, rtol: float = 2e-4) -> None:
    """Losses, norms of gradients and the parameters after the update."""
    (state, metrics), (their_state, their_metrics) = found, expected
    np.testing.assert_allclose(metrics.loss, their_metrics.loss, rtol=rtol, atol=1e-6)
    for mine, other in zip(jax.tree.leaves(metrics.grad_norms), jax.tree.leaves(their_metrics.grad_norms)):
        np.testing.assert_allclose(mine, other, rtol=rtol, atol=1e-6)
    for mine, other in zip(jax.tree.leaves(state.graphstate), jax.tree.leaves(their_state.graphstate)):
        np.testing.assert_allclose(mine, other, rtol=rtol, atol=1e-4)


def negative_below(state: Any) -> dict[str, Any]:
    """Old log-probabilities far above those of now, and every advantage negative: all responses are clipped."""
    made = batch(state)
    return made | {"old_per_token_logps": log_probabilities(state, made) + 1, "advantages": -abs(made["advantages"])}


def test_the_step_is_called_as_theirs_is() -> None:
    found, expected = (inspect.signature(step).parameters for step in (gspo_easydel.training_step(), theirs()))
    assert [(one.name, one.default, one.kind) for one in found.values()] == [
        (one.name, one.default, one.kind) for one in expected.values()
    ]


def test_the_trainer_looks_the_step_up_where_install_puts_it() -> None:
    from easydel.trainers.group_relative_policy_optimization import grpo_trainer

    with gspo_easydel.install(gspo.Objective.dapo()):
        used = ed.GSPOTrainer.configure_functions.__globals__["grpo_step"]
        assert used.__self__.objective == gspo.Objective.dapo()
    assert grpo_trainer.grpo_step is theirs()


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        (gspo.Objective.gspo(WIDE), EASYDEL_GSPO),
        (
            gspo.Objective("token", WIDE, "token_mean", gspo.Penalty("k3", 0.1)),
            EASYDEL_GSPO | {"importance_sampling_level": "token", "loss_type": "dapo", "beta": 0.1},
        ),
    ],
    ids=["gspo", "dapo-kl"],
)
def test_an_update_is_theirs_where_they_conform(state: Any, objective: Any, settings: dict[str, Any]) -> None:
    """Without old log-probabilities, and with them for positive advantages."""
    step, beta = gspo_easydel.training_step(objective), settings.get("beta", 0.0)
    on_policy, far = batch(state), batch(state, spread=0.5)
    for made in (on_policy, far | {"advantages": abs(far["advantages"])}):
        found = run(step, state, made, beta)
        same(found, run(theirs(), state, made, **settings))
    assert found[1].other_metrics["clip_fraction"] > 0
    assert found[1].other_metrics["ratio_is_one"] == 0


def test_a_clipped_negative_response_keeps_its_gradient_in_theirs_alone(state: Any) -> None:
    made = negative_below(state)
    _, found = run(gspo_easydel.training_step(gspo.Objective.gspo(WIDE)), state, made)
    _, other = run(theirs(), state, made, **EASYDEL_GSPO)
    assert found.other_metrics["clip_fraction"] == 1
    assert found.max_grad_norm == 0 < other.max_grad_norm


def test_accumulated_minibatches_are_the_batch_and_theirs_are_not(state: Any) -> None:
    """EasyDeL 0.3.0 divides the sum over all tokens of the batch once more by the number of minibatches."""
    objective = gspo.Objective("token", WIDE, "token_mean")
    settings = EASYDEL_GSPO | {"importance_sampling_level": "token", "loss_type": "dapo"}
    step, made, one = gspo_easydel.training_step(objective), batch(state, spread=0.5), batch(state, prompts=1)
    whole, parted = (run(step, state, made, accumulate=n) for n in (1, 4))
    same(parted, whole)
    for name, value in whole[1].other_metrics.items():
        np.testing.assert_allclose(parted[1].other_metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    whole, parted = (run(theirs(), state, one, accumulate=n, **settings)[1] for n in (1, 4))
    np.testing.assert_allclose(parted.loss, whole.loss / 4, rtol=1e-4)
    np.testing.assert_allclose(parted.max_grad_norm, whole.max_grad_norm / 4, rtol=1e-4)


def test_their_minibatches_pair_completions_with_the_prompts_of_others(state: Any) -> None:
    """A mean over responses does not depend on how they are divided; prompts that do not go along are what changes it."""
    far = batch(state, spread=0.5)
    made = far | {"advantages": abs(far["advantages"])}
    step = gspo_easydel.training_step(gspo.Objective.gspo(WIDE))
    whole, mixed = (run(theirs(), state, made, accumulate=n, **EASYDEL_GSPO)[1] for n in (1, 2))
    ours = run(step, state, made, accumulate=2)[1]
    np.testing.assert_allclose(ours.loss, whole.loss, rtol=1e-5)
    assert abs(mixed.loss - whole.loss) > 1e-4


def test_an_evaluation_with_short_completions_in_chunks_is_theirs(state: Any) -> None:
    made = batch(state, spread=0.2)
    made |= {"advantages": abs(made["advantages"])}
    settings = {"is_training": False, "max_loss_completion_tokens": 4, "completion_chunk_size": 3}
    found = run(gspo_easydel.training_step(gspo.Objective.gspo(WIDE)), state, made, **settings)
    np.testing.assert_allclose(found.loss, run(theirs(), state, made, **EASYDEL_GSPO, **settings).loss, rtol=1e-5)


def test_several_updates_of_one_batch_lower_the_loss(state: Any) -> None:
    made, step = batch(state), jax.jit(gspo_easydel.training_step(gspo.Objective.gspo(WIDE)), static_argnums=STATIC)
    made["old_per_token_logps"] = log_probabilities(state, made)
    seen = []
    with state.model.mesh:
        for _ in range(6):
            state, metrics = step(state, made, GROUP, 0.0)
            seen.append(metrics)
    assert abs(float(seen[0].other_metrics["ratio_mean"]) - 1) < 1e-5
    assert all(later.loss < earlier.loss for earlier, later in pairwise(seen))
    assert seen[-1].loss < 1.5 * seen[0].loss < 0
    assert seen[-1].other_metrics["clip_fraction"] > 0


def test_the_example_trains_with_easydel_s_trainer() -> None:
    path = Path(__file__).parents[3] / "examples" / "easydel_loss.py"
    seen = runpy.run_path(str(path))["train"](gspo.Objective.gspo())
    first, second = seen[::2], seen[1::2]
    assert len(seen) == 8
    assert all(abs(one["ratio_mean"] - 1) < 1e-5 and not one["clip_fraction"] for one in first)
    assert all(abs(one["ratio_mean"] - 1) > 1e-3 and one["clip_fraction"] for one in second)
    assert seen[-1]["share_of_sevens"] > 1.5 * seen[0]["share_of_sevens"]
