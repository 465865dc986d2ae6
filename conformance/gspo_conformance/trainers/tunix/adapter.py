"""`grpo_loss_fn` under a real `GRPOConfig`, with a stand-in for the model's forward pass; advantages and KL by Tunix's own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ...target import INPUT_DTYPES, LAYOUTS, Case, Skip
from ...tensors import NumPyArray
from .. import demands
from ..adapter import Settings, TrainerTarget, offered
from . import releases
from .dialect import DIALECT, ESTIMATORS

NAMES = {("mean", "std"): "grpo", ("mean", "none"): "drgrpo", ("leave_one_out", "none"): "rloo"}
WIDTHS = (16, 64, 1024, 16384, 65536)


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """The loss of one micro-batch and its gradient, compiled as Tunix compiles its training step."""
    rows = _rows(case)
    width = _width(settings, rows["logp"].shape[1])
    example = {name: _array(name, _padded(values, width), case) for name, values in rows.items()}
    example.setdefault("advantages", _array("advantages", case.inputs["advantages"], case))
    value, gradient = _program(tuple(sorted(settings.items())))(example.pop("logp"), example)
    gradient = np.asarray(gradient, np.float32)[:, : rows["logp"].shape[1]]
    return {"loss": np.asarray(value), "gradient": gradient.reshape(case.inputs["logp"].shape)}


@cache
def _program(settings: tuple[tuple[str, Any], ...]) -> Any:
    """Loss and gradient of `grpo_loss_fn` in the log-probabilities that its model would have."""
    config = releases.config(dict(settings))

    def loss(logp: jax.Array, example: Mapping[str, jax.Array]) -> jax.Array:
        ref = example.get("ref_logp", jax.lax.stop_gradient(logp) if config.beta else None)
        mask = example["mask"]
        nothing = jnp.zeros((len(mask), 0), jnp.int32)
        batch = releases.common.TrainExample(
            prompt_ids=nothing,
            prompt_mask=nothing,
            completion_ids=jnp.zeros(mask.shape, jnp.int32),
            completion_mask=mask,
            advantages=example["advantages"],
            ref_per_token_logps=ref,
            old_per_token_logps=example["old_logp"],
            **releases.segments(example.get("segments")),
        )
        releases.common.compute_per_token_logps = partial(_forward, logp)
        return releases.loss(nnx.Module(), batch, config, dict(settings))

    return jax.jit(jax.value_and_grad(loss))


def _forward(logp: jax.Array, *_: Any, return_logits: bool, **__: Any) -> Any:
    """What the model's forward pass would return."""
    return (logp, jnp.zeros((*logp.shape, 1))) if return_logits else logp


def _rows(case: Case) -> dict[str, NumPyArray]:
    """What lies along tokens, as rows; a packed case is one row, as Tunix packs, with advantages per token and segment ids."""
    inputs = case.inputs
    names = [name for name in ("logp", "old_logp", "ref_logp", "mask") if name in inputs]
    if inputs["advantages"].shape == inputs["logp"].shape:
        names.append("advantages")
    rows = {name: inputs[name] for name in names}
    if "offsets" not in inputs:
        return rows
    ends, tokens = inputs["offsets"], np.arange(len(inputs["logp"]))
    owner = np.searchsorted(ends[1:], tokens, side="right")
    inside = tokens < ends[-1]
    rows["mask"] = rows.get("mask", np.ones(len(tokens), np.int64)) * inside
    rows["segments"] = np.where(inside, owner + 1, 0)
    if "advantages" not in rows:
        rows["advantages"] = np.where(inside, np.append(inputs["advantages"], 0)[owner], 0).astype(case.dtype)
    return {name: values[None] for name, values in rows.items()}


def _width(settings: Settings, needed: int) -> int:
    """A few widths, so that few programs are compiled; the divisor of `sequence-mean-token-scale` is the width."""
    if settings.get("loss_agg_mode") != "sequence-mean-token-scale":
        return next(width for width in WIDTHS if width >= needed)
    if needed > settings["max_response_length"]:
        raise Skip("max_response_length would cut off the responses")
    return int(settings["max_response_length"])


def _padded(values: NumPyArray, width: int) -> NumPyArray:
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))


def _array(name: str, values: NumPyArray, case: Case) -> jax.Array:
    """Log-probabilities in the dtype that they are stored in, advantages in that of the case, masks and ids as integers."""
    stored = (case.input_dtype or case.dtype) if name.endswith("logp") else case.dtype
    return jnp.asarray(values, stored if values.dtype.kind == "f" else jnp.int32)


def group_advantages(case: Case) -> Mapping[str, Any]:
    """Those of GRPO, Dr. GRPO or RLOO."""
    asked = {"center": "mean", "scale": "std", "ddof": 1, "eps": 1e-6} | dict(case.parameters)
    name = NAMES.get((asked["center"], asked["scale"]))
    form = (asked["ddof"], asked["eps"], asked.get("eps_placement", "std"))
    if name is None or (asked["scale"] == "std" and form != (1, releases.EPS, "std")):
        raise Skip(f"Tunix has the mean with the standard deviation (ddof 1, eps {releases.EPS:g}) or alone, and RLOO")
    return {"advantages": _estimated(name, case)}


def leave_one_out_advantages(case: Case) -> Mapping[str, Any]:
    """Those of RLOO."""
    return {"advantages": _estimated("rloo", case)}


def _estimated(name: str, case: Case) -> NumPyArray:
    """One call a group: a batch of Tunix has groups of one size, side by side."""
    estimator = releases.estimator(name)
    groups, rewards = np.asarray(case.inputs["groups"]), np.asarray(case.inputs["rewards"], case.dtype)
    found = np.empty_like(rewards)
    for group, size in zip(*np.unique(groups, return_counts=True), strict=True):
        if size == 1:
            raise Skip("num_generations of Tunix is above 1")
        found[groups == group] = estimator(rewards[groups == group], int(size))
    return found


def kl_penalty(case: Case) -> Mapping[str, Any]:
    """`compute_kl_divergence`."""
    names = {value: key for key, value in ESTIMATORS.items()}
    estimator = demands.estimator(case, "Tunix", names)
    logp, ref = (_array(name, case.inputs[name], case) for name in ("logp", "ref_logp"))
    return {"value": np.asarray(releases.common.compute_kl_divergence(logp, ref, names[estimator]))}


OPERATIONS = {
    "group_advantages": group_advantages,
    "leave_one_out_advantages": leave_one_out_advantages,
    "kl_penalty": kl_penalty,
}
CAPABILITIES = offered(
    ("pipeline", *OPERATIONS),
    "logp old_logp advantages mask offsets ref_logp groups rewards",
    "objective advantages center scale ddof eps eps_placement estimator",
    layouts=LAYOUTS,
    token_advantages=releases.PACKS,
    input_dtypes=INPUT_DTYPES,
)


def claims() -> TrainerTarget:
    """Every objective that `loss_algo` and `loss_agg_mode` claim, in float32: the loss casts to nothing else."""
    versions = {"google-tunix": releases.RELEASE, "jax": jax.__version__}
    return TrainerTarget(versions, DIALECT, releases.RELEASE, policy_loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """`loss_algo="gspo-token"` and a clip range, all else as it comes; the reference of its KL term is the policy itself."""
    return claims().as_documented(layouts=frozenset({"padded"}), token_advantages=False)
