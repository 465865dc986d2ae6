"""`gspo_policy_loss` with true lengths and GRPO's `policy_loss`; for the default `Trainer._loss_fn`, with stand-ins for the model and the buffer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from inspect import signature
from typing import Any

import mlx.core as mx
import numpy as np

from ..stubs import stub

stub("mlx_lm", "gymnasium", "transformers", "psutil", "wandb", "aiohttp", "tqdm")

from textpolicy.algorithms import grpo, gspo
from textpolicy.training.trainer import Trainer

from ...frameworks.mlx import array
from ...target import INPUT_DTYPES, LAYOUTS, Case, Skip
from ...tensors import NumPyArray
from ..adapter import Settings, TrainerTarget, mlx_loss, offered
from .dialect import DIALECT

RELEASE = version("textpolicy")
OPTIONS = signature(grpo.policy_loss).parameters


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """The loss of flat tokens, as TextPolicy packs them, with the length of every response."""
    counted, lengths = _layout(case)
    old, advantages = _old(case, counted), case.inputs["advantages"]
    each = advantages.shape != case.inputs["logp"].shape
    if settings["loss_fn"] == "gspo_policy_loss":
        if not each:
            raise Skip("its GSPO has one advantage a response")
        options = {"variant": settings["variant"], "clip_ratio": settings["clip_ratio"]}
        given = array(advantages)
        return _spread(case, counted, lambda logp: gspo.gspo_policy_loss(old, logp, given, lengths, **options))
    tokens = Trainer._expand_advantages(None, array(advantages), lengths) if each else array(advantages[counted])
    options = _options(settings)
    return _spread(case, counted, lambda logp: grpo.policy_loss(old, logp, tokens, **options))


def _options(settings: Settings) -> Settings:
    """The arguments of `policy_loss`, which has a range of two sides and a constant from 0.1.3 on."""
    options = {key: value for key, value in settings.items() if key != "loss_fn"}
    if "clip_ratio_low" in OPTIONS:
        return options
    low, high, constant = (options[key] for key in ("clip_ratio_low", "clip_ratio_high", "normalize_constant"))
    if low != high or constant is not None:
        raise Skip(f"TextPolicy {RELEASE} has one clip range for both sides, and no normalize_constant")
    return {"clip_ratio": low}


def as_trained(settings: Settings, case: Case) -> Mapping[str, Any]:
    """`Trainer._loss_fn` of a batch whose new log-probabilities and advantages are given."""
    counted, lengths = _layout(case)
    trainer = Trainer.__new__(Trainer)
    trainer.loss_fn = gspo.create_gspo_policy_loss(variant=settings["variant"], clip_ratio=settings["clip_ratio"])
    trainer.advantage_fn, trainer.advantage_transform_fn, trainer._compiled = lambda given: given, None, False
    batch = {"obs": None, "act": None, "episode_lengths": lengths}
    batch |= {"logprob": _old(case, counted), "rewards": array(case.inputs["advantages"])}

    def loss(logp: mx.array) -> mx.array:
        trainer._extract_grpo_logprobs = lambda *_, **__: logp
        return trainer._loss_fn(dict(batch))

    return _spread(case, counted, loss)


def _layout(case: Case) -> tuple[NumPyArray, list[int]]:
    """Which tokens are counted, and how many each response has: TextPolicy holds nothing else."""
    inputs = case.inputs
    mask = inputs["mask"] != 0 if "mask" in inputs else np.ones(inputs["logp"].shape, bool)
    if "offsets" not in inputs:
        return mask, mask.sum(1).tolist()
    ends, tokens = inputs["offsets"], np.arange(len(inputs["logp"]))
    counted = mask & (tokens < ends[-1])
    owner = np.searchsorted(ends[1:], tokens, side="right")
    return counted, np.bincount(owner[counted], minlength=len(ends) - 1).tolist()


def _old(case: Case, counted: NumPyArray) -> mx.array:
    """Old log-probabilities are float32, whatever the new ones are."""
    return array(case.inputs["old_logp"][counted])


def _spread(case: Case, counted: NumPyArray, loss: Callable[[mx.array], mx.array]) -> Mapping[str, Any]:
    """Loss and gradient of the counted tokens, the gradient back in their places."""
    flat = replace(case, inputs={"logp": case.inputs["logp"][counted]})
    found = mlx_loss(flat, loss)
    gradient = np.zeros(counted.shape, found["gradient"].dtype)
    gradient[counted] = found["gradient"]
    return {"loss": found["loss"], "gradient": gradient}


def ratio(case: Case) -> Mapping[str, Any]:
    """`compute_sequence_importance_weights` in a range of 1 on both sides, the widest that it takes: it has no ratio without a clip."""
    if case.parameters["kind"] != "sequence":
        raise Skip("TextPolicy has a function for the sequence ratio alone")
    counted, lengths = _layout(case)
    logp = array(case.inputs["logp"][counted], case.input_dtype)
    found = np.array(gspo.compute_sequence_importance_weights(_old(case, counted), logp, lengths, clip_ratio=1.0))
    if (found >= 2).any():
        raise Skip("its ratios are clipped, to 2 at most")
    return {"ratio": found}


def group_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_advantages` of the batch, which knows no groups; float32 whatever the rewards."""
    asked = {"center": "mean", "scale": "std"} | dict(case.parameters)
    if (asked["center"], asked["scale"]) != ("mean", "none"):
        raise Skip("TextPolicy's advantages are r - mean")
    return {"advantages": np.array(grpo.compute_advantages(array(case.inputs["rewards"])))}


OPERATIONS = {"ratio": ratio, "group_advantages": group_advantages}
CAPABILITIES = offered(
    ("pipeline", *OPERATIONS),
    "logp old_logp advantages mask offsets groups rewards",
    "objective advantages center scale ddof eps eps_placement kind",
    layouts=LAYOUTS,
    token_advantages=True,
    input_dtypes=INPUT_DTYPES,
)


def claims() -> TrainerTarget:
    """Every objective that the arguments of its losses claim, in float32: MLX has nothing wider but on the CPU."""
    versions = {"textpolicy": RELEASE, "mlx": mx.__version__}
    return TrainerTarget(versions, DIALECT, RELEASE, policy_loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """`create_gspo_policy_loss(variant="sequence")` with a clip range, called as `Trainer` calls it: without lengths."""
    documented = claims().as_documented(token_advantages=False, layouts=frozenset({"padded"}))
    return replace(documented, loss=as_trained)
