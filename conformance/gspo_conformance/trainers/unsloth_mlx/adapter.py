"""`make_grpo_loss_fn` of a config that Unsloth itself has resolved, with stand-ins for tokens and the model; advantages by its own function."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np

from ...words import HarnessError
from ..stubs import stub, without_init

stub("datasets", "transformers", "tqdm", "huggingface_hub", "mlx_lm", "mlx_vlm", "jinja2", "PIL", "torch")
without_init("unsloth_zoo", "unsloth_zoo.mlx")

RELEASE = version("unsloth-zoo")
if find_spec("unsloth_zoo.mlx.grpo") is None:
    raise HarnessError(f"unsloth-zoo {RELEASE} has no GRPO on MLX: 2026.10.5 is the first release that can be checked")
from unsloth_zoo.mlx import grpo

from ...frameworks.mlx import array
from ...target import Case, Skip
from .. import demands
from ..adapter import Settings, TrainerTarget, mlx_loss, offered
from .dialect import DEFAULTS, DIALECT

SAMPLING: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": None,
    "min_p": None,
    "repetition_penalty": 1.0,
    "generation_kwargs": None,
    "use_liger_loss": False,
}
# A model is its log-probabilities here, and the lengths of its responses are their mask.
grpo.grpo_logps = lambda temperature, scorer=None: lambda model, batch, lengths: model
grpo._response_mask = lambda targets, mask: mask


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """One micro-step of a generation whose only one it is, or whose tokens are given; log-probabilities are float32."""
    if case.inputs["advantages"].ndim > 1:
        raise Skip("Unsloth's advantages are one number a response")
    objective, inputs = _objective(tuple(sorted(settings.items()))), case.inputs
    if "normalizer" in case.parameters and objective.loss_type != "dapo":
        raise Skip("only dapo takes a count, that of the tokens of the generation")
    run = grpo.make_grpo_loss_fn(objective)
    mask, advantages = array(inputs["mask"], "float32"), array(inputs["advantages"], "float32")
    tokens = float(case.parameters.get("normalizer", np.count_nonzero(inputs["mask"])))
    counts, kept = mx.array([1.0, tokens]), mx.ones(len(inputs["mask"]))
    old, ref = (array(inputs[name]) if name in inputs else None for name in ("old_logp", "ref_logp"))
    nothing = mx.zeros((len(inputs["mask"]), 1))

    def loss(logp: mx.array) -> mx.array:
        reference = mx.stop_gradient(logp) if ref is None else ref
        return run(logp, nothing, mask, counts, advantages, kept, old, reference)[0]

    return mlx_loss(case, loss)


@cache
def _objective(settings: tuple[tuple[str, Any], ...]) -> Any:
    """What `MLXGRPOConfig` makes of the settings as it is constructed, and its trainer of that."""
    config = SimpleNamespace(**SAMPLING | DEFAULTS | dict(settings))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it says of the values that it puts where nothing is set
        grpo.resolve_grpo_config(config)
    return grpo.grpo_objective(config)


def group_advantages(case: Case) -> Mapping[str, Any]:
    """Its `group_advantages` for each group; float32 whatever the rewards."""
    asked = {"center": "mean", "scale": "std"} | dict(case.parameters)
    if asked["center"] != "mean" or asked["scale"] not in ("std", "none"):
        raise Skip("Unsloth's advantages on MLX are r - mean, divided by the standard deviation of the group or not")
    if asked["scale"] == "std":
        demands.std(case, "Unsloth on MLX", 1e-4)
    rewards, groups = case.inputs["rewards"].astype(np.float32), case.inputs["groups"]
    found = np.empty_like(rewards)
    for group, size in zip(*np.unique(groups, return_counts=True), strict=True):
        if size == 1:
            raise Skip("num_generations of Unsloth is above 1")
        scale = "group" if asked["scale"] == "std" else "none"
        found[groups == group] = grpo.group_advantages(rewards[groups == group][:, None], [1.0], int(size), scale)[0]
    return {"advantages": found}


OPERATIONS = {"group_advantages": group_advantages}
CAPABILITIES = offered(
    ("step", "pipeline", *OPERATIONS),
    "logp old_logp advantages mask ref_logp groups rewards",
    "objective normalizer advantages center scale ddof eps eps_placement",
)


def claims() -> TrainerTarget:
    """Every objective that a `loss_type` claims, in float32, as its log-probabilities are whatever the logits."""
    versions = {"unsloth-zoo": RELEASE, "mlx": mx.__version__}
    return TrainerTarget(versions, DIALECT, RELEASE, policy_loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """`importance_sampling_level="sequence"` and a clip range, all else as it comes: `loss_type="dapo"`."""
    return claims().as_documented()
