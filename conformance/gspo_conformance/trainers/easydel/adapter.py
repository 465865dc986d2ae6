"""`grpo_step` as `GSPOTrainer` calls it, with a stand-in for the model's forward pass; nothing of EasyDeL's models is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from inspect import signature
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...target import INPUT_DTYPES, Case, Skip
from ...tensors import NumPyArray
from ...words import HarnessError
from ..adapter import Settings, TrainerTarget, offered
from ..stubs import holding, without_init

without_init(
    *("easydel", "easydel.infra", "easydel.trainers", "easydel.trainers.group_relative_policy_optimization"),
    "easydel.utils",
)
holding("easydel.infra.base_state", EasyDeLState=object)

from easydel.trainers.group_relative_policy_optimization import _fn

from .dialect import DIALECT

RELEASE = version("easydel")
if "importance_sampling_level" not in signature(_fn.grpo_step).parameters:
    raise HarnessError(f"EasyDeL {RELEASE} has no sequence ratio: 0.2.0 is the first release that can be checked")
WIDTHS = (16, 64, 1024, 16384, 65536)
LOSS = ("importance_sampling_level", "loss_type", "epsilon", "epsilon_high", "delta", "beta")
# What the model computes, it has computed already; on one device nothing is sharded.
_fn.get_per_token_logps = lambda module, *_, **__: module.logp
_fn.get_per_token_logps_and_entropies = lambda module, *_, **__: (module.logp, jnp.zeros_like(module.logp))
_fn.with_sharding_constraint = lambda arr, sharding: arr


class Model:
    """A model whose log-probabilities are given."""

    def __init__(self, logp: jax.Array) -> None:
        self.logp = logp

    def __call__(self, input_ids: Any, attention_mask: Any) -> Any:
        """Never called: its log-probabilities are there."""
        raise NotImplementedError


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """The loss of one step and its gradient, compiled as EasyDeL compiles its step."""
    if case.inputs["advantages"].ndim > 1:
        raise Skip("EasyDeL's advantages are one number a response")
    columns = case.inputs["logp"].shape[1]
    batch = _batch(settings, case, _width(settings, columns))
    program = _program(tuple(sorted((key, settings[key]) for key in LOSS if key in settings)))
    value, gradient = program(batch.pop("logp"), batch)
    return {"loss": np.asarray(value), "gradient": np.asarray(gradient)[:, :columns]}


@cache
def _program(settings: tuple[tuple[str, Any], ...]) -> Any:
    """Loss and gradient of `grpo_step` in the log-probabilities that its model would have."""

    def loss(logp: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        state = SimpleNamespace(graphstate=logp, merge=Model)
        metrics = _fn.grpo_step(state, dict(batch), num_generations=1, is_training=False, **dict(settings))
        return metrics.loss

    return jax.jit(jax.value_and_grad(loss))


def _batch(settings: Settings, case: Case, width: int) -> dict[str, Any]:
    """What `_preprocess_batch_input` hands over, and the old log-probabilities that `grpo_step` would take."""
    rows, inputs = case.inputs["mask"].shape[0], case.inputs
    names = {"old_per_token_logps": "old_logp", "ref_per_token_logps": "ref_logp", "logp": "logp"}
    batch = {
        "prompt_ids": jnp.zeros((rows, 1), jnp.int32),
        "prompt_mask": jnp.ones((rows, 1), jnp.int32),
        "completion_ids": jnp.zeros((rows, width), jnp.int32),
        "completion_mask": jnp.asarray(_padded(inputs["mask"], width), jnp.int32),
        "advantages": jnp.asarray(inputs["advantages"]),
        **{key: jnp.asarray(_padded(inputs[name], width)) for key, name in names.items() if name in inputs},
    }
    if "normalizer" in case.parameters:
        batch["num_items_in_batch"] = _counted(settings, case)
    if settings["beta"] and "ref_per_token_logps" not in batch:
        raise Skip("a KL term and no reference")
    return batch


def _counted(settings: Settings, case: Case) -> jax.Array:
    if settings["loss_type"] not in ("dapo", "cispo"):
        raise Skip("EasyDeL divides by the responses of the mini-batch, and averages mini-batches")
    return jnp.asarray(case.parameters["normalizer"], jnp.float32)


def _width(settings: Settings, needed: int) -> int:
    """A few widths, so that few programs are compiled; dr_grpo divides by the width of the batch."""
    length = settings.get("max_completion_length")
    if length is None:
        return next(width for width in WIDTHS if width >= needed)
    if needed > length:
        raise Skip("the responses are longer than max_completion_length")
    return int(length)


def _padded(values: NumPyArray, width: int) -> NumPyArray:
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))


CAPABILITIES = offered(
    ("step",),
    "logp old_logp advantages mask ref_logp",
    "objective normalizer",
    input_dtypes=INPUT_DTYPES,
)


def claims() -> TrainerTarget:
    """Every objective that a `loss_type` claims, in float32, as EasyDeL's log-probabilities are whatever the logits.

    Old log-probabilities are given, which the trainer itself never does.
    """
    versions = {"easydel": RELEASE, "jax": jax.__version__}
    return TrainerTarget(versions, DIALECT, RELEASE, policy_loss, {}, CAPABILITIES)


def _as_trained(settings: Settings, case: Case) -> Mapping[str, Any]:
    """Without old log-probabilities, as `_preprocess_batch_input` leaves them out."""
    inputs = {name: value for name, value in case.inputs.items() if name != "old_logp"}
    return policy_loss(settings, replace(case, inputs=inputs))


def default() -> TrainerTarget:
    """`GSPOConfig` with a clip range, and the batch as its trainer makes it: without old log-probabilities."""
    return replace(claims().as_documented(), loss=_as_trained)
