"""`grpo_loss` under the settings of a run, with stand-ins for tokens and the model's forward pass; advantages by its own function."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import numpy as np

from ..stubs import stub

stub("mlx_lm", "transformers", "datasets", "yaml")

from mlx_lm_lora.trainer import grpo_trainer

from ...frameworks.mlx import array
from ...target import INPUT_DTYPES, Case, Skip
from ...words import HarnessError
from .. import demands
from ..adapter import Settings, TrainerTarget, mlx_loss, offered
from .dialect import DEFAULTS, DIALECT

RELEASE = version("mlx-lm-lora")
if not hasattr(grpo_trainer, "_get_token_logps"):
    raise HarnessError(
        f"mlx-lm-lora {RELEASE} has no policy that sampled: up to 3.1.3 its ratio is that to the reference model, "
        "of float16 log-probabilities without the prompt; 5.8.6 is the first release that can be checked"
    )
# A model is its log-probabilities here, a batch its mask: one prompt of one token, and the responses behind it.
grpo_trainer._get_token_logps = lambda model, inputs, mask, start: model
grpo_trainer._prepare_grpo_inputs = lambda batch, mask, indices: (None, mask, mask.sum(axis=1))


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """`grpo_loss` of a batch. No argument of it takes old log-probabilities: those of the case are not handed over."""
    if case.inputs["advantages"].ndim > 1:
        raise Skip("mlx-lm-lora's advantages are one number a response")
    every, inputs = DEFAULTS | settings, case.inputs
    mask, advantages = array(inputs["mask"] != 0), array(inputs["advantages"], "float32")
    reference = array(inputs["ref_logp"], case.input_dtype) if "ref_logp" in inputs else None

    def loss(logp: mx.array) -> mx.array:
        return grpo_trainer.grpo_loss(
            logp,
            reference,
            batch=[[[0]]],
            completions=mask,
            batch_indices=[0],
            advantages=advantages,
            beta=every["beta"],
            epsilon=every["epsilon"],
            epsilon_high=every["epsilon_high"],
            max_tokens=every["max_completion_length"],
            importance_sampling_level=every["importance_sampling_level"],
            grpo_loss_type=every["grpo_loss_type"],
        )[0]

    return mlx_loss(case, loss)


def ratio(case: Case) -> Mapping[str, Any]:
    """exp of `compute_log_importance_weights`, which takes any log-ratio; 1 at uncounted tokens, which nothing reads."""
    kind = case.parameters["kind"]
    if kind not in ("token", "sequence"):
        raise Skip(f"mlx-lm-lora has no {kind} ratio")
    mask = array(case.inputs["mask"] != 0)
    logp, old = (array(case.inputs[name], case.input_dtype).astype(mx.float32) for name in ("logp", "old_logp"))
    log_ratio = mx.where(mask, logp, 0) - mx.where(mask, old, 0)
    found = np.array(mx.exp(grpo_trainer.compute_log_importance_weights(log_ratio, mask, kind)))
    return {"ratio": found[:, 0] if kind == "sequence" else found}


def group_advantages(case: Case) -> Mapping[str, Any]:
    """`calculate_rewards_and_advantages` with one reward function; float32 whatever the rewards."""
    asked = {"center": "mean", "scale": "std"} | dict(case.parameters)
    if (asked["center"], asked["scale"]) != ("mean", "std"):
        raise Skip("mlx-lm-lora's advantages are (r - mean) / (std + 1e-4)")
    demands.std(case, "mlx-lm-lora", 1e-4, ddof=0)
    rewards, groups = case.inputs["rewards"], case.inputs["groups"].tolist()
    texts = [""] * len(groups)
    unused = dict.fromkeys(("expanded_prompts", "expanded_answers", "expanded_types"), texts)
    found, _ = grpo_trainer.calculate_rewards_and_advantages(
        reward_funcs=[lambda **_: rewards.tolist()],
        all_completion_texts=texts,
        batch_indices=groups,
        unique_prompt_indices=sorted(set(groups)),
        **unused,
    )
    return {"advantages": np.array(found)}


OPERATIONS = {"ratio": ratio, "group_advantages": group_advantages}
CAPABILITIES = offered(
    OPERATIONS,
    "logp old_logp advantages mask ref_logp groups rewards",
    "objective center scale ddof eps eps_placement kind",
    input_dtypes=INPUT_DTYPES,
)


def claims() -> TrainerTarget:
    """Every objective that its settings claim, in float32, as its log-probabilities are whatever the logits."""
    versions = {"mlx-lm-lora": RELEASE, "mlx": mx.__version__}
    return TrainerTarget(versions, DIALECT, RELEASE, policy_loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """A sequence ratio and a clip range, all else as it comes; the reference of its KL term is the policy itself."""
    return claims().as_documented()
