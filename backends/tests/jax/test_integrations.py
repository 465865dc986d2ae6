"""What the integrations compute from a trainer's own structures, and what they say where the trainer is absent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gspo_jax as gspo
from gspo_core.tests.batches import Batch
from gspo_jax.integrations import tunix

WIDE = gspo.Clip(0.2, 0.3)
PENALTY = gspo.Penalty("k3", 0.5)
OBJECTIVES = {
    "gspo": gspo.Objective.gspo(WIDE).replace(penalty=PENALTY),
    "token": gspo.Objective("token", WIDE, "token_mean", PENALTY),
}


def example() -> Any:
    """A Tunix `TrainExample` of the batch of the core's tests: floats for masks, zeros where nothing counts."""
    batch = Batch(garbage=0.0)
    logps = {
        f"{name}_per_token_logps": jnp.asarray(batch.tokens[f"{name}_logp"], jnp.float32) for name in ("old", "ref")
    }
    return SimpleNamespace(
        completion_mask=jnp.asarray(batch.mask, jnp.float32),
        advantages=jnp.asarray(batch.per_sequence, jnp.float32),
        **logps,
    )


def packed(one: Any, logp: jax.Array) -> tuple[Any, jax.Array]:
    """As Tunix packs: prompts of two tokens before each completion, ids from 1, padding 0; two rows. The empty response is not there."""
    lengths = [length for length in Batch.lengths if length]
    kept = [i for i, length in enumerate(Batch.lengths) if length]
    rows, size = ([0, 1], [2, 3]), 2 * 2 + max(sum(lengths[:2]), sum(lengths[2:])) + 3

    def lay(of: Any) -> jax.Array:
        made = [np.concatenate([np.concatenate([np.zeros(2), of(k)]) for k in row]) for row in rows]
        return jnp.asarray(np.stack([np.pad(part, (0, size - len(part))) for part in made]), jnp.float32)

    def tokens(values: jax.Array) -> jax.Array:
        return lay(lambda k: np.asarray(values)[kept[k], : lengths[k]])

    ids = [np.concatenate([np.full(2 + lengths[k], place) for place, k in enumerate(row, 1)]) for row in rows]
    return SimpleNamespace(
        completion_mask=tokens(one.completion_mask),
        advantages=lay(lambda k: np.full(lengths[k], one.advantages[kept[k]])),
        old_per_token_logps=tokens(one.old_per_token_logps),
        ref_per_token_logps=tokens(one.ref_per_token_logps),
        segment_ids=jnp.asarray(np.stack([np.pad(part, (0, size - len(part))) for part in ids]), jnp.int32),
    ), tokens(logp)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_tunix_example_padded_and_packed(name: str) -> None:
    objective, one = OBJECTIVES[name], example()
    batch = Batch(garbage=0.0)
    logp = jnp.asarray(batch.tokens["logp"], jnp.float32)
    arguments = batch.padded(lambda values, dtype=None: jnp.asarray(np.array(values, dtype=dtype)), "float32")
    arguments = {name: value for name, value in arguments.items() if name not in ("groups", "behavior_logp")}
    expected = gspo.policy_loss(objective, **arguments)
    found = tunix.example_loss(objective, logp, one, beta=0.5)
    np.testing.assert_array_equal(found.loss, expected.loss)
    many, tokens = packed(one, logp)
    run = jax.jit(lambda logp: tunix.example_loss(objective, logp, many, beta=0.5))
    whole = gspo.policy_loss(objective, **arguments, normalizer=None if name == "token" else 4).loss
    np.testing.assert_allclose(run(tokens).loss, whole, rtol=1e-5)
    assert float(run(tokens).metrics["num_tokens"]) == float(expected.metrics["num_tokens"])


def test_without_old_log_probabilities_every_ratio_is_one() -> None:
    one = example()
    one.old_per_token_logps = None
    found = tunix.example_loss(gspo.Objective.gspo(), one.ref_per_token_logps, one)
    assert found.metrics["ratio_is_one"] == 1


@pytest.mark.parametrize(
    ("objective", "changes", "beta", "message"),
    [
        (gspo.Objective.gspo(), {}, 0.04, "beta: expected 0, since the objective has no penalty, got 0.04"),
        (OBJECTIVES["gspo"], {}, 0.04, "beta: expected 0.5, the coefficient of the objective's penalty, got 0.04"),
        (
            gspo.Objective.gspo(),
            {"sampler_is_weights": 1.0},
            0.0,
            "objective: expected no correction and no sampler weights",
        ),
    ],
)
def test_settings_that_disagree_are_refused(objective: Any, changes: dict[str, Any], beta: float, message: str) -> None:
    one = SimpleNamespace(**(vars(example()) | changes))
    with pytest.raises(ValueError, match=message):
        tunix.example_loss(objective, one.old_per_token_logps, one, beta=beta)


def test_an_absent_trainer_gives_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tunix", None)
    monkeypatch.setitem(__import__("sys").modules, "flax", None)
    with pytest.raises(
        ImportError, match=r"gspo_jax.integrations.tunix: expected google-tunix .* pip install google-tunix==0.1.7"
    ):
        tunix.register()
